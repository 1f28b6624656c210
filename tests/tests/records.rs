//! Compares single records with what the workload knows about its stalls.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::num::NonZeroU64;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use observer::host::cgroups::Cgroups;
use observer::model::{Cause, Event, OutgoingRequest, Tgid, Value};
use observer_ebpf::wire::{
    FAULT_KERNEL, FAULT_MAJOR, FaultRecord, MmSyscallRecord, RECLAIM_MEMCG, REQUEST_OPEN,
    REQUEST_UNANSWERED, REQUEST_UNIX, RUNQUEUE_PREEMPTED, RUNQUEUE_UNSEEN, ReclaimRecord,
    RequestRecord, RunqueueRecord, SOCKET_ACCEPTED, SOCKET_PREEXISTING, SocketRecord,
    SoftirqRecord,
};
use observer_tests::cgroup::MemoryCgroup;
use observer_tests::mapping::PAGE_BYTES;
use observer_tests::privileged;
use observer_tests::process::Placement;
use observer_tests::told::{Area, Call, Calls, Faults, MmCall, Outgoing, Requests, Socket};
use observer_tests::trial::{self, Run, Trial, scaled_text};
use serde::de::DeserializeOwned;

/// The tiers that records of a probe come from, each to be tried. Attaching one takes an emulated
/// CPU seconds: guests try observer's own choice only.
fn tiers(probe: &str) -> Vec<Option<String>> {
    if trial::in_guest() {
        return vec![None];
    }
    trial::offered_tiers(probe).into_iter().map(Some).collect()
}

/// Runs a workload under observer; returns what it reported, and the records of its process.
fn recorded<T: DeserializeOwned>(
    arguments: &[&str],
    options: &[&str],
    tier: Option<&str>,
) -> (T, Vec<Event>) {
    println!("{arguments:?} by {tier:?}");
    let directory = trial::directory();
    let mut options = options.to_vec();
    options.extend(tier.iter().flat_map(|tier| ["--tier", tier]));
    let (mut work, watch) = trial::watched(arguments, &options, directory.path());
    let told = work.go().unwrap_or_else(|error| panic!("{error}"));
    let place = watch.run.clone();
    let (summary, info) = watch.finish().unwrap_or_else(|error| panic!("{error}"));
    let events = of_process(&Run { summary, info, directory: place }, work.id());
    work.end().expect("the workload ends");
    (serde_json::from_value(told).expect("what it reports"), events)
}

/// Every fault is recorded, however short.
const ALL_FAULTS: [&str; 2] = ["--floor", "fault=0ns"];
/// Every memory-management call is recorded, however short.
const ALL_CALLS: [&str; 2] = ["--floor", "mm_syscall=0ns"];

fn of_process(run: &Run, pid: u32) -> Vec<Event> {
    run.events().into_iter().filter(|event| event.tgid.0 == pid).collect()
}

/// Faults in an area by page: whether each was major, and taken in the kernel.
fn faults(events: &[Event], area: Area) -> BTreeMap<u64, Vec<(bool, bool)>> {
    let mut pages: BTreeMap<u64, Vec<(bool, bool)>> = BTreeMap::new();
    for event in events {
        let Some(FaultRecord { header, address }) = event.record() else { continue };
        let (major, kernel_mode) =
            (header.flags & FAULT_MAJOR != 0, header.flags & FAULT_KERNEL != 0);
        if (area.base..area.base + area.length_bytes).contains(&address) {
            let page = (address - area.base) / PAGE_BYTES as u64;
            pages.entry(page).or_default().push((major, kernel_mode));
        }
    }
    pages
}

