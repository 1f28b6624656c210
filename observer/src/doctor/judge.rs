//! What the facts mean. Pure: the same facts give the same lines.

use observer_ebpf::wire::TASK_SLOTS_MAX;

use super::facts::Facts;
use super::report::{Blocks, Check, State};
use crate::host::cgroups::Layout;
use crate::host::system::{Lockdown, version_of};
use crate::kernel::support::Support;

/// Capabilities needed when not all of root's are there, see capabilities(7). `CAP_SYS_ADMIN`
/// includes those marked.
const CAPABILITIES: [(u32, &str, bool, &str); 5] = [
    (39, "CAP_BPF", true, "load programs and maps"),
    (38, "CAP_PERFMON", true, "attach them to tracepoints and perf events"),
    (12, "CAP_NET_ADMIN", true, "attach to the socket hooks of a cgroup"),
    (19, "CAP_SYS_PTRACE", false, "see programs and sockets of other users' processes"),
    (24, "CAP_SYS_RESOURCE", true, "lift the locked-memory limit, on kernels before 5.11"),
];
const CAP_SYS_ADMIN: u32 = 21;

/// First kernel that charges BPF memory to the memory cgroup instead of the locked-memory limit.
const MEMCG_CHARGED: (u32, u32) = (5, 11);

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

/// Judges the host, in the order a person would want to fix things.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Check> {
    let mut checks = vec![
        kernel(facts),
        privileges(facts),
        pid_namespace(facts),
        btf(facts),
        lockdown(facts),
        memory_lock(facts),
        memory(facts),
        jit(facts),
    ];
    checks.extend(hooks(facts));
    checks.extend([
        perf_events(facts),
        cgroup_layout(facts),
        clock_source(facts),
        pid_max(facts),
        tracefs(facts),
        delay_accounting(facts),
        swap(facts),
        transparent_hugepages(facts),
        pressure(facts),
    ]);
    checks
}

fn kernel(facts: &Facts) -> Check {
    let value = format!(
        "Linux {} on {}, {} of {} CPUs online",
        facts.release, facts.machine, facts.cpus_online, facts.cpus_possible
    );
    let check = ok("kernel", value, "new enough, and of a tested machine type");
    if version_of(&facts.release).is_some_and(|version| version < (5, 8)) {
        return Check { means: "older than Linux 5.8: no ring buffer".into(), ..check }
            .missing()
            .todo("run a kernel of 5.8 or later");
    }
    if facts.machine != "x86_64" {
        let means = "the page fault and system call probes are tested on x86_64 only";
        return Check { means: means.into(), ..check }.limited();
    }
    check
}

fn privileges(facts: &Facts) -> Check {
    let has = |bit: u32| facts.capabilities & (1 << bit) != 0;
    let lacking: Vec<&(u32, &str, bool, &str)> = CAPABILITIES
        .iter()
        .filter(|(bit, _, in_admin, _)| !(has(*bit) || *in_admin && has(CAP_SYS_ADMIN)))
        .filter(|(_, name, ..)| {
            *name != "CAP_SYS_RESOURCE"
                || version_of(&facts.release).is_none_or(|version| version < MEMCG_CHARGED)
        })
        .collect();
    let who = if facts.euid == 0 { "root".to_owned() } else { format!("user {}", facts.euid) };
    if lacking.is_empty() {
        return ok("privileges", who, "every capability that is needed is there");
    }
    let names: Vec<&str> = lacking.iter().map(|(_, name, ..)| *name).collect();
    let why: Vec<String> =
        lacking.iter().map(|(_, name, _, purpose)| format!("{name} to {purpose}")).collect();
    ok("privileges", format!("{who} without {}", names.join(", ")), why.join("; "))
        .missing()
        .todo("run as root (sudo observer ...), in a container with --privileged")
        .blocks(Blocks::Permission)
}

