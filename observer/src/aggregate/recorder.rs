//! Percentiles from records, three significant digits.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::model::{Cause, DistributionSummary, EndedBy, Event};

/// Longest stall that is counted as it is; longer ones count as this, and as clamped.
const HIGHEST_NS: u64 = 3_600_000_000_000;

struct Recorded {
    histogram: Histogram<u64>,
    sum_ns: u64,
    max_ns: u64,
}

/// Records durations per cause.
#[derive(Default)]
pub struct CauseRecorder {
    causes: BTreeMap<Cause, Recorded>,
    clamped: u64,
    object_names: BTreeMap<u32, String>,
}

/// Objects that stalls waited for and that have a name; further ones are counted together.
const OBJECTS: usize = 4_096;

impl CauseRecorder {
    /// Counts the stall an event stands for, each part of it for its cause; events that are not stalls
    /// are ignored.
    pub fn record_event(&mut self, event: &Event) {
        let count = event.summed().map_or(1, |summed| u64::from(summed.count)).max(1);
        event.causes().for_each(|(cause, ns)| {
            self.record_several(cause, ns, count);
            self.name_object(event, cause);
        });
        // What other threads did meanwhile says whether it was a lock.
        if matches!(event.ended_by(), EndedBy::Thread(_)) {
            self.name_object(event, Cause::LOCK_WAIT);
        }
    }

    fn name_object(&mut self, event: &Event, cause: Cause) {
        if let Some(row) = event.row().objects
            && let Some(id) = (row.id)(event, cause)
            && !self.object_names.contains_key(&id)
            && self.object_names.len() < OBJECTS
        {
            self.object_names.insert(id, (row.name)(event, cause));
        }
    }

    /// Names of what the stalls waited in, or for whom, by [`crate::model::Stall::object`]: the first
    /// 4,096.
    #[must_use]
    pub const fn object_names(&self) -> &BTreeMap<u32, String> {
        &self.object_names
    }

    /// Counts one duration.
    pub fn record(&mut self, cause: Cause, duration_ns: u64) {
        self.record_several(cause, duration_ns, 1);
    }

    /// Counts so many stalls of this length together, each as long as their mean.
    fn record_several(&mut self, cause: Cause, sum_ns: u64, count: u64) {
        let duration_ns = sum_ns / count;
        let recorded = self.causes.entry(cause).or_insert_with(|| Recorded {
            // Bounds that are always valid: 1 * 2 <= highest, 3 <= 5 digits.
            histogram: Histogram::new_with_bounds(1, HIGHEST_NS, 3).expect("constant bounds"),
            sum_ns: 0,
            max_ns: 0,
        });
        if duration_ns > HIGHEST_NS {
            self.clamped += count;
        }
        recorded.histogram.saturating_record_n(duration_ns.min(HIGHEST_NS), count);
        recorded.sum_ns = recorded.sum_ns.saturating_add(sum_ns);
        recorded.max_ns = recorded.max_ns.max(duration_ns);
    }

    /// Durations longer than an hour, counted as an hour.
    #[must_use]
    pub const fn clamped(&self) -> u64 {
        self.clamped
    }

    /// Stalls recorded for a cause.
    #[must_use]
    pub fn count(&self, cause: Cause) -> u64 {
        self.causes.get(&cause).map_or(0, |recorded| recorded.histogram.len())
    }

    /// The distribution of one cause; `None` when nothing was recorded.
    #[must_use]
    pub fn summary(&self, cause: Cause) -> Option<DistributionSummary> {
        let recorded = self.causes.get(&cause)?;
        let quantile = |q| recorded.histogram.value_at_quantile(q).min(recorded.max_ns);
        Some(DistributionSummary {
            count: recorded.histogram.len(),
            sum_ns: recorded.sum_ns,
            p50_ns: quantile(0.5),
            p99_ns: quantile(0.99),
            max_ns: recorded.max_ns,
        })
    }

    /// All causes recorded, in the order of [`Cause`].
    #[must_use]
    pub fn summaries(&self) -> BTreeMap<Cause, DistributionSummary> {
        self.causes
            .keys()
            .filter_map(|&cause| self.summary(cause).map(|summary| (cause, summary)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use observer_ebpf::wire::{RecordKind, TASK_EXEC, TaskRecord};

    use crate::output::example;

    #[test]
    fn percentiles_keep_three_digits_and_outliers_are_counted() {
        let mut recorder = CauseRecorder::default();
        for ns in 1..=1_000u64 {
            recorder.record(Cause::RUNQUEUE, ns * 1_000);
        }
        let summary = recorder.summary(Cause::RUNQUEUE).expect("recorded");
        assert_eq!((summary.count, summary.max_ns), (1_000, 1_000_000));
        assert!(summary.p50_ns.abs_diff(500_000) < 1_000, "{}", summary.p50_ns);
        assert!(summary.p99_ns.abs_diff(990_000) < 1_000, "{}", summary.p99_ns);
        assert_eq!(recorder.clamped(), 0);
        recorder.record(Cause::RUNQUEUE, HIGHEST_NS * 2);
        assert_eq!(recorder.clamped(), 1);
        assert_eq!(recorder.summary(Cause::RUNQUEUE).map(|s| s.max_ns), Some(HIGHEST_NS * 2));
        assert_eq!(recorder.summary(Cause::COMPACTION), None);
    }

    #[test]
    fn events_go_to_their_cause() {
        let mut recorder = CauseRecorder::default();
        let header = example::header(RecordKind::Task, TASK_EXEC, 1, 5_000, 0);
        let exec = TaskRecord { header, parent_tid: 0, reserved: 0, comm: [0; 16] };
        recorder.record_event(&example::event(&exec));
        recorder.record_event(&example::events()[0]);
        assert_eq!(recorder.count(Cause::RECLAIM_MEMCG), 1);
        assert_eq!(recorder.summaries().len(), 1);
    }
}
