//! Who had the CPUs while threads of the target waited for them, in words.

use crate::model::{Conditions, RanInsteadRow, RanInsteadSummary, RanKind};
use crate::output::text::{clean, count, duration, percent};

/// Characters of the name of a cgroup.
const NAME_CHARACTERS: usize = 80;
/// Processes that are named.
const SHOWN: usize = 4;
/// Waits that are shorter together than this part of the run are not told.
const NOTABLE: f64 = 0.001;
/// A part of the waits that is smaller is not named.
const NAMED: f64 = 0.01;
/// Who had the CPU for this part of the waits is the reason for them.
const LARGE: f64 = 0.2;
/// Most of the time of somebody lies in a part of the run that is told if it is not longer than half of it.
const MOST: f64 = 0.8;

/// Two paragraphs: who it was, and what to do. Empty where threads hardly waited.
pub(super) fn paragraphs(conditions: &Conditions) -> Vec<String> {
    let Some(ran) = &conditions.ran_instead else { return Vec::new() };
    if ran.wait_ns as f64 <= NOTABLE * ran.observed_ns as f64 {
        return Vec::new();
    }
    let mut paragraphs = vec![who(ran)];
    paragraphs.extend(advice(ran));
    paragraphs
}

fn share(ran: &RanInsteadSummary, time_ns: u64) -> f64 {
    time_ns as f64 / ran.wait_ns.max(1) as f64
}

/// The name of processes, with the cgroup of those that are not threads of the kernel.
fn name(row: &RanInsteadRow) -> String {
    let name = match clean(&row.name, 32) {
        name if name.is_empty() => "processes that had ended".to_owned(),
        name => name,
    };
    match (row.kind, &row.cgroup) {
        (RanKind::KernelThread, _) => format!("{name} (kernel thread)"),
        (RanKind::Own, _) => format!("{name} (the target itself)"),
        (RanKind::Other, Some(cgroup)) => {
            format!("{name} in cgroup {}", clean(cgroup, NAME_CHARACTERS))
        }
        (RanKind::Other, None) => name,
    }
}

fn who(ran: &RanInsteadSummary) -> String {
    let mut parts = Vec::new();
    let mut told_ns = 0;
    for row in ran.by.iter().take(SHOWN).filter(|row| share(ran, row.time_ns) >= NAMED) {
        told_ns += row.time_ns;
        let mut part = format!(
            "{} {} ({})",
            name(row),
            duration(row.time_ns as f64),
            percent(share(ran, row.time_ns).min(1.0))
        );
        if let Some((from_ns, until_ns)) = most(ran, row) {
            part += &format!(", most of it from {} to {}", seconds(from_ns), seconds(until_ns));
        }
        parts.push(part);
    }
    let rest_ns = ran.ran_ns.saturating_sub(told_ns);
    if rest_ns > 0 && (parts.is_empty() || share(ran, rest_ns) >= NAMED) {
        parts.push(format!("others {}", duration(rest_ns as f64)));
    }
    let mut text = format!(
        "Threads of the target waited for a CPU for {} in all.",
        duration(ran.wait_ns as f64)
    );
    if !parts.is_empty() {
        text += &format!(" Meanwhile it had: {}.", parts.join("; "));
    }
    for (time_ns, what) in [
        (ran.throttled_ns, "a CPU limit held the thread"),
        (ran.idle_ns, "the CPU was idle"),
        (
            ran.not_known_ns,
            "it is not known who had it (of a wait, the last 64 context switches of the CPU are known)",
        ),
    ] {
        if share(ran, time_ns) >= NAMED {
            text += &format!(" For {} {what}.", duration(time_ns as f64));
        }
    }
    if ran.no_place_ns > 0 {
        text += &format!(
            " {} of the others' time is that of processes for which there was no place.",
            duration(ran.no_place_ns as f64)
        );
    }
    text
}

fn seconds(ns: u64) -> String {
    format!("{} s", count(ns / 1_000_000_000))
}