fn pid_namespace(facts: &Facts) -> Check {
    if facts.initial_pid_namespace {
        return ok(
            "pid_namespace",
            "initial",
            "process ids here are those of the kernel's records",
        );
    }
    let means = "the kernel's records carry the host's process ids, and no target can be found by \
        the ids seen here";
    ok("pid_namespace", "a container's", means)
        .missing()
        .todo("run observer on the host, or its container with --pid=host")
        .blocks(Blocks::Permission)
}

fn btf(facts: &Facts) -> Check {
    let megabytes = facts.btf_bytes.map(|bytes| format!("{:.1} MB", bytes as f64 / 1e6));
    match (megabytes, &facts.btf_file) {
        (Some(size), None) => {
            ok("btf", size, "offsets of kernel structures are read from the running kernel")
        }
        (Some(size), Some(file)) => {
            let means = "offsets of kernel structures are read from a file: they had better be \
                those of the running kernel";
            ok("btf", format!("{size} in {}", file.display()), means)
        }
        (None, Some(file)) => {
            let value = format!("cannot read {}", file.display());
            ok("btf", value, "nothing describes the kernel's structures")
                .missing()
                .todo("give a file that is there, or leave --btf out")
                .blocks(Blocks::Kernel)
        }
        (None, None) => ok("btf", "none", "the kernel does not describe its structures")
            .missing()
            .todo(
                "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (every current distribution's), \
                 or give its types with --btf FILE",
            )
            .blocks(Blocks::Kernel),
    }
}

fn lockdown(facts: &Facts) -> Check {
    let check = |means: &str| ok("lockdown", facts.lockdown.name(), means);
    match facts.lockdown {
        Lockdown::None => check("nothing is forbidden"),
        Lockdown::Integrity => check("does not affect what observer does"),
        Lockdown::Confidentiality => check("BPF programs may not read kernel memory")
            .missing()
            .todo("boot with lockdown=integrity or none")
            .blocks(Blocks::Kernel),
        // securityfs is often not mounted; the hooks below tell what is really refused.
        Lockdown::Unknown => check("securityfs is not mounted; the hooks were tried instead"),
    }
}

fn memory_lock(facts: &Facts) -> Check {
    let value = match facts.memlock_bytes {
        None => "unlimited".to_owned(),
        Some(bytes) => format!("{} KiB", bytes / 1024),
    };
    let charged = version_of(&facts.release).is_some_and(|version| version >= MEMCG_CHARGED);
    if charged {
        ok("memory_lock", value, "no limit to BPF maps since Linux 5.11: the cgroup pays")
    } else if facts.memlock_bytes.is_none() {
        ok("memory_lock", value, "BPF maps count against it on this kernel")
    } else {
        ok("memory_lock", value, "BPF maps count against it; observer lifts it for itself")
            .limited()
            .todo("if loading fails with EPERM: ulimit -l unlimited")
    }
}

/// What a run takes of the host's memory; the same sums size the maps and bound user space.
fn memory(facts: &Facts) -> Check {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let maps: u64 = facts.maps.iter().map(|map| map.bytes).sum();
    let mut largest: Vec<_> = facts.maps.iter().collect();
    largest.sort_by_key(|map| std::cmp::Reverse(map.bytes));
    let each: Vec<String> =
        largest.iter().take(5).map(|map| format!("{} {}", map.name, mib(map.bytes))).collect();
    let value = format!(
        "{} of locked kernel memory; {} resident at most",
        mib(maps),
        mib(facts.resident_bound_bytes)
    );
    let means = format!(
        "BPF maps: {}; resident memory grows with the requests of a run and, while the answer is \
         worked out, with its stalls: {} and {} at most",
        each.join(", "),
        crate::loadgen::MAX_SAMPLES,
        crate::session::EVENTS_MAX
    );
    ok("memory", value, means)
}