#[test]
fn a_faults_record_has_its_page_and_who_touched_it() {
    let Some(_guard) = privileged::ready("fault records") else { return };
    for tier in tiers("fault") {
        let arguments = ["told-faults", "--pages", "200"];
        let (told, events): (Faults, _) = recorded(&arguments, &ALL_FAULTS, tier.as_deref());
        for (area, kernel_mode) in [(told.touched, false), (told.read_into, true)] {
            // Every page was touched for the first time, once.
            let expected: BTreeMap<u64, Vec<_>> =
                (0..200).map(|page| (page, vec![(false, kernel_mode)])).collect();
            assert_eq!(faults(&events, area), expected, "{area:?}");
        }
    }
}

#[test]
fn a_major_faults_record_has_its_page_of_the_file() {
    let Some(_guard) = privileged::ready("major fault records") else { return };
    let directory = trial::directory();
    if !trial::on_disk(directory.path()) {
        println!("major fault records: not here: no directory on a disk");
        return;
    }
    for (index, tier) in tiers("fault").into_iter().enumerate() {
        let file = directory.path().join(format!("pages-{index}"));
        let file = file.to_str().expect("a path in UTF-8");
        let arguments = ["major-faults", "--file", file, "--pages", "200"];
        let (area, events): (Area, _) = recorded(&arguments, &ALL_FAULTS, tier.as_deref());
        let found = faults(&events, area);
        // A page that stayed in the cache is no major fault, and comes with its neighbour's.
        let major = found.values().filter(|faults| faults.contains(&(true, false))).count();
        assert!(major > 190, "{found:?}");
        let in_kernel = |&(_, kernel_mode): &(bool, bool)| kernel_mode;
        assert!(!found.values().flatten().any(in_kernel), "{found:?}");
    }
}

fn names_of_threads(pid: u32) -> BTreeMap<u32, String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the workload is there");
    let name = |entry: fs::DirEntry| {
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some((entry.file_name().to_str()?.parse().ok()?, name.trim_end().to_owned()))
    };
    tasks.flatten().filter_map(name).collect()
}

/// The threads of `contend`, by their waits for the CPU that they share.
fn waits_name_who_ran(run: &Run, pid: u32, names: &BTreeMap<u32, String>) {
    let (mut count, mut named) = (0, BTreeSet::new());
    let (mut waited_ns, mut by_each_other_ns) = (0, 0);
    for event in of_process(run, pid) {
        let Some(RunqueueRecord { ran_tid, ran_tgid, .. }) = event.record() else { continue };
        let preempted = event.flags & RUNQUEUE_PREEMPTED != 0;
        let ran_comm = match event.value("ran_comm") {
            Some(Value::Text(name)) => name.into_owned(),
            other => panic!("a name, not {other:?}"),
        };
        if event.flags & RUNQUEUE_UNSEEN != 0 {
            assert_eq!((ran_tid, ran_tgid, ran_comm.as_str()), (0, 0, ""), "{event:?}");
            continue;
        }
        assert_ne!(ran_tid, event.tid.0, "no thread waits for itself: {event:?}");
        // Those that share the CPU were preempted by each other.
        let works = |name: &String| name.starts_with("work-");
        let shares = preempted && names.get(&event.tid.0).is_some_and(works);
        waited_ns += if shares { event.duration_ns } else { 0 };
        if ran_tgid == pid {
            assert_eq!(names.get(&ran_tid), Some(&ran_comm), "{event:?} of {names:?}");
            by_each_other_ns += if shares { event.duration_ns } else { 0 };
            count += 1;
            named.insert(ran_comm.clone());
        }
    }
    println!("{count} records name {named:?}: {by_each_other_ns} of {waited_ns} ns");
    for name in ["work-0", "work-1", "work-2"] {
        assert!(named.contains(name), "{name} ran while others waited: {named:?}");
    }
    // A record names the last one that ran, which on a busy host is often one of the host's own, for
    // however short a time.
    assert!(by_each_other_ns > waited_ns / 10, "{by_each_other_ns} of {waited_ns} ns");
}

