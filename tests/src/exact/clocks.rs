//! Two clocks around the same events: observer's, and that of the thread that has them.

use serde_json::Value;

use crate::mapping::LONG_CALL_FACTOR;
use crate::results::Held;
use crate::trial::{Run, Trial};

/// Lengths of calls: by observer's record, and by another clock.
pub(super) type Lengths = Vec<(u64, u64)>;

/// Begin and end of calls, as the caller read its clock.
pub(super) fn readings(own: &Value) -> impl Iterator<Item = (u64, u64)> {
    let calls = own.as_array().expect("the caller's clock readings").iter();
    calls.map(|own| (own[0].as_u64().expect("ns"), own[1].as_u64().expect("ns")))
}

/// The sums of both sides without the tenth of the calls on which they differ most: between two
/// readings of a clock the caller may have been interrupted, preempted, or its CPU taken away.
pub(super) fn undisturbed(mut lengths: Lengths) -> (u64, u64) {
    lengths.sort_unstable_by_key(|(one, other)| one.abs_diff(*other));
    lengths.truncate(lengths.len() - lengths.len() / 10);
    sums(&lengths)
}

pub(super) fn sums(lengths: &[(u64, u64)]) -> (u64, u64) {
    lengths.iter().fold((0, 0), |sum, pair| (sum.0 + pair.0, sum.1 + pair.1))
}

/// Part of a long call or fault that the caller's clock may have more than observer's.
///
/// The caller's clock includes the way into the kernel and out of it and the BPF programs of every
/// observer on both; so does the caller's time of an empty call. A long call leaves the caches colder
/// for its way out than an empty one, hence one empty call for each end. The workload makes its
/// calls many times as long as an empty one ([`LONG_CALL_FACTOR`] for system calls), so this stays a
/// small part on every CPU.
pub(super) fn outside(name: &str, lengths: &Lengths, empty: &Value) -> f64 {
    let median = |mut lengths: Vec<u64>| {
        lengths.sort_unstable();
        lengths.get(lengths.len() / 2).copied().expect("calls")
    };
    let empty_ns = median(readings(empty).map(|(begin, end)| end - begin).collect());
    let long_ns = median(lengths.iter().map(|(_, own)| *own).collect());
    let apart_ns = median(lengths.iter().map(|(found, own)| own.abs_diff(*found)).collect());
    println!(
        "{name}: one takes {long_ns} ns, an empty one {empty_ns} ns, the clocks are {apart_ns} ns \
         apart (medians)"
    );
    2.0 * (empty_ns as f64 / long_ns as f64).max(1.0 / LONG_CALL_FACTOR as f64)
}

/// Compares the lengths of all runs but the first with those of the first: between the clocks of two
/// tiers lies no more than one end of an empty call, which is half of `outside`.
///
/// # Panics
/// When they do not agree.
pub(super) fn side_by_side(
    trial: &Trial,
    runs: &[Run],
    (probe, metric): (&str, &str),
    lengths: impl Fn(&Run) -> Lengths,
    empty: &Value,
) {
    let [first, others @ ..] = runs else { return };
    if others.is_empty() {
        return;
    }
    let best = lengths(first);
    let outside = outside(metric, &best, empty);
    let tier = first.probe(probe).tier.as_deref().unwrap_or_default();
    for other in others {
        let pair = |(one, first): ((u64, u64), &(u64, u64))| (one.0, first.0);
        let (found, expected) =
            undisturbed(lengths(other).into_iter().zip(&best).map(pair).collect());
        let held = Held::new(trial.test, probe, &other.summary);
        held.equal(metric, &format!("{tier}, side by side"), found, expected, outside / 2.0);
    }
}
