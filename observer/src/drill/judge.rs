//! Compares what observer said with the truth.

use serde::Serialize;

use super::play::Played;
use super::rows::{Expected, Injection, Truth};
use super::services::Service;
use super::truth::{Facts, quantile_ns};
use crate::model::{Cause, CauseSummary, Outcome, Summary};

/// An injection counts if it made the p99 at least this many times as long, and this much longer.
const MOVED_FACTOR: f64 = 1.5;
const MOVED_NS: u64 = 1_000_000;
/// It does not count either if it is less than this share of the extra latency.
const LEAST_TRUTH: f64 = 0.3;
/// Of two causes that an injection brings, either is right where their truths differ by less than this: the
/// goal for the error of a share.
const ALIKE: f64 = 0.1;
/// A run-queue wait that observer names counts as met if the service's own log has this part of it.
const CONFIRMED: f64 = 0.5;

/// How a drill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The answer was right.
    Right,
    /// The answer was wrong, or there was none.
    Missed,
    /// The injection did not move the p99 enough to be found; the answer is not judged.
    TooWeak,
    /// This host cannot do it.
    Skipped,
    /// It could not be played to its end.
    Failed,
}

impl Status {
    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Missed => "missed",
            Self::TooWeak => "too weak",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
        }
    }
}

/// One drill and what came of it. Shares are parts of the extra latency of the slow requests, 0 to 1.
#[derive(Clone, Debug, Serialize)]
pub struct Drill {
    /// The service.
    pub service: Service,
    /// The injection.
    pub injection: &'static str,
    /// The seed.
    pub seed: u64,
    /// How it ended.
    pub status: Status,
    /// Why it was skipped, failed, is too weak or was missed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Seconds that it took.
    pub seconds: f64,
    /// What observer said, and the truth; missing where there was no answer.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub finding: Option<Finding>,
}

/// What observer said, and the truth.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The largest cause that was named, or the kind of answer where none was.
    pub named: &'static str,
    /// Causes that were named.
    pub all_named: Vec<&'static str>,
    /// Kernel causes that were named although nothing of the kind was injected.
    pub false_alarms: Vec<&'static str>,
    /// The injection's share according to the service's log and the schedule.
    pub truth_share: Option<f64>,
    /// The share that observer gave the expected cause.
    pub share: Option<f64>,
    /// Its interval.
    pub share_ci95: Option<[f64; 2]>,
    /// In what most of the expected cause's time waited, or for whom, where observer says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// The p99 that the load generator saw, nanoseconds.
    pub p99_ns: u64,
    /// The p99 of the run without the injection, nanoseconds.
    pub p99_baseline_ns: u64,
    /// What observer says it would have been without the expected cause, nanoseconds.
    pub p99_without_ns: Option<u64>,
    /// Its interval.
    pub p99_without_ci95: Option<[u64; 2]>,
}

impl Finding {
    /// What observer said minus the truth.
    #[must_use]
    pub fn share_error(&self) -> Option<f64> {
        Some(self.share? - self.truth_share?)
    }

    /// Whether the interval of the share covers the truth.
    #[must_use]
    pub fn share_is_covered(&self) -> Option<bool> {
        let ([low, high], truth) = (self.share_ci95?, self.truth_share?);
        Some((low..=high).contains(&truth))
    }

    /// The predicted p99 without the cause, relative to that of the run without the injection, minus 1.
    #[must_use]
    pub fn p99_error(&self) -> Option<f64> {
        let baseline = self.p99_baseline_ns;
        (baseline > 0).then_some(self.p99_without_ns? as f64 / baseline as f64 - 1.0)
    }

    /// Whether the interval of the predicted p99 covers that of the run without the injection.
    #[must_use]
    pub fn p99_is_covered(&self) -> Option<bool> {
        let [low, high] = self.p99_without_ci95?;
        Some((low..=high).contains(&self.p99_baseline_ns))
    }
}

