//! Intervals of one cause: unions, prefix sums, and instants that several causes share.

use super::*;

fn stall(tid: u32, cause: Cause, start: u64, end: u64) -> Stall {
    Stall::of_thread(tid, cause, start, end)
}

fn flat(stalls: &[Stall]) -> (Timelines, Ignored) {
    let mut ignored = Ignored::default();
    let lines = flatten(stalls, (MonoNanos(1_000), MonoNanos(2_000)), &mut ignored);
    (lines, ignored)
}

fn of(lines: &Timelines, cause: Cause) -> Vec<(u64, u64)> {
    let line = lines.of(cause);
    line.starts.iter().copied().zip(line.ends.iter().copied()).collect()
}

#[test]
fn the_stall_that_began_last_has_the_instant() {
    let (lines, _) = flat(&[
        stall(1, Cause::RUNQUEUE, 1_300, 1_350),
        stall(1, Cause::MM_SYSCALL, 1_100, 1_600),
        stall(1, Cause::RECLAIM_MEMCG, 1_250, 1_400),
        stall(1, Cause::FAULT_MINOR, 1_200, 1_500),
    ]);
    assert_eq!(of(&lines, Cause::MM_SYSCALL), [(100, 200), (500, 600)]);
    assert_eq!(of(&lines, Cause::FAULT_MINOR), [(200, 250), (400, 500)]);
    assert_eq!(of(&lines, Cause::RECLAIM_MEMCG), [(250, 300), (350, 400)]);
    assert_eq!(of(&lines, Cause::RUNQUEUE), [(300, 350)]);
    let total: f64 = lines.by_cause.iter().map(|line| line.total).sum();
    assert_eq!(total, 500.0);
}

#[test]
fn threads_unite_and_stalls_are_clipped() {
    let (lines, ignored) = flat(&[
        stall(1, Cause::RUNQUEUE, 900, 1_100),
        stall(2, Cause::RUNQUEUE, 1_050, 1_200),
        stall(3, Cause::RUNQUEUE, 1_900, 9_000),
        stall(3, Cause::RUNQUEUE, 1_400, 1_400),
        stall(3, Cause::RUNQUEUE, 1_500, 1_400),
        stall(3, Cause::RUNQUEUE, 100, 1_000),
        stall(3, Cause::RUNQUEUE, 2_000, 2_100),
        stall(3, Cause::LOAD_GENERATOR, 1_000, 1_100),
    ]);
    assert_eq!(of(&lines, Cause::RUNQUEUE), [(0, 200), (900, 1_000)]);
    assert_eq!(lines.stalls(Cause::RUNQUEUE), 3);
    assert_eq!(ignored.stalls_empty_or_reversed, 2);
    assert_eq!(ignored.stalls_outside_window, 2);
    assert_eq!(ignored.stalls_without_kernel_cause, 1);
}

#[test]
fn exposure_counts_parts_and_wraps_around() {
    let spans = vec![Span { start: 100, end: 200 }, Span { start: 900, end: 1_000 }];
    let line = Timeline::union(spans, 1_000);
    assert_eq!(line.exposure(150, 950), 100.0);
    assert_eq!(line.exposure(100, 200), 100.0);
    assert_eq!(line.exposure(200, 900), 0.0);
    assert_eq!(line.exposure(300, 300), 0.0);
    assert_eq!(line.duty(), 0.2);
    for shift in 0..1_000 {
        let by_hand: f64 =
            (850..990).map(|t| (t + shift) % 1_000).map(|t| line.exposure(t, t + 1)).sum();
        assert_eq!(line.shifted_exposure(850, 990, shift), by_hand, "shift {shift}");
    }
}

#[test]
fn shared_instants_are_split() {
    let a = Timeline::union(vec![Span { start: 0, end: 100 }], 1_000);
    let b =
        Timeline::union(vec![Span { start: 50, end: 150 }, Span { start: 300, end: 310 }], 1_000);
    let parts = split(&[&a, &b]);
    assert_eq!(parts[0].exposure(0, 1_000), 75.0);
    assert_eq!(parts[1].exposure(0, 1_000), 85.0);
    assert_eq!(parts[1].exposure(50, 100), 25.0);
    assert!(split(&[]).is_empty());
}
