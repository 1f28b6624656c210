//! Reading kernel structs at offsets from the running kernel's BTF, and the current time.

use aya_ebpf::helpers::{
    bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_probe_read_kernel_buf,
};
use observer_ebpf::wire::COMM_LEN;

use crate::config;

/// A kernel `task_struct` the verifier trusts (a BTF-typed tracepoint argument, or the current
/// task): loads through it need no helper.
#[derive(Clone, Copy)]
pub(crate) struct Task(*const u8);

/// Loads a `T` at `base + offset` directly.
///
/// # Safety
/// `base` must be a pointer the verifier tracks as BTF-typed; it refuses the program otherwise.
#[inline(always)]
unsafe fn load<T: Copy>(base: *const u8, offset: u32) -> T {
    // SAFETY: the verifier checks the access against the type; faults read as zero.
    unsafe { core::ptr::read_volatile(base.add(offset as usize).cast::<T>()) }
}

impl Task {
    #[inline(always)]
    pub(crate) const fn new(task: *const u8) -> Self {
        Self(task)
    }

    /// The task that runs this program.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        // SAFETY: the helper takes no arguments and always returns the current task.
        Self(unsafe { bpf_get_current_task_btf() }.cast_const().cast())
    }

    #[inline(always)]
    fn field<T: Copy>(self, offset: u32) -> T {
        // SAFETY: `self.0` is BTF-typed by construction.
        unsafe { load(self.0, offset) }
    }

    #[inline(always)]
    pub(crate) fn tid(self) -> u32 {
        self.field(config::off_task_pid())
    }

    #[inline(always)]
    pub(crate) fn tgid(self) -> u32 {
        self.field(config::off_task_tgid())
    }

    /// Nanoseconds the thread has waited for a CPU so far, without the wait under way.
    #[inline(always)]
    pub(crate) fn run_delay_ns(self) -> u64 {
        self.field(config::off_task_run_delay())
    }

    /// When the thread was queued on its run queue, on the run queue's clock; 0 when it does not
    /// wait.
    #[inline(always)]
    pub(crate) fn last_queued_ns(self) -> u64 {
        self.field(config::off_task_last_queued())
    }

    /// Times the thread lost the CPU while it could have gone on.
    #[inline(always)]
    pub(crate) fn involuntary_switches(self) -> u64 {
        self.field(config::off_task_nivcsw())
    }

    /// The clock of the run queue the thread is on, as of the scheduler's last update.
    #[inline(always)]
    pub(crate) fn run_queue_clock_ns(self) -> u64 {
        let cfs_rq = self.field::<*const u8>(config::off_task_cfs_rq());
        // SAFETY: the verifier types each loaded pointer; a fault reads as zero.
        unsafe {
            let run_queue = load::<*const u8>(cfs_rq, config::off_cfs_rq_rq());
            load(run_queue, config::off_rq_clock())
        }
    }

    /// `PF_KTHREAD` (include/linux/sched.h).
    #[inline(always)]
    pub(crate) fn is_kernel_thread(self) -> bool {
        const PF_KTHREAD: u32 = 0x0020_0000;
        self.field::<u32>(config::off_task_flags()) & PF_KTHREAD != 0
    }

    /// The current system call came through the 32-bit entry: `TS_COMPAT`
    /// (arch/x86/include/asm/thread_info.h).
    #[inline(always)]
    pub(crate) fn in_compat_syscall(self) -> bool {
        const TS_COMPAT: u32 = 2;
        self.field::<u32>(config::off_task_status()) & TS_COMPAT != 0
    }

    /// Threads of the process that have not begun to exit (`signal_struct::live`).
    #[inline(always)]
    pub(crate) fn live_threads(self) -> u32 {
        let signal = self.field::<*const u8>(config::off_task_signal());
        // SAFETY: the verifier types the loaded pointer as `signal_struct`.
        unsafe { load(signal, config::off_signal_live()) }
    }

    #[inline(always)]
    pub(crate) fn comm(self) -> [u8; COMM_LEN] {
        let mut comm = [0; COMM_LEN];
        // SAFETY: a kernel address; the helper reports a fault instead of taking it, and the
        // name is then empty.
        let _ = unsafe {
            bpf_probe_read_kernel_buf(self.0.add(config::off_task_comm() as usize), &mut comm)
        };
        comm
    }

    /// The task's membership in all cgroup hierarchies.
    #[inline(always)]
    pub(crate) fn css_set(self) -> *const u8 {
        self.field(config::off_task_cgroups())
    }

    /// Id (inode number) of the task's cgroup: of the v1 memory hierarchy, or of v2.
    #[inline(always)]
    pub(crate) fn cgroup_id(self) -> u64 {
        let css_set = self.css_set();
        // SAFETY: the verifier types each loaded pointer; a fault reads as zero.
        unsafe {
            let cgroup = if config::cgroup_v1() != 0 {
                let css = load::<*const u8>(css_set, config::off_css_set_memory());
                load::<*const u8>(css, config::off_css_cgroup())
            } else {
                load::<*const u8>(css_set, config::off_css_set_dfl_cgrp())
            };
            let node = load::<*const u8>(cgroup, config::off_cgroup_kn());
            load::<u64>(node, config::off_kn_id())
        }
    }

    /// The `struct sock` behind a descriptor of the current task, with family and type; `None`
    /// when the descriptor is not an IP socket or cannot be followed.
    #[inline(always)]
    pub(crate) fn ip_socket(self, fd: u32) -> Option<(u64, u32, u32)> {
        const AF_INET: u16 = 2;
        const AF_INET6: u16 = 10;
        let files = self.field::<*const u8>(config::off_task_files());
        // SAFETY: kernel addresses read through a helper that reports faults.
        unsafe {
            let table = read::<*const u8>(files, config::off_files_fdt())?;
            let descriptors = read::<*const u8>(table, config::off_fdt_fd())?;
            let file = read::<*const u8>(descriptors, fd * 8)?;
            let socket = read::<*const u8>(file, config::off_file_private())?;
            let sock = read::<*const u8>(socket, config::off_socket_sk())?;
            let family = read::<u16>(sock, config::off_sock_family())?;
            if family != AF_INET && family != AF_INET6 {
                return None;
            }
            let socket_type = read::<u16>(sock, config::off_sock_type())?;
            Some((sock as u64, u32::from(family), u32::from(socket_type)))
        }
    }
}

