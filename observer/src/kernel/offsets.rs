//! The globals the programs are specialised with: struct offsets of this kernel.

use std::collections::BTreeMap;

use super::btf::{Btf, BtfError};
use crate::probe::Members;

/// Group, name of the global, struct, member path.
const MEMBERS: &[(Members, &str, &str, &str)] = &[
    (Members::Ids, "OFF_TASK_PID", "task_struct", "pid"),
    (Members::Ids, "OFF_TASK_TGID", "task_struct", "tgid"),
    (Members::Comm, "OFF_TASK_COMM", "task_struct", "comm"),
    (Members::Comm, "OFF_TASK_LEADER", "task_struct", "group_leader"),
    (Members::LiveThreads, "OFF_TASK_SIGNAL", "task_struct", "signal"),
    (Members::LiveThreads, "OFF_SIGNAL_LIVE", "signal_struct", "live"),
    (Members::Ancestry, "OFF_TASK_PARENT", "task_struct", "real_parent"),
    (Members::Executable, "OFF_BPRM_FILE", "linux_binprm", "file"),
    (Members::Executable, "OFF_FILE_INODE", "file", "f_inode"),
    (Members::Executable, "OFF_INODE_NUMBER", "inode", "i_ino"),
    (Members::Executable, "OFF_INODE_SUPER", "inode", "i_sb"),
    (Members::Executable, "OFF_SUPER_DEVICE", "super_block", "s_dev"),
    (Members::TaskFlags, "OFF_TASK_FLAGS", "task_struct", "flags"),
    (Members::Cgroup, "OFF_TASK_CGROUPS", "task_struct", "cgroups"),
    (Members::Cgroup, "OFF_CGROUP_KN", "cgroup", "kn"),
    (Members::Cgroup, "OFF_KN_ID", "kernfs_node", "id"),
    (Members::RunDelay, "OFF_TASK_RUN_DELAY", "task_struct", "sched_info.run_delay"),
    (Members::RunDelay, "OFF_TASK_LAST_QUEUED", "task_struct", "sched_info.last_queued"),
    (Members::RunDelay, "OFF_TASK_LAST_ARRIVAL", "task_struct", "sched_info.last_arrival"),
    (Members::RunDelay, "OFF_TASK_NIVCSW", "task_struct", "nivcsw"),
    (Members::RunDelay, "OFF_TASK_CFS_RQ", "task_struct", "se.cfs_rq"),
    (Members::RunDelay, "OFF_CFS_RQ_RQ", "cfs_rq", "rq"),
    (Members::RunDelay, "OFF_RQ_CLOCK", "rq", "clock"),
    (Members::Descriptors, "OFF_TASK_FILES", "task_struct", "files"),
    (Members::Descriptors, "OFF_FILES_FDT", "files_struct", "fdt"),
    (Members::Descriptors, "OFF_FDT_FD", "fdtable", "fd"),
    (Members::Descriptors, "OFF_FILE_PRIVATE", "file", "private_data"),
    (Members::Descriptors, "OFF_SOCKET_SK", "socket", "sk"),
    (Members::Sockets, "OFF_SOCK_FAMILY", "sock", "__sk_common.skc_family"),
    (Members::Sockets, "OFF_SOCK_PORT", "sock", "__sk_common.skc_dport"),
    (Members::Sockets, "OFF_SOCK_TYPE", "sock", "sk_type"),
    (Members::Connections, "OFF_SOCK_PROTOCOL", "sock", "sk_protocol"),
    (Members::Connections, "OFF_SOCK_NUMBER", "sock", "__sk_common.skc_num"),
    (Members::Connections, "OFF_SOCK_STATE", "sock", "__sk_common.skc_state"),
    (Members::Connections, "OFF_SOCK_ADDRESS", "sock", "__sk_common.skc_daddr"),
    (Members::Connections, "OFF_TCP_RECEIVED", "tcp_sock", "rcv_nxt"),
    (Members::Connections, "OFF_TCP_COPIED", "tcp_sock", "copied_seq"),
    (Members::JobControl, "OFF_TASK_JOB_CONTROL", "task_struct", "jobctl"),
    (Members::SavedRegisters, "OFF_TASK_STACK", "task_struct", "stack"),
    (Members::SavedRegisters, "OFF_REGS_SEGMENT", "pt_regs", "cs"),
    (Members::SavedRegisters, "OFF_SOCKET_FILE", "socket", "file"),
    (Members::MmapLock, "OFF_TASK_MM", "task_struct", "mm"),
    (Members::MmapLock, "OFF_MM_LOCK", "mm_struct", "mmap_lock"),
    (Members::CallAbi, "OFF_TASK_STATUS", "task_struct", "thread_info.status"),
    (Members::Registers, "OFF_REGS_NUMBER", "pt_regs", "orig_ax"),
    (Members::Registers, "OFF_REGS_ARG0", "pt_regs", "di"),
    (Members::Registers, "OFF_REGS_ARG1", "pt_regs", "si"),
    (Members::Registers, "OFF_REGS_ARG2", "pt_regs", "dx"),
];

