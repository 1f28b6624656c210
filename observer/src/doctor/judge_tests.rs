use super::*;
use crate::doctor::Report;
use crate::kernel::ThreadPlaces;
use crate::kernel::support::KernelSupport;
use crate::model::CpuLimit;
use crate::session::memory::Memory;

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
        uses_cgroup_hooks: true,
        initial_pid_namespace: true,
        lockdown: Lockdown::Integrity,
        maps: crate::kernel::plan(8 << 20, false, &ThreadPlaces::tables("a test")),
        threads_max: 100_000,
        thread_places: ThreadPlaces::tables("a test"),
        call_filter: true,
        memory: Memory {
            frames: 0,
            stalls: 4,
            samples: 4,
            requests: 4,
            resident_bound_bytes: 1 << 30,
            room: None,
        },
        bpf_jit: Some(1),
        support: KernelSupport {
            ring_buffer: Support::Yes,
            tp_btf: Support::Yes,
            fentry: Support::No("refused".into()),
            kprobe: Support::No("not built".into()),
            uprobe: Support::Yes,
            perf_event: Support::Yes,
            cgroup_sock: Support::Yes,
        },
        perf_event_paranoid: Some(2),
        cgroup_layout: Layout::Hybrid,
        cgroup_member_missing: None,
        memory_hierarchy: Some("/sys/fs/cgroup/memory".into()),
        unified_mount_point: Some("/sys/fs/cgroup/unified".into()),
        cpu_limit: None,
        clock_source: Some("tsc".into()),
        namespace_offset_ns: Ok(0),
        pid_max: 32_768,
        tracefs: None,
        delay_accounting: Some(false),
        swap_bytes: Some(0),
        transparent_hugepages: Some("madvise".into()),
        pressure_stall_information: true,
        counters: Vec::new(),
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
    let not_ok: Vec<&str> = checks.iter().filter(|c| c.state != State::Ok).map(|c| c.id).collect();
    assert_eq!(not_ok, ["fentry", "kprobe"]);
}

#[test]
fn rights_are_reported_capability_by_capability() {
    let none = Facts { euid: 1000, capabilities: 0, ..healthy() };
    assert_eq!(exit(&none), 3);
    let checks = judge(&none);
    let line = checks.iter().find(|check| check.id == "privileges").unwrap();
    assert!(line.value.starts_with("user 1000 without CAP_BPF, CAP_PERFMON"), "{}", line.value);

    let without_cgroups = (1 << 39) | (1 << 38) | (1 << 19);
    let chosen = Facts { euid: 1000, capabilities: without_cgroups, ..healthy() };
    assert_eq!(exit(&chosen), 3, "the probe of sockets is chosen");
    assert_eq!(exit(&Facts { uses_cgroup_hooks: false, ..chosen }), 0);
    let narrow = (1 << 39) | (1 << 38) | (1 << 12) | (1 << 19);
    assert_eq!(exit(&Facts { euid: 1000, capabilities: narrow, ..healthy() }), 0);
    let admin = (1 << CAP_SYS_ADMIN) | (1 << 19);
    assert_eq!(exit(&Facts { euid: 1000, capabilities: admin, ..healthy() }), 0);
}

#[test]
fn what_the_kernel_lacks_is_another_exit_code() {
    assert_eq!(exit(&Facts { btf_bytes: None, ..healthy() }), 4);
    for (release, code) in [("5.10.0-46-cloud-amd64", 4), ("5.11.0", 4), ("5.12.0", 0)] {
        assert_eq!(exit(&Facts { release: release.into(), ..healthy() }), code, "{release}");
    }
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
    let limit = CpuLimit { quota_us: 20_000, period_us: 100_000, burst_us: None };
    let facts = Facts {
        clock_source: Some("hpet".into()),
        cpu_limit: Some(("/sys/fs/cgroup/a/cpu.max".into(), limit)),
        bpf_jit: Some(0),
        cgroup_layout: Layout::V1,
        unified_mount_point: None,
        machine: "aarch64".into(),
        ..healthy()
    };
    let checks = judge(&facts);
    for id in ["clock_source", "bpf_jit", "cgroups", "cpu_throttling", "kernel"] {
        assert_eq!(state(&checks, id), State::Limited, "{id}");
    }
    for id in ["clock_source", "bpf_jit", "cgroups", "cpu_throttling"] {
        assert!(checks.iter().any(|check| check.id == id && check.todo.is_some()), "{id}");
    }
    let limited = checks.iter().find(|check| check.id == "cpu_throttling").unwrap();
    assert_eq!(limited.value, "0.20 CPUs by /sys/fs/cgroup/a/cpu.max");
    assert_eq!(exit(&facts), 0);
}

#[test]
fn one_line_says_what_can_be_counted() {
    use crate::host::perf_counters::COUNTERS;
    use crate::model::WhyNot;
    let with = |works: fn(&str, bool) -> bool| {
        let tried = |name, is_of_kernel| {
            if works(name, is_of_kernel) { Ok(()) } else { Err(WhyNot::Unsupported) }
        };
        let counters =
            COUNTERS.iter().map(|kind| (kind, tried(kind.name, kind.is_of_kernel()))).collect();
        let checks = judge(&Facts { counters, ..healthy() });
        checks.into_iter().find(|check| check.id == "counters").expect("a line")
    };
    let all = with(|_, _| true);
    assert_eq!(all.value, "4 of 4 of the kernel, 10 of 10 of the processor");
    let virtual_machine = with(|_, is_of_kernel| is_of_kernel);
    assert_eq!(virtual_machine.value, "4 of 4 of the kernel, 0 of 10 of the processor");
    assert_eq!(virtual_machine.state, State::Ok);
    assert!(virtual_machine.means.ends_with("does not count cycles, instructions, branch_misses, \
        cache_references, cache_misses, llc_load_misses, dtlb_loads, dtlb_load_misses, dtlb_store_misses, \
        itlb_misses"), "{}", virtual_machine.means);
    let odd = with(|name, _| name != "cpu_migrations");
    assert_eq!(
        (odd.state, odd.means.as_str()),
        (State::Limited, "`--counters` does not count cpu_migrations")
    );
    assert!(judge(&healthy()).iter().all(|check| check.id != "counters"), "not tried");
}

#[test]
fn every_line_has_its_own_name() {
    let checks = judge(&healthy());
    let mut ids: Vec<&str> = checks.iter().map(|check| check.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), checks.len());
}
