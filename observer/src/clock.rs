//! Time: newtypes for the clocks, and the one place that converts between them.
//!
//! Everything inside is `CLOCK_MONOTONIC` nanoseconds, the clock of `bpf_ktime_get_ns`. Wall-clock
//! time appears at the edges only, through [`Anchors`] taken again and again, because the wall
//! clock can step.
//!
//! In a time namespace a process reads another monotonic clock than BPF programs do, at a constant
//! distance. [`MonoNanos::now`] is always the kernel's.

use std::sync::OnceLock;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct MonoNanos(pub u64);

/// Nanoseconds of `CLOCK_REALTIME` since the Unix epoch.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WallNanos(pub u64);

fn read(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What `clock_gettime` adds to the kernel's monotonic clock in the time namespace of this process,
/// nanoseconds (time_namespaces(7)).
///
/// # Errors
/// When the process has left its children another time namespace than its own, so that the kernel
/// does not tell the offset of its own.
pub fn namespace_offset_ns() -> Result<i64, String> {
    static OFFSET: OnceLock<Result<i64, String>> = OnceLock::new();
    OFFSET.get_or_init(read_namespace_offset).clone()
}

fn read_namespace_offset() -> Result<i64, String> {
    let link = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}"));
    // Before Linux 5.6, and in kernels without time namespaces, there is one clock.
    let (Ok(own), Ok(children)) = (link("time"), link("time_for_children")) else { return Ok(0) };
    if own != children {
        return Err("this process has another time namespace than its children will have".into());
    }
    let text = std::fs::read_to_string("/proc/self/timens_offsets")
        .map_err(|error| format!("cannot read /proc/self/timens_offsets: {error}"))?;
    parse_namespace_offset(&text)
        .ok_or_else(|| format!("cannot understand /proc/self/timens_offsets: {text:?}"))
}

/// The line of the monotonic clock: its name or number, seconds, nanoseconds.
fn parse_namespace_offset(text: &str) -> Option<i64> {
    let fields = text.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let line =
        fields.into_iter().find(|line| matches!(line.first(), Some(&("monotonic" | "1"))))?;
    let [seconds, nanoseconds] = [1, 2].map(|at| line.get(at)?.parse::<i64>().ok());
    seconds?.checked_mul(1_000_000_000)?.checked_add(nanoseconds?)
}

impl MonoNanos {
    /// The kernel's monotonic clock now, whatever the time namespace of this process.
    #[must_use]
    pub fn now() -> Self {
        Self(read(ClockId::Monotonic).wrapping_add_signed(-namespace_offset_ns().unwrap_or(0)))
    }

    /// The same instant as this process's own clock shows it, for system calls that take a time.
    #[must_use]
    pub fn on_own_clock(self) -> u64 {
        self.0.saturating_add_signed(namespace_offset_ns().unwrap_or(0))
    }

    /// `self - earlier` in nanoseconds, 0 when `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl WallNanos {
    /// The clock now.
    #[must_use]
    pub fn now() -> Self {
        Self(read(ClockId::Realtime))
    }
}

/// One simultaneous reading of both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    /// Monotonic clock at the reading.
    pub monotonic_ns: MonoNanos,
    /// Wall clock at the reading.
    pub wall_ns: WallNanos,
    /// Half the time the reading took: how far the two may be apart.
    pub uncertainty_ns: u64,
}

impl Anchor {
    /// Reads the wall clock between two readings of the monotonic clock, keeps the tightest of
    /// five tries (a preemption between the readings would widen it).
    #[must_use]
    pub fn take() -> Self {
        let once = || {
            let before = MonoNanos::now();
            let wall_ns = WallNanos::now();
            let after = MonoNanos::now();
            let width = after.since(before);
            Self {
                monotonic_ns: MonoNanos(before.0 + width / 2),
                wall_ns,
                uncertainty_ns: width / 2 + 1,
            }
        };
        (0..5).map(|_| once()).min_by_key(|anchor| anchor.uncertainty_ns).unwrap_or_else(once)
    }

    /// Wall clock minus monotonic clock.
    #[must_use]
    pub const fn offset_ns(&self) -> i128 {
        self.wall_ns.0 as i128 - self.monotonic_ns.0 as i128
    }
}

/// Readings of both clocks over a run, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Anchors(pub Vec<Anchor>);

/// The wall clock jumped between two anchors by more than this: a step, not slew or noise.
const STEP_NS: u64 = 1_000_000;
/// The wall clock is slewed by at most one part in this many (500 ppm, adjtimex(2)).
const SLEW_PART: u64 = 2_000;

impl Anchors {
    /// Puts a wall-clock time on the monotonic clock, with the offset that was valid then (the
    /// last anchor at or before it, else the first). `None` without anchors or when the result
    /// would be negative.
    #[must_use]
    pub fn to_monotonic(&self, wall: WallNanos) -> Option<MonoNanos> {
        self.to_monotonic_from_start(wall, wall)
    }

    /// Converts times of a generator that read the wall clock once, at its start, and counted
    /// monotonically from there: the offset that was valid at `start` serves for all.
    #[must_use]
    pub fn to_monotonic_from_start(&self, wall: WallNanos, start: WallNanos) -> Option<MonoNanos> {
        let after = self.0.partition_point(|anchor| anchor.wall_ns <= start);
        let anchor = self.0.get(after.saturating_sub(1))?;
        u64::try_from(i128::from(wall.0) - anchor.offset_ns()).ok().map(MonoNanos)
    }

