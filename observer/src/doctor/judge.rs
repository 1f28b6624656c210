//! Judges the facts. Pure: the same facts give the same lines.

use observer_ebpf::wire::TASK_SLOTS_MAX;

use super::facts::Facts;
use super::report::{Blocks, Check, State};
use crate::host::cgroups::Layout;
use crate::host::system::{Lockdown, version_of};
use crate::kernel::support::Support;

/// Capabilities that a process without all of root's needs, see capabilities(7). `CAP_SYS_ADMIN`
/// includes those marked.
const CAPABILITIES: [(u32, &str, bool, &str); 4] = [
    (39, "CAP_BPF", true, "load programs and maps"),
    (38, "CAP_PERFMON", true, "attach programs to tracepoints and perf events"),
    (12, "CAP_NET_ADMIN", true, "attach to the socket hooks of a cgroup"),
    (19, "CAP_SYS_PTRACE", false, "see programs and sockets of other users' processes"),
];
const CAP_SYS_ADMIN: u32 = 21;

fn ok(id: &'static str, value: impl Into<String>, means: impl Into<String>) -> Check {
    let (value, means) = (value.into(), means.into());
    Check { id, state: State::Ok, value, means, todo: None, blocks: None }
}

impl Check {
    fn limited(mut self) -> Self {
        self.state = State::Limited;
        self
    }

    fn missing(mut self) -> Self {
        self.state = State::Missing;
        self
    }

    fn unknown(mut self) -> Self {
        self.state = State::Unknown;
        self
    }

    fn todo(mut self, todo: impl Into<String>) -> Self {
        self.todo = Some(todo.into());
        self
    }

    fn blocks(mut self, blocks: Blocks) -> Self {
        self.blocks = Some(blocks);
        self
    }
}

/// Judges the host, in the order in which a user would fix things.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![
        kernel(facts),
        privileges(facts),
        pid_namespace(facts),
        btf(facts),
        lockdown(facts),
        memory(facts),
        jit(facts),
    ];
    checks.extend(hooks(facts));
    checks.extend([
        perf_events(facts),
        cgroup_layout(facts),
        cpu_throttling(facts),
        clock_source(facts),
        time_namespace(facts),
        pid_max(facts),
        thread_state(facts),
        call_filter(facts),
        tracefs(facts),
        delay_accounting(facts),
        swap(facts),
        transparent_hugepages(facts),
        pressure(facts),
    ]);
    checks.extend(counters(facts));
    checks
}

/// The first Linux with the atomic instructions that the programs use (v3 of the instruction set, with
/// fetch and exchange; kernel/bpf/verifier.c refuses them before).
const OLDEST: (u32, u32) = (5, 12);
const USE_NEWER: &str = "use Linux 5.12 or later; the socket probe needs 5.15";

fn kernel(facts: &Facts) -> Check {
    let value = format!(
        "Linux {} on {}, {} of {} CPUs online",
        facts.release, facts.machine, facts.cpus_online, facts.cpus_possible
    );
    let check = ok("kernel", value, "the kernel version and the machine type are supported");
    if version_of(&facts.release).is_some_and(|version| version < OLDEST) {
        let means = "the kernel is older than Linux 5.12 and accepts no program with atomic \
            instructions, which all programs of observer have";
        return Check { means: means.into(), ..check }
            .missing()
            .todo(USE_NEWER)
            .blocks(Blocks::Kernel);
    }
    if facts.machine != "x86_64" {
        let means = "the page fault and system call probes are tested only on x86_64";
        return Check { means: means.into(), ..check }.limited();
    }
    check
}

fn privileges(facts: &Facts) -> Check {
    let has = |bit: u32| facts.capabilities & (1 << bit) != 0;
    let lacking: Vec<&(u32, &str, bool, &str)> = CAPABILITIES
        .iter()
        .filter(|(_, name, ..)| *name != "CAP_NET_ADMIN" || facts.uses_cgroup_hooks)
        .filter(|(bit, _, in_admin, _)| !(has(*bit) || *in_admin && has(CAP_SYS_ADMIN)))
        .collect();
    let who = if facts.euid == 0 { "root".to_owned() } else { format!("user {}", facts.euid) };
    if lacking.is_empty() {
        return ok("privileges", who, "all required capabilities are available");
    }
    let names: Vec<&str> = lacking.iter().map(|(_, name, ..)| *name).collect();
    let why: Vec<String> =
        lacking.iter().map(|(_, name, _, purpose)| format!("{name} to {purpose}")).collect();
    ok("privileges", format!("{who} without {}", names.join(", ")), why.join("; "))
        .missing()
        .todo("run as root (sudo observer ...); in a container, use --privileged")
        .blocks(Blocks::Permission)
}