/// Judges a run; `baseline_ns` is the p99 of the run without the injection, `None` if this is one.
pub(super) fn judge(
    row: &Injection,
    played: &Played,
    baseline_ns: Option<u64>,
) -> (Status, Option<String>, Finding) {
    let facts = Facts {
        entries: &played.entries,
        waits: played.waits.as_deref(),
        episodes: &played.episodes,
        samples: &played.samples,
    };
    let p99_ns = quantile_ns(&played.samples, 0.99);
    let waited_share = facts.share(Truth::Waited);
    let named = named_first(&played.summary);
    let (expected, truth_share) = match row.expected {
        Expected::OneOf(causes) => (causes.to_vec(), facts.share(row.truth)),
        Expected::Larger(causes) => {
            let known = causes.iter().filter_map(|(name, of)| Some((*name, facts.share(*of)?)));
            larger(&known.collect::<Vec<_>>(), named)
        }
        Expected::NoKernelCause if row.truth == Truth::None => (Vec::new(), None),
        Expected::NoKernelCause => (Vec::new(), facts.share(row.truth)),
    };
    let shares = (truth_share, waited_share);
    let finding = finding(row, &expected, &played.summary, shares, p99_ns, baseline_ns);
    if let Some(weak) = too_weak(&finding, baseline_ns.is_some()) {
        return (Status::TooWeak, Some(weak), finding);
    }
    let right = match row.expected {
        Expected::OneOf(_) | Expected::Larger(_) => expected.contains(&finding.named),
        Expected::NoKernelCause => finding.false_alarms.is_empty(),
    };
    let wrong_object = wrong_object(row, played.port_behind, finding.object.as_deref());
    if right && wrong_object.is_some() {
        return (Status::Missed, wrong_object, finding);
    }
    if right {
        return (Status::Right, None, finding);
    }
    let mut reason =
        format!("expected {}, and observer says {}", row.expected_text(), finding.named);
    if let Some(first) = played.summary.verdict.reasons.first() {
        reason = format!("{reason}: {}", first.text);
    }
    (Status::Missed, Some(reason), finding)
}

