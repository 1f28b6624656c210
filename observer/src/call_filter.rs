//! The system calls that the daemon may still make once its programs are attached, and those of a process
//! that reads a file of others (seccomp).
//!
//! Any other call fails with EPERM, and nothing dies of it: should a library or a later kernel need one
//! that is missing here, that is an error like others, which is reported. Programs cannot be executed,
//! nor processes forked.

use std::collections::BTreeMap;

use libc::*;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, apply_filter, apply_filter_all_threads,
};

/// Files: the trace, /proc, cgroups, tracefs.
const FILES: &[c_long] = &[
    SYS_read,
    SYS_write,
    SYS_readv,
    SYS_writev,
    SYS_pread64,
    SYS_pwrite64,
    SYS_preadv,
    SYS_pwritev,
    SYS_preadv2,
    SYS_pwritev2,
    SYS_open,
    SYS_openat,
    SYS_openat2,
    SYS_creat,
    SYS_close,
    SYS_close_range,
    SYS_lseek,
    SYS_stat,
    SYS_fstat,
    SYS_lstat,
    SYS_newfstatat,
    SYS_statx,
    SYS_statfs,
    SYS_fstatfs,
    SYS_access,
    SYS_faccessat,
    SYS_faccessat2,
    SYS_readlink,
    SYS_readlinkat,
    SYS_getdents64,
    SYS_getcwd,
    SYS_dup,
    SYS_dup2,
    SYS_dup3,
    SYS_fcntl,
    SYS_ioctl,
    SYS_flock,
    SYS_fsync,
    SYS_fdatasync,
    SYS_sync_file_range,
    SYS_ftruncate,
    SYS_fallocate,
    SYS_fadvise64,
    SYS_rename,
    SYS_renameat,
    SYS_renameat2,
    SYS_unlink,
    SYS_unlinkat,
    SYS_mkdir,
    SYS_mkdirat,
    SYS_rmdir,
    SYS_pipe,
    SYS_pipe2,
    SYS_umask,
    SYS_name_to_handle_at,
    SYS_getxattr,
];

/// Memory.
const MEMORY: &[c_long] = &[
    SYS_mmap,
    SYS_munmap,
    SYS_mremap,
    SYS_mprotect,
    SYS_madvise,
    SYS_mincore,
    SYS_msync,
    SYS_brk,
    SYS_membarrier,
];

/// Threads, signals, and the end of the process, by abort(3) too.
const THREADS: &[c_long] = &[
    SYS_exit,
    SYS_exit_group,
    SYS_futex,
    SYS_futex_waitv,
    SYS_set_robust_list,
    SYS_get_robust_list,
    SYS_rseq,
    SYS_set_tid_address,
    SYS_gettid,
    SYS_getpid,
    SYS_getppid,
    SYS_tgkill,
    SYS_sched_yield,
    SYS_sched_getaffinity,
    SYS_getcpu,
    SYS_arch_prctl,
    SYS_prctl,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_rt_sigtimedwait,
    SYS_rt_sigpending,
    SYS_sigaltstack,
    SYS_restart_syscall,
    SYS_pause,
];

/// Time.
const TIME: &[c_long] = &[
    SYS_clock_gettime,
    SYS_clock_getres,
    SYS_clock_nanosleep,
    SYS_nanosleep,
    SYS_gettimeofday,
    SYS_time,
    SYS_times,
    SYS_timerfd_create,
    SYS_timerfd_settime,
    SYS_timerfd_gettime,
];

/// Scrapes and journald: connections are accepted and served, and none is listened for anew.
const NETWORK: &[c_long] = &[
    SYS_epoll_create,
    SYS_epoll_create1,
    SYS_epoll_ctl,
    SYS_epoll_wait,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_poll,
    SYS_ppoll,
    SYS_select,
    SYS_pselect6,
    SYS_eventfd,
    SYS_eventfd2,
    SYS_socket,
    SYS_socketpair,
    SYS_connect,
    SYS_accept,
    SYS_accept4,
    SYS_getsockname,
    SYS_getpeername,
    SYS_getsockopt,
    SYS_setsockopt,
    SYS_sendto,
    SYS_sendmsg,
    SYS_sendmmsg,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_recvmmsg,
    SYS_shutdown,
];