fn pid_namespace(facts: &Facts) -> Check {
    if facts.initial_pid_namespace {
        return ok(
            "pid_namespace",
            "initial",
            "process ids are the same here and in the kernel's records",
        );
    }
    let means = "the kernel's records contain the host's process ids, so that observer cannot find a \
        target by the ids of this namespace";
    ok("pid_namespace", "of a container", means)
        .missing()
        .todo("run observer on the host, or start its container with --pid=host")
        .blocks(Blocks::Permission)
}

fn btf(facts: &Facts) -> Check {
    let megabytes = facts.btf_bytes.map(|bytes| format!("{:.1} MB", bytes as f64 / 1e6));
    match (megabytes, &facts.btf_file) {
        (Some(size), None) => ok(
            "btf",
            size,
            "observer reads the offsets of kernel structures from the running kernel",
        ),
        (Some(size), Some(file)) => {
            let means = "observer reads the offsets of kernel structures from a file, which must \
                match the running kernel";
            ok("btf", format!("{size} in {}", file.display()), means)
        }
        (None, Some(file)) => {
            let value = format!("cannot read {}", file.display());
            ok("btf", value, "observer cannot find the offsets of kernel structures")
                .missing()
                .todo("use an existing file, or omit --btf")
                .blocks(Blocks::Kernel)
        }
        (None, None) => ok("btf", "none", "the kernel does not describe its structures")
            .missing()
            .todo(
                "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (all current distributions have \
                 it), or provide BTF with --btf FILE",
            )
            .blocks(Blocks::Kernel),
    }
}

fn lockdown(facts: &Facts) -> Check {
    let check = |means: &str| ok("lockdown", facts.lockdown.name(), means);
    match facts.lockdown {
        Lockdown::None => check("lockdown is off"),
        Lockdown::Integrity => check("does not affect observer"),
        Lockdown::Confidentiality => check("BPF programs may not read kernel memory")
            .missing()
            .todo("boot with lockdown=integrity or none")
            .blocks(Blocks::Kernel),
        // securityfs is often not mounted; the checks of the hooks show what the kernel refuses.
        Lockdown::Unknown => check("securityfs is not mounted; observer tried the hooks instead"),
    }
}

/// Memory that a run needs, by the sums that also size the maps and bound user space.
fn memory(facts: &Facts) -> Check {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let maps: u64 = facts.maps.iter().map(|map| map.bytes).sum();
    let mut largest: Vec<_> = facts.maps.iter().collect();
    largest.sort_by_key(|map| std::cmp::Reverse(map.bytes));
    let each: Vec<String> =
        largest.iter().take(5).map(|map| format!("{} {}", map.name, mib(map.bytes))).collect();
    let value = format!(
        "{} of locked kernel memory; at most {} resident",
        mib(maps),
        mib(facts.memory.resident_bound_bytes)
    );
    let threads = u64::from(facts.threads_max.min(facts.pid_max));
    let by_thread = facts.maps.iter().map(|map| map.thread_bytes).sum::<u64>();
    let for_threads = match by_thread {
        0 => String::new(),
        bytes => format!(
            "; task-local storage takes up to {bytes} bytes more for each thread, {} if there are \
             {threads}",
            mib(bytes * threads)
        ),
    };
    let means = format!(
        "BPF maps: {}{for_threads}; resident memory grows with the requests of a run (at most {}) and, during \
         the analysis, with its stalls (at most {})",
        each.join(", "),
        facts.memory.samples,
        facts.memory.stalls
    );
    match facts.memory.cut() {
        None => ok("memory", value, means),
        Some(cut) => ok("memory", format!("{value}; {cut}"), means).limited(),
    }
}

fn jit(facts: &Facts) -> Check {
    match facts.bpf_jit {
        Some(0) => {
            ok("bpf_jit", "off", "the kernel interprets BPF programs, at ten times the cost")
                .limited()
                .todo("sysctl net.core.bpf_jit_enable=1")
        }
        Some(_) => ok("bpf_jit", "on", "BPF programs run as machine code"),
        None => {
            ok("bpf_jit", "unknown", "cannot determine whether BPF programs are compiled").unknown()
        }
    }
}

fn hook(id: &'static str, support: &Support, means: &str, without: &str) -> Check {
    match support {
        Support::Yes => ok(id, "yes", means),
        Support::No(why) => ok(id, format!("no: {why}"), without).missing(),
        Support::Unknown(why) => ok(id, format!("unknown: {why}"), means).unknown(),
    }
}

