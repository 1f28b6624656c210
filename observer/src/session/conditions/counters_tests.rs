use super::*;

fn reading(count: u64, enabled_ns: u64, running_ns: u64) -> Reading {
    Reading { count, enabled_ns, running_ns }
}

#[test]
fn a_counter_that_counted_a_part_of_the_time_is_scaled_reading_by_reading() {
    let (mut sum, mut last) = (Reading::default(), Reading::default());
    add(&mut sum, &mut last, reading(100, 1_000, 1_000));
    assert_eq!(sum, reading(100, 1_000, 1_000));
    // A quarter of the next time.
    add(&mut sum, &mut last, reading(150, 1_400, 1_100));
    assert_eq!(sum, reading(300, 1_400, 1_100));
    // Not at all, which the next reading makes up for.
    add(&mut sum, &mut last, reading(150, 1_500, 1_100));
    assert_eq!(sum, reading(300, 1_400, 1_100));
    add(&mut sum, &mut last, reading(160, 1_600, 1_200));
    assert_eq!(sum, reading(320, 1_600, 1_200));
    // The kernel's own counters count whether time passes or not.
    add(&mut sum, &mut last, reading(161, 1_600, 1_200));
    assert_eq!(sum, reading(321, 1_600, 1_200));
}

fn tasks(threads: std::ops::Range<u32>) -> BTreeSet<Task> {
    threads.map(|tid| (Tgid(1), Tid(tid))).collect()
}

#[test]
fn threads_that_start_while_counters_are_opened_are_listed_again() {
    let mut lists = [tasks(1..3), tasks(1..4), tasks(2..4), tasks(2..4)].into_iter();
    let mut opened = 0;
    let open = |tasks: &BTreeSet<Task>| {
        opened += 1;
        tasks.clone()
    };
    let (last, unsure) = settle(|| lists.next().expect("no further one"), open);
    assert_eq!((last, unsure, opened), (tasks(2..4), 0, 2));
}

#[test]
fn a_process_that_starts_threads_all_the_time_is_counted_as_far_as_it_is_known() {
    let mut next = 10;
    let list = || {
        next += 1;
        tasks(1..next)
    };
    let mut opened = 0;
    let (last, unsure) = settle(list, |tasks| {
        opened += 1;
        tasks.len()
    });
    assert_eq!((last, unsure, opened), (18, 1, ATTEMPTS));
}

#[test]
fn without_descriptors_threads_are_not_counted_and_one_that_is_gone_is_no_loss() {
    let kinds: Vec<&'static CounterKind> = perf_counters::COUNTERS.iter().take(1).collect();
    let opened = open(&kinds, &tasks(1..3), 0);
    assert!(opened.threads.is_empty());
    assert_eq!(opened.not_counted, [(WhyNot::NoDescriptors, 2)].into());
    // No thread has this id.
    let opened = open(&kinds, &tasks(u32::MAX / 2..u32::MAX / 2 + 1), 10);
    assert!(opened.threads.is_empty() && opened.not_counted.is_empty());
}

#[test]
fn a_family_is_a_process_with_its_children() {
    let me = Tgid(std::process::id());
    let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("a child");
    let parent = Process::read(me).expect("this process").parent;
    let found = family(&[parent].into());
    assert!(found.contains_key(&parent), "{found:?}");
    // Observer itself is not the target, nor what it starts.
    assert!(!found.contains_key(&me) && !found.contains_key(&Tgid(child.id())), "{found:?}");
    assert_eq!(family(&[Tgid(child.id())].into()).len(), 1);
    child.kill().expect("it is there");
    child.wait().expect("it ends");
}
