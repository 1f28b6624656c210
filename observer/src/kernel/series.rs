//! Reading a set of series whose programs go on counting.

use std::sync::atomic::{Ordering, fence};

use observer_ebpf::wire::SERIES;

use crate::aggregate::{Distribution, Octaves};
use crate::probe::{self, Moved};

/// Durations that were counted, at any resolution.
pub(super) trait Counted: Default {
    /// Adds others.
    fn merge(&mut self, other: &Self);
    /// What is left without these.
    fn without(&self, part: &Self) -> Self;
}

macro_rules! counted {
    ($($counts:ident)*) => {$(
        impl Counted for $counts {
            fn merge(&mut self, other: &Self) {
                self.merge(other);
            }

            fn without(&self, part: &Self) -> Self {
                self.delta(part)
            }
        }
    )*};
}

counted! { Distribution Octaves }

/// Reads each series by its number, and moves what is in a series to which it does not belong.
pub(super) fn read_series<C: Counted>(read: impl Fn(usize) -> C) -> Box<[C; SERIES]> {
    // What has to be moved is read first: all of it is then in the series that it is taken from.
    let moved: Vec<_> =
        probe::moved().map(|moved| (moved, read(moved.counted_in as usize))).collect();
    fence(Ordering::Acquire);
    let mut all = Box::new(std::array::from_fn(read));
    for (Moved { counted_in, from, to }, part) in moved {
        all[*from as usize] = all[*from as usize].without(&part);
        all[*to as usize].merge(&part);
        all[*counted_in as usize] = C::default();
    }
    all
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use observer_ebpf::wire::Series;

    use super::*;

    fn octaves(durations: impl IntoIterator<Item = u64>) -> Octaves {
        let mut all = Distribution::default();
        durations.into_iter().for_each(|ns| all.record(ns));
        Octaves::from(&all)
    }

    #[test]
    fn corrected_faults_are_where_they_belong_and_are_counted_once() {
        // The programs go on while it is read: each look finds one more minor fault, and one more that
        // turned out to be major.
        let looks = Cell::new(0);
        let all = read_series(|series| {
            looks.set(looks.get() + 1);
            let so_far = looks.get();
            match Series::ALL[series] {
                Series::FaultMinorUser => octaves((0..so_far + 10).map(|_| 1_000)),
                Series::FaultCorrectedUser => octaves((0..so_far).map(|_| 1_000)),
                Series::FaultMajorUser => octaves([5_000_000]),
                Series::Mmap => octaves([7_000]),
                _ => Octaves::default(),
            }
        });
        let of = |series: Series| &all[series as usize];
        let moved = of(Series::FaultMajorUser).count() - 1;
        assert!(moved > 0);
        assert_eq!(of(Series::FaultMajorUser).sum_ns, 5_000_000 + moved * 1_000);
        assert_eq!(of(Series::FaultCorrectedUser), &Octaves::default());
        assert_eq!(of(Series::Mmap), &octaves([7_000]));
        // It was read after what was moved out of it.
        assert!(of(Series::FaultMinorUser).count() > 10);
    }
}
