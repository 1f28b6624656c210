//! The choice of a tier: forced, refused, and made without the kernel's own types.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use observer::kernel::{KERNEL_BTF, Kernel, LoadOptions, RING_BYTES};
use observer::probe::{ForcedTier, Members, PROBES, ProbeOptions};
use observer_tests::daemon::Daemon;
use observer_tests::mapping::{Mapping, PAGE_BYTES};
use observer_tests::process::Placement;
use observer_tests::results::Held;
use observer_tests::trial::{self, Run, Trial};
use observer_tests::{kernel_counters, privileged};
use rustix::process::{Resource, Rlimit, setrlimit};
use serde_json::Value;

fn observer(arguments: &[&str]) -> Command {
    let mut command = Command::new(trial::programs().observer);
    command.args(arguments);
    command
}

fn doctor(probes: &str, arguments: &[&str]) -> (Value, Output) {
    let command = ["doctor", "--json", "--probes", probes];
    let output = observer(&command).args(arguments).output().expect("starts");
    (serde_json::from_slice(&output.stdout).unwrap_or_default(), output)
}

/// One line, and not a panic.
fn said(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    assert!(!said.contains("panicked"), "{said}");
    said
}

fn probes(found: &Value) -> &[Value] {
    found["probes"].as_array().map_or(&[], Vec::as_slice)
}

/// A line of the doctor.
fn check<'a>(found: &'a Value, id: &str) -> &'a Value {
    let checks = found["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["id"] == id).expect("it is there")
}

#[test]
fn every_tier_that_is_offered_can_be_forced_and_every_other_says_why_not() {
    let Some(_guard) = privileged::ready("forced tiers") else { return };
    let (found, output) = doctor("all", &[]);
    assert!(output.status.success(), "{found:#}");
    let mut forced = 0;
    for probe in probes(&found) {
        for tier in probe["tiers"].as_array().expect("tiers") {
            let (name, tier_name) = (&probe["probe"], &tier["tier"]);
            let probe_name = name.as_str().expect("a name");
            let choice = format!("{probe_name}={}", tier_name.as_str().expect("a name"));
            // The others would be loaded each time as well, which is most of the work.
            let (again, output) = doctor(probe_name, &["--tier", &choice]);
            if tier["state"] == "not_offered" {
                assert_eq!(output.status.code(), Some(4), "{choice}: {again:#}");
                let why = tier["why"].as_str().expect("a reason");
                assert!(said(&output).contains(why), "{choice}: {}", said(&output));
                continue;
            }
            assert!(output.status.success(), "{choice}: {again:#}");
            let taken = probes(&again).iter().find(|one| one["probe"] == *name).expect("there");
            assert_eq!(taken["tier"], *tier_name, "{choice}");
            assert_eq!(taken["state"], "attached", "{choice}: {again:#}");
            forced += 1;
        }
    }
    // The least any kernel with BTF offers: two of each probe.
    assert!(forced >= 12, "{forced} tiers in {found:#}");
}

#[test]
fn an_unavailable_tier_is_reported_with_the_available_ones() {
    for (choice, hint) in
        [("fault", "PROBE=TIER"), ("faults=fentry", "runqueue"), ("fault=uprobe", "perf_event")]
    {
        for subcommand in [&["doctor"][..], &["run", "--pid", "1"], &["daemon"]] {
            let output = observer(subcommand).args(["--tier", choice]).output().expect("starts");
            assert_eq!(output.status.code(), Some(2), "{subcommand:?} {choice}");
            assert!(said(&output).contains(hint), "{}", said(&output));
        }
    }
}

