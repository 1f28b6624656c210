//! Constants that the loader sets before it loads the programs. The verifier knows their values and
//! removes the code they switch off, so that code costs nothing.

/// Declares globals with a reader of the same name in lower case.
macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident: $reader:ident = $value:expr;)*) => {$(
        #[unsafe(no_mangle)]
        static $name: u32 = $value;

        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $reader() -> u32 {
            // SAFETY: reads a static of this object. Volatile, since the loader replaces the
            // value after compilation.
            unsafe { core::ptr::read_volatile(&raw const $name) }
        }
    )*};
}

globals! {
    /// Entries of the tables of threads minus one.
    TASK_MASK: task_mask = 0;
    /// 1 when two live threads can share an entry of these tables.
    TASKS_SHARE: tasks_share = 1;
    /// 1 when `RunqueueState` is in task-local storage.
    RUNQUEUE_STORED: runqueue_stored = 0;
    /// 1 when `FaultState` is in task-local storage.
    FAULTS_STORED: faults_stored = 0;
    /// 1 when `MmSyscallState` is in task-local storage.
    MM_SYSCALLS_STORED: mm_syscalls_stored = 0;
    /// 1 when `ReclaimState` is in task-local storage.
    RECLAIMS_STORED: reclaims_stored = 0;
    /// 1 when `KernelLockState` is in task-local storage.
    KERNEL_LOCKS_STORED: kernel_locks_stored = 0;
    /// 1 when `SleepState` is in task-local storage.
    SLEEPS_STORED: sleeps_stored = 0;
    /// 1 when `IrqState` is in task-local storage.
    IRQ_BURSTS_STORED: irq_bursts_stored = 0;
    /// 1 when `StackState` is in task-local storage.
    STACK_STATES_STORED: stack_states_stored = 0;
    /// 1 when page faults are watched as well.
    WATCHES_FAULTS: watches_faults = 0;
    /// 1 when requests are watched as well.
    WATCHES_REQUESTS: watches_requests = 0;
    /// Rows of the cgroup histograms; 0 when nothing is counted by cgroup.
    CGROUP_ROWS: cgroup_rows = 0;
    /// How many CPUs share one stripe of these histograms, as a power of two.
    CGROUP_STRIPE_SHIFT: cgroup_stripe_shift = 0;
    /// 1 when there is a target: processes whose stalls become records.
    HAS_TARGET: has_target = 0;
    /// 1 when the cgroup of a task is the one of the v1 memory hierarchy, 2 when it is the one of v2,
    /// 0 when it cannot be found.
    CGROUP_VERSION: cgroup_version = 0;

    /// 1 when the programs log why they give up on an event.
    LOG_LOSSES: log_losses = 0;

    /// 1 when the kernel has BTF of its own: the current task is then a pointer the verifier
    /// types.
    KERNEL_BTF: kernel_btf = 1;

    /// 1 when the program on `sched_switch` whose tasks are typed is to measure waits for a CPU.
    SWITCH_RUNQUEUE: switch_runqueue = 0;
    /// 1 when it is to measure sleeps.
    SWITCH_SLEEP: switch_sleep = 0;
    /// [`switch_runqueue`] of the program that reads tasks by helper calls.
    SWITCH_RUNQUEUE_RAW: switch_runqueue_raw = 0;
    /// [`switch_sleep`] of that one.
    SWITCH_SLEEP_RAW: switch_sleep_raw = 0;
    /// 1 when the programs at the exit of all system calls are to measure memory-management calls.
    SYS_EXIT_MM: sys_exit_mm = 0;
    /// 1 when they are to count accepted sockets and descriptor exhaustion.
    SYS_EXIT_DESCRIPTORS: sys_exit_descriptors = 0;

    /// `task_struct::pid`.
    OFF_TASK_PID: off_task_pid = 0;
    /// `task_struct::tgid`.
    OFF_TASK_TGID: off_task_tgid = 0;
    /// `task_struct::flags`.
    OFF_TASK_FLAGS: off_task_flags = 0;
    /// `task_struct::group_leader`.
    OFF_TASK_LEADER: off_task_leader = 0;
    /// `task_struct::comm`.
    OFF_TASK_COMM: off_task_comm = 0;
    /// `task_struct::real_parent`.
    OFF_TASK_PARENT: off_task_parent = 0;
    /// `linux_binprm::file`.
    OFF_BPRM_FILE: off_bprm_file = 0;
    /// `file::f_inode`.
    OFF_FILE_INODE: off_file_inode = 0;
    /// `inode::i_ino`.
    OFF_INODE_NUMBER: off_inode_number = 0;
    /// `inode::i_sb`.
    OFF_INODE_SUPER: off_inode_super = 0;
    /// `super_block::s_dev`.
    OFF_SUPER_DEVICE: off_super_device = 0;
    /// `task_struct::signal`.
    OFF_TASK_SIGNAL: off_task_signal = 0;
    /// `signal_struct::live`.
    OFF_SIGNAL_LIVE: off_signal_live = 0;
    /// `task_struct::cgroups`.
    OFF_TASK_CGROUPS: off_task_cgroups = 0;
    /// `task_struct::sched_info.run_delay`.
    OFF_TASK_RUN_DELAY: off_task_run_delay = 0;
    /// `task_struct::sched_info.last_queued`.
    OFF_TASK_LAST_QUEUED: off_task_last_queued = 0;
    /// `task_struct::sched_info.last_arrival`.
    OFF_TASK_LAST_ARRIVAL: off_task_last_arrival = 0;
    /// `task_struct::nivcsw`.
    OFF_TASK_NIVCSW: off_task_nivcsw = 0;
    /// `task_struct::se.sched_delayed`; 0 where there is none (before Linux 6.12).
    OFF_TASK_SCHED_DELAYED: off_task_sched_delayed = 0;
    /// `task_struct::se.cfs_rq`.
    OFF_TASK_CFS_RQ: off_task_cfs_rq = 0;
    /// `task_struct::prio`; 0 where it is not known.
    OFF_TASK_PRIORITY: off_task_priority = 0;
    /// What a `cfs_rq` notes when it is throttled: `throttled_clock_self` (Linux 6.6),
    /// `throttled_clock_pelt` (5.19) or `throttled_clock_task`.
    OFF_CFS_RQ_THROTTLE_BEGAN: off_cfs_rq_throttle_began = 0;
    /// For how long it was throttled: the same names with `_time`; 0 where the kernel has no CPU limits.
    OFF_CFS_RQ_THROTTLED_NS: off_cfs_rq_throttled_ns = 0;
    /// `cfs_rq::throttle_count`; 0 where `throttled_clock_self` tells whether it is throttled.
    OFF_CFS_RQ_THROTTLE_COUNT: off_cfs_rq_throttle_count = 0;
    /// `cfs_rq::rq`.
    OFF_CFS_RQ_RQ: off_cfs_rq_rq = 0;
    /// `rq::clock`.
    OFF_RQ_CLOCK: off_rq_clock = 0;
    /// `task_struct::mm`.
    OFF_TASK_MM: off_task_mm = 0;
    /// `mm_struct::mmap_lock`.
    OFF_MM_LOCK: off_mm_lock = 0;
    /// `rw_semaphore::owner`; 0 where there is none (`PREEMPT_RT`).
    OFF_RWSEM_OWNER: off_rwsem_owner = 0;
    /// `irqaction::name`; 0 where it is not known.
    OFF_IRQACTION_NAME: off_irqaction_name = 0;
    /// `task_struct::stack`.
    OFF_TASK_STACK: off_task_stack = 0;
    /// From the begin of a kernel stack to the registers at its end.
    STACK_REGISTERS: stack_registers = 0;
    /// 1 when the kernel has the helper `bpf_task_pt_regs` (Linux 5.15).
    HAS_TASK_REGISTERS: has_task_registers = 0;
    /// `pt_regs::cs`.
    OFF_REGS_SEGMENT: off_regs_segment = 0;
    /// `socket::file`.
    OFF_SOCKET_FILE: off_socket_file = 0;
    /// `task_struct::__state`.
    OFF_TASK_STATE: off_task_state = 0;
    /// The byte with the bit `task_struct::in_iowait`.
    OFF_TASK_IN_IOWAIT: off_task_in_iowait = 0;
    /// That bit; 0 where it is not known.
    TASK_IN_IOWAIT: task_in_iowait = 0;
    /// `task_struct::jobctl`.
    OFF_TASK_JOB_CONTROL: off_task_job_control = 0;
    /// Position of `prev` among the arguments of `sched_switch`.
    SWITCH_PREV: switch_prev = 1;
    /// 1 when `prev_state` is the fourth argument of `sched_switch`.
    SWITCH_HAS_STATE: switch_has_state = 0;
    /// Arguments of `mm_compaction_end`; the last one is its status.
    COMPACTION_END_ARGUMENTS: compaction_end_arguments = 5;
    /// Parameters of `handle_mm_fault`; its return value comes behind them.
    HANDLE_MM_FAULT_PARAMETERS: handle_mm_fault_parameters = 4;
    /// `FAULT_FLAG_TRIED` of `enum fault_flag`.
    FAULT_FLAG_TRIED: fault_flag_tried = 0x20;
    /// `FAULT_FLAG_VMA_LOCK` of `enum fault_flag`; 0 where there is none (before Linux 6.4).
    FAULT_FLAG_VMA_LOCK: fault_flag_vma_lock = 0;
    /// `FAULT_FLAG_USER` of `enum fault_flag`.
    FAULT_FLAG_USER: fault_flag_user = 0x40;
    /// `VM_FAULT_MAJOR` of `enum vm_fault_reason`.
    VM_FAULT_MAJOR: vm_fault_major = 0x4;
    /// `VM_FAULT_RETRY` of `enum vm_fault_reason`.
    VM_FAULT_RETRY: vm_fault_retry = 0x400;
    /// The bits of `VM_FAULT_ERROR` (include/linux/mm_types.h).
    VM_FAULT_ERROR: vm_fault_error = 0x873;
    /// `PGFAULT` of `enum vm_event_item`.
    VM_EVENT_PGFAULT: vm_event_pgfault = 0;
    /// `PGMAJFAULT` of `enum vm_event_item`.
    VM_EVENT_PGMAJFAULT: vm_event_pgmajfault = 0;
    /// `task_struct::files`.
    OFF_TASK_FILES: off_task_files = 0;
    /// `task_struct::thread_info.status`.
    OFF_TASK_STATUS: off_task_status = 0;
    /// `css_set::dfl_cgrp`.
    OFF_CSS_SET_DFL_CGRP: off_css_set_dfl_cgrp = 0;
    /// `css_set::subsys[memory_cgrp_id]`.
    OFF_CSS_SET_MEMORY: off_css_set_memory = 0;
    /// `cgroup_subsys_state::cgroup`.
    OFF_CSS_CGROUP: off_css_cgroup = 0;
    /// `cgroup::kn`.
    OFF_CGROUP_KN: off_cgroup_kn = 0;
    /// `kernfs_node::id`.
    OFF_KN_ID: off_kn_id = 0;

    /// `files_struct::fdt`.
    OFF_FILES_FDT: off_files_fdt = 0;
    /// `fdtable::fd`.
    OFF_FDT_FD: off_fdt_fd = 0;
    /// `file::private_data`.
    OFF_FILE_PRIVATE: off_file_private = 0;
    /// `socket::sk`.
    OFF_SOCKET_SK: off_socket_sk = 0;
    /// `sock::__sk_common.skc_family`.
    OFF_SOCK_FAMILY: off_sock_family = 0;
    /// `sock::__sk_common.skc_dport`.
    OFF_SOCK_PORT: off_sock_port = 0;
    /// `sock::sk_type`.
    OFF_SOCK_TYPE: off_sock_type = 0;
    /// `sock::sk_protocol`.
    OFF_SOCK_PROTOCOL: off_sock_protocol = 0;
    /// `sock::__sk_common.skc_num`.
    OFF_SOCK_NUMBER: off_sock_number = 0;
    /// `sock::__sk_common.skc_state`.
    OFF_SOCK_STATE: off_sock_state = 0;
    /// `sock::__sk_common.skc_daddr`.
    OFF_SOCK_ADDRESS: off_sock_address = 0;
    /// `sock::__sk_common.skc_v6_daddr`; 0 where the kernel has no IPv6.
    OFF_SOCK_ADDRESS6: off_sock_address6 = 0;
    /// `tcp_sock::rcv_nxt`.
    OFF_TCP_RECEIVED: off_tcp_received = 0;
    /// `tcp_sock::copied_seq`.
    OFF_TCP_COPIED: off_tcp_copied = 0;
    /// `sock::sk_receive_queue.qlen`; 0 where it is not known.
    OFF_SOCK_QUEUE_LENGTH: off_sock_queue_length = 0;
    /// `sock::sk_peer_pid`; 0 where it is not known.
    OFF_SOCK_PEER_PID: off_sock_peer_pid = 0;
    /// `pid::numbers`, which begins with the number in the first namespace; 0 where it is not known.
    OFF_PID_NUMBERS: off_pid_numbers = 0;
    /// `sock::sk_socket`; 0 where it is not known.
    OFF_SOCK_SOCKET: off_sock_socket = 0;
    /// `socket_alloc::vfs_inode.i_ino`; 0 where it is not known.
    OFF_SOCKET_INODE: off_socket_inode = 0;
    /// `unix_sock::addr`; 0 where the kernel has no Unix sockets of its own.
    OFF_UNIX_ADDRESS: off_unix_address = 0;
    /// `unix_sock::peer`; 0 where the kernel has no Unix sockets of its own.
    OFF_UNIX_PEER: off_unix_peer = 0;
    /// Parameters of `tcp_recvmsg`; its return value comes behind them.
    TCP_RECVMSG_PARAMETERS: tcp_recvmsg_parameters = 5;

    /// `pt_regs::orig_ax` (system-call number).
    OFF_REGS_NUMBER: off_regs_number = 0;
    /// `pt_regs::di` (first argument).
    OFF_REGS_ARG0: off_regs_arg0 = 0;
    /// `pt_regs::si` (second argument).
    OFF_REGS_ARG1: off_regs_arg1 = 0;
    /// `pt_regs::dx` (third argument).
    OFF_REGS_ARG2: off_regs_arg2 = 0;
}
