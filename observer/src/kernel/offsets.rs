//! The globals the programs are specialised with: struct offsets of this kernel.

use super::btf::{Btf, BtfError};

/// Name of the global, struct, member path.
const OFFSETS: &[(&str, &str, &str)] = &[
    ("OFF_TASK_PID", "task_struct", "pid"),
    ("OFF_TASK_TGID", "task_struct", "tgid"),
    ("OFF_TASK_FLAGS", "task_struct", "flags"),
    ("OFF_TASK_COMM", "task_struct", "comm"),
    ("OFF_TASK_SIGNAL", "task_struct", "signal"),
    ("OFF_SIGNAL_LIVE", "signal_struct", "live"),
    ("OFF_TASK_CGROUPS", "task_struct", "cgroups"),
    ("OFF_TASK_FILES", "task_struct", "files"),
    ("OFF_TASK_STATUS", "task_struct", "thread_info.status"),
    ("OFF_CSS_SET_DFL_CGRP", "css_set", "dfl_cgrp"),
    ("OFF_CSS_CGROUP", "cgroup_subsys_state", "cgroup"),
    ("OFF_CGROUP_KN", "cgroup", "kn"),
    ("OFF_KN_ID", "kernfs_node", "id"),
    ("OFF_FILES_FDT", "files_struct", "fdt"),
    ("OFF_FDT_FD", "fdtable", "fd"),
    ("OFF_FILE_PRIVATE", "file", "private_data"),
    ("OFF_SOCKET_SK", "socket", "sk"),
    ("OFF_SOCK_FAMILY", "sock", "__sk_common.skc_family"),
    ("OFF_SOCK_TYPE", "sock", "sk_type"),
    ("OFF_REGS_NUMBER", "pt_regs", "orig_ax"),
    ("OFF_REGS_ARG0", "pt_regs", "di"),
    ("OFF_REGS_ARG1", "pt_regs", "si"),
    ("OFF_REGS_ARG2", "pt_regs", "dx"),
];

/// The same for tiers that are not taken where one of them is missing.
const OPTIONAL: &[(&str, &str, &str)] = &[
    ("OFF_TASK_RUN_DELAY", "task_struct", "sched_info.run_delay"),
    ("OFF_TASK_LAST_QUEUED", "task_struct", "sched_info.last_queued"),
    ("OFF_TASK_NIVCSW", "task_struct", "nivcsw"),
    ("OFF_TASK_SCHED_DELAYED", "task_struct", "se.sched_delayed"),
    ("OFF_TASK_CFS_RQ", "task_struct", "se.cfs_rq"),
    ("OFF_CFS_RQ_RQ", "cfs_rq", "rq"),
    ("OFF_RQ_CLOCK", "rq", "clock"),
];

/// Name of the global, enum, enumerator, and what it is where BTF has no such enum: flags that were
/// macros before they were enumerators (include/linux/mm_types.h).
const FLAGS: &[(&str, &str, &str, u32)] = &[
    ("FAULT_FLAG_TRIED", "fault_flag", "FAULT_FLAG_TRIED", 0x20),
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
fn signatures(btf: &Btf) -> [(&'static str, u32); 4] {
    let prev = btf.tracepoint_argument("sched_switch", "task_struct").unwrap_or(1);
    // Behind `prev` and `next` since Linux 5.19.
    let has_state =
        prev == 1 && btf.tracepoint_arguments("sched_switch").is_some_and(|count| count >= 4);
    let compaction = btf.tracepoint_arguments("mm_compaction_end").unwrap_or(5);
    let fault = btf.function_parameters("handle_mm_fault").unwrap_or(4);
    [
        ("SWITCH_PREV", prev as u32),
        ("SWITCH_HAS_STATE", u32::from(has_state)),
        ("COMPACTION_END_ARGUMENTS", compaction as u32),
        ("HANDLE_MM_FAULT_PARAMETERS", fault as u32),
    ]
}

/// Every global that comes from BTF, with its value.
///
/// # Errors
/// When this kernel lacks a struct, a member or the memory controller the programs read.
pub(super) fn offsets(btf: &Btf, cgroup_v1: bool) -> Result<Vec<(&'static str, u32)>, BtfError> {
    let mut values = Vec::with_capacity(OFFSETS.len() + 2);
    for (global, structure, path) in OFFSETS {
        values.push((*global, btf.offset_of(structure, path)?));
    }
    for (global, structure, path) in OPTIONAL {
        values.push((*global, btf.offset_of(structure, path).unwrap_or(0)));
    }
    for (global, enumerator) in
        [("VM_EVENT_PGFAULT", "PGFAULT"), ("VM_EVENT_PGMAJFAULT", "PGMAJFAULT")]
    {
        values.push((global, btf.enum_value("vm_event_item", enumerator)?));
    }
    for (global, name, enumerator, otherwise) in FLAGS {
        values.push((*global, btf.enum_value(name, enumerator).unwrap_or(*otherwise)));
    }
    let fault_errors = FAULT_ERRORS.map(|(enumerator, otherwise)| {
        btf.enum_value("vm_fault_reason", enumerator).unwrap_or(otherwise)
    });
    values.push(("VM_FAULT_ERROR", fault_errors.into_iter().fold(0, |all, one| all | one)));
    // `state` until Linux 5.13.
    let state =
        btf.offset_of("task_struct", "__state").or_else(|_| btf.offset_of("task_struct", "state"));
    values.push(("OFF_TASK_STATE", state?));
    values.extend(signatures(btf));
    values.push(("CGROUP_V1", u32::from(cgroup_v1)));
    // An array of pointers indexed by the controller's number, which depends on the
    // configuration. Without the memory controller there is no v1 memory hierarchy either.
    let memory = if cgroup_v1 {
        btf.offset_of("css_set", "subsys")?
            + 8 * btf.enum_value("cgroup_subsys_id", "memory_cgrp_id")?
    } else {
        0
    };
    values.push(("OFF_CSS_SET_MEMORY", memory));
    Ok(values)
}