/// Size of a kernel stack on x86-64 without KASAN (`THREAD_SIZE`, arch/x86/include/asm/page_64_types.h).
const STACK_BYTES: u32 = 16 << 10;

/// Members that show the programs whether the kernel has a feature: 0 if it does not.
const OPTIONAL: &[(&str, &str, &str)] = &[
    ("OFF_TASK_SCHED_DELAYED", "task_struct", "se.sched_delayed"),
    ("OFF_TASK_PRIORITY", "task_struct", "prio"),
    ("OFF_RWSEM_OWNER", "rw_semaphore", "owner"),
    ("OFF_IRQACTION_NAME", "irqaction", "name"),
    ("OFF_SOCK_ADDRESS6", "sock", "__sk_common.skc_v6_daddr"),
    ("OFF_SOCK_QUEUE_LENGTH", "sock", "sk_receive_queue.qlen"),
    ("OFF_SOCK_PEER_PID", "sock", "sk_peer_pid"),
    ("OFF_PID_NUMBERS", "pid", "numbers"),
    ("OFF_SOCK_SOCKET", "sock", "sk_socket"),
    ("OFF_SOCKET_INODE", "socket_alloc", "vfs_inode.i_ino"),
    ("OFF_UNIX_ADDRESS", "unix_sock", "addr"),
    ("OFF_UNIX_PEER", "unix_sock", "peer"),
];

/// What a `cfs_rq` notes when it is throttled, since Linux 6.6, 5.19, and before. It also has a member with
/// `_time` behind this name: for how long it was throttled.
const THROTTLE_CLOCKS: [&str; 3] =
    ["throttled_clock_self", "throttled_clock_pelt", "throttled_clock_task"];