    /// Puts a monotonic time on the wall clock, with the offset that was valid then. `None` without
    /// anchors, or when the result would not be a time since 1970.
    #[must_use]
    pub fn to_wall(&self, time: MonoNanos) -> Option<WallNanos> {
        let after = self.0.partition_point(|anchor| anchor.monotonic_ns <= time);
        let anchor = self.0.get(after.saturating_sub(1))?;
        u64::try_from(i128::from(time.0) + anchor.offset_ns()).ok().map(WallNanos)
    }

    /// Drops every other reading. The first stays, and a step between two that stay is still seen.
    pub fn thin_out(&mut self) {
        let mut index = 0;
        self.0.retain(|_| {
            index += 1;
            index % 2 == 1
        });
    }

    /// How often the wall clock stepped between two anchors: by more than 1 ms, and more than it
    /// may be slewed by in that time.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.0.windows(2).filter(|pair| moved_ns(pair) > may_slew_ns(pair)).count()
    }

    /// How far the wall clock was slewed between two anchors at most, nanoseconds: a time between
    /// them is off by so much, for the offset of the earlier one serves for it.
    #[must_use]
    pub fn slew_ns(&self) -> u64 {
        let pairs = self.0.windows(2).map(|pair| (moved_ns(pair), may_slew_ns(pair)));
        pairs.filter(|(moved, most)| moved <= most).map(|(moved, _)| moved).max().unwrap_or(0)
    }
}

/// By how much the offset of the wall clock changed between two anchors.
fn moved_ns(pair: &[Anchor]) -> u64 {
    let moved = pair[0].offset_ns().abs_diff(pair[1].offset_ns());
    u64::try_from(moved).unwrap_or(u64::MAX)
}

/// The most that is no step.
fn may_slew_ns(pair: &[Anchor]) -> u64 {
    STEP_NS + pair[1].monotonic_ns.since(pair[0].monotonic_ns) / SLEW_PART
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_of_a_time_namespace_is_read_in_both_forms_the_kernel_has_written() {
        let of = parse_namespace_offset;
        assert_eq!(
            of("monotonic    100000         5\nboottime   1 0\n"),
            Some(100_000_000_000_005)
        );
        // Linux 5.6 wrote numbers. Nanoseconds are never negative.
        assert_eq!(of("1 -3 500000000\n7 0 0\n"), Some(-2_500_000_000));
        for damaged in ["", "boottime 1 0", "monotonic 1", "monotonic 99999999999999 0"] {
            assert_eq!(of(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn slewing_is_no_step_however_long_it_goes_on_and_makes_times_uncertain() {
        let second = 1_000_000_000;
        let slewed = |pause: u64| {
            let at =
                |index: u64| anchor(index * pause, 7 * second + index * (pause + pause / 2_500));
            Anchors((0..10).map(at).collect())
        };
        for pause in [second, 64 * second] {
            assert_eq!((slewed(pause).steps(), slewed(pause).slew_ns()), (0, pause / 2_500));
        }
        let mut stepped = slewed(second);
        stepped.0[5].wall_ns.0 += 2_000_000;
        assert_eq!(stepped.steps(), 2, "there and back");
        assert_eq!(stepped.slew_ns(), second / 2_500);
    }

    fn anchor(monotonic: u64, wall: u64) -> Anchor {
        Anchor { monotonic_ns: MonoNanos(monotonic), wall_ns: WallNanos(wall), uncertainty_ns: 1 }
    }

    #[test]
    fn a_step_of_the_wall_clock_moves_only_what_follows() {
        let anchors = Anchors(vec![anchor(1_000, 1_000_000_000), anchor(2_000, 1_500_001_000)]);
        assert_eq!(anchors.to_monotonic(WallNanos(1_000_000_500)), Some(MonoNanos(1_500)));
        assert_eq!(anchors.to_monotonic(WallNanos(1_500_001_500)), Some(MonoNanos(2_500)));
        assert_eq!(
            anchors.to_monotonic_from_start(WallNanos(1_500_001_500), WallNanos(1_000_000_000)),
            Some(MonoNanos(500_002_500)),
        );
        assert_eq!(anchors.steps(), 1);
        for (monotonic, wall) in
            [(500, 999_999_500), (1_999, 1_000_000_999), (2_500, 1_500_001_500)]
        {
            assert_eq!(anchors.to_wall(MonoNanos(monotonic)), Some(WallNanos(wall)));
        }
        assert_eq!(Anchors::default().to_wall(MonoNanos(1)), None);
    }

    #[test]
    fn a_time_before_the_first_anchor_uses_the_first() {
        let anchors = Anchors(vec![anchor(1_000, 5_000)]);
        assert_eq!(anchors.to_monotonic(WallNanos(4_500)), Some(MonoNanos(500)));
        assert_eq!(anchors.to_monotonic(WallNanos(3_500)), None);
        assert_eq!(Anchors::default().to_monotonic(WallNanos(1)), None);
    }

    #[test]
    fn an_anchor_reads_both_clocks_together() {
        let first = Anchor::take();
        let second = Anchor::take();
        assert!(first.offset_ns().abs_diff(second.offset_ns()) < u128::from(STEP_NS));
    }
}