fn hooks(facts: &Facts) -> Vec<Check> {
    let support = &facts.support;
    let mut ring_buffer = hook(
        "ring_buffer",
        &support.ring_buffer,
        "records reach user space without a copy",
        "the kernel cannot deliver records",
    );
    if ring_buffer.state == State::Missing {
        ring_buffer = ring_buffer.todo(USE_NEWER).blocks(Blocks::Kernel);
    }
    // Every probe also works without these, so there is no advice to change the kernel.
    let optional = |mut check: Check| {
        if check.state == State::Missing {
            check.state = State::Limited;
        }
        check
    };
    let mut fentry = optional(hook(
        "fentry",
        &support.fentry,
        "probes can attach to kernel functions directly",
        "probes use tracepoints instead: while mm_syscall or socket is attached, every system call \
         of the host is slower, because the kernel traces it (docs/OVERHEAD.md)",
    ));
    if fentry.state == State::Limited {
        fentry = fentry.todo("to avoid that cost: --probes runqueue,fault,reclaim");
    }
    vec![
        ring_buffer,
        optional(hook(
            "tp_btf",
            &support.tp_btf,
            "probes use the cheapest hooks in the scheduler and the reclaim code",
            "probes use raw tracepoints instead, at a higher cost",
        )),
        fentry,
        optional(hook(
            "kprobe",
            &support.kprobe,
            "probes can attach to kernel functions where no better hook exists",
            "not needed: every probe has tiers without it",
        )),
        optional(hook(
            "uprobe",
            &support.uprobe,
            "probes can attach to places in programs, such as the Go runtime",
            "places in programs cannot be watched; no probe needs it yet",
        )),
        hook(
            "perf_event_programs",
            &support.perf_event,
            "probes can see the end of a page fault",
            "probes measure page faults by other hooks, if this kernel has any",
        ),
        hook(
            "cgroup_sock",
            &support.cgroup_sock,
            "probes can see the creation and release of sockets",
            "sockets cannot be tracked",
        ),
    ]
}

fn perf_events(facts: &Facts) -> Check {
    match facts.perf_event_paranoid {
        Some(level) => ok(
            "perf_event_paranoid",
            level.to_string(),
            "does not restrict root; the page fault probe opens software events",
        ),
        None => ok(
            "perf_event_paranoid",
            "none",
            "there are no perf events, so page faults cannot be measured",
        )
        .missing()
        .todo("boot a kernel built with CONFIG_PERF_EVENTS=y"),
    }
}

/// One line about all of them. Without those of the processor, as in most virtual machines, nothing is wrong.
fn counters(facts: &Facts) -> Option<Check> {
    let of = |is_of_kernel| {
        facts.counters.iter().filter(move |(kind, _)| kind.is_of_kernel() == is_of_kernel)
    };
    let (kernel, processor) = (of(true).count(), of(false).count());
    if kernel + processor == 0 {
        return None;
    }
    let counted = |is_of_kernel| of(is_of_kernel).filter(|(_, tried)| tried.is_ok()).count();
    let value = format!(
        "{} of {kernel} of the kernel, {} of {processor} of the processor",
        counted(true),
        counted(false)
    );
    let names = |is_of_kernel: bool, works: bool| {
        let named = of(is_of_kernel).filter(|(_, tried)| tried.is_ok() == works);
        named.map(|(kind, _)| kind.name).collect::<Vec<_>>().join(", ")
    };
    let means = if counted(false) == processor {
        "`--counters` counts everything that it can".to_owned()
    } else {
        format!("`--counters` does not count {}", names(false, false))
    };
    let check = ok("counters", value, means);
    Some(if counted(true) == kernel {
        check
    } else {
        let means = format!("`--counters` does not count {}", names(true, false));
        Check { means, ..check }.limited()
    })
}

fn cgroup_layout(facts: &Facts) -> Check {
    let name = facts.cgroup_layout.name();
    let value = match &facts.memory_hierarchy {
        Some(path) => format!("{name}, memory at {}", path.display()),
        None => name.to_owned(),
    };
    if let Some(missing) = &facts.cgroup_member_missing {
        return ok("cgroups", missing, "nothing is measured by cgroup; everything else is")
            .limited()
            .todo("boot a kernel whose types have this member, or report it as an issue");
    }
    let check = ok("cgroups", value, "stalls are counted per memory cgroup");
    match (facts.cgroup_layout, &facts.unified_mount_point) {
        (Layout::Unmounted, _) => Check {
            means: "cgroups have no names here, and sockets cannot be tracked".into(),
            ..check
        }
        .limited()
        .todo("mount -t cgroup2 none /sys/fs/cgroup"),
        (_, None) => Check {
            means: "stalls are counted per memory cgroup; sockets cannot be tracked without \
                cgroup v2"
                .into(),
            ..check
        }
        .limited()
        .todo("mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"),
        _ => check,
    }
}