/// Where a `cfs_rq` says that it is throttled, and for how long it was; zeros where the kernel has no CPU
/// limits (`CONFIG_CFS_BANDWIDTH`).
fn throttling(btf: &Btf) -> [(&'static str, u32); 3] {
    let of = |member: &str| btf.offset_of("cfs_rq", member).unwrap_or(0);
    let known =
        THROTTLE_CLOCKS.iter().map(|clock| (*clock, of(clock), of(&format!("{clock}_time"))));
    let (clock, began, total) =
        known.into_iter().find(|(_, began, total)| began * total != 0).unwrap_or_default();
    // The older ones are not reset when throttling ends.
    let count = if clock == THROTTLE_CLOCKS[0] { 0 } else { of("throttle_count") };
    [
        ("OFF_CFS_RQ_THROTTLE_BEGAN", began),
        ("OFF_CFS_RQ_THROTTLED_NS", total),
        ("OFF_CFS_RQ_THROTTLE_COUNT", count),
    ]
}

/// Name of the global, enum, enumerator, and its value if BTF has no such enum: flags that were
/// macros before they were enumerators (include/linux/mm_types.h).
const FLAGS: &[(&str, &str, &str, u32)] = &[
    ("FAULT_FLAG_TRIED", "fault_flag", "FAULT_FLAG_TRIED", 0x20),
    ("FAULT_FLAG_VMA_LOCK", "fault_flag", "FAULT_FLAG_VMA_LOCK", 0),
    ("FAULT_FLAG_USER", "fault_flag", "FAULT_FLAG_USER", 0x40),
    ("VM_FAULT_MAJOR", "vm_fault_reason", "VM_FAULT_MAJOR", 0x4),
    ("VM_FAULT_RETRY", "vm_fault_reason", "VM_FAULT_RETRY", 0x400),
];

/// What `VM_FAULT_ERROR` is made of.
const FAULT_ERRORS: [(&str, u32); 6] = [
    ("VM_FAULT_OOM", 0x1),
    ("VM_FAULT_SIGBUS", 0x2),
    ("VM_FAULT_HWPOISON", 0x10),
    ("VM_FAULT_HWPOISON_LARGE", 0x20),
    ("VM_FAULT_SIGSEGV", 0x40),
    ("VM_FAULT_FALLBACK", 0x800),
];

/// Signatures that changed over time.
fn signatures(btf: &Btf) -> [(&'static str, u32); 5] {
    let prev = btf.tracepoint_argument("sched_switch", "task_struct").unwrap_or(1);
    // Behind `prev` and `next` since Linux 5.19.
    let has_state =
        prev == 1 && btf.tracepoint_arguments("sched_switch").is_some_and(|count| count >= 4);
    let compaction = btf.tracepoint_arguments("mm_compaction_end").unwrap_or(5);
    let fault = btf.function_parameters("handle_mm_fault").unwrap_or(4);
    // Six until Linux 5.18.
    let receive = btf.function_parameters("tcp_recvmsg").unwrap_or(5);
    [
        ("SWITCH_PREV", prev as u32),
        ("SWITCH_HAS_STATE", u32::from(has_state)),
        ("COMPACTION_END_ARGUMENTS", compaction as u32),
        ("HANDLE_MM_FAULT_PARAMETERS", fault as u32),
        ("TCP_RECVMSG_PARAMETERS", receive as u32),
    ]
}

/// The values that the programs take from the kernel's types.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    /// Every global that comes from them, with its value.
    pub(super) globals: Vec<(&'static str, u32)>,
    /// Groups of which a member is missing, and the name of that member.
    missing: BTreeMap<Members, String>,
}

impl Offsets {
    /// Looks up all members and enumerators.
    ///
    /// # Errors
    /// When a member is missing that every program reads.
    pub(super) fn of(btf: &Btf, cgroup_v1: bool) -> Result<Self, BtfError> {
        let mut offsets = Self::default();
        for (members, global, structure, path) in MEMBERS {
            let offset = btf.offset_of(structure, path);
            if *members == Members::Ids {
                offset.as_ref().map_err(|error| BtfError::Missing(error.to_string()))?;
            }
            offsets.add(*members, global, offset);
        }
        let registers = btf.size_of("pt_regs").map(|bytes| STACK_BYTES.saturating_sub(bytes));
        offsets.add(Members::SavedRegisters, "STACK_REGISTERS", registers);
        for (global, structure, path) in OPTIONAL {
            offsets.globals.push((global, btf.offset_of(structure, path).unwrap_or(0)));
        }
        for (global, enumerator) in
            [("VM_EVENT_PGFAULT", "PGFAULT"), ("VM_EVENT_PGMAJFAULT", "PGMAJFAULT")]
        {
            let value = btf.enum_value("vm_event_item", enumerator);
            offsets.add(Members::FaultEvents, global, value);
        }
        for (global, name, enumerator, otherwise) in FLAGS {
            let value = btf.enum_value(name, enumerator).unwrap_or(*otherwise);
            offsets.globals.push((global, value));
        }
        let fault_errors = FAULT_ERRORS.map(|(enumerator, otherwise)| {
            btf.enum_value("vm_fault_reason", enumerator).unwrap_or(otherwise)
        });
        let fault_errors = fault_errors.into_iter().fold(0, |all, one| all | one);
        offsets.globals.push(("VM_FAULT_ERROR", fault_errors));
        // `state` until Linux 5.13.
        let state = btf.offset_of("task_struct", "__state");
        let state = state.or_else(|error| btf.offset_of("task_struct", "state").or(Err(error)));
        offsets.add(Members::State, "OFF_TASK_STATE", state);
        offsets.globals.extend(signatures(btf));
        offsets.globals.extend(throttling(btf));
        let (byte, bit) = btf.bit_of("task_struct", "in_iowait").unwrap_or_default();
        offsets.globals.extend([("OFF_TASK_IN_IOWAIT", byte), ("TASK_IN_IOWAIT", bit)]);
        let has_task_registers = btf.enum_value("bpf_func_id", "BPF_FUNC_task_pt_regs").is_ok();
        offsets.globals.push(("HAS_TASK_REGISTERS", u32::from(has_task_registers)));
        offsets.add_cgroup(btf, cgroup_v1);
        Ok(offsets)
    }

    /// The way from a task to its cgroup: of the v1 memory hierarchy, or of v2.
    fn add_cgroup(&mut self, btf: &Btf, cgroup_v1: bool) {
        let unused = Ok(0);
        let (unified, memory, cgroup) = if cgroup_v1 {
            // An array of pointers indexed by the controller's number, which depends on the
            // configuration. Without the memory controller there is no v1 memory hierarchy either.
            let memory = btf.offset_of("css_set", "subsys").and_then(|array| {
                Ok(array + 8 * btf.enum_value("cgroup_subsys_id", "memory_cgrp_id")?)
            });
            (unused, memory, btf.offset_of("cgroup_subsys_state", "cgroup"))
        } else {
            (btf.offset_of("css_set", "dfl_cgrp"), Ok(0), unused)
        };
        self.add(Members::Cgroup, "OFF_CSS_SET_DFL_CGRP", unified);
        self.add(Members::Cgroup, "OFF_CSS_SET_MEMORY", memory);
        self.add(Members::Cgroup, "OFF_CSS_CGROUP", cgroup);
        let version = match self.have(&[Members::Cgroup]) {
            Ok(()) if cgroup_v1 => 1,
            Ok(()) => 2,
            Err(_) => 0,
        };
        self.globals.push(("CGROUP_VERSION", version));
    }

    fn add(&mut self, members: Members, global: &'static str, value: Result<u32, BtfError>) {
        if let Err(error) = &value {
            self.missing.entry(members).or_insert_with(|| error.to_string());
        }
        self.globals.push((global, value.unwrap_or(0)));
    }

    /// Whether all members of these groups exist; otherwise the first missing member.
    pub(super) fn have(&self, groups: &[Members]) -> Result<(), String> {
        match groups.iter().find_map(|group| self.missing.get(group)) {
            Some(missing) => Err(missing.clone()),
            None => Ok(()),
        }
    }
}