/// Of causes with the shares that they really have: the one that is right, and its share. That is the larger
/// one, or the one that was named where it is hardly smaller. Nothing where no share is known.
fn larger(causes: &[(&'static str, f64)], named: &str) -> (Vec<&'static str>, Option<f64>) {
    let Some(largest) = causes.iter().max_by(|a, b| a.1.total_cmp(&b.1)) else {
        return (Vec::new(), None);
    };
    let is_alike = |one: &&(&str, f64)| one.0 == named && one.1 > largest.1 - ALIKE;
    let (name, share) = causes.iter().find(is_alike).unwrap_or(largest);
    (vec![*name], Some(*share))
}

/// Behind a proxy, the service that sleeps is at the other end of a connection, and that must be said.
fn wrong_object(row: &Injection, port: Option<u16>, object: Option<&str>) -> Option<String> {
    let port = port.filter(|_| row.truth == Truth::Slept)?;
    let connection = format!("at 127.0.0.1:{port}");
    if object.is_some_and(|object| object.ends_with(&connection)) {
        return None;
    }
    let object = object.unwrap_or("nothing about it");
    Some(format!("expected a wait {connection}, and observer says {object}"))
}

fn too_weak(finding: &Finding, is_injected: bool) -> Option<String> {
    if !is_injected {
        return None;
    }
    let (p99, baseline) = (finding.p99_ns, finding.p99_baseline_ns);
    let ms = |ns: u64| ns as f64 / 1e6;
    if p99 < baseline + MOVED_NS || (p99 as f64) < baseline as f64 * MOVED_FACTOR {
        let (p99, baseline) = (ms(p99), ms(baseline));
        return Some(format!("the p99 is {p99:.1} ms, and {baseline:.1} ms without the injection"));
    }
    let truth = finding.truth_share.filter(|truth| *truth < LEAST_TRUTH)?;
    Some(format!("the injection is only {:.0} % of the extra latency", truth * 100.0))
}

fn finding(
    row: &Injection,
    expected: &[&'static str],
    summary: &Summary,
    (truth_share, waited_share): (Option<f64>, Option<f64>),
    p99_ns: u64,
    baseline_ns: Option<u64>,
) -> Finding {
    let of: Vec<&CauseSummary> =
        summary.causes.iter().filter(|one| expected.contains(&one.cause.name())).collect();
    // The interval of a sum of several is not known.
    let largest = of.iter().max_by(|a, b| a.share.total_cmp(&b.share));
    let is_conclusive = summary.verdict.outcome != Outcome::Inconclusive;
    let named: Vec<&CauseSummary> =
        summary.causes.iter().filter(|one| one.named && is_conclusive).collect();
    let injects_stalls = match row.expected {
        Expected::OneOf(causes) => causes.iter().any(|name| Cause::from_id(name).is_stall()),
        // What it brings besides its own must have been met.
        Expected::Larger(_) | Expected::NoKernelCause => false,
    };
    let is_met = |one: &CauseSummary| {
        one.cause.name().starts_with("runqueue")
            && waited_share.is_some_and(|waited| waited >= one.share * CONFIRMED)
    };
    let false_alarms = named
        .iter()
        .filter(|one| one.cause.is_stall() && !injects_stalls && !is_met(one))
        .map(|one| one.cause.name())
        .collect();
    Finding {
        named: named_first(summary),
        all_named: named.iter().map(|one| one.cause.name()).collect(),
        false_alarms,
        truth_share,
        share: (!of.is_empty()).then(|| of.iter().map(|one| one.share).sum()),
        share_ci95: largest.filter(|_| of.len() == 1).map(|one| one.ci95),
        object: largest.and_then(|one| Some(one.objects.first()?.what.clone())),
        p99_ns,
        p99_baseline_ns: baseline_ns.unwrap_or(p99_ns),
        p99_without_ns: largest.and_then(|one| one.without).map(|without| without.p99_without_ns),
        p99_without_ci95: largest
            .and_then(|one| one.without)
            .map(|without| without.p99_without_ci95),
    }
}

/// The largest cause that is named, or the kind of answer.
fn named_first(summary: &Summary) -> &'static str {
    match (summary.verdict.outcome, summary.verdict.top_cause) {
        (Outcome::Attributed, Some(cause)) => cause.name(),
        (Outcome::GeneratorLimited, _) => Cause::LOAD_GENERATOR.name(),
        (outcome, _) => outcome.name(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drill::rows::Injection;
    use crate::output::example;

    fn judged(name: &str, baseline_ns: Option<u64>) -> Finding {
        let row = Injection::find(name).unwrap();
        let expected = match row.expected {
            Expected::OneOf(causes) => causes,
            Expected::Larger(_) | Expected::NoKernelCause => &[],
        };
        let shares = (Some(0.9), Some(0.0));
        finding(row, expected, &example::attributed(), shares, 80_000_000, baseline_ns)
    }

    #[test]
    fn of_two_causes_the_larger_one_is_right_and_either_if_they_are_alike() {
        let of = |burnt, named| larger(&[("service_cpu", burnt), ("runqueue_self", 0.5)], named);
        assert_eq!(of(0.8, "runqueue_self"), (vec!["service_cpu"], Some(0.8)));
        assert_eq!(of(0.3, "service_cpu"), (vec!["runqueue_self"], Some(0.5)));
        assert_eq!(of(0.55, "runqueue_self"), (vec!["runqueue_self"], Some(0.5)));
        assert_eq!(of(0.45, "service_cpu"), (vec!["service_cpu"], Some(0.45)));
        assert_eq!(of(0.45, "fault_minor"), (vec!["runqueue_self"], Some(0.5)));
        assert_eq!(larger(&[], "service_cpu"), (Vec::new(), None));
    }

    #[test]
    fn a_kernel_cause_is_a_false_alarm_only_where_none_was_injected() {
        let memcg = judged("memcg", Some(1_000_000));
        assert!(memcg.false_alarms.is_empty(), "{memcg:?}");
        let sleep = judged("sleep", Some(1_000_000));
        assert_eq!(sleep.named, memcg.named);
        let stalls = sleep.all_named.iter().filter(|name| Cause::from_id(name).is_stall()).count();
        assert_eq!(sleep.false_alarms.len(), stalls);
        assert!(stalls > 0, "the example has a kernel cause");
    }

    #[test]
    fn an_injection_counts_only_if_it_moved_the_p99() {
        assert_eq!(too_weak(&judged("nothing", None), false), None);
        assert_eq!(too_weak(&judged("sleep", Some(1_000_000)), true), None);
        let weak = too_weak(&judged("sleep", Some(79_500_000)), true).unwrap();
        assert!(weak.contains("80.0 ms") && weak.contains("79.5 ms"), "{weak}");
        let mut little = judged("sleep", Some(1_000_000));
        little.truth_share = Some(0.1);
        assert!(too_weak(&little, true).unwrap().contains("10 %"));
    }

    #[test]
    fn a_proxy_waits_at_the_connection_to_the_service_behind_it() {
        let sleep = Injection::find("sleep").unwrap();
        let wrong = |port, object| wrong_object(sleep, port, object);
        assert_eq!(wrong(None, None), None);
        assert_eq!(wrong(Some(80), Some("epoll_wait at 127.0.0.1:80")), None);
        let other = wrong(Some(80), Some("epoll_wait at 127.0.0.1:8080")).unwrap();
        assert!(other.contains("at 127.0.0.1:80,") && other.contains("8080"), "{other}");
        assert!(wrong(Some(80), None).unwrap().contains("nothing"));
        assert_eq!(wrong_object(Injection::find("hog").unwrap(), Some(80), None), None);
    }

    #[test]
    fn errors_compare_with_the_truth_and_the_run_without_injection() {
        let mut one = judged("sleep", Some(10_000_000));
        one.share = Some(0.8);
        one.share_ci95 = Some([0.7, 0.85]);
        one.p99_without_ns = Some(12_000_000);
        one.p99_without_ci95 = Some([9_000_000, 13_000_000]);
        assert!((one.share_error().unwrap() + 0.1).abs() < 1e-9);
        assert_eq!(one.share_is_covered(), Some(false));
        assert!((one.p99_error().unwrap() - 0.2).abs() < 1e-9);
        assert_eq!(one.p99_is_covered(), Some(true));
        one.share = None;
        assert_eq!(one.share_error(), None);
    }
}
