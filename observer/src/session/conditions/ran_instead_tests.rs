use super::*;

const S: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;

fn entry(tgid: u64, comm: &str, time_ns: u64, waits: u64) -> RanInstead {
    let mut noted = [0; 16];
    noted[..comm.len()].copy_from_slice(comm.as_bytes());
    RanInstead {
        tgid,
        time_ns,
        waits,
        last_wait: 0,
        cgroup: 7,
        flags: if comm.starts_with("kworker") { RAN_KERNEL_THREAD } else { 0 },
        comm: noted,
    }
}

fn process(tgid: u32, comm: &str) -> Process {
    Process {
        tgid: Tgid(tgid),
        start_ticks: 1,
        parent: Tgid(1),
        comm: comm.to_owned(),
        kernel_thread: false,
    }
}

fn reading(processes: Vec<(usize, RanInstead)>, wait_ns: u64) -> RanInsteadReading {
    RanInsteadReading { processes, sums: WaitSums { wait_ns, ..WaitSums::default() } }
}

fn sums() -> Sums {
    Sums::start(&RanInsteadReading::default(), MonoNanos(0))
}

fn gone(_: Tgid, _: Option<u64>) -> Option<Process> {
    None
}

fn names() -> HashMap<u64, Option<String>> {
    [(7, Some("/side".to_owned()))].into()
}

#[test]
fn times_are_kept_by_name_and_cgroup_and_over_time() {
    let mut sums = sums();
    let first = vec![
        (0, entry(10, "cc1", 300 * MS, 3)),
        (5, entry(11, "old name", 100 * MS, 1)),
        (9, entry(12, "kworker/0:1-ev", 50 * MS, 2)),
    ];
    let there = |tgid: Tgid, _: Option<u64>| (tgid.0 == 11).then(|| process(11, "hog-3"));
    assert_eq!(sums.take(&reading(first, 500 * MS), MonoNanos(S), there), [0; 0]);
    // Another process got the place of the first one.
    let second = vec![
        (0, entry(20, "cc1", 200 * MS, 2)),
        (5, entry(11, "old name", 180 * MS, 4)),
        (9, entry(12, "kworker/0:1-ev", 50 * MS, 2)),
    ];
    assert_eq!(sums.take(&reading(second, 800 * MS), MonoNanos(2 * S), there), [9]);
    let summary = sums.summary(&names());
    let rows: Vec<_> = summary
        .by
        .iter()
        .map(|row| (&*row.name, row.kind.name(), row.time_ns, row.waits))
        .collect();
    assert_eq!(
        rows,
        [
            ("cc*", "other", 500 * MS, 5),
            ("hog-*", "other", 180 * MS, 4),
            ("[kworker/*]", "kernel_thread", 50 * MS, 2)
        ]
    );
    assert_eq!(summary.by[0].cgroup.as_deref(), Some("/side"));
    assert_eq!(summary.by[0].by_part_ns, [300 * MS, 200 * MS]);
    assert_eq!(
        (summary.wait_ns, summary.ran_ns, summary.not_known_ns),
        (800 * MS, 730 * MS, 70 * MS)
    );
    assert_eq!((summary.observed_ns, summary.part_ns, summary.others_ns), (2 * S, S, 0));
}

#[test]
fn what_was_there_before_does_not_count() {
    let before = vec![(3, entry(10, "a", 5 * S, 9))];
    let mut sums = Sums::start(&reading(before, 7 * S), MonoNanos(100 * S));
    let after = reading(vec![(3, entry(10, "a", 6 * S, 10))], 9 * S);
    sums.take(&after, MonoNanos(101 * S), gone);
    let summary = sums.summary(&names());
    assert_eq!((summary.by[0].time_ns, summary.by[0].waits), (S, 1));
    assert_eq!((summary.wait_ns, summary.not_known_ns, summary.began_ns), (2 * S, S, 100 * S));
}

#[test]
fn the_place_of_a_process_is_free_once_it_has_ended_and_no_wait_names_it_any_more() {
    let mut sums = sums();
    let still = |nth: u64| reading(vec![(1, entry(10, "a", nth, nth))], 0);
    assert_eq!(sums.take(&still(1), MonoNanos(S), gone), [0; 0], "it ran since");
    assert_eq!(sums.take(&still(2), MonoNanos(2 * S), gone), [0; 0], "again");
    let alive = |tgid: Tgid, _: Option<u64>| Some(process(tgid.0, "a"));
    assert_eq!(sums.take(&still(2), MonoNanos(3 * S), alive), [0; 0], "it sleeps");
    let places: Vec<_> =
        (4..14).map(|second| sums.take(&still(2), MonoNanos(second * S), gone)).collect();
    assert_eq!(places.concat(), [1], "it is looked for now and then: {places:?}");
    // The id is used again, from 0.
    sums.take(&still(3), MonoNanos(15 * S), gone);
    assert_eq!(sums.summary(&names()).by[0].time_ns, 2 + 3);
}

