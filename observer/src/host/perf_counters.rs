//! Counters of threads: those of the kernel, and those of the processor where there are any (perf events).

use std::io;

use perf_event_open::config::{Cpu, Inherit, Opts, Proc, StatFormat};
use perf_event_open::count::Counter;
use perf_event_open::event::hw::{Hardware, Op, OpResult, Type};
use perf_event_open::event::sw::Software;

use crate::model::{Tid, WhyNot};

/// What is counted.
#[derive(Debug)]
pub struct CounterKind {
    /// Its name.
    pub name: &'static str,
    event: Event,
}

#[derive(Debug)]
enum Event {
    Kernel(Software),
    Processor(Hardware),
}

impl CounterKind {
    /// The kernel counts it, on every machine.
    #[must_use]
    pub const fn is_of_kernel(&self) -> bool {
        matches!(self.event, Event::Kernel(_))
    }
}

const fn kernel(name: &'static str, event: Software) -> CounterKind {
    CounterKind { name, event: Event::Kernel(event) }
}

const fn processor(name: &'static str, event: Hardware) -> CounterKind {
    CounterKind { name, event: Event::Processor(event) }
}

const fn cache(name: &'static str, cache: Type, op: Op, result: OpResult) -> CounterKind {
    processor(name, Hardware::Cache(cache, op, result))
}

/// All of them. The kernel counts a TLB miss where the processor has to walk the page tables (Intel since Sandy
/// Bridge, AMD since Zen), so there are no counters of page walks beside those of TLB misses. Nor is there one
/// of CPU time, with which a switch would take longer still: each of the others says for how long its threads
/// ran.
pub static COUNTERS: &[CounterKind] = &[
    kernel("context_switches", Software::CtxSwitch),
    kernel("cpu_migrations", Software::CpuMigration),
    kernel("minor_faults", Software::MinorPageFault),
    kernel("major_faults", Software::MajorPageFault),
    processor("cycles", Hardware::CpuCycle),
    processor("instructions", Hardware::Instr),
    processor("branch_misses", Hardware::BranchMiss),
    processor("cache_references", Hardware::CacheAccess),
    processor("cache_misses", Hardware::CacheMiss),
    cache("llc_load_misses", Type::Ll, Op::Read, OpResult::Miss),
    cache("dtlb_loads", Type::Dtlb, Op::Read, OpResult::Access),
    cache("dtlb_load_misses", Type::Dtlb, Op::Read, OpResult::Miss),
    cache("dtlb_store_misses", Type::Dtlb, Op::Write, OpResult::Miss),
    cache("itlb_misses", Type::Itlb, Op::Read, OpResult::Miss),
];

/// What a counter says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What it counted.
    pub count: u64,
    /// Time for which the threads ran, nanoseconds.
    pub enabled_ns: u64,
    /// Of it, time in which it counted, because the processor has fewer registers than there are counters.
    pub running_ns: u64,
}

/// The counters of a thread, and of all threads and processes that it starts from now on. Each takes a file
/// descriptor.
pub struct ThreadCounters(Vec<Counter>);

impl ThreadCounters {
    /// Begins to count.
    ///
    /// # Errors
    /// When one of them cannot count; none does then. `ESRCH` for a thread that is gone.
    pub fn open(kinds: &[&'static CounterKind], tid: Tid) -> io::Result<Self> {
        kinds.iter().map(|kind| open(kind, Proc(tid.0))).collect::<io::Result<_>>().map(Self)
    }

    /// What they counted so far, in the order of the kinds. `None` for one that cannot be read.
    pub fn read(&self) -> impl Iterator<Item = Option<Reading>> {
        self.0.iter().map(|counter| {
            let stat = counter.stat().ok()?;
            Some(Reading {
                count: stat.count,
                enabled_ns: stat.time_enabled?,
                running_ns: stat.time_running?,
            })
        })
    }
}

fn open(kind: &CounterKind, of: Proc) -> io::Result<Counter> {
    let options = Opts {
        inherit: Some(Inherit::NewChild),
        enable: true,
        stat_format: StatFormat { time_enabled: true, time_running: true, ..StatFormat::default() },
        ..Opts::default()
    };
    match &kind.event {
        Event::Kernel(event) => Counter::new(event, (of, Cpu::ALL), options),
        Event::Processor(event) => Counter::new(event, (of, Cpu::ALL), options),
    }
}

/// Tries them all on the calling thread.
#[must_use]
pub fn try_all() -> Vec<(&'static CounterKind, Result<(), WhyNot>)> {
    let tried = |kind| open(kind, Proc::CURRENT).map(drop).map_err(|error| why_not(&error));
    COUNTERS.iter().map(|kind| (kind, tried(kind))).collect()
}

/// What an error of perf_event_open(2) means.
#[must_use]
pub fn why_not(error: &io::Error) -> WhyNot {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => WhyNot::Refused,
        Some(libc::EMFILE | libc::ENFILE) => WhyNot::NoDescriptors,
        Some(
            libc::ENOENT
            | libc::EOPNOTSUPP
            | libc::ENODEV
            | libc::ENXIO
            | libc::EINVAL
            | libc::ENOSYS,
        ) => WhyNot::Unsupported,
        _ => WhyNot::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_whether_the_machine_the_rights_or_a_limit_is_the_reason() {
        for (errno, why) in [
            (libc::ENOENT, WhyNot::Unsupported),
            (libc::EOPNOTSUPP, WhyNot::Unsupported),
            (libc::EACCES, WhyNot::Refused),
            (libc::EPERM, WhyNot::Refused),
            (libc::EMFILE, WhyNot::NoDescriptors),
            (libc::ENOMEM, WhyNot::Failed),
        ] {
            assert_eq!(why_not(&io::Error::from_raw_os_error(errno)), why, "{errno}");
        }
    }

    #[test]
    fn each_counter_has_its_own_name_and_is_tried() {
        let tried = try_all();
        let mut names: Vec<&str> = tried.iter().map(|(kind, _)| kind.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), COUNTERS.len());
    }
}