fn jit(facts: &Facts) -> Check {
    match facts.bpf_jit {
        Some(0) => ok("bpf_jit", "off", "programs are interpreted, at ten times the cost")
            .limited()
            .todo("sysctl net.core.bpf_jit_enable=1"),
        Some(_) => ok("bpf_jit", "on", "programs run as machine code"),
        None => ok("bpf_jit", "not told", "whether programs are compiled is not known").unknown(),
    }
}

fn hook(id: &'static str, support: &Support, means: &str, without: &str) -> Check {
    match support {
        Support::Yes => ok(id, "yes", means),
        Support::No(why) => ok(id, format!("no: {why}"), without).missing(),
        Support::Unknown(why) => ok(id, format!("not known: {why}"), means).unknown(),
    }
}

fn hooks(facts: &Facts) -> Vec<Check> {
    let support = &facts.support;
    let mut ring_buffer = hook(
        "ring_buffer",
        &support.ring_buffer,
        "records reach user space without a copy",
        "no record can be delivered",
    );
    if ring_buffer.state == State::Missing {
        ring_buffer = ring_buffer.todo("run a kernel of 5.8 or later").blocks(Blocks::Kernel);
    }
    // Every probe also works without these: no remedy is worth a new kernel.
    let optional = |mut check: Check| {
        if check.state == State::Missing {
            check.state = State::Limited;
        }
        check
    };
    let mut fentry = optional(hook(
        "fentry",
        &support.fentry,
        "kernel functions can be watched directly",
        "probes take tracepoints instead: while mm_syscall or socket is attached, every system call \
         of the host takes the kernel's traced path (docs/OVERHEAD)",
    ));
    if fentry.state == State::Limited {
        fentry = fentry
            .todo("where a service at saturation must not notice: --probes runqueue,fault,reclaim");
    }
    vec![
        ring_buffer,
        optional(hook(
            "tp_btf",
            &support.tp_btf,
            "the cheapest way into the scheduler and the reclaim code",
            "probes take raw tracepoints instead, at a higher cost",
        )),
        fentry,
        optional(hook(
            "kprobe",
            &support.kprobe,
            "kernel functions can be watched where no better hook exists",
            "not needed: every probe has tiers without it",
        )),
        hook(
            "perf_event_programs",
            &support.perf_event,
            "the end of a page fault can be seen",
            "page faults are timed by other hooks, where this kernel has any",
        ),
        hook(
            "cgroup_sock",
            &support.cgroup_sock,
            "creation and release of sockets can be seen",
            "sockets cannot be followed",
        ),
    ]
}

fn perf_events(facts: &Facts) -> Check {
    match facts.perf_event_paranoid {
        Some(level) => ok(
            "perf_event_paranoid",
            level.to_string(),
            "does not matter to root; the page fault probe opens software events",
        ),
        None => ok("perf_event_paranoid", "none", "no perf events: page faults cannot be timed")
            .missing()
            .todo("boot a kernel built with CONFIG_PERF_EVENTS=y"),
    }
}

fn cgroup_layout(facts: &Facts) -> Check {
    let name = facts.cgroup_layout.name();
    let value = match &facts.memory_hierarchy {
        Some(path) => format!("{name}, memory at {}", path.display()),
        None => name.to_owned(),
    };
    let check = ok("cgroups", value, "stalls are counted per memory cgroup");
    match (facts.cgroup_layout, &facts.unified_mount_point) {
        (Layout::Unmounted, _) => Check {
            means: "cgroups have no names here, and sockets cannot be followed".into(),
            ..check
        }
        .limited()
        .todo("mount -t cgroup2 none /sys/fs/cgroup"),
        (_, None) => Check {
            means: "stalls are counted per memory cgroup; sockets cannot be followed without \
                version 2"
                .into(),
            ..check
        }
        .limited()
        .todo("mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified"),
        _ => check,
    }
}