#[test]
fn a_waits_record_names_the_thread_that_ran_instead() {
    let Some(_guard) = privileged::ready("wait records") else { return };
    let trial = Trial::with("what records of waits say", tiers("runqueue"));
    let directory = trial::directory();
    let arguments = ["contend", "--threads", "3", "--ms", &scaled_text(1000)];
    let mut work = trial::start(&arguments, Placement::default());
    let observed = trial.observe(&mut work, directory.path(), names_of_threads);
    for run in &observed.runs {
        waits_name_who_ran(run, work.id(), &observed.after);
    }
    work.end().expect("the workload ends");
}

/// Waits of the process `pid`, of which the process `hog` had the CPU for some; each with its cgroup.
fn waits_have_the_cgroup_that_ran(run: &Run, (pid, own): (u32, u64), (hog, of_hog): (u32, u64)) {
    let mut of_hog_count = 0;
    for event in of_process(run, pid) {
        let Some(RunqueueRecord { ran_tid, ran_tgid, ran_cgroup, .. }) = event.record() else {
            continue;
        };
        if ran_tgid == hog {
            of_hog_count += 1;
            assert_eq!(ran_cgroup, of_hog, "{event:?}");
        } else if ran_tgid == pid {
            assert_eq!(ran_cgroup, own, "{event:?}");
        }
        // One that ended during the wait has neither name nor cgroup.
        let is_there = event.value("ran_comm") != Some(Value::Text("".into()));
        let has_cgroup = is_there && ran_tid != 0;
        assert_eq!(ran_cgroup != 0, has_cgroup, "every thread has a cgroup: {event:?}");
        if event.cause() == Some(Cause::RUNQUEUE_OTHER) {
            let holder = event.holder().expect("it is known who had the CPU");
            assert_eq!(holder.cgroup.map_or(0, NonZeroU64::get), ran_cgroup);
        }
    }
    println!("{of_hog_count} records name the hog");
    assert!(of_hog_count > 0, "the hog ran while others waited");
}

#[test]
fn a_waits_record_names_the_cgroup_that_ran_instead() {
    let Some(_guard) = privileged::ready("cgroups in wait records") else { return };
    let trial = Trial::with("the cgroup in records of waits", tiers("runqueue"));
    let directory = trial::directory();
    let cgroup = MemoryCgroup::create(&trial::unique("hog")).expect("a cgroup can be made");
    // Both before the rest of the host, and on one CPU.
    let place = Placement { nice: Some(-10), ..Placement::default() };
    let milliseconds = scaled_text(1000);
    let arguments = ["contend", "--threads", "2", "--ms", &milliseconds];
    let mut work = trial::start(&arguments, place);
    let mut hog = trial::start(&arguments, Placement { cgroup: Some(&cgroup), ..place });
    let watches = trial.watch(&["--pid".to_owned(), work.id().to_string()], directory.path());
    hog.begin().expect("it begins");
    work.go().expect("it works");
    hog.counts().expect("it works");
    trial::settle(work.id());
    let runs = trial.finish(watches);
    let id = |directory: &Path| fs::metadata(directory).expect("the cgroup is there").ino();
    let cgroups = Cgroups::read();
    let own = cgroups.memory_cgroup_of(Tgid(work.id())).expect("it is in a cgroup");
    let own = cgroups.memory().and_then(|memory| memory.directory(&own)).expect("it is mounted");
    for run in &runs {
        let (own, of_hog) = (id(&own), id(cgroup.directory()));
        waits_have_the_cgroup_that_ran(run, (work.id(), own), (hog.id(), of_hog));
        let name =
            cgroup.directory().file_name().and_then(OsStr::to_str).map(|name| format!("/{name}"));
        assert_eq!(run.info.holder_cgroups.get(&of_hog), name.as_ref(), "{:?}", run.info);
    }
    work.end().expect("the workload ends");
    hog.end().expect("the hog ends");
}

