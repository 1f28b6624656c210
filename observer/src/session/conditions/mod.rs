//! The conditions under which the target runs: what the kernel's files, and sums of the kernel side, tell about it
//! beside the records.
//!
//! Each watch reads them when a run begins, when that is due, and at the end.

mod cgroup_search;
mod connections;
mod counters;
mod cpu_limits;
mod cpu_time;
mod descriptors;
mod disks;
mod memory_limits;
mod namespaces;
mod network;
mod parts;
mod pressure;
mod ran_instead;
mod trend;

use std::time::{Duration, Instant};

use connections::ConnectionWatch;
use counters::CounterWatch;
use cpu_limits::CpuLimitWatch;
use cpu_time::CpuTimeWatch;
use descriptors::DescriptorWatch;
use disks::DiskWatch;
use memory_limits::MemoryLimitWatch;
use network::NetworkWatch;
use pressure::PressureWatch;
use ran_instead::RanInsteadWatch;

use crate::host::usage;
use crate::kernel::Kernel;
use crate::model::Conditions;
use crate::target::Membership;

/// Pause between two readings.
const INTERVAL: Duration = Duration::from_secs(1);
/// The readings of one watch take at most one part in this many of a CPU's time.
const SHARE: u32 = 300;

/// What has to be done once for processes that join takes at most one part in this many: they should not wait for long.
const JOIN_SHARE: u32 = 30;

/// One kind of condition.
trait Watch {
    /// Does what has to be done once for the processes that have joined.
    fn welcome(&mut self, _membership: &Membership) {}

    /// Reads the files now.
    fn look(&mut self, membership: &Membership);

    /// Puts what they told so far into the description of a run.
    fn note(&self, conditions: &mut Conditions);
}

/// All of them, each with the time of its next reading.
pub(super) struct ConditionWatch(Vec<(Box<dyn Watch + Send>, Instant)>);

impl ConditionWatch {
    /// What the kernel counted before does not count. With `counters`, the target's threads get some, which makes each
    /// of their switches take longer.
    pub(super) fn start(membership: &Membership, kernel: &Kernel, counters: bool) -> Self {
        let mut watches: Vec<Box<dyn Watch + Send>> = vec![
            Box::new(CpuLimitWatch::start()),
            Box::new(NetworkWatch::start()),
            Box::new(ConnectionWatch::start()),
            Box::new(DescriptorWatch::start()),
            Box::new(MemoryLimitWatch::start()),
            Box::new(PressureWatch::start()),
            Box::new(DiskWatch::start()),
            Box::new(CpuTimeWatch::start()),
            Box::new(RanInsteadWatch::start(kernel.ran_instead())),
        ];
        if counters {
            watches.push(Box::new(CounterWatch::start()));
        }
        let now = Instant::now();
        let mut all = Self(watches.into_iter().map(|watch| (watch, now)).collect());
        all.look(membership);
        all
    }

    /// Call it often: reads what is due.
    pub(super) fn tick(&mut self, membership: &Membership) {
        let now = Instant::now();
        self.look_at(membership, |next| now >= next);
    }

    /// Reads everything now.
    pub(super) fn look(&mut self, membership: &Membership) {
        self.look_at(membership, |_| true);
    }

    fn look_at(&mut self, membership: &Membership, is_due: impl Fn(Instant) -> bool) {
        for (watch, next) in self.0.iter_mut().filter(|(_, next)| is_due(*next)) {
            let begun = usage::of_thread();
            watch.welcome(membership);
            let welcomed = usage::of_thread();
            watch.look(membership);
            let took = usage::of_thread().saturating_sub(welcomed).saturating_mul(SHARE);
            let once = welcomed.saturating_sub(begun).saturating_mul(JOIN_SHARE);
            *next = Instant::now() + took.max(once).max(INTERVAL);
        }
    }

    /// What they told so far.
    pub(super) fn so_far(&self) -> Conditions {
        let mut conditions = Conditions::default();
        self.0.iter().for_each(|(watch, _)| watch.note(&mut conditions));
        conditions
    }
}
