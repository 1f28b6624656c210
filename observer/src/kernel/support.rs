//! What the running kernel offers, found out by trying.

use std::path::Path;
use std::sync::OnceLock;

use aya::maps::MapType;
use aya::programs::{ProgramError, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported, is_program_supported};

use super::btf::Btf;

/// Whether the kernel offers something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// It does.
    Yes,
    /// It does not, and why.
    No(String),
    /// It is not known, for this reason (usually: not privileged enough to try).
    Unknown(String),
}

/// The features that matter to the probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSupport {
    /// Ring buffer maps: without them nothing can be delivered.
    pub ring_buffer: Support,
    /// BTF-typed raw tracepoints, the tier of most probes.
    pub tp_btf: Support,
    /// Programs at the entry and exit of kernel functions.
    pub fentry: Support,
    /// Dynamic probes in kernel functions.
    pub kprobe: Support,
    /// Programs at places in user-space binaries, told apart by their cookies.
    pub uprobe: Support,
    /// Programs on perf events (page faults).
    pub perf_event: Support,
    /// Programs on the socket hooks of a cgroup.
    pub cgroup_sock: Support,
}

impl KernelSupport {
    /// Tries everything. Nothing stays loaded.
    #[must_use]
    pub fn probe() -> Self {
        Self {
            ring_buffer: ring_buffer(),
            tp_btf: tp_btf(),
            fentry: fentry(),
            kprobe: kprobe(),
            uprobe: uprobe(),
            perf_event: program(ProgramType::PerfEvent, "perf event programs"),
            cgroup_sock: program(ProgramType::CgroupSock, "cgroup socket programs"),
        }
    }
}

impl KernelSupport {
    /// Tries only what is indispensable: other missing features show up when the programs are
    /// attached.
    #[must_use]
    pub fn required() -> Self {
        let untried = || Support::Unknown("not tried".into());
        Self {
            ring_buffer: ring_buffer(),
            tp_btf: untried(),
            fentry: untried(),
            kprobe: untried(),
            uprobe: untried(),
            perf_event: untried(),
            cgroup_sock: untried(),
        }
    }
}

fn from_io(call: &str, error: &std::io::Error) -> Support {
    let why = format!("{call}: {error}");
    // EPERM is what an unprivileged process gets for everything.
    if error.kind() == std::io::ErrorKind::PermissionDenied && !may_load_programs() {
        Support::Unknown("not privileged enough to try".into())
    } else {
        Support::No(why)
    }
}

/// Whether the kernel lets this process load the simplest program there is.
fn may_load_programs() -> bool {
    matches!(is_program_supported(ProgramType::TracePoint), Ok(true))
}

fn program(program_type: ProgramType, what: &str) -> Support {
    match is_program_supported(program_type) {
        Ok(true) => Support::Yes,
        Ok(false) => Support::No(format!("this kernel has no {what}")),
        Err(ProgramError::SyscallError(error)) => from_io(error.call, &error.io_error),
        Err(error) => Support::Unknown(error.to_string()),
    }
}

fn ring_buffer() -> Support {
    match is_map_supported(MapType::RingBuf) {
        Ok(true) => Support::Yes,
        Ok(false) => Support::No("this kernel has no ring buffer maps (Linux 5.8)".into()),
        Err(error) => from_io(error.call, &error.io_error),
    }
}

fn tp_btf() -> Support {
    let btf = match Btf::of_kernel() {
        Ok(btf) => btf,
        Err(error) => return Support::No(error.to_string()),
    };
    if btf.tracepoint_arguments("sched_switch").is_none() {
        return Support::No("the kernel's BTF describes no tracepoints (Linux 5.5)".into());
    }
    program(ProgramType::RawTracePoint, "raw tracepoint programs")
}

/// Whether programs can be put at the entry and exit of kernel functions.
pub(super) fn fentry() -> Support {
    // Cached, because the doctor needs it twice and the test has to read all of the kernel's types.
    static FOUND: OnceLock<Support> = OnceLock::new();
    let find = || match is_program_supported(ProgramType::Tracing) {
        Ok(true) => Support::Yes,
        Ok(false) => Support::No("BPF trampolines are not supported here".into()),
        Err(ProgramError::SyscallError(error)) => from_io(error.call, &error.io_error),
        Err(error) => Support::Unknown(error.to_string()),
    };
    FOUND.get_or_init(find).clone()
}

/// Whether dynamic probes can be put in kernel functions.
pub(super) fn kprobe() -> Support {
    // A kprobe program can be loaded where no kprobe can be made (CONFIG_KPROBES off): what
    // decides is whether the event source exists.
    if !Path::new("/sys/bus/event_source/devices/kprobe/type").exists() {
        return Support::No("this kernel is built without kprobe events".into());
    }
    program(ProgramType::KProbe, "kprobe programs")
}

/// Whether programs can be put at places in user-space binaries, and learn which place they run at.
fn uprobe() -> Support {
    if !Path::new("/sys/bus/event_source/devices/uprobe/type").exists() {
        return Support::No("this kernel is built without uprobe events".into());
    }
    match is_helper_supported(ProgramType::KProbe, BpfHelper::BPF_FUNC_get_attach_cookie) {
        Ok(true) => Support::Yes,
        Ok(false) => Support::No("uprobes have no cookies (Linux 5.15)".into()),
        Err(ProgramError::SyscallError(error)) => from_io(error.call, &error.io_error),
        Err(error) => Support::Unknown(error.to_string()),
    }
}