fn clock_source(facts: &Facts) -> Check {
    const CHEAP: [&str; 6] =
        ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "tsc-early", "xen"];
    match facts.clock_source.as_deref() {
        Some(name) if CHEAP.contains(&name) => {
            ok("clock_source", name, "reading the time takes some 20 ns")
        }
        Some(name) => {
            ok("clock_source", name, "reading the time takes about 1 µs, several times per event")
                .limited()
                .todo("boot with clocksource=tsc tsc=reliable, if the CPU's TSC is invariant")
        }
        None => {
            ok("clock_source", "not told", "what reading the time costs is not known").unknown()
        }
    }
}

fn pid_max(facts: &Facts) -> Check {
    let value = facts.pid_max.to_string();
    if facts.pid_max <= TASK_SLOTS_MAX {
        return ok("pid_max", value, "every thread has a slot of its own for its start times");
    }
    let means = format!(
        "threads whose ids are equal modulo {TASK_SLOTS_MAX} share a slot; should two of them be \
         in a fault or a memory call at once, one stall is counted as lost (task_slot), and a wait \
         that moved between CPUs meanwhile may count for its last part only"
    );
    ok("pid_max", value, means)
}

fn tracefs(facts: &Facts) -> Check {
    match &facts.tracefs {
        Some(path) => ok("tracefs", path.display().to_string(), "classic tracepoints can be used"),
        None => ok(
            "tracefs",
            "not mounted (or not readable)",
            "only the classic tracepoint tier needs it",
        ),
    }
}

fn delay_accounting(facts: &Facts) -> Check {
    let value = match facts.delay_accounting {
        Some(true) => "on",
        Some(false) => "off",
        None => "not compiled in",
    };
    ok("task_delayacct", value, "not used by a run; the tests compare with it")
}

fn swap(facts: &Facts) -> Check {
    match facts.swap_bytes {
        Some(0) => {
            ok("swap", "none", "reclaim can drop file pages only; major faults read files only")
        }
        Some(bytes) => ok(
            "swap",
            format!("{} MiB", bytes >> 20),
            "reclaim may write anonymous memory to it, and major faults read it back",
        ),
        None => ok("swap", "not told", "whether there is swap is not known").unknown(),
    }
}

fn transparent_hugepages(facts: &Facts) -> Check {
    match facts.transparent_hugepages.as_deref() {
        Some("always") => ok(
            "transparent_hugepages",
            "always",
            "a minor fault may have to clear, and compaction to find, 2 MiB at once",
        ),
        Some(mode) => ok("transparent_hugepages", mode, "only memory that asks for huge pages"),
        None => ok("transparent_hugepages", "none", "this kernel has none"),
    }
}