#[test]
fn a_long_run_has_few_parts_and_no_time_is_lost() {
    let mut sums = sums();
    let (mut now, mut sum_ns, seconds) = (0, 0, 1_000);
    for second in 1..=seconds {
        // Some readings come late.
        if second % 7 == 3 {
            continue;
        }
        now = second * S + second % 5 * 100 * MS;
        sum_ns = now / 4;
        sums.take(&reading(vec![(1, entry(10, "a", sum_ns, second))], 0), MonoNanos(now), gone);
    }
    let summary = sums.summary(&names());
    let parts = &summary.by[0].by_part_ns;
    assert_eq!((summary.part_ns, parts.len()), (32 * S, 32));
    assert_eq!(parts.iter().sum::<u64>(), sum_ns);
    assert_eq!(summary.observed_ns, now);
    // It had the CPU for a quarter of the time all along.
    let whole = &parts[..parts.len() - 1];
    assert!(whole.iter().all(|ns| ns.abs_diff(8 * S) < 10 * MS), "{parts:?}");
}

#[test]
fn many_names_become_others_and_their_time_is_kept() {
    let mut sums = sums();
    let letters = |nth: u64| format!("p{nth}x");
    let many = |seconds: u64| -> Vec<(usize, RanInstead)> {
        (0..400)
            .map(|nth| (nth as usize, entry(nth + 1, &letters(nth), seconds * (nth + 1), 1)))
            .collect()
    };
    let mut full = reading(many(1), 0);
    full.sums.no_place_ns = 1_000;
    sums.take(&full, MonoNanos(S), gone);
    sums.take(&reading(many(2), 0), MonoNanos(2 * S), gone);
    assert!(sums.rows.len() <= ROWS_KEPT, "{}", sums.rows.len());
    let summary = sums.summary(&HashMap::new());
    assert_eq!(summary.by.len(), ROWS_SHOWN);
    assert_eq!((&*summary.by[0].name, summary.by[0].time_ns), ("p399x", 800));
    assert_eq!(summary.by[0].cgroup, None);
    let all_ns: u64 = (1..=400).map(|ns| 2 * ns).sum();
    let shown_ns: u64 = summary.by.iter().map(|row| row.time_ns).sum();
    assert_eq!(summary.ran_ns, all_ns + 1_000);
    assert_eq!(shown_ns + summary.others_ns, summary.ran_ns);
    assert_eq!(summary.others_by_part_ns.iter().sum::<u64>(), summary.others_ns);
    assert!(summary.beyond >= 400 - ROWS_SHOWN as u64, "{}", summary.beyond);
}

#[test]
fn one_row_has_all_of_a_cgroup_that_was_made_again() {
    let mut sums = sums();
    let two = vec![
        (0, entry(1, "a", 5, 1)),
        (1, RanInstead { cgroup: 8, ..entry(2, "a", 6, 1) }),
        (2, RanInstead { flags: RAN_TARGET, ..entry(3, "a", 7, 1) }),
        (3, entry(4, "", 1, 1)),
    ];
    sums.take(&reading(two, 0), MonoNanos(S), gone);
    let names = [(7, Some("/a".to_owned())), (8, Some("/a".to_owned()))].into();
    let summary = sums.summary(&names);
    let rows: Vec<_> = summary.by.iter().map(|row| (&*row.name, row.kind, row.time_ns)).collect();
    assert_eq!(rows, [("a", RanKind::Other, 11), ("a", RanKind::Own, 7), ("", RanKind::Other, 1)]);
}

#[test]
fn a_cgroup_is_named_by_a_process_that_is_in_it() {
    let mut cgroups = CgroupsById::new();
    let own = Process::read(Tgid(std::process::id()));
    cgroups.find(0, own.as_ref());
    assert!(cgroups.names.is_empty(), "0 is no cgroup");
    cgroups.find(u64::MAX, own.as_ref());
    assert_eq!(cgroups.names[&u64::MAX], None, "it is in another one");
    let name = cgroups.cgroups.memory_cgroup_of(Tgid(std::process::id()));
    if let Some((id, name)) =
        name.and_then(|name| Some((cgroups.cgroups.memory()?.id_of(&name)?, name)))
    {
        cgroups.find(id, own.as_ref());
        assert_eq!(cgroups.names[&id].as_ref(), Some(&name));
    }
}
