//! Reading kernel structs at offsets from the running kernel's BTF, arguments of programs, and the
//! current time.

use core::{arch::asm, ffi::c_void, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::task_struct,
    helpers::{
        bpf_get_current_task, bpf_get_current_task_btf, bpf_ktime_get_ns, bpf_probe_read_kernel,
        bpf_probe_read_kernel_buf,
        generated::{bpf_get_stackid, bpf_probe_read_kernel_str, bpf_task_pt_regs},
    },
    maps::StackTrace,
};
use observer_ebpf::wire::COMM_LEN;

mod group_queue;
mod irq;
mod lock;
mod sock;

pub(crate) use group_queue::GroupQueue;
pub(crate) use irq::interrupt_name;
pub(crate) use lock::write_owner;
pub(crate) use sock::Sock;

use crate::config;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// A kernel address, and whether the verifier knows the type of the object there.
///
/// `typed` is always set from a constant, so the compiler keeps only one of the two ways of reading
/// in each program.
#[derive(Clone, Copy)]
struct Pointer {
    address: *const u8,
    typed: bool,
}

impl Pointer {
    /// Reads a `T` at `offset`: a plain load where the verifier tracks the pointer as BTF-typed
    /// (it refuses the program otherwise), else through the helper that reports faults. A fault
    /// reads as zero either way.
    #[inline(always)]
    fn load<T: Copy + Default>(self, offset: u32) -> T {
        let at = self.address.wrapping_add(offset as usize).cast::<T>();
        if self.typed {
            // SAFETY: the verifier checks the access against the type.
            unsafe { core::ptr::read_volatile(at) }
        } else {
            // SAFETY: the helper checks the address.
            unsafe { bpf_probe_read_kernel(at) }.unwrap_or_default()
        }
    }

    /// The pointer stored at `offset`.
    #[inline(always)]
    fn follow(self, offset: u32) -> Self {
        Self { address: self.load(offset), typed: self.typed }
    }
}

/// The text at an address, cut and NUL padded; empty where it cannot be read.
#[inline(always)]
fn name_at(address: u64) -> [u8; COMM_LEN] {
    let mut name = [0; COMM_LEN];
    // SAFETY: the helper checks the address and writes at most the given length; it ends the name with
    // a NUL.
    let _ = unsafe {
        bpf_probe_read_kernel_str(
            name.as_mut_ptr().cast(),
            COMM_LEN as u32,
            address as *const c_void,
        )
    };
    name
}

/// Arguments of a tracepoint or of a traced function, one word each, followed by the return value
/// where the function has returned.
#[derive(Clone, Copy)]
pub(crate) struct Arguments {
    context: *const u64,
    typed: bool,
}

impl Arguments {
    /// Of a program whose arguments the verifier types (tp_btf, fentry, fexit).
    #[inline(always)]
    pub(crate) fn typed(context: &impl EbpfContext) -> Self {
        Self { context: context.as_ptr().cast_const().cast(), typed: true }
    }

    /// Whether the verifier types them.
    #[inline(always)]
    pub(crate) const fn are_typed(self) -> bool {
        self.typed
    }

    /// Of a raw tracepoint, where they are untyped numbers.
    #[inline(always)]
    pub(crate) fn raw(context: &impl EbpfContext) -> Self {
        Self { context: context.as_ptr().cast_const().cast(), typed: false }
    }

    /// Whether the verifier types them.
    #[inline(always)]
    pub(crate) const fn is_typed(self) -> bool {
        self.typed
    }

    /// The argument at position `N`, from 0.
    ///
    /// In assembly, since the verifier takes a context access at a fixed offset only, and the
    /// compiler would merge two that differ in their offset.
    #[inline(always)]
    pub(crate) fn word<const N: i32>(self) -> u64 {
        let word: u64;
        // SAFETY: reads the context, which the verifier bounds.
        unsafe {
            asm!(
                "{word} = *(u64 *)({context} + {bytes})",
                word = out(reg) word,
                context = in(reg) self.context,
                bytes = const N * 8,
                options(nostack, readonly),
            );
        }
        word
    }

