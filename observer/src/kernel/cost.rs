//! What the programs cost: their run time while the kernel's statistics are on, and what the hooks
//! cost in addition.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::mem::offset_of;
use std::ops::Range;
use std::time::Instant;

use observer_ebpf::wire::{self, Histogram, SCOPES, Series};

use super::statistics::ProgramStatistics;
use super::{Kernel, histogram_word};
use crate::pace::rest;
use crate::probe::{PROBES, Probe, Program};

/// Runs and run time of one attached program.
#[derive(Clone, Copy, Debug)]
pub struct ProgramCost {
    /// The program.
    pub program: &'static Program,
    /// Runs while the statistics were on.
    pub runs: u64,
    /// Time in them.
    pub run_time_ns: u64,
}

impl Kernel {
    /// All programs that are attached now. Each costs the caller a system call.
    #[must_use]
    pub fn program_costs(&self) -> Vec<ProgramCost> {
        let mut costs: Vec<ProgramCost> = Vec::new();
        let attached = PROBES.into_iter().filter(|probe| self.is_attached(probe.name));
        for program in attached.flat_map(|probe| self.programs_of(probe)) {
            let known = |cost: &ProgramCost| cost.program.name == program.name;
            if costs.iter().any(known) {
                continue;
            }
            rest();
            if let Some(loaded) = self.ebpf.program(program.name) {
                let ProgramStatistics { runs, run_time_ns, .. } = ProgramStatistics::of(loaded);
                costs.push(ProgramCost { program, runs, run_time_ns });
            }
        }
        costs
    }

    /// The programs of each probe that is attached now.
    #[must_use]
    pub fn attached_programs(&self) -> BTreeMap<&'static str, Vec<&'static Program>> {
        let attached = PROBES.into_iter().filter(|probe| self.is_attached(probe.name));
        attached.map(|probe| (probe.name, self.programs_of(probe))).collect()
    }

    /// The events in the histograms of each probe that is attached now, of all tasks. It takes loads of
    /// mapped memory only.
    #[must_use]
    pub fn events(&self) -> BTreeMap<&'static str, u64> {
        let attached = PROBES.into_iter().filter(|probe| self.is_attached(probe.name));
        let events = |probe: &Probe| -> u64 {
            let series = probe.parts().into_iter().flat_map(|(_, series)| series);
            series.map(|series| self.events_of(series)).sum()
        };
        attached.map(|probe| (probe.name, events(probe))).collect()
    }

    fn events_of(&self, series: Series) -> u64 {
        const BUCKETS: Range<usize> = {
            let first = offset_of!(Histogram, buckets) / 8;
            first..first + wire::BUCKETS
        };
        let places =
            (0..self.shape.cpus).flat_map(|cpu| (0..SCOPES).map(move |scope| (cpu, scope)));
        places
            .map(|(cpu, scope)| histogram_word(cpu, scope, series as usize))
            // Most are empty: their sum is 0.
            .filter(|first| self.histograms.get(*first) != 0)
            .flat_map(|first| BUCKETS.map(move |word| self.histograms.get(first + word)))
            .fold(0, u64::wrapping_add)
    }
}

/// Time of one system call that does nothing, as it is now: with programs at every system call it
/// is longer by what they and the slow path cost. It is the shortest of many short series, so that
/// interrupts do not count.
#[must_use]
pub fn empty_call_ns() -> f64 {
    const SERIES: usize = 40;
    const CALLS: u32 = 100;
    let series = || {
        let started = Instant::now();
        for _ in 0..CALLS {
            // Not cached by the C library.
            black_box(rustix::process::getppid());
        }
        started.elapsed().as_nanos() as f64 / f64::from(CALLS)
    };
    (0..SERIES).map(|_| series()).fold(f64::INFINITY, f64::min)
}