#[test]
fn types_from_a_file_that_has_none_are_refused_in_one_line() {
    let Some(_guard) = privileged::ready("types from a file") else { return };
    let directory = trial::directory();
    let file = directory.path().join("types");
    std::fs::write(&file, "no types").expect("written");
    let file = file.to_str().expect("a name");
    for path in [file, "/nonexistent/btf", "/proc/self/exe", directory.path().to_str().unwrap()] {
        let output = observer(&["run", "--pid", "1", "--duration", "1s", "--btf", path])
            .arg("--out")
            .arg(directory.path().join("run"))
            .output()
            .expect("starts");
        assert_eq!(output.status.code(), Some(4), "{path}: {}", said(&output));
        assert_eq!(said(&output).lines().count(), 1, "{}", said(&output));
        assert!(said(&output).contains(path), "{}", said(&output));
    }
}

#[test]
fn without_the_kernels_own_types_everything_is_still_counted() {
    let Some(_guard) = privileged::ready("no types of its own") else { return };
    let directory = trial::directory();
    let file = directory.path().join("types");
    std::fs::copy(KERNEL_BTF, &file).expect("this kernel's types");
    let file = file.to_str().expect("a name");
    let (found, output) = doctor("all", &["--btf", file]);
    assert!(output.status.success(), "{found:#}");
    for probe in probes(&found) {
        assert_eq!(probe["state"], "attached", "{probe:#}");
        let tier = probe["tier"].as_str().expect("a tier");
        assert!(!["tp_btf", "tp_btf_pair", "fentry", "tracepoint"].contains(&tier), "{probe:#}");
    }

    // The complete path, with all helper calls that replace typed loads.
    let pages = trial::scaled_text(20_000);
    let mut work = trial::start(&["minor-faults", "--pages", &pages], Placement::default());
    let target = ["--pid".to_owned(), work.id().to_string(), "--btf".into(), file.into()];
    let trial = Trial::new("types from a file");
    let observed = trial.observe_target(&target, &mut work, directory.path(), |pid| {
        kernel_counters::faults(pid).expect("the workload is there")
    });
    let faults = observed.after.since(observed.before);
    assert!(faults.minor >= trial::number(&observed.counts, "minor_faults"), "{faults:?}");
    let held = |held: &Held, run: &Run| {
        let minor = run.count("fault", "minor");
        held.equal("minor", "/proc/PID/stat minflt", minor, faults.minor, 0.01);
    };
    trial.hold(&observed, "fault", held, &[]);
    work.end().expect("the workload ends");
}

/// Programs that the kernel refuses, for a reason that a test can cause: no more descriptors.
#[test]
fn a_refused_program_is_reported_in_the_coverage() {
    let Some(_guard) = privileged::ready("refused programs") else { return };
    let mut incomplete = 0;
    for descriptors in (24_u64..120).step_by(19) {
        let mut command = observer(&["doctor", "--json", "--probes", "all"]);
        // SAFETY: a single system call between fork and exec.
        unsafe {
            command.pre_exec(move || {
                let limit = Some(descriptors);
                Ok(setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit })?)
            });
        }
        let output = command.output().expect("starts");
        let said = said(&output);
        assert!(said.lines().count() <= 1, "{descriptors}: {said}");
        assert!(matches!(output.status.code(), Some(0 | 3 | 4)), "{descriptors}: {said}");
        let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        for probe in probes(&found) {
            if probe["state"] != "attached" {
                assert!(probe["reason"].is_string(), "{descriptors}: {probe:#}");
                incomplete += i32::from(output.status.success());
            }
        }
    }
    assert!(incomplete > 0, "no number of descriptors left a probe incomplete");
}

/// This kernel's types, with every member and value of this name renamed.
fn types_without(name: &str) -> Vec<u8> {
    let mut types = std::fs::read(KERNEL_BTF).expect("this kernel's types");
    let text = format!("\0{name}\0").into_bytes();
    // Bytes in front of the names may look like one (`struct btf_header`, include/uapi/linux/btf.h).
    let word =
        |at: usize| u32::from_ne_bytes(types[at..at + 4].try_into().expect("a word")) as usize;
    let names = word(4) + word(16);
    let at = types[names..].windows(text.len()).position(|found| found == text).expect("a name");
    types[names + at + 1] = b'~';
    types
}