    /// The id in this map of the current thread's stack, by `BPF_F_USER_STACK` of its part in user space; the
    /// number of an error where there is none.
    #[inline(always)]
    pub(crate) fn stack_id(self, map: &'static StackTrace, flags: u64) -> i32 {
        // SAFETY: the verifier checks context and map.
        let id = unsafe {
            bpf_get_stackid(
                self.context.cast_mut().cast(),
                ptr::from_ref(map).cast_mut().cast(),
                flags,
            )
        };
        id as i32
    }

    /// The task at position `N`.
    #[inline(always)]
    pub(crate) fn task<const N: i32>(self) -> Task {
        Task(Pointer { address: self.word::<N>() as *const u8, typed: self.typed })
    }

    /// The program that is executed (`struct linux_binprm`) at position `N`.
    #[inline(always)]
    pub(crate) fn executable<const N: i32>(self) -> Executable {
        let program = Pointer { address: self.word::<N>() as *const u8, typed: self.typed };
        Executable(program.follow(config::off_bprm_file()).follow(config::off_file_inode()))
    }

    /// The port at the other end of the socket at position `N`; 0 if it is not known.
    #[inline(always)]
    pub(crate) fn port<const N: i32>(self) -> u16 {
        self.sock::<N>().remote_port()
    }

    /// The socket behind the `struct socket` at position `N`; `None` where there is none yet.
    #[inline(always)]
    pub(crate) fn sock_of_socket<const N: i32>(self) -> Option<Sock> {
        let socket = Pointer { address: self.word::<N>() as *const u8, typed: self.typed };
        let sock = socket.follow(config::off_socket_sk());
        (!sock.address.is_null()).then_some(Sock(sock))
    }

    /// The socket at position `N`.
    #[inline(always)]
    pub(crate) fn sock<const N: i32>(self) -> Sock {
        Sock(Pointer { address: self.word::<N>() as *const u8, typed: self.typed })
    }

    /// The command name at position `N`, as long as the kernel keeps it, NUL padded.
    #[inline(always)]
    pub(crate) fn comm<const N: i32>(self) -> [u8; COMM_LEN] {
        name_at(self.word::<N>())
    }

    /// The registers of the system call at position `N`.
    #[inline(always)]
    pub(crate) fn registers<const N: i32>(self) -> Registers {
        Registers(Pointer { address: self.word::<N>() as *const u8, typed: self.typed })
    }
}

/// The file of a program that is executed: its `struct inode`.
#[derive(Clone, Copy)]
pub(crate) struct Executable(Pointer);

impl Executable {
    /// Its inode number.
    #[inline(always)]
    pub(crate) fn inode(self) -> u64 {
        self.0.load(config::off_inode_number())
    }

    /// Its device, as the kernel numbers it.
    #[inline(always)]
    pub(crate) fn device(self) -> u64 {
        let device: u32 = self.0.follow(config::off_inode_super()).load(config::off_super_device());
        u64::from(device)
    }
}

/// A kernel `task_struct`.
#[derive(Clone, Copy)]
pub(crate) struct Task(Pointer);

impl Task {
    /// Whether the verifier knows that it is one.
    #[inline(always)]
    pub(crate) const fn is_typed(self) -> bool {
        self.0.typed
    }

    /// The task at this address, read by the helper that reports faults.
    #[inline(always)]
    pub(crate) const fn at(address: u64) -> Self {
        Self(Pointer { address: address as *const u8, typed: false })
    }

    /// Where it is.
    #[inline(always)]
    pub(crate) fn address(self) -> u64 {
        self.0.address as u64
    }

    #[inline(always)]
    pub(crate) const fn as_ptr(self) -> *mut task_struct {
        self.0.address.cast_mut().cast()
    }

    /// The task that runs this program.
    #[inline(always)]
    pub(crate) fn current() -> Self {
        if config::kernel_btf() != 0 {
            // SAFETY: the helper takes no arguments and always returns the current task.
            let task = unsafe { bpf_get_current_task_btf() };
            Self(Pointer { address: task.cast_const().cast(), typed: true })
        } else {
            // SAFETY: as above.
            let task = unsafe { bpf_get_current_task() };
            Self(Pointer { address: task as *const u8, typed: false })
        }
    }

    #[inline(always)]
    fn field<T: Copy + Default>(self, offset: u32) -> T {
        self.0.load(offset)
    }

    #[inline(always)]
    pub(crate) fn tid(self) -> u32 {
        self.field(config::off_task_pid())
    }