fn calls_are_those_reported(told: &Calls, mut events: Vec<Event>) {
    let call = |event: &Event| {
        let MmSyscallRecord { address, length_bytes, result, argument, .. } = event.record()?;
        let Some(Value::Text(call)) = event.value("syscall") else { return None };
        let inside = event.start().0 >= told.begin_ns && event.end.0 <= told.end_ns;
        let call = call.into_owned().into();
        inside.then_some(Call { call, address, length_bytes, argument, result })
    };
    events.sort_unstable_by_key(Event::start);
    let found: Vec<Call> = events.iter().filter_map(call).collect();
    // Stops at the first: a list of hundreds does not help.
    for (index, (found, told)) in found.iter().zip(&told.calls).enumerate() {
        assert_eq!(found, told, "call {index}");
    }
    assert_eq!(found.len(), told.calls.len());
    // Asserts that the workload did what this test needs.
    let results = |call: MmCall| -> BTreeSet<i64> {
        let of_call = told.calls.iter().filter(|told| told.call == call.name());
        of_call.map(|told| told.result).filter(|result| *result <= 0).collect()
    };
    let (invalid, nothing_there) = (-i64::from(libc::EINVAL), -i64::from(libc::ENOMEM));
    assert_eq!(results(MmCall::Madvise), [invalid, nothing_there, 0].into());
    assert_eq!(results(MmCall::Munmap), [invalid, 0].into());
    assert_eq!(results(MmCall::Mmap), [invalid].into());
}

#[test]
fn a_memory_calls_record_has_its_arguments_and_its_result() {
    let Some(_guard) = privileged::ready("memory call records") else { return };
    for tier in tiers("mm_syscall") {
        let arguments = ["told-calls", "--rounds", "50"];
        let (told, events) = recorded(&arguments, &ALL_CALLS, tier.as_deref());
        calls_are_those_reported(&told, events);
    }
}

fn reclaims_are_for_the_limit(run: &Run, pid: u32) {
    let mut count = 0;
    let mut pages = 0;
    for event in of_process(run, pid) {
        let Some(ReclaimRecord { reclaimed_pages, order, gfp_flags, .. }) = event.record() else {
            continue;
        };
        if event.flags & RECLAIM_MEMCG == 0 {
            continue;
        }
        assert_eq!(event.tid.0, pid, "it has one thread");
        // A limit is about pages, whatever was asked for (`try_to_free_mem_cgroup_pages`).
        assert_eq!(order, 0, "{event:?}");
        assert_ne!(gfp_flags, 0, "{event:?}");
        count += 1;
        pages += reclaimed_pages;
    }
    assert_eq!(count, run.count("reclaim", "memcg"), "there is no floor");
    // Each round reads 64 MiB through 24 MiB.
    let least = 4 * (64 - 24) * (1 << 20) / PAGE_BYTES as u64;
    assert!(pages >= least, "{pages} pages in {count} records, of at least {least}");
}

#[test]
fn a_reclaims_record_has_its_order_its_flags_and_its_pages() {
    let Some(_guard) = privileged::ready("reclaim records") else { return };
    let trial = Trial::with("what records of reclaim say", tiers("reclaim"));
    let directory = trial::directory();
    let cgroup = MemoryCgroup::create(&trial::unique("records")).expect("a cgroup can be made");
    cgroup.limit(Some(24 << 20)).expect("a limit can be set");
    let file = directory.path().join("sparse");
    let file = file.to_str().expect("a path in UTF-8");
    let place = Placement { cgroup: Some(&cgroup), ..Placement::default() };
    let mut work = trial::start(&["reclaim", "--file", file, "--rounds", "4"], place);
    let observed = trial.observe(&mut work, directory.path(), |_| ());
    for run in &observed.runs {
        reclaims_are_for_the_limit(run, work.id());
    }
    work.end().expect("the workload ends");
}

