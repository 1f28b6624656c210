//! Times by parts of a run: as many as a page can show, however long it is.

use crate::clock::MonoNanos;

/// Parts of a run that are told apart.
pub(super) const PARTS: usize = 60;
/// Length of a part as long as a run is short.
pub(super) const FIRST_PART_NS: u64 = 1_000_000_000;

/// Pairs of parts become one.
pub(super) fn halve(sums: &mut Vec<u64>) {
    *sums = sums.chunks(2).map(|pair| pair.iter().sum()).collect();
}

/// Adds to each part, of which there may be more than before.
pub(super) fn add(sums: &mut Vec<u64>, more: &[u64]) {
    if sums.len() < more.len() {
        sums.resize(more.len(), 0);
    }
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}

/// A time that was added between two instants of a run, nanoseconds from its begin, by parts of this length.
pub(super) fn spread(part_ns: u64, (from_ns, until_ns): (u64, u64), time: u64) -> Vec<u64> {
    if time == 0 {
        return Vec::new();
    }
    let last = (until_ns.saturating_sub(1) / part_ns) as usize;
    let mut parts = vec![0; last + 1];
    let length_ns = until_ns.saturating_sub(from_ns).max(1);
    let mut left = time;
    for (part, sum) in parts.iter_mut().enumerate().take(last) {
        let begin_ns = part as u64 * part_ns;
        let inside_ns = (begin_ns + part_ns).min(until_ns).saturating_sub(begin_ns.max(from_ns));
        let scaled = u128::from(time) * u128::from(inside_ns) / u128::from(length_ns);
        *sum = (scaled as u64).min(left);
        left -= *sum;
    }
    parts[last] = left;
    parts
}

/// The parts of one time.
pub(super) struct Parts {
    began: MonoNanos,
    read_at: MonoNanos,
    /// Length of a part, nanoseconds.
    pub(super) part_ns: u64,
    /// The time in each part; those behind the last one are 0.
    pub(super) sums: Vec<u64>,
}

impl Parts {
    /// Of a run that began at this instant; what is added came after `now`.
    pub(super) const fn start(began: MonoNanos, now: MonoNanos) -> Self {
        Self { began, read_at: now, part_ns: FIRST_PART_NS, sums: Vec::new() }
    }

    /// Takes in what was added since the last call.
    pub(super) fn add(&mut self, now: MonoNanos, time: u64) {
        while now.since(self.began) > self.part_ns * PARTS as u64 {
            halve(&mut self.sums);
            self.part_ns *= 2;
        }
        let between = (self.read_at.since(self.began), now.since(self.began));
        let more = spread(self.part_ns, between, time);
        add(&mut self.sums, &more);
        self.read_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn times_are_spread_over_the_parts_in_which_they_were_added() {
        let mut parts = Parts::start(MonoNanos(5 * SECOND), MonoNanos(5 * SECOND));
        parts.add(MonoNanos(5 * SECOND + SECOND / 2), 100);
        assert_eq!(parts.sums, [100]);
        parts.add(MonoNanos(5 * SECOND + SECOND / 2 * 5), 400);
        assert_eq!(parts.sums, [200, 200, 100]);
        parts.add(MonoNanos(8 * SECOND), 0);
        assert_eq!((parts.sums.len(), parts.part_ns), (3, SECOND));
        // One that is watched from later on.
        let mut late = Parts::start(MonoNanos(5 * SECOND), MonoNanos(7 * SECOND));
        late.add(MonoNanos(8 * SECOND), 90);
        assert_eq!(late.sums, [0, 0, 90]);
    }

    #[test]
    fn a_long_run_has_longer_parts() {
        let mut parts = Parts::start(MonoNanos(0), MonoNanos(0));
        (1..=200).for_each(|second| parts.add(MonoNanos(second * SECOND), 10));
        assert_eq!((parts.part_ns, parts.sums.len()), (4 * SECOND, 50));
        assert!(parts.sums.iter().all(|sum| *sum == 40), "{:?}", parts.sums);
    }
}
