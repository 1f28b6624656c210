//! Names of system calls in which threads sleep or wait for locks.

/// The name of a system call in which threads sleep; its number for others.
pub(super) fn call_name(number: u32) -> String {
    let names = SLEEPING.iter().find(|(known, _)| *known == i64::from(number));
    names.map_or_else(|| format!("system call {number}"), |(_, name)| (*name).to_owned())
}

macro_rules! calls {
    ($($name:ident = $number:ident,)*) => {
        /// System calls in which threads usually sleep.
        const SLEEPING: &[(i64, &str)] = &[$((libc::$number, stringify!($name)),)*];
    };
}

calls! {
    read = SYS_read,
    write = SYS_write,
    readv = SYS_readv,
    writev = SYS_writev,
    pread64 = SYS_pread64,
    pwrite64 = SYS_pwrite64,
    preadv = SYS_preadv,
    pwritev = SYS_pwritev,
    sendfile = SYS_sendfile,
    splice = SYS_splice,
    openat = SYS_openat,
    fsync = SYS_fsync,
    fdatasync = SYS_fdatasync,
    sync = SYS_sync,
    syncfs = SYS_syncfs,
    sync_file_range = SYS_sync_file_range,
    msync = SYS_msync,
    flock = SYS_flock,
    fcntl = SYS_fcntl,
    rename = SYS_rename,
    unlink = SYS_unlink,
    getdents64 = SYS_getdents64,
    connect = SYS_connect,
    accept = SYS_accept,
    accept4 = SYS_accept4,
    sendto = SYS_sendto,
    recvfrom = SYS_recvfrom,
    sendmsg = SYS_sendmsg,
    recvmsg = SYS_recvmsg,
    recvmmsg = SYS_recvmmsg,
    sendmmsg = SYS_sendmmsg,
    poll = SYS_poll,
    ppoll = SYS_ppoll,
    select = SYS_select,
    pselect6 = SYS_pselect6,
    epoll_wait = SYS_epoll_wait,
    epoll_pwait = SYS_epoll_pwait,
    epoll_pwait2 = SYS_epoll_pwait2,
    io_uring_enter = SYS_io_uring_enter,
    io_getevents = SYS_io_getevents,
    futex = SYS_futex,
    nanosleep = SYS_nanosleep,
    clock_nanosleep = SYS_clock_nanosleep,
    pause = SYS_pause,
    rt_sigtimedwait = SYS_rt_sigtimedwait,
    rt_sigsuspend = SYS_rt_sigsuspend,
    wait4 = SYS_wait4,
    waitid = SYS_waitid,
    vfork = SYS_vfork,
    clone = SYS_clone,
    execve = SYS_execve,
    mmap = SYS_mmap,
    munmap = SYS_munmap,
    mprotect = SYS_mprotect,
    madvise = SYS_madvise,
    brk = SYS_brk,
    mremap = SYS_mremap,
    semtimedop = SYS_semtimedop,
    msgrcv = SYS_msgrcv,
    restart_syscall = SYS_restart_syscall,
    sched_yield = SYS_sched_yield,
    membarrier = SYS_membarrier,
}