fn pressure(facts: &Facts) -> Check {
    let value = if facts.pressure_stall_information { "on" } else { "off" };
    ok("psi", value, "not used by a run; /proc/pressure is a second opinion where it is on")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Report;
    use crate::kernel::support::KernelSupport;

    fn healthy() -> Facts {
        Facts {
            release: "6.18.1".into(),
            machine: "x86_64".into(),
            cpus_online: 2,
            cpus_possible: 2,
            btf_bytes: Some(5_500_000),
            btf_file: None,
            euid: 0,
            capabilities: 0x1ff_ffff_ffff,
            initial_pid_namespace: true,
            lockdown: Lockdown::Integrity,
            memlock_bytes: Some(8 << 20),
            maps: crate::kernel::plan(8 << 20),
            resident_bound_bytes: 1 << 30,
            bpf_jit: Some(1),
            support: KernelSupport {
                ring_buffer: Support::Yes,
                tp_btf: Support::Yes,
                fentry: Support::No("refused".into()),
                kprobe: Support::No("not built".into()),
                perf_event: Support::Yes,
                cgroup_sock: Support::Yes,
            },
            perf_event_paranoid: Some(2),
            cgroup_layout: Layout::Hybrid,
            memory_hierarchy: Some("/sys/fs/cgroup/memory".into()),
            unified_mount_point: Some("/sys/fs/cgroup/unified".into()),
            clock_source: Some("tsc".into()),
            pid_max: 32_768,
            tracefs: None,
            delay_accounting: Some(false),
            swap_bytes: Some(0),
            transparent_hugepages: Some("madvise".into()),
            pressure_stall_information: true,
        }
    }

    fn state(checks: &[Check], id: &str) -> State {
        checks.iter().find(|check| check.id == id).unwrap().state
    }

    fn exit(facts: &Facts) -> u8 {
        Report::new(judge(facts), Vec::new()).exit_code
    }

    #[test]
    fn a_host_without_fentry_and_kprobes_will_do() {
        let checks = judge(&healthy());
        assert_eq!(exit(&healthy()), 0);
        let not_ok: Vec<&str> =
            checks.iter().filter(|c| c.state != State::Ok).map(|c| c.id).collect();
        assert_eq!(not_ok, ["fentry", "kprobe"]);
    }

    #[test]
    fn rights_are_told_capability_by_capability() {
        let none = Facts { euid: 1000, capabilities: 0, ..healthy() };
        assert_eq!(exit(&none), 3);
        let checks = judge(&none);
        let line = checks.iter().find(|check| check.id == "privileges").unwrap();
        assert!(line.value.starts_with("user 1000 without CAP_BPF, CAP_PERFMON"), "{}", line.value);
        assert!(!line.value.contains("CAP_SYS_RESOURCE"), "not needed on 6.18");

        let narrow = (1 << 39) | (1 << 38) | (1 << 12) | (1 << 19);
        assert_eq!(exit(&Facts { euid: 1000, capabilities: narrow, ..healthy() }), 0);
        let old = Facts { capabilities: narrow, release: "5.10.0-8-amd64".into(), ..healthy() };
        assert_eq!(exit(&old), 3, "needs CAP_SYS_RESOURCE before 5.11");
        let admin = (1 << CAP_SYS_ADMIN) | (1 << 19);
        assert_eq!(exit(&Facts { capabilities: admin, ..old }), 0);
    }

    #[test]
    fn what_the_kernel_lacks_is_another_exit_code() {
        assert_eq!(exit(&Facts { btf_bytes: None, ..healthy() }), 4);
        assert_eq!(exit(&Facts { lockdown: Lockdown::Confidentiality, ..healthy() }), 4);
        let mut no_ring = healthy();
        no_ring.support.ring_buffer = Support::No("old".into());
        assert_eq!(exit(&no_ring), 4);
        // Not being allowed to try is no lack of the kernel's.
        no_ring.support.ring_buffer = Support::Unknown("not root".into());
        assert_eq!(exit(&no_ring), 0);
        assert_eq!(exit(&Facts { initial_pid_namespace: false, ..healthy() }), 3);
    }

    #[test]
    fn costs_and_gaps_are_limits_with_a_remedy() {
        let facts = Facts {
            clock_source: Some("hpet".into()),
            bpf_jit: Some(0),
            cgroup_layout: Layout::V1,
            unified_mount_point: None,
            machine: "aarch64".into(),
            ..healthy()
        };
        let checks = judge(&facts);
        for id in ["clock_source", "bpf_jit", "cgroups", "kernel"] {
            assert_eq!(state(&checks, id), State::Limited, "{id}");
        }
        for id in ["clock_source", "bpf_jit", "cgroups"] {
            assert!(checks.iter().any(|check| check.id == id && check.todo.is_some()), "{id}");
        }
        assert_eq!(exit(&facts), 0);
        let old = Facts { release: "5.10.0".into(), ..healthy() };
        assert_eq!(state(&judge(&old), "memory_lock"), State::Limited);
        assert_eq!(state(&judge(&healthy()), "memory_lock"), State::Ok);
    }

    #[test]
    fn every_line_has_its_own_name() {
        let checks = judge(&healthy());
        let mut ids: Vec<&str> = checks.iter().map(|check| check.id).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), checks.len());
    }
}