/// Questions to the system, and rights that are given up.
const SYSTEM: &[c_long] = &[
    SYS_uname,
    SYS_sysinfo,
    SYS_getuid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getegid,
    SYS_getgroups,
    SYS_getrusage,
    SYS_getrlimit,
    SYS_prlimit64,
    SYS_getpriority,
    SYS_sched_getscheduler,
    SYS_sched_getparam,
    SYS_getrandom,
    SYS_capget,
    SYS_capset,
    SYS_pidfd_open,
    SYS_kcmp,
];

/// What the budget needs to attach probes again and to measure them.
const PROBES: &[c_long] = &[SYS_bpf, SYS_perf_event_open];

/// What a process needs that reads a file which is mapped already, and answers through a descriptor that
/// is open. Memory is in [`without_code`].
const READER: &[c_long] = &[
    SYS_read,
    SYS_write,
    SYS_recvfrom,
    SYS_sendto,
    SYS_close,
    SYS_fstat,
    SYS_lseek,
    SYS_munmap,
    SYS_mremap,
    SYS_madvise,
    SYS_brk,
    SYS_futex,
    SYS_clock_gettime,
    SYS_getrandom,
    SYS_getpid,
    SYS_gettid,
    SYS_tgkill,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sigaltstack,
    SYS_restart_syscall,
    SYS_exit,
    SYS_exit_group,
];

fn action(errno: c_int) -> SeccompAction {
    SeccompAction::Errno(errno.unsigned_abs())
}

/// The filters, in the order in which they are applied.
fn filters() -> Result<[BpfProgram; 2], BackendError> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let always = |call: &c_long| (*call, Vec::new());
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> =
        [FILES, MEMORY, THREADS, TIME, NETWORK, SYSTEM, PROBES, &[SYS_clone3]]
            .into_iter()
            .flatten()
            .map(always)
            .collect();
    let is_thread = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(CLONE_THREAD as u64),
        CLONE_THREAD as u64,
    )?;
    allowed.insert(SYS_clone, vec![SeccompRule::new(vec![is_thread])?]);
    // Its flags cannot be looked at. Without it, the C library uses clone.
    let without = [(SYS_clone3, Vec::new())].into_iter().collect();
    Ok([
        SeccompFilter::new(without, SeccompAction::Allow, action(ENOSYS), architecture)?
            .try_into()?,
        SeccompFilter::new(allowed, action(EPERM), SeccompAction::Allow, architecture)?
            .try_into()?,
    ])
}

/// Whose calls are filtered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread, and those that it starts.
    Own,
    /// All threads of the process.
    All,
}

/// Filters the calls from now on, for good.
///
/// # Errors
/// When the kernel has no such filters, or a thread has other ones.
pub fn apply(threads: Threads) -> Result<(), Error> {
    let apply = match threads {
        Threads::Own => apply_filter,
        Threads::All => apply_filter_all_threads,
    };
    filters()?.iter().try_for_each(|filter| apply(filter))
}

/// The calls that make memory, as long as nothing in it can be executed.
fn without_code() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let no_code = SeccompCondition::new(
        2,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(PROT_EXEC as u64),
        0,
    )?;
    let rules =
        || -> Result<_, BackendError> { Ok(vec![SeccompRule::new(vec![no_code.clone()])?]) };
    Ok([(SYS_mmap, rules()?), (SYS_mprotect, rules()?)].into())
}

/// From now on, the calling thread may only compute, answer, and end.
///
/// # Errors
/// When the kernel has no such filters.
pub fn apply_to_reader() -> Result<(), Error> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let mut allowed = without_code()?;
    allowed.extend(READER.iter().map(|call| (*call, Vec::new())));
    let filter = SeccompFilter::new(allowed, action(EPERM), SeccompAction::Allow, architecture)?;
    let program: BpfProgram = filter.try_into()?;
    apply_filter(&program)
}