/// Reads a `T` at `base + offset` through the fault-reporting helper.
///
/// # Safety
/// None beyond the helper's: any address may be passed.
#[inline(always)]
unsafe fn read<T: Copy>(base: *const u8, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset as usize).cast::<T>()) }.ok()
}

/// System-call number and arguments of the registers saved at system-call entry.
#[derive(Clone, Copy)]
pub(crate) struct Registers(*const u8);

impl Registers {
    #[inline(always)]
    pub(crate) const fn new(registers: *const u8) -> Self {
        Self(registers)
    }

    #[inline(always)]
    fn field(self, offset: u32) -> u64 {
        // SAFETY: a BTF-typed argument of the system-call tracepoints.
        unsafe { load(self.0, offset) }
    }

    #[inline(always)]
    pub(crate) fn number(self) -> u64 {
        self.field(config::off_regs_number())
    }

    #[inline(always)]
    pub(crate) fn arguments(self) -> [u64; 3] {
        [
            self.field(config::off_regs_arg0()),
            self.field(config::off_regs_arg1()),
            self.field(config::off_regs_arg2()),
        ]
    }
}

/// `CLOCK_MONOTONIC`, nanoseconds.
#[inline(always)]
pub(crate) fn now_ns() -> u64 {
    // SAFETY: the helper takes no arguments.
    unsafe { bpf_ktime_get_ns() }
}