/// Observer under types that stand in for the kernel's own.
fn with_types(types: &Path, arguments: &[&str]) -> Output {
    let shell = format!("mount --bind \"$0\" {KERNEL_BTF} && exec \"$@\"");
    Command::new("unshare")
        .args(["--mount", "sh", "-c", &shell])
        .arg(types)
        .arg(trial::programs().observer)
        .args(arguments)
        .output()
        .expect("unshare starts")
}

/// A member or value of each group, by which the rest of the group is judged.
const READ: [(&str, Members); 11] = [
    ("run_delay", Members::RunDelay),
    ("__state", Members::State),
    ("comm", Members::Comm),
    ("live", Members::LiveThreads),
    ("flags", Members::TaskFlags),
    ("PGMAJFAULT", Members::FaultEvents),
    ("private_data", Members::Descriptors),
    ("sk_type", Members::Sockets),
    ("rcv_nxt", Members::Connections),
    ("status", Members::CallAbi),
    ("orig_ax", Members::Registers),
];

/// Whether a tier reads the members of this group.
fn reads(probe: &str, tier: &str, members: Members) -> bool {
    let row = PROBES.into_iter().find(|row| row.name == probe).expect("a probe");
    let tier = row.tiers.iter().find(|one| one.name == tier).expect("a tier");
    tier.reads.contains(&members)
}

#[test]
fn a_missing_member_disables_the_tiers_that_read_it() {
    let Some(_guard) = privileged::ready("missing members") else { return };
    let directory = trial::directory();
    let types = directory.path().join("types");
    for (name, members) in READ {
        std::fs::write(&types, types_without(name)).expect("written");
        let output = with_types(&types, &["doctor", "--json", "--probes", "all"]);
        let found: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{name}: {}", said(&output)));
        for probe in probes(&found) {
            let probe_name = probe["probe"].as_str().expect("a name");
            let mut left = 0;
            for tier in probe["tiers"].as_array().expect("tiers") {
                let tier_name = tier["tier"].as_str().expect("a name");
                let reads = reads(probe_name, tier_name, members);
                let why = tier["why"].as_str().expect("a reason");
                let not_offered = tier["state"] == "not_offered";
                assert!(not_offered || !reads, "{name}: {tier_name} is taken or offered");
                // A tier that this kernel does not offer anyhow has another reason.
                let says = [" member ", " value ", "."]
                    .iter()
                    .any(|before| why.contains(&format!("{before}{name}")));
                assert!(!says || reads && not_offered, "{name}: {tier_name}: {why}");
                left += u32::from(!not_offered);
            }
            let state = if left > 0 { "attached" } else { "unsupported" };
            assert_eq!(probe["state"], state, "{name}: {probe:#}");
            let reason = probe["reason"].as_str().unwrap_or_default();
            let said = reason.contains(" has no member ") || reason.contains(" has no value ");
            assert_eq!(said, left == 0, "{name}: {probe_name}: {reason}");
        }
        // With one reader's own tiers gone, at least one of them must have said so.
        assert!(found.to_string().contains(name), "{name}: {found:#}");
    }
}

#[test]
fn a_missing_cgroup_member_costs_only_the_numbers_by_cgroup() {
    let Some(_guard) = privileged::ready("no cgroup ids") else { return };
    let directory = trial::directory();
    let types = directory.path().join("types");
    std::fs::write(&types, types_without("kn")).expect("written");
    let chosen = |found: &Value| -> Vec<[Value; 3]> {
        probes(found)
            .iter()
            .map(|one| ["probe", "tier", "state"].map(|key| one[key].clone()))
            .collect()
    };
    let output = with_types(&types, &["doctor", "--json", "--probes", "all"]);
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.success(), "{found:#}");
    assert_eq!(chosen(&found), chosen(&doctor("all", &[]).0));
    let check = check(&found, "cgroups");
    assert_eq!(check["state"], "limited", "{check:#}");
    assert!(
        check["value"].as_str().is_some_and(|value| value.ends_with("no member kn")),
        "{check:#}"
    );

    const PAGES: usize = 1_000;
    let mut pages = Mapping::anonymous(PAGES * PAGE_BYTES).expect("a mapping");
    pages.advise_small().expect("no huge pages");
    let daemon = Daemon::start(&["--btf", types.to_str().expect("a name")]);
    let faults = || daemon.scrape().count("observer_host_fault_latency_seconds_count", &[]);
    let before = faults();
    pages.write_every_page();
    assert!(faults() >= before + PAGES as u64);
    let by_cgroup = "observer_fault_latency_seconds_count{";
    let scraped = daemon.scrape();
    assert!(!scraped.text().lines().any(|line| line.starts_with(by_cgroup)), "{}", scraped.text());
    daemon.end();
}

