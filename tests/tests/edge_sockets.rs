//! Sockets that the kernel refuses: each call is counted as what it returned, and as nothing else.

use std::ops::RangeInclusive;

use observer_ebpf::wire::{FD_ERRNOS, FdSyscall};
use observer_tests::bpf::NoSocketMemory;
use observer_tests::cgroup::MemoryCgroup;
use observer_tests::kernel_counters;
use observer_tests::privileged;
use observer_tests::process::Placement;
use observer_tests::sysctl::Sysctl;
use observer_tests::trial::{self, Run, Trial, scaled_text};
use serde_json::Value;

/// One observer for each tier; attaching one takes an emulated CPU seconds, so guests have one.
fn trial(test: &'static str) -> Trial {
    match trial::in_guest() {
        true => Trial::new(test),
        false => Trial::with(test, trial::offered_tiers("socket").into_iter().map(Some).collect()),
    }
}

/// How often a call returned this errno, or 0, by the caller's own count.
fn returned(counts: &Value, call: &str, errno: u32) -> u64 {
    counts[call].get(errno.to_string()).map_or(0, |count| count.as_u64().expect("a count"))
}

/// Failures of a call, whatever the errno.
fn failed(counts: &Value, call: &str) -> u64 {
    let errnos = counts[call].as_object().expect("errnos").iter();
    errnos
        .filter(|(errno, _)| *errno != "0")
        .map(|(_, count)| count.as_u64().expect("a count"))
        .sum()
}

fn counter(run: &Run, name: &str) -> u64 {
    let found = run.probe("socket").counters.get(name).copied().unwrap_or_default();
    u64::try_from(found).expect("a count")
}

/// Failures that use up nothing are not counted, all others are, by call and errno; and so is each
/// socket. `made` says how many sockets of calls that failed the kernel had made before: it looks for a
/// descriptor and a file only when the socket is there (`__sys_socket`, net/socket.c).
#[track_caller]
fn counted(trial: &Trial, runs: &[Run], counts: &Value, made: RangeInclusive<u64>) {
    println!("{counts}");
    for (tier, run) in trial.tiers.iter().zip(runs) {
        for call in FdSyscall::ALL {
            for (errno, name) in FD_ERRNOS {
                let metric = format!("failed_{}_{name}", call.name());
                let own = returned(counts, call.name(), errno);
                assert_eq!(counter(run, &metric), own, "{tier:?}: {metric} of {counts}");
            }
        }
        let (sockets, accepted) = (returned(counts, "socket", 0), returned(counts, "accept", 0));
        let found = ["created", "accepted", "released"].map(|name| counter(run, name));
        let created = found[0];
        assert!(made.contains(&(created - sockets)), "{tier:?}: {created} created, {counts}");
        assert_eq!(found, [created, accepted, created + accepted], "{tier:?}: {counts}");
        assert_eq!(created, counter(&runs[0], "created"), "all tiers count the same: {tier:?}");
        // Its listener, and its connection to it.
        assert_eq!(counter(run, "live"), 2, "{tier:?}");
    }
}

/// Holds something from the first reading of the kernel counters to the second one: while the workload works.
fn held_meanwhile<T>(hold: impl Fn(u32) -> T) -> impl FnMut(u32) {
    let mut held = None;
    move |pid| held = if held.is_none() { Some(hold(pid)) } else { None }
}

#[test]
fn sockets_that_cannot_be_used_are_created_and_no_failure_of_theirs_is_exhaustion() {
    let Some(_guard) = privileged::ready("failed connects") else { return };
    let trial = trial("sockets that cannot be used");
    let directory = trial::directory();
    let rounds = trial::scaled(20);
    let arguments = ["refused", "--used-up", "nothing", "--rounds", &rounds.to_string()];
    let mut work = trial::start(&arguments, Placement::default());
    let observed = trial.observe(&mut work, directory.path(), |_| ());
    let counts = &observed.counts;
    let errnos = [
        ("socket", libc::EPROTONOSUPPORT),
        ("connect", libc::ECONNREFUSED),
        ("bind", libc::EADDRINUSE),
        ("accept", libc::EOPNOTSUPP),
    ];
    for (call, errno) in errnos {
        assert!(returned(counts, call, errno.unsigned_abs()) >= rounds, "{call}: {counts}");
    }
    counted(&trial, &observed.runs, counts, 0..=0);
    work.end().expect("it ends");
}

#[test]
fn sockets_without_a_descriptor_are_created_and_released() {
    let Some(_guard) = privileged::ready("sockets without descriptors") else { return };
    let trial = trial("sockets without descriptors");
    let directory = trial::directory();
    let arguments = ["refused", "--used-up", "descriptors", "--rounds", &scaled_text(40)];
    let mut work = trial::start(&arguments, Placement::default());
    let observed = trial.observe(&mut work, directory.path(), |_| ());
    let failures = failed(&observed.counts, "socket");
    assert!(failures > 0 && failed(&observed.counts, "accept") > 0, "{}", observed.counts);
    counted(&trial, &observed.runs, &observed.counts, failures..=failures);
    work.end().expect("it ends");
}