/// Runs a workload that is at rest when observer comes and when it goes; returns the run, and the records of
/// its process.
fn at_rest(arguments: &[&str], options: &[&str], tier: Option<&String>) -> (Run, Vec<Event>, u32) {
    let directory = trial::directory();
    let mut options = options.to_vec();
    options.extend(tier.iter().flat_map(|tier| ["--tier", tier.as_str()]));
    let (mut work, watch) = trial::watched(arguments, &options, directory.path());
    let pid = work.id();
    work.go().expect("it works");
    trial::settle(pid);
    let place = watch.run.clone();
    let (summary, info) = watch.finish().unwrap_or_else(|error| panic!("{error}"));
    let run = Run { summary, info, directory: place };
    let events = of_process(&run, pid);
    work.end().expect("the workload ends");
    (run, events, pid)
}

/// All soft interrupts of the workload are in the histograms and, without a floor, in the records.
fn softirqs_are_those_counted(run: &Run, events: &[Event], pid: u32) {
    let mut by_vector: BTreeMap<String, u64> = BTreeMap::new();
    let (mut count, mut sum_ns) = (0, 0);
    for event in events.iter().filter(|event| event.is::<SoftirqRecord>()) {
        let Some(Value::Text(vector)) = event.value("vector") else { panic!("{event:?}") };
        *by_vector.entry(vector.into_owned()).or_default() += 1;
        assert_eq!(event.tid.0, pid, "it has one thread");
        count += 1;
        sum_ns += event.duration_ns;
    }
    println!("{by_vector:?}");
    let counted = run.probe("softirq");
    assert_eq!((count, sum_ns), (counted.count, counted.sum_ns), "there is no floor");
    assert_eq!(by_vector.get("net_rx"), Some(&run.count("softirq", "net_rx")));
}

#[test]
fn a_soft_interrupts_record_has_its_vector_and_is_in_the_threads_time() {
    let Some(_guard) = privileged::ready("softirq records") else { return };
    for tier in tiers("softirq") {
        let options = ["--probes", "softirq", "--floor", "softirq=0ns"];
        let arguments = ["datagrams", "--count", &scaled_text(5_000)];
        let (run, events, pid) = at_rest(&arguments, &options, tier.as_ref());
        softirqs_are_those_counted(&run, &events, pid);
    }
}

/// All hard interrupts of the workload are in the histograms, and, without floors, each in a record or in a
/// burst.
#[test]
fn a_hard_interrupt_is_in_a_record_or_in_a_burst() {
    let Some(_guard) = privileged::ready("irq records") else { return };
    for tier in tiers("irq") {
        for floor in ["irq=0ns", "irq=1s", "irq=3us"] {
            let options = ["--probes", "irq", "--floor", floor, "--floor", "irq_burst=0ns"];
            let arguments = ["shootdowns", "--count", &scaled_text(5_000)];
            let (run, events, _) = at_rest(&arguments, &options, tier.as_ref());
            let (mut count, mut sum_ns) = (0, 0);
            for event in events.iter().filter(|event| event.cause() == Some(Cause::IRQ)) {
                count += event.summed().map_or(1, |summed| u64::from(summed.count));
                sum_ns += event.duration_ns;
            }
            println!("{tier:?} {floor}: {count} interrupts, {sum_ns} ns");
            let counted = run.probe("irq");
            assert_eq!((count, sum_ns), (counted.count, counted.sum_ns), "{floor}");
            assert!(run.count("irq", "tlb_shootdown") > 0, "{counted:?}");
        }
    }
}

fn sockets_are_those_reported(told: &[Socket], events: &[Event]) {
    let released = |event: &&Event| event.is::<SocketRecord>();
    let released: Vec<&Event> = events.iter().filter(released).collect();
    assert_eq!(released.len(), told.len(), "{released:?} of {told:?}");
    for (event, told) in released.into_iter().zip(told) {
        let record: SocketRecord = event.record().expect("a socket");
        let flag = |bit: u16| record.header.flags & bit != 0;
        assert_eq!(
            (flag(SOCKET_ACCEPTED), flag(SOCKET_PREEXISTING), record.family, record.socket_type),
            (told.accepted, told.preexisting, told.family, told.socket_type),
            "{told:?}"
        );
        let within = |[begin, end]: [u64; 2], instant: u64| begin <= instant && instant <= end;
        assert!(within(told.closed_ns, event.end.0), "{event:?} of {told:?}");
        if told.preexisting {
            assert_eq!(event.duration_ns, 0, "its age is not known: {event:?}");
        } else {
            assert!(within(told.made_ns, event.start().0), "{event:?} of {told:?}");
            assert!(event.duration_ns >= 100_000_000, "it was held so long: {event:?}");
        }
    }
}