    #[inline(always)]
    pub(crate) fn tgid(self) -> u32 {
        self.field(config::off_task_tgid())
    }

    /// The task that started it.
    #[inline(always)]
    pub(crate) fn parent(self) -> Self {
        Self(self.0.follow(config::off_task_parent()))
    }

    /// The first thread of its process.
    #[inline(always)]
    pub(crate) fn leader(self) -> Self {
        Self(self.0.follow(config::off_task_leader()))
    }

    /// Nanoseconds the thread has waited for a CPU so far, without the current wait.
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

    /// When a thread that has the CPU got it, on the clock of its run queue, and how long ago that was, nanoseconds.
    /// Nothing where the kernel does not note that.
    #[inline(always)]
    pub(crate) fn arrival(self) -> Option<(u64, u64)> {
        let member = config::off_task_last_arrival();
        let arrival_ns = if member == 0 { 0 } else { self.field(member) };
        let ago_ns = self.run_queue_clock_ns().wrapping_sub(arrival_ns);
        (arrival_ns != 0 && ago_ns as i64 >= 0).then_some((arrival_ns, ago_ns))
    }

    /// [`run_delay_ns`](Self::run_delay_ns) with the current wait, of a thread that is about to run.
    #[inline(always)]
    pub(crate) fn waited_ns(self) -> u64 {
        let queued_ns = self.last_queued_ns();
        let last_ns =
            if queued_ns == 0 { 0 } else { self.run_queue_clock_ns().wrapping_sub(queued_ns) };
        self.run_delay_ns().wrapping_add(last_ns)
    }

    /// Times the thread lost the CPU while it could have gone on.
    #[inline(always)]
    pub(crate) fn involuntary_switches(self) -> u64 {
        self.field(config::off_task_nivcsw())
    }

    /// The thread sleeps, and is to leave its run queue later (`sched_entity::sched_delayed`).
    #[inline(always)]
    pub(crate) fn leaves_later(self) -> bool {
        self.field::<u8>(config::off_task_sched_delayed()) != 0
    }

    /// The clock of the run queue the thread is on, as of the scheduler's last update.
    #[inline(always)]
    pub(crate) fn run_queue_clock_ns(self) -> u64 {
        self.group_queue().0.follow(config::off_cfs_rq_rq()).load(config::off_rq_clock())
    }

    /// The run queue of its cgroup on its CPU.
    #[inline(always)]
    pub(crate) fn group_queue(self) -> GroupQueue {
        GroupQueue(self.0.follow(config::off_task_cfs_rq()))
    }

    /// Whether it is scheduled by time slices, so that CPU limits of cgroups hold it
    /// (`MAX_RT_PRIO`, include/linux/sched/prio.h).
    #[inline(always)]
    pub(crate) fn has_fair_priority(self) -> bool {
        const MAX_RT_PRIO: u32 = 100;
        config::off_task_priority() == 0
            || self.field::<u32>(config::off_task_priority()) >= MAX_RT_PRIO
    }

    /// `task_struct::__state` (`state` before Linux 5.14): 0 while it can run.
    #[inline(always)]
    pub(crate) fn state(self) -> u32 {
        self.field(config::off_task_state())
    }

    /// `task_struct::jobctl`: what signals, tracers and the freezer want of it.
    #[inline(always)]
    pub(crate) fn job_control(self) -> u64 {
        self.field(config::off_task_job_control())
    }

    /// `task_struct::in_iowait`: it gives up the CPU to wait for block I/O (`io_schedule`), or, in an
    /// interruptible sleep, for anything that was asked for through io_uring.
    #[inline(always)]
    pub(crate) fn in_iowait(self) -> bool {
        let bit = config::task_in_iowait();
        bit != 0 && u32::from(self.field::<u8>(config::off_task_in_iowait())) & bit != 0
    }