#[test]
fn a_member_that_every_program_reads_is_an_error_in_one_line() {
    let Some(_guard) = privileged::ready("no thread ids") else { return };
    let directory = trial::directory();
    let types = directory.path().join("types");
    std::fs::write(&types, types_without("tgid")).expect("written");
    let out = directory.path().join("run");
    let run = ["run", "--pid", "1", "--duration", "1s", "--out", out.to_str().expect("a name")];
    let output = with_types(&types, &run);
    assert_eq!(output.status.code(), Some(4), "{}", said(&output));
    assert_eq!(said(&output).lines().count(), 1, "{}", said(&output));
    assert!(said(&output).contains("struct task_struct has no member tgid"), "{}", said(&output));
}

/// Instructions of the program at the exit of all system calls, when these probes are asked for.
fn exit_instructions(probes: &str) -> u32 {
    let tiers = ["mm_syscall=tp_btf", "socket=tp_btf"];
    let probes = ProbeOptions {
        selection: probes.parse().expect("probes"),
        tiers: tiers.iter().map(|tier| tier.parse::<ForcedTier>().expect("a tier")).collect(),
        ..ProbeOptions::default()
    };
    let options = LoadOptions { has_target: true, ring_bytes: RING_BYTES, probes, by_cgroup: true };
    let kernel = Kernel::attach(&options).unwrap_or_else(|error| panic!("{error}"));
    let profile = kernel.profile();
    let exit = profile.iter().find(|program| program.name == "sys_exit");
    exit.expect("it is attached").translated_bytes / 8
}

#[test]
fn a_shared_program_has_the_parts_that_are_asked_for() {
    let Some(_guard) = privileged::ready("parts of shared programs") else { return };
    let [both, calls, sockets] =
        ["mm_syscall,socket", "mm_syscall", "socket"].map(exit_instructions);
    println!(
        "instructions at the exit of all calls: {both}, {calls} for mm_syscall, {sockets} for socket"
    );
    // Each lacks the part of the other, and the shared part is loaded once.
    assert!(calls < both && sockets < both, "{both}, {calls}, {sockets}");
    assert!(calls + sockets > both, "{both}, {calls}, {sockets}");
}

fn thread_state(arguments: &[&str]) -> String {
    let (found, output) = doctor("all", &[&["--thread-state", "storage"], arguments].concat());
    assert!(output.status.success(), "{found:#}");
    for probe in probes(&found) {
        assert_eq!(probe["state"], "attached", "{probe:#}");
    }
    check(&found, "thread_state")["value"].as_str().expect("a text").to_owned()
}

#[test]
fn the_state_of_threads_is_where_every_program_in_use_reaches_it() {
    let Some(_guard) = privileged::ready("places of state") else { return };
    let best = thread_state(&[]);
    if best == "tables" {
        println!("no task-local storage here");
        return;
    }
    assert_eq!(
        best,
        "task-local storage: runqueue, fault, reclaim, mm_syscall, kernel_lock, irq, sleep, stack"
    );
    // These programs do not know the type of the tasks that they switch between.
    assert_eq!(
        thread_state(&["--tier", "runqueue=raw_tracepoint"]),
        "task-local storage: fault, reclaim, mm_syscall, kernel_lock, irq, sleep, stack; tables: runqueue"
    );
}