/// Whether the kernel can make calls fail (`SECCOMP_GET_ACTION_AVAIL`).
#[must_use]
pub fn is_available() -> bool {
    let action = SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads a number that lives through the call.
    unsafe { syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind, Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};

    use rustix::io::Errno;
    use rustix::mm::MprotectFlags;

    use super::*;

    /// include/uapi/linux/kcmp.h
    const KCMP_FILES: c_int = 2;

    #[test]
    fn what_is_not_allowed_fails_and_nothing_dies() {
        assert!(is_available());
        let directory = tempfile::tempdir().expect("a directory");
        let journal = directory.path().join("socket");
        let _listener = UnixListener::bind(&journal).expect("a socket");
        let thread = std::thread::spawn(move || {
            apply(Threads::Own).expect("a filter");
            let refused = |result: c_long| {
                assert_eq!(result, -1);
                assert_eq!(Error::last_os_error().raw_os_error(), Some(EPERM));
            };
            let spawned = std::process::Command::new("/bin/true").spawn();
            assert_eq!(spawned.expect_err("no process").kind(), ErrorKind::PermissionDenied);
            for call in [
                SYS_execve,
                SYS_execveat,
                SYS_fork,
                SYS_vfork,
                SYS_ptrace,
                SYS_process_vm_readv,
                SYS_process_vm_writev,
                SYS_mount,
                SYS_umount2,
                SYS_unshare,
                SYS_setns,
                SYS_pivot_root,
                SYS_chroot,
                SYS_kexec_load,
                SYS_init_module,
                SYS_finit_module,
                SYS_delete_module,
                SYS_keyctl,
                SYS_add_key,
                SYS_reboot,
                SYS_kill,
                SYS_setuid,
                SYS_io_uring_setup,
                SYS_userfaultfd,
                SYS_open_by_handle_at,
                SYS_listen,
            ] {
                // SAFETY: the call is refused before its arguments are looked at.
                refused(unsafe { syscall(call, 0, 0, 0, 0, 0, 0) });
            }
            // SAFETY: as above.
            refused(unsafe { syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) });
            // What it does all the time, on threads of its own too.
            let name = std::thread::spawn(|| std::fs::read_to_string("/proc/self/comm"));
            assert!(name.join().expect("no panic").is_ok());
            assert!(tempfile::tempfile().is_ok());
            let mut journal = UnixStream::connect(&journal).expect("a connection");
            assert!(journal.write_all(b"<4>a line\n").is_ok());
            // Which tables of descriptors threads share.
            // SAFETY: takes no pointer.
            let compared = unsafe { syscall(SYS_kcmp, gettid(), gettid(), KCMP_FILES, 0, 0) };
            let errno = Error::last_os_error().raw_os_error();
            assert!(compared == 0 || errno == Some(ENOSYS), "{errno:?}");
            // A panic, and the names of the functions that led to it.
            assert!(std::panic::catch_unwind(|| panic!("a test")).is_err());
            let trace = std::backtrace::Backtrace::force_capture().to_string();
            assert!(trace.contains("std::"), "{trace}");
        });
        thread.join().expect("no panic");
        // Other threads are as before.
        assert!(std::process::Command::new("/bin/true").status().is_ok());
    }

    #[test]
    fn a_reader_can_compute_and_answer_and_nothing_else() {
        let (connection, mut its_end) = UnixStream::pair().expect("a pair");
        let thread = std::thread::spawn(move || {
            apply_to_reader().expect("a filter");
            for result in [
                std::fs::File::open("/proc/self/comm").map(drop),
                std::fs::metadata("/").map(drop),
                UnixStream::connect("/run/nowhere").map(drop),
                std::process::Command::new("/bin/true").spawn().map(drop),
            ] {
                assert_eq!(result.expect_err("refused").kind(), ErrorKind::PermissionDenied);
            }
            let memory = |rights| {
                let flags = MAP_PRIVATE | MAP_ANONYMOUS;
                // SAFETY: a fresh mapping at an address of the kernel's choice.
                unsafe { mmap(std::ptr::null_mut(), 4096, rights, flags, -1, 0) }
            };
            let (data, code) = (memory(PROT_READ | PROT_WRITE), memory(PROT_READ | PROT_EXEC));
            assert!(data != MAP_FAILED && code == MAP_FAILED);
            // SAFETY: the mapping from above, which nothing uses. The function of the C library passes on 64 bits of
            // the 32 that it takes, of which the kernel refuses what is left over.
            let change = |to: MprotectFlags| unsafe { rustix::mm::mprotect(data, 4096, to) };
            assert_eq!(change(MprotectFlags::READ), Ok(()));
            assert_eq!(change(MprotectFlags::EXEC), Err(Errno::PERM));
            let large = vec![1_u8; 64 << 20];
            assert!(large.iter().all(|one| *one == 1));
            assert!(std::panic::catch_unwind(|| panic!("a test")).is_err());
            its_end.write_all(b"an answer").expect("it is written");
        });
        thread.join().expect("no panic");
        let mut answer = String::new();
        (&connection).read_to_string(&mut answer).expect("an answer");
        assert_eq!(answer, "an answer");
    }
}
