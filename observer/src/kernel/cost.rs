//! What the programs cost: their run time while the kernel's statistics are on, and what the hooks
//! cost in addition.

use std::hint::black_box;
use std::time::Instant;

use super::Kernel;
use super::statistics::ProgramStatistics;
use crate::probe::{PROBES, Program};

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
            if let Some(loaded) = self.ebpf.program(program.name) {
                let ProgramStatistics { runs, run_time_ns, .. } = ProgramStatistics::of(loaded);
                costs.push(ProgramCost { program, runs, run_time_ns });
            }
        }
        costs
    }

    /// The names of a probe's attached programs.
    #[must_use]
    pub fn program_names(&self, probe: &str) -> Vec<&'static str> {
        let probe = PROBES.into_iter().find(|known| known.name == probe);
        let programs = probe.map(|probe| self.programs_of(probe)).unwrap_or_default();
        programs.into_iter().map(|program| program.name).collect()
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