    /// The registers with which a thread that does not run entered the kernel: they lie at the end of its
    /// stack, behind which a kernel with FRED leaves 16 bytes (`TOP_OF_KERNEL_STACK_PADDING`,
    /// arch/x86/include/asm/thread_info.h). Nothing if they are not those of 64-bit user code.
    #[inline(always)]
    pub(crate) fn saved_registers(self) -> Option<Registers> {
        const USER_SEGMENT: u16 = 0x33;
        let is_there = |registers: &Registers| {
            registers.0.load::<u16>(config::off_regs_segment()) == USER_SEGMENT
        };
        if self.0.typed && config::has_task_registers() != 0 {
            // The kernel tells, and the verifier knows what is there, so that no helper has to read it.
            // SAFETY: the verifier checks that it is a task.
            let registers = unsafe { bpf_task_pt_regs(self.as_ptr()) };
            return Some(Registers(Pointer { address: registers as *const u8, typed: true }))
                .filter(is_there);
        }
        let end =
            self.field::<u64>(config::off_task_stack()) + u64::from(config::stack_registers());
        Some(Registers::at(end))
            .filter(is_there)
            .or_else(|| Some(Registers::at(end - 16)).filter(is_there))
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
        self.0.follow(config::off_task_signal()).load(config::off_signal_live())
    }

    #[inline(always)]
    pub(crate) fn comm(self) -> [u8; COMM_LEN] {
        let mut comm = [0; COMM_LEN];
        // SAFETY: a kernel address; the helper reports a fault instead of taking it, and the
        // name is then empty.
        let _ = unsafe {
            bpf_probe_read_kernel_buf(
                self.0.address.wrapping_add(config::off_task_comm() as usize),
                &mut comm,
            )
        };
        comm
    }

    /// The task's membership in all cgroup hierarchies: the address of its `css_set`.
    #[inline(always)]
    pub(crate) fn css_set(self) -> u64 {
        self.field(config::off_task_cgroups())
    }

    /// Id (inode number) of the task's cgroup: of the v1 memory hierarchy, or of v2; 0 when the
    /// kernel's types do not tell how to find it.
    #[inline(always)]
    pub(crate) fn cgroup_id(self) -> u64 {
        let css_set = self.0.follow(config::off_task_cgroups());
        let cgroup = match config::cgroup_version() {
            1 => css_set.follow(config::off_css_set_memory()).follow(config::off_css_cgroup()),
            2 => css_set.follow(config::off_css_set_dfl_cgrp()),
            _ => return 0,
        };
        cgroup.follow(config::off_cgroup_kn()).load(config::off_kn_id())
    }

    /// The file behind a descriptor of the task, and what the file keeps: its `struct socket` if it is
    /// one.
    #[inline(always)]
    fn descriptor(self, fd: u32) -> Option<(*const u8, *const u8)> {
        let files = self.field::<*const u8>(config::off_task_files());
        // SAFETY: kernel addresses read through a helper that reports faults.
        unsafe {
            let table = read::<*const u8>(files, config::off_files_fdt())?;
            let descriptors = read::<*const u8>(table, config::off_fdt_fd())?;
            let file = read::<*const u8>(descriptors, fd * 8)?;
            Some((file, read::<*const u8>(file, config::off_file_private())?))
        }
    }

    /// The connection behind a descriptor of the task; `None` when it is none, or cannot be followed.
    #[inline(always)]
    pub(crate) fn connection(self, fd: u32) -> Option<Sock> {
        let (file, socket) = self.descriptor(fd)?;
        // SAFETY: kernel addresses read through a helper that reports faults.
        let sock = unsafe {
            // What another kind of file keeps there does not point back to the file.
            if read::<*const u8>(socket, config::off_socket_file())? != file {
                return None;
            }
            read::<*const u8>(socket, config::off_socket_sk())?
        };
        let sock = Sock(Pointer { address: sock, typed: false });
        let family = sock.0.load::<u16>(config::off_sock_family());
        ((family == AF_INET || family == AF_INET6) && sock.remote_port() != 0).then_some(sock)
    }

    /// The `struct sock` behind a descriptor of the current task, with family and type; `None`
    /// when the descriptor is not an IP socket or cannot be followed.
    #[inline(always)]
    pub(crate) fn ip_socket(self, fd: u32) -> Option<(u64, u32, u32)> {
        let (_, socket) = self.descriptor(fd)?;
        // SAFETY: kernel addresses read through a helper that reports faults.
        unsafe {
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
pub(crate) struct Registers(Pointer);

impl Registers {
    /// Registers at an address kept from the begin of the call.
    #[inline(always)]
    pub(crate) const fn at(address: u64) -> Self {
        Self(Pointer { address: address as *const u8, typed: false })
    }

    #[inline(always)]
    fn field(self, offset: u32) -> u64 {
        self.0.load(offset)
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
