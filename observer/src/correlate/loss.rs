//! Which losses matter, and which moments of the run they spoil.

use serde_json::json;

use super::Evidence;
use super::timeline::Timelines;
use crate::model::{LossSpan, Reason, Sample, hidden_causes, loss_info};
use crate::text::{count, percent};

/// Losses of the target that may hide a cause.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// When they happened, where that is known: in order, disjoint, absolute nanoseconds.
    spoilt: Vec<(u64, u64)>,
    /// Kinds, of those whose moments are known.
    pub(super) placed: Vec<String>,
    /// Losses that may have happened at any moment.
    pub(super) unplaced: Vec<Reason>,
}

impl Losses {
    /// The request ran, in part, while something was lost.
    pub(super) fn spoil(&self, sample: &Sample) -> bool {
        let next = self.spoilt.partition_point(|(_, end)| *end <= sample.begin().0);
        self.spoilt.get(next).is_some_and(|(start, _)| *start < sample.end.0)
    }

    /// Whether any moments were spoilt.
    pub(super) fn any_placed(&self) -> bool {
        !self.placed.is_empty()
    }
}

/// Compares what was lost with what was seen.
pub(super) fn judge(evidence: &Evidence<'_>, timelines: &Timelines) -> Losses {
    let quality = &evidence.quality;
    let mut losses = Losses::default();
    let mut spans = Vec::new();
    for (kind, &lost) in &quality.lost_of_target {
        let causes = hidden_causes(kind);
        if causes.is_empty() {
            continue;
        }
        let info = loss_info(kind);
        let mut seen: u64 = causes.iter().map(|cause| timelines.stalls(*cause)).sum();
        if info.of_all_waits {
            seen = seen.max(quality.target_waits);
        }
        let share = lost as f64 / lost.saturating_add(seen).max(1) as f64;
        if share <= info.limit {
            continue;
        }
        let of_kind = || quality.loss_spans.iter().filter(|span| span.kind == *kind);
        let placed: u64 = of_kind().map(|span| span.count).fold(0, u64::saturating_add);
        if placed >= lost {
            losses.placed.push(kind.clone());
            spans.extend(of_kind().filter(|span| span.count > 0));
        } else {
            losses.unplaced.push(Reason::new(
                "records_lost",
                format!(
                    "{} {kind} records were lost, {} of all (limit {}). {} Raise --ring-bytes, or \
                     watch less with --probes.",
                    count(lost),
                    percent(share),
                    percent(info.limit),
                    info.sentence,
                ),
                json!({
                    "kind": kind, "lost": lost, "seen": seen, "share": share,
                    "limit": info.limit, "causes": causes,
                }),
            ));
        }
    }
    losses.spoilt = merged(spans);
    losses
}

fn merged(mut spans: Vec<&LossSpan>) -> Vec<(u64, u64)> {
    spans.sort_unstable_by_key(|span| (span.start, span.end));
    let mut merged: Vec<(u64, u64)> = Vec::new();
    for LossSpan { start, end, .. } in spans {
        match merged.last_mut() {
            Some((_, last)) if start.0 <= *last => *last = end.0.max(*last),
            _ => merged.push((start.0, end.0)),
        }
    }
    merged
}