#[test]
fn sockets_beyond_the_files_of_the_host_are_created_and_released() {
    let Some(_guard) = privileged::ready("sockets without files") else { return };
    if !trial::in_guest() {
        return println!("not here: it takes the files of all users; done in guests only");
    }
    let trial = trial("sockets without files");
    let directory = trial::directory();
    let arguments = ["refused", "--used-up", "files", "--rounds", &scaled_text(40)];
    let mut work = trial::start(&arguments, Placement::default());
    let no_files = |_| Sysctl::set("fs/file-max", 0).expect("it can be set");
    let observed = trial.observe(&mut work, directory.path(), held_meanwhile(no_files));
    for call in ["socket", "accept", "open"] {
        let enfile = returned(&observed.counts, call, libc::ENFILE.unsigned_abs());
        assert!(enfile > 0, "{call}: {}", observed.counts);
    }
    let failures = failed(&observed.counts, "socket");
    counted(&trial, &observed.runs, &observed.counts, failures..=failures);
    work.end().expect("it ends");
}

#[test]
fn sockets_that_the_kernel_has_no_memory_for_are_failures_and_not_created() {
    let Some(_guard) = privileged::ready("no memory for sockets") else { return };
    if !trial::in_guest() {
        // Lockdown forbids programs that change what functions of the kernel return.
        return println!("not here: not every host lets it be made to fail; done in guests only");
    }
    let trial = trial("no memory for sockets");
    let directory = trial::directory();
    let rounds = trial::scaled(20);
    let arguments = ["refused", "--used-up", "sockets", "--rounds", &rounds.to_string()];
    let mut work = trial::start(&arguments, Placement::default());
    let no_memory = |pid| NoSocketMemory::of(pid).expect("the kernel can be made to fail");
    let observed = trial.observe(&mut work, directory.path(), held_meanwhile(no_memory));
    // Which of the two a family returns then is up to the kernel (`inet6_create`, net/ipv6/af_inet6.c, says ENOBUFS).
    let errnos = [libc::ENOBUFS, libc::ENOMEM].map(i32::unsigned_abs);
    let found = errnos.map(|errno| returned(&observed.counts, "socket", errno));
    assert!(found[0] > 0, "{}", observed.counts);
    assert_eq!(found[0] + found[1], 6 * rounds, "{}", observed.counts);
    counted(&trial, &observed.runs, &observed.counts, 0..=0);
    work.end().expect("it ends");
}

#[test]
fn connections_wait_to_be_accepted_as_long_as_they_do() {
    let Some(_guard) = privileged::ready("accept queue") else { return };
    let trial = trial("accept queue");
    let directory = trial::directory();
    let mut work = trial::start(&["queued", "--rounds", &scaled_text(100)], Placement::default());
    let pid = work.id().to_string();
    let target = ["--pid", &pid, "--probes", "default,request"].map(str::to_owned);
    let observed = trial.observe_target(&target, &mut work, directory.path(), |_| ());
    let told = |name: &str| trial::number(&observed.counts, name);
    for (tier, run) in trial.tiers.iter().zip(&observed.runs) {
        let found = &run.probe("request").parts["accept_queue_wait"];
        println!("{tier:?}: {found:?} of {}", observed.counts);
        assert_eq!(found.count, told("accepted"), "{tier:?}");
        let is_within = |ns: u64, least: &str, most: &str| (told(least)..=told(most)).contains(&ns);
        assert!(is_within(found.sum_ns, "at_least_ns", "at_most_ns"), "{tier:?}: {found:?}");
        let longest = ("longest_at_least_ns", "longest_at_most_ns");
        assert!(is_within(found.max_ns, longest.0, longest.1), "{tier:?}: {found:?}");
    }
    work.end().expect("it ends");
}

/// At the limit of its cgroup, the kernel has no memory for an inode (ENFILE), for the socket (ENOBUFS),
/// or for the file and its place in the table (ENOMEM). Which of them comes first is up to the sizes.
#[test]
fn sockets_beyond_the_memory_of_their_cgroup_are_counted_by_what_was_missing() {
    let Some(_guard) = privileged::ready("sockets without memory") else { return };
    let trial = trial("sockets without memory");
    let cgroup = MemoryCgroup::create(&trial::unique("sockets")).expect("a cgroup can be made");
    if cgroup.version() != 1 {
        return println!("not here: in version 2, the kernel kills what has no memory");
    }
    let directory = trial::directory();
    let place = Placement { cgroup: Some(&cgroup), ..Placement::default() };
    let arguments = ["refused", "--used-up", "memory", "--rounds", &scaled_text(60)];
    let mut work = trial::start(&arguments, place);
    let mut limited = false;
    let observed = trial.observe(&mut work, directory.path(), |pid| {
        if !std::mem::replace(&mut limited, true) {
            let usage = cgroup.usage_bytes().expect("a number");
            cgroup.limit(Some(usage + (1 << 20))).expect("a limit");
        }
        kernel_counters::socket_descriptors(pid).expect("it is there")
    });
    assert_eq!([observed.before, observed.after], [2, 2], "what was made is closed again");
    let counts = &observed.counts;
    let errnos = [libc::ENFILE, libc::ENOBUFS, libc::ENOMEM].map(i32::unsigned_abs);
    let of_sockets: u64 = errnos.map(|errno| returned(counts, "socket", errno)).iter().sum();
    assert!(of_sockets > 0, "{counts}");
    assert_eq!(of_sockets, failed(counts, "socket"), "{counts}");
    // Which part of the call had no memory, ENOMEM does not say.
    let without_memory = returned(counts, "socket", libc::ENOMEM.unsigned_abs());
    counted(&trial, &observed.runs, counts, 0..=without_memory);
    work.end().expect("it ends");
}
