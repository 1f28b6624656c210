use super::*;
use crate::model::{Conditions, CounterGap, CounterSummary};
use crate::output::example;

const SECONDS: u64 = 10;

/// So much of CPU time, and of each counter.
fn told(
    (requests, cpu_ms): (u64, u64),
    counted: &[(&str, u64)],
    change: impl FnOnce(&mut CountersSummary),
) -> Vec<String> {
    let by = counted.iter().map(|(name, count)| CounterSummary {
        name: (*name).to_owned(),
        count: *count,
        enabled_ns: cpu_ms * 1_000_000,
        running_ns: cpu_ms * 1_000_000,
    });
    let mut counters = CountersSummary {
        observed_ns: SECONDS * 1_000_000_000,
        by: by.collect(),
        threads: 4,
        ..CountersSummary::default()
    };
    change(&mut counters);
    let mut summary = example::attributed();
    summary.conditions = Conditions { counters: Some(counters), ..Conditions::default() };
    summary.samples.count = requests;
    paragraphs(&summary)
}

const QUIET: [(&str, u64); 4] = [
    ("context_switches", 12_340),
    ("cpu_migrations", 30),
    ("minor_faults", 500),
    ("major_faults", 0),
];

#[test]
fn nobody_who_did_not_ask_is_told_about_counters() {
    let mut summary = example::attributed();
    summary.conditions = Conditions::default();
    assert_eq!(paragraphs(&summary), [""; 0]);
}

#[test]
fn what_the_kernel_counted_is_told_by_second_and_by_request() {
    assert_eq!(
        told((1_000, 5_000), &QUIET, |_| ()),
        [
            "The target's threads were switched 1,234 times a second (12 for each request of the load generator), and \
             began to run on another CPU 3.0 times a second. They had 50 minor page faults a second, and 0 that read \
             from a disk."
        ]
    );
    let [alone] = &told((0, 1_000), &QUIET, |_| ())[..] else { panic!("one paragraph") };
    assert!(alone.contains("switched 1,234 times a second, and began"), "{alone}");
}

#[test]
fn what_is_unusual_has_a_remedy() {
    let busy = [
        ("context_switches", 100_000),
        ("cpu_migrations", 5_000),
        ("minor_faults", 0),
        ("major_faults", 50),
    ];
    let [text] = &told((0, 500), &busy, |_| ())[..] else { panic!("one paragraph") };
    assert!(
        text.contains("a move in each 100 µs of CPU time, after which the caches are cold"),
        "{text}"
    );
    assert!(text.contains("They ran for 5.00 µs at a time"), "{text}");
    assert!(
        text.contains("5.0 that read from a disk. Their memory does not stay in RAM"),
        "{text}"
    );
}

#[test]
fn what_the_processor_did_is_told_by_instruction() {
    let mut counted = QUIET.to_vec();
    counted.extend([
        ("cycles", 10_000_000_000),
        ("instructions", 5_000_000_000),
        ("cache_misses", 50_000_000),
        ("branch_misses", 5_000_000),
        ("dtlb_load_misses", 20_000_000),
        ("itlb_misses", 10_000_000),
    ]);
    let [_, text] = &told((0, 1_000), &counted, |_| ())[..] else { panic!("two paragraphs") };
    assert_eq!(
        text,
        "The processor executed 0.50 instructions in each cycle. Of 1,000 instructions there were 10 cache misses, 1.0 \
         branches that were predicted wrongly and 6.0 walks of the page tables (TLB misses). The walks take a good part \
         of the time: let the service use huge pages (transparent_hugepage, MAP_HUGETLB, \
         -XX:+UseTransparentHugePages), or touch less memory. The processor mostly waited for memory: keep what is used \
         together close together, or look whether neighbours on the host use up the cache and its bandwidth."
    );
    let [_, text] =
        &told((0, 1_000), &counted, |counters| counters.by[7].running_ns = 250_000_000)[..]
    else {
        panic!("two paragraphs")
    };
    assert!(text.ends_with("each number is from 25 % of the time or more, and scaled."), "{text}");
    let few = [("cycles", 1_000_000), ("instructions", 2_000_000)];
    assert_eq!(
        told((0, 1_000), &few, |_| ()),
        ["The processor executed 2.00 instructions in each cycle."]
    );
}

#[test]
fn what_was_not_counted_is_told_with_the_reason() {
    let gap = |name: &str, why| CounterGap { name: name.into(), why };
    let texts = told((0, 1_000), &QUIET, |counters| {
        counters.unsupported = vec![
            gap("cycles", WhyNot::Unsupported),
            gap("dtlb_loads", WhyNot::Unsupported),
            gap("itlb_misses", WhyNot::Refused),
        ];
        counters.threads_not_counted = [(WhyNot::NoDescriptors, 1_200)].into();
        (counters.threads_unsure, counters.processes_late) = (2, 1);
    });
    assert_eq!(
        texts[1],
        "Not counted, because this machine has no such counter (virtual machines often have none): cycles, dtlb loads. \
         Not counted, because the kernel does not allow it (kernel.perf_event_paranoid, CAP_PERFMON): itlb misses. \
         1,200 threads, and those that they started, were not counted, because observer may not have that many files \
         open (ulimit -n, LimitNOFILE). Of 2 threads that started while their process got its counters, it is not known \
         whether they count. 1 processes that the target did not fork itself joined later, and count from then on."
    );
}