fn cpu_throttling(facts: &Facts) -> Check {
    let id = "cpu_throttling";
    let Some((file, limit)) = &facts.cpu_limit else {
        return ok(id, "no limit", "no cgroup limits the CPU time of observer");
    };
    let value = format!("{:.2} CPUs by {}", limit.cpus(), file.display());
    let means = "this limit holds observer with everything else in the cgroup when it is used up; the ring \
        may overflow meanwhile, and records are then lost";
    ok(id, value, means)
        .limited()
        .todo("raise the limit in this file, or start observer in a cgroup without one")
}

fn clock_source(facts: &Facts) -> Check {
    const CHEAP: [&str; 6] =
        ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "tsc-early", "xen"];
    match facts.clock_source.as_deref() {
        Some(name) if CHEAP.contains(&name) => {
            ok("clock_source", name, "reading the time takes about 20 ns")
        }
        Some(name) => {
            ok("clock_source", name, "reading the time takes about 1 µs, several times per event")
                .limited()
                .todo("boot with clocksource=tsc tsc=reliable, if the CPU's TSC is invariant")
        }
        None => {
            ok("clock_source", "unknown", "cannot determine the cost of reading the time").unknown()
        }
    }
}

fn time_namespace(facts: &Facts) -> Check {
    let id = "time_namespace";
    match &facts.namespace_offset_ns {
        Ok(0) => ok(id, "no offset", "observer reads the same clock as the kernel's programs"),
        Ok(offset_ns) => {
            let value = format!("{:+.9} s", *offset_ns as f64 / 1e9);
            ok(id, value, "observer takes this offset off, and all its times are the kernel's")
        }
        Err(reason) => ok(id, "unknown offset", reason)
            .missing()
            .todo("start observer in a new process: unshare --time --fork observer ...")
            .blocks(Blocks::Kernel),
    }
}

fn pid_max(facts: &Facts) -> Check {
    let value = facts.pid_max.to_string();
    if facts.pid_max <= TASK_SLOTS_MAX {
        return ok("pid_max", value, "every thread has its own entry in the tables of threads");
    }
    let means = format!(
        "threads whose ids are equal modulo {TASK_SLOTS_MAX} share an entry in the tables of \
         threads; if one of them overwrites what another one needs, that is counted as lost \
         (task_slot)"
    );
    ok("pid_max", value, means)
}

/// Where the programs keep what they know about each thread.
fn thread_state(facts: &Facts) -> Check {
    let means = match facts.thread_places.why() {
        Some(why) => format!("not in task-local storage: {why}"),
        None => "task-local storage belongs to one thread; tables are faster".to_owned(),
    };
    ok("thread_state", facts.thread_places.text(), means)
}

fn call_filter(facts: &Facts) -> Check {
    let id = "call_filter";
    if facts.call_filter {
        return ok(id, "seccomp", "`observer daemon` gives up all system calls but those it needs");
    }
    ok(id, "none", "the kernel has no seccomp filters, so `observer daemon` keeps all system calls")
        .limited()
}

fn tracefs(facts: &Facts) -> Check {
    match &facts.tracefs {
        Some(path) => {
            ok("tracefs", path.display().to_string(), "classic tracepoints are available")
        }
        None => ok(
            "tracefs",
            "not mounted (or not readable)",
            "only the classic tracepoint tier needs tracefs",
        ),
    }
}

fn delay_accounting(facts: &Facts) -> Check {
    let value = match facts.delay_accounting {
        Some(true) => "on",
        Some(false) => "off",
        None => "not compiled in",
    };
    ok("task_delayacct", value, "observer does not use it; its tests compare with it")
}

fn swap(facts: &Facts) -> Check {
    match facts.swap_bytes {
        Some(0) => {
            ok("swap", "none", "reclaim can only drop file pages; major faults only read files")
        }
        Some(bytes) => ok(
            "swap",
            format!("{} MiB", bytes >> 20),
            "reclaim may write anonymous memory to it, and major faults read it back",
        ),
        None => ok("swap", "unknown", "cannot determine whether there is swap").unknown(),
    }
}

fn transparent_hugepages(facts: &Facts) -> Check {
    match facts.transparent_hugepages.as_deref() {
        Some("always") => ok(
            "transparent_hugepages",
            "always",
            "a minor fault may have to clear 2 MiB, and compaction may have to find 2 MiB",
        ),
        Some(mode) => {
            ok("transparent_hugepages", mode, "only memory that requests huge pages gets them")
        }
        None => ok("transparent_hugepages", "none", "this kernel has no transparent huge pages"),
    }
}

fn pressure(facts: &Facts) -> Check {
    let value = if facts.pressure_stall_information { "on" } else { "off" };
    ok("psi", value, "observer does not use it; if it is on, /proc/pressure allows a comparison")
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
