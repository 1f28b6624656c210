use super::*;

fn process(tgid: u32, start_ticks: u64) -> Process {
    Process {
        tgid: Tgid(tgid),
        start_ticks,
        parent: Tgid(1),
        comm: format!("p{tgid}"),
        kernel_thread: false,
    }
}

#[test]
fn the_first_the_last_and_the_highest_number_are_kept_and_the_limit_is_noticed() {
    let mut watch = DescriptorWatch::start();
    let one = process(7, 1);
    for (open, limit) in [(10, Some(64)), (64, Some(64)), (12, None), (30, Some(1_024))] {
        assert!(watch.read(&one, open, limit));
    }
    let (all, beyond) = watch.so_far();
    assert_eq!(beyond, 0);
    let found = &all[0];
    assert_eq!((found.tgid, &*found.name), (7, "p7"));
    assert_eq!((found.first, found.last, found.highest), (10, 30, 64));
    assert_eq!((found.limit, found.limit_reached, found.ended), (Some(1_024), true, false));
    assert_eq!(found.growth, None, "four readings");
    // A name that changes, and a limit that nobody can read.
    let renamed = Process { comm: "other".into(), ..one };
    assert!(watch.read(&renamed, 1, None));
    assert_eq!(watch.so_far().0[0].name, "other");
    assert!(watch.read(&process(8, 1), 1_000_000, None));
    let (all, _) = watch.so_far();
    assert_eq!((all[1].tgid, all[1].limit, all[1].limit_reached), (8, None, false));
}

#[test]
fn a_process_that_ended_keeps_what_was_read_and_another_with_its_id_begins_anew() {
    let mut watch = DescriptorWatch::start();
    watch.read(&process(7, 1), 60, Some(64));
    watch.end_all_but(|_| false);
    watch.read(&process(7, 2), 3, Some(64));
    let (all, beyond) = watch.so_far();
    let found: Vec<_> = all.iter().map(|one| (one.first, one.last, one.ended)).collect();
    assert_eq!((found, beyond), (vec![(60, 60, true), (3, 3, false)], 0));
}

#[test]
fn those_nearest_to_their_limit_are_kept_and_the_others_are_counted() {
    let mut watch = DescriptorWatch::start();
    let all = WATCHED_MAX as u32 + 50;
    let mut unwatched = 0;
    for tgid in 1..=all {
        // Later ones are nearer, except for the last ten.
        let open = if tgid > all - 10 { 0 } else { u64::from(tgid) };
        unwatched += u64::from(!watch.read(&process(tgid, 1), open, Some(1_000)));
    }
    watch.unwatched = unwatched;
    assert_eq!((watch.living.len(), watch.dropped, unwatched), (WATCHED_MAX, 40, 10));
    let (kept, beyond) = watch.so_far();
    let nearest: Vec<u32> = kept.iter().map(|one| one.tgid).collect();
    assert_eq!(nearest, (all - 25..=all - 10).rev().collect::<Vec<_>>());
    assert_eq!(beyond + kept.len() as u64, u64::from(all));
    // When they have ended, no more of them are in memory than are told.
    watch.end_all_but(|_| false);
    assert_eq!((watch.living.len(), watch.ended.len()), (0, KEPT_MAX));
    let (kept, beyond) = watch.so_far();
    assert_eq!(kept.iter().map(|one| one.tgid).collect::<Vec<_>>(), nearest);
    assert_eq!(beyond + kept.len() as u64, u64::from(all));
}

#[test]
fn the_files_of_the_host_are_followed_and_unknown_ones_are_not_0() {
    let mut watch = DescriptorWatch::start();
    watch.read_host(None);
    assert_eq!(watch.host, None);
    for open in [5, 9, 7] {
        watch.read_host(Some(HostFiles { open, limit: 100 }));
    }
    watch.read_host(None);
    let wanted = HostFilesSummary { limit: 100, first: 5, last: 7, highest: 9 };
    assert_eq!(watch.host, Some(wanted));
}