/// The shortest stretch of parts with most of the time of a row, if it is short.
fn most(ran: &RanInsteadSummary, row: &RanInsteadRow) -> Option<(u64, u64)> {
    let parts = ran.observed_ns.div_ceil(ran.part_ns.max(1)) as usize;
    let enough = row.time_ns as f64 * MOST;
    let from = &row.by_part_ns;
    let sum =
        |first: usize, length: usize| from.iter().skip(first).take(length).sum::<u64>() as f64;
    let (first, length) = (1..=parts / 2)
        .flat_map(|length| (0..from.len()).map(move |first| (first, length)))
        .find(|(first, length)| sum(*first, *length) >= enough)?;
    Some((first as u64 * ran.part_ns, (first + length) as u64 * ran.part_ns))
}

/// What to do about the largest of them, if it is large.
fn advice(ran: &RanInsteadSummary) -> Option<String> {
    let of_kind = |kind: RanKind| {
        ran.by.iter().filter(|row| row.kind == kind).map(|row| row.time_ns).sum::<u64>()
    };
    let kinds = [RanKind::Other, RanKind::KernelThread, RanKind::Own];
    let kind = kinds.into_iter().max_by_key(|kind| of_kind(*kind))?;
    if share(ran, of_kind(kind)) < LARGE {
        return None;
    }
    let largest = ran.by.iter().find(|row| row.kind == kind)?;
    let name = clean(&largest.name, 32);
    Some(match kind {
        RanKind::Other => format!(
            "Move {} to other CPUs (cpuset.cpus, taskset), limit it (cpu.max of its cgroup), or give the \
             target a larger share (cpu.weight, nice).",
            if name.is_empty() { "such processes".to_owned() } else { name }
        ),
        RanKind::KernelThread => format!(
            "Keep the work of {name} away from the CPUs of the target: interrupts \
             (/proc/irq/NUMBER/smp_affinity) and work queues (/sys/devices/virtual/workqueue/cpumask) can be \
             sent to other CPUs."
        ),
        RanKind::Own => {
            "More threads of the target want to run than it has CPUs: give it more CPUs, or let \
                         fewer threads work at a time."
                .to_owned()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::example;

    const S: u64 = 1_000_000_000;

    #[test]
    fn the_side_car_and_the_kernel_thread_are_named_with_their_time() {
        let mut conditions = Conditions::default();
        assert_eq!(paragraphs(&conditions), [""; 0]);
        let mut ran = example::ran_instead();
        ran.by[0].name = "stress-ng".into();
        ran.by[0].cgroup = Some("/sidecar".into());
        conditions.ran_instead = Some(ran.clone());
        assert_eq!(
            paragraphs(&conditions),
            [
                "Threads of the target waited for a CPU for 1.83 s in all. Meanwhile it had: stress-ng in \
                 cgroup /sidecar 1.21 s (66 %), most of it from 4 s to 9 s; worker-* (the target itself) \
                 300 ms (16 %); [ksoftirqd/*] (kernel thread) 200 ms (11 %). For 120 ms it is not known who \
                 had it (of a wait, the last 64 context switches of the CPU are known).",
                "Move stress-ng to other CPUs (cpuset.cpus, taskset), limit it (cpu.max of its cgroup), or \
                 give the target a larger share (cpu.weight, nice).",
            ]
        );
        conditions.ran_instead = Some(RanInsteadSummary { wait_ns: S / 100, ..ran });
        assert_eq!(paragraphs(&conditions), [""; 0], "hardly any wait");
    }

    #[test]
    fn what_to_do_depends_on_who_it_was() {
        let of = |kind: RanKind| {
            let mut ran = example::ran_instead();
            ran.by[0].kind = kind;
            let conditions = Conditions { ran_instead: Some(ran), ..Conditions::default() };
            paragraphs(&conditions)[1].clone()
        };
        assert!(of(RanKind::Other).starts_with("Move "));
        assert!(of(RanKind::KernelThread).starts_with("Keep the work of "));
        assert!(of(RanKind::Own).starts_with("More threads of the target"));
    }

    #[test]
    fn what_is_not_named_is_told_in_sum() {
        let mut ran = example::ran_instead();
        ran.by.clear();
        ran.others_ns = ran.ran_ns;
        (ran.no_place_ns, ran.idle_ns, ran.throttled_ns) = (S / 10, S / 10, S / 5);
        let conditions = Conditions { ran_instead: Some(ran), ..Conditions::default() };
        let text = &paragraphs(&conditions)[0];
        for part in [
            "had: others 1.71 s.",
            "For 200 ms a CPU limit",
            "For 100 ms the CPU was idle",
            "no place",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