#[test]
fn a_sockets_record_has_its_kind_and_its_life() {
    let Some(_guard) = privileged::ready("socket records") else { return };
    for tier in tiers("socket") {
        let arguments = ["told-sockets", "--ms", "100"];
        let (told, events): (Vec<Socket>, _) = recorded(&arguments, &[], tier.as_deref());
        sockets_are_those_reported(&told, &events);
    }
}

#[test]
fn a_requests_record_has_its_times_threads_and_bytes() {
    let Some(_guard) = privileged::ready("request records") else { return };
    for tier in tiers("request") {
        let arguments = ["requests", "--rounds", "2"];
        let options = ["--probes", "default,request"];
        let (told, events): (Requests, _) = recorded(&arguments, &options, tier.as_deref());
        let mut found: Vec<RequestRecord> = events.iter().filter_map(Event::record).collect();
        found.sort_unstable_by_key(|record: &RequestRecord| record.read_ns);
        assert_eq!(found.len(), told.requests.len(), "{found:#?}");
        for (record, told) in found.iter().zip(&told.requests) {
            let RequestRecord { header, read_ns, first_send_ns, .. } = *record;
            let [before_ns, after_ns] = told.read_ns;
            assert!((before_ns..=after_ns).contains(&read_ns), "{record:?}, {told:?}");
            let arrival_ns = header.end_ns - header.duration_ns;
            assert!((told.begun_ns..=read_ns).contains(&arrival_ns), "{record:?}, {told:?}");
            let unanswered = header.flags & REQUEST_UNANSWERED != 0;
            // The end of a Unix connection is seen later, or not before the end of the run.
            let (unix, open) = if told.unix { (REQUEST_UNIX, REQUEST_OPEN) } else { (0, 0) };
            let flags = header.flags & !REQUEST_UNANSWERED & !open;
            assert_eq!(flags, unix, "complete: {record:?}");
            assert_eq!(unanswered, told.sends == 0, "{record:?}, {told:?}");
            if !unanswered {
                let [before_ns, after_ns] = told.first_send_ns;
                assert!((before_ns..=after_ns).contains(&first_send_ns), "{record:?}, {told:?}");
                let [before_ns, after_ns] = told.last_send_ns;
                assert!((before_ns..=after_ns).contains(&header.end_ns), "{record:?}, {told:?}");
            }
            assert_eq!(
                (header.tid, record.sender_tid, record.remote_port),
                (told.reader, told.sender, u32::from(told.remote_port))
            );
            assert_eq!(
                (record.bytes_in, record.bytes_out, record.sends),
                (told.bytes_in, told.bytes_out, told.sends)
            );
        }
        outgoing_are_those_reported(&told.outgoing, &events);
    }
}

fn outgoing_are_those_reported(told: &[Outgoing], events: &[Event]) {
    let mut found: Vec<OutgoingRequest> =
        events.iter().filter_map(OutgoingRequest::from_event).collect();
    found.sort_unstable_by_key(|request| request.sent);
    assert_eq!(found.len(), told.len(), "{found:#?}");
    for (request, told) in found.iter().zip(told) {
        let within = |[begin, end]: [u64; 2], instant: u64| begin <= instant && instant <= end;
        assert!(within(told.sent_ns, request.sent.0), "{request:?}, {told:?}");
        assert!(within(told.replied_ns, request.replied.0), "{request:?}, {told:?}");
        assert_eq!((request.sender.0, request.reader.0), (told.thread, told.thread));
    }
}
