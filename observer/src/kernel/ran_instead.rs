//! Who had the CPUs while threads of the target waited for them, as the kernel side sums it up.

use std::sync::Arc;

use observer_ebpf::wire::{
    Counter, Counts, RAN_BUCKETS, RAN_IDLE, RAN_NO_PLACE, RAN_OTHERS, RAN_WAYS, RanBucket,
    RanInstead, SCOPE_TARGET, Series,
};

use super::mapped::MappedWords;
use super::{Kernel, histogram_word};

const WORDS: usize = size_of::<RanInstead>() / 8;
const OTHERS: usize = RAN_OTHERS as usize * RAN_WAYS;
const COUNTS_WORDS: usize = size_of::<Counts>() / 8;
const THROTTLED_WORD: usize =
    std::mem::offset_of!(Counts, counters) / 8 + Counter::TargetThrottledNs as usize;

/// Sums since the programs were loaded, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitSums {
    /// All waits of the target.
    pub wait_ns: u64,
    /// In which nobody had the CPU.
    pub idle_ns: u64,
    /// In which a CPU limit held the thread.
    pub throttled_ns: u64,
    /// In which processes had the CPU that found no place in the table.
    pub no_place_ns: u64,
}

/// What the table holds.
#[derive(Clone, Debug, Default)]
pub struct RanInsteadReading {
    /// Processes, each with its place in the table. Their numbers count from when they got the place.
    pub processes: Vec<(usize, RanInstead)>,
    /// The sums.
    pub sums: WaitSums,
}

/// The table, for any thread.
pub struct RanInsteadTable {
    table: MappedWords,
    histograms: Arc<MappedWords>,
    counts: Arc<MappedWords>,
    cpus: usize,
}

impl Kernel {
    /// The table of who ran while threads of the target waited. `None` where waits are not watched.
    #[must_use]
    pub fn ran_instead(&self) -> Option<RanInsteadTable> {
        self.choice("runqueue")?.tier?;
        let entries = RAN_BUCKETS as usize + 1;
        let table = self.map_words("RAN_INSTEAD", entries, size_of::<RanBucket>())?;
        Some(RanInsteadTable {
            table,
            histograms: Arc::clone(&self.histograms),
            counts: Arc::clone(&self.counts),
            cpus: self.shape.cpus,
        })
    }
}

impl RanInsteadTable {
    fn entry(&self, place: usize) -> RanInstead {
        self.table.value(place)
    }

    /// What it holds now.
    #[must_use]
    pub fn read(&self) -> RanInsteadReading {
        // The parts first: what is added meanwhile makes only the whole larger.
        let used = (0..OTHERS).filter(|place| self.table.get(place * WORDS) != 0);
        let processes = used.map(|place| (place, self.entry(place))).collect();
        let of_waits = |series: Series| {
            let words =
                (0..self.cpus).map(|cpu| histogram_word(cpu, SCOPE_TARGET, series as usize));
            words.map(|word| self.histograms.get(word)).fold(0, u64::wrapping_add)
        };
        let throttled =
            (0..self.cpus).map(|cpu| self.counts.get(cpu * COUNTS_WORDS + THROTTLED_WORD));
        let sums = WaitSums {
            no_place_ns: self.entry(OTHERS + RAN_NO_PLACE).time_ns,
            idle_ns: self.entry(OTHERS + RAN_IDLE).time_ns,
            throttled_ns: throttled.fold(0, u64::wrapping_add),
            wait_ns: of_waits(Series::RunqueueWakeup)
                .wrapping_add(of_waits(Series::RunqueuePreempt)),
        };
        RanInsteadReading { processes, sums }
    }

    /// Gives the place of a process that has ended to others.
    pub fn free(&self, place: usize) {
        // Its id last, which says that the place is in use.
        (0..WORDS).rev().for_each(|word| self.table.set(place * WORDS + word, 0));
    }
}