/// This kernel's types, with a member of `sched_info` moved far behind the end of its struct.
fn types_with_a_member_moved() -> Vec<u8> {
    let mut types = std::fs::read(KERNEL_BTF).expect("this kernel's types");
    let word = |types: &[u8], at: usize| {
        u32::from_le_bytes(types[at..at + 4].try_into().expect("four bytes")) as usize
    };
    // The header: lengths of itself, offset and length of the types, and of the strings
    // (`struct btf_header`, include/uapi/linux/btf.h).
    let header = word(&types, 4);
    let (types_at, types_end) =
        (header + word(&types, 8), header + word(&types, 8) + word(&types, 12));
    let strings_at = header + word(&types, 16);
    let name = b"\0run_delay\0";
    let name_at = types[strings_at..].windows(name.len()).position(|found| found == name);
    let name_offset = name_at.expect("a kernel with scheduler statistics") + 1;
    let mut moved = 0;
    // A member is its name, type and offset in bits (`struct btf_member`).
    for at in (types_at..types_end - 8).step_by(4) {
        if word(&types, at) == name_offset {
            types[at + 8..at + 12].copy_from_slice(&(8_u32 << 20).to_le_bytes());
            moved += 1;
        }
    }
    assert!((1..=3).contains(&moved), "{moved} members of that name");
    types
}

/// Programs that the verifier refuses: a kernel whose types are not what it says they are.
#[test]
fn a_program_that_the_verifier_refuses_is_one_line_and_its_own_words_at_verbose() {
    let Some(_guard) = privileged::ready("programs the verifier refuses") else { return };
    let directory = trial::directory();
    let types = directory.path().join("types");
    std::fs::write(&types, types_with_a_member_moved()).expect("written");
    let there = |arguments: &[&str]| with_types(&types, arguments);
    let says = "access beyond struct task_struct";

    // The next tier is used, and one line reports why the better one is not.
    let output = there(&["doctor", "--json", "--probes", "all"]);
    assert!(output.status.success(), "{}", said(&output));
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    for probe in probes(&found) {
        assert_eq!(probe["state"], "attached", "{probe:#}");
        // Both have this program.
        let refused = ["runqueue", "sleep"].iter().any(|name| probe["probe"] == *name);
        let reason = probe["reason"].as_str().unwrap_or_default();
        assert_eq!(reason.contains(says), refused, "{probe:#}");
        assert_eq!(reason.lines().count(), usize::from(refused), "{reason}");
    }
    assert!(found["verifier_logs"]["sched_switch"].as_str().is_some_and(|log| log.contains(says)));

    // Without another tier, the probe runs without that program, and the run continues with the
    // other probes.
    let forced = ["--tier", "runqueue=tp_btf"];
    let doctor = there(&[&["--verbose", "doctor"], &forced[..]].concat());
    assert!(doctor.status.success(), "{}", said(&doctor));
    let text = String::from_utf8(doctor.stdout).expect("UTF-8");
    assert!(text.lines().any(|line| line.trim().starts_with(says)), "in its own words: {text}");
    let out = directory.path().join("run");
    let pid = std::process::id().to_string();
    // The budget would detach a probe on a busy host.
    let run = ["--verbose", "run", "--pid", &pid, "--duration", "1s", "--budget", "none", "--out"];
    let output = there(&[&run[..], &[out.to_str().expect("a name")], &forced[..]].concat());
    assert!(output.status.success(), "{}", said(&output));
    let notes = said(&output);
    assert!(notes.contains("probe runqueue is not complete"), "{notes}");
    assert!(
        notes.lines().any(|line| line.trim_start().starts_with(says)),
        "in its own words: {notes}"
    );
    let summary = std::fs::read(out.join("summary.json")).expect("a summary");
    let summary: Value = serde_json::from_slice(&summary).expect("JSON");
    let state = |probe: &str| summary["probes"][probe]["state"].clone();
    assert_eq!((state("runqueue"), state("fault")), ("partial".into(), "attached".into()));
}
