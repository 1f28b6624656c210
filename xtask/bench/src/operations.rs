//! What observers add to one operation of the kernel.
//!
//! A session is one observer on some operations: the bare operation, the same twice with the
//! observer attached, and the bare one again, all in one process. The added cost is the faster of
//! the middle two less the faster of the outer two: disturbances only make things slower, and hit
//! both alike. Rounds begin with another observer each, so that none is always the first.

use std::{collections::BTreeMap, path::Path};

use super::{
    Operation,
    observers::{self, Bystander, PEERS, Running, Session},
    rows::{Row, Rows},
    statistics::{estimate, median, ratio},
    table::{self, NONE, Table},
    workload::Workload,
};

/// Everything attached, a process that does nothing the target.
const ALL: &str = "all probes";
/// Everything attached, no target.
const HOST_WIDE: &str = "all, no target";
/// The probe that costs something where the target is the workload, and in a run only.
const STACK: &str = "stack";
/// Hooks whose own cost is measured with an empty program.
const EMPTY_HOOKS: [&str; 2] = ["sched_switch", "sys_exit"];

/// All sessions of a round.
pub(crate) fn sessions(
    observer: &Path,
    programs: &Path,
    bystander: &Bystander,
    operations: &[Operation],
    peers: &[&str],
) -> Result<Vec<Session>, String> {
    let target = bystander.id().to_string();
    // What every probe costs is measured here, so none may be detached for its cost.
    let whole = ["--budget", "none", "--pid", &target];
    let mut sessions = vec![
        observers::daemon(observer, ALL, &whole, operations),
        observers::daemon(observer, HOST_WIDE, &whole[..2], operations),
    ];
    for probe in observers::probe_names(observer)? {
        if probe == STACK {
            continue;
        }
        let arguments = [&whole[..], &["--probes", &probe]].concat();
        sessions.push(observers::daemon(observer, &probe, &arguments, operations));
    }
    sessions.extend(observers::stacks(observer, operations));
    if peers.contains(&"bpftrace") {
        sessions.extend(observers::bpftrace_stacks(operations));
    }
    sessions.extend(EMPTY_HOOKS.map(|hook| observers::empty(programs, hook, operations)));
    sessions.extend(observers::peer_sessions(peers, operations));
    Ok(sessions)
}

/// One session. An observer that does not run, or saw nothing, gives no row.
pub(crate) fn measure(
    session: &Session,
    workload: &mut Workload,
    rows: &mut Rows,
) -> Result<(), String> {
    let measured = (|| {
        let before = workload.measure_all(&session.operations)?;
        let running = Running::start(session, None)?;
        let with = workload.measure_all(&session.operations)?;
        let again = workload.measure_all(&session.operations)?;
        running.stop(session)?;
        let after = workload.measure_all(&session.operations)?;
        Ok::<_, String>((faster(&before, &after), faster(&with, &again)))
    })();
    let (bare, with) = match measured {
        Ok(measured) => measured,
        Err(reason) => return left_out(session, reason, rows),
    };
    for (index, operation) in session.operations.iter().enumerate() {
        rows.push(Row::Operation {
            operation: *operation,
            observer: session.observer.clone(),
            bare_ns: bare[index],
            with_ns: with[index],
        })?;
    }
    Ok(())
}

/// The smaller of each pair.
fn faster(one: &[f64], other: &[f64]) -> Vec<f64> {
    one.iter().zip(other).map(|(one, other)| one.min(*other)).collect()
}

pub(crate) fn left_out(session: &Session, reason: String, rows: &mut Rows) -> Result<(), String> {
    eprintln!("    left out: {reason}");
    rows.push(Row::LeftOut { observer: session.observer.clone(), reason })
}

/// Everything measured, in nanoseconds per operation.
#[derive(Default)]
struct Results<'rows> {
    bare: BTreeMap<Operation, Vec<f64>>,
    added: BTreeMap<(Operation, String), Vec<f64>>,
    /// In the order of their first measurement.
    observers: Vec<&'rows str>,
}

impl<'rows> Results<'rows> {
    fn of(rows: &'rows Rows) -> Self {
        let mut results = Self::default();
        for row in rows.iter() {
            let Row::Operation { operation, observer, bare_ns, with_ns } = row else { continue };
            results.bare.entry(*operation).or_default().push(*bare_ns);
            let added = results.added.entry((*operation, observer.clone())).or_default();
            added.push(with_ns - bare_ns);
            if !results.observers.contains(&observer.as_str()) {
                results.observers.push(observer);
            }
        }
        results
    }

    fn added(&self, operation: Operation, observer: &str) -> Option<&[f64]> {
        self.added.get(&(operation, observer.to_owned())).map(Vec::as_slice)
    }

    fn cell(&self, operation: Operation, observer: &str) -> String {
        let values = self.added(operation, observer);
        values.map_or_else(|| NONE.to_owned(), |values| table::added(estimate(values)))
    }

    /// The peer that costs least on `operation`.
    fn best_peer(&self, operation: Operation) -> Option<(&'static str, &[f64])> {
        let costs = PEERS.into_iter().filter_map(|peer| Some((peer, self.added(operation, peer)?)));
        costs.min_by(|(_, a), (_, b)| median(a).total_cmp(&median(b)))
    }

    /// The part of the best peer's cost, and what the goals say.
    fn judgement(&self, operation: Operation) -> [String; 3] {
        let none = || NONE.to_owned();
        let Some(goal) = operation.goal() else { return [none(), none(), none()] };
        let mut met = Vec::new();
        let mut cell = |observer: &str| {
            let own = self.added(operation, observer)?;
            let interval = estimate(own);
            let mut verdicts = vec![table::judge(interval.low, interval.high, goal.added_ns)];
            let (peer, others) = self.best_peer(operation)?;
            let part = ratio(own, others);
            verdicts.extend(part.map(|part| table::judge(part.low, part.high, goal.of_peer)));
            met.push(verdicts.join(" / "));
            Some(part.map_or_else(
                || format!("{peer} is within the noise"),
                |part| format!("{} of {peer}", table::ratio(part)),
            ))
        };
        let alone = cell(goal.probe).unwrap_or_else(none);
        let all = cell(ALL).unwrap_or_else(none);
        [alone, all, met.join("; ")]
    }

    fn goals(&self) -> String {
        let mut heads = vec!["operation", "bare, ns", "its probe alone", ALL, HOST_WIDE];
        let peers: Vec<_> =
            PEERS.into_iter().filter(|peer| self.observers.contains(peer)).collect();
        heads.extend(&peers);
        heads.extend(["alone / best peer", "all / best peer", "goal", "met: alone; all"]);
        let mut table = Table::new(&heads);
        for (operation, bare) in &self.bare {
            let Some(goal) = operation.goal() else { continue };
            let mut cells = vec![operation.title().to_owned(), format!("{:.0}", median(bare))];
            for observer in [goal.probe, ALL, HOST_WIDE].into_iter().chain(peers.iter().copied()) {
                cells.push(self.cell(*operation, observer));
            }
            let [alone, all, met] = self.judgement(*operation);
            let limit = format!("{:.0} ns / {}", goal.added_ns, goal.of_peer);
            cells.extend([alone, all, limit, met]);
            table.row(&cells);
        }
        table.finish()
    }

    fn each_probe(&self) -> String {
        let own: Vec<_> =
            self.observers.iter().copied().filter(|name| !PEERS.contains(name)).collect();
        let mut heads = vec!["operation", "bare, ns"];
        heads.extend(&own);
        let mut table = Table::new(&heads);
        for (operation, bare) in &self.bare {
            let mut cells = vec![operation.title().to_owned(), format!("{:.0}", median(bare))];
            cells.extend(own.iter().map(|observer| self.cell(*operation, observer)));
            table.row(&cells);
        }
        table.finish()
    }
}

/// The tables, or nothing if no operation was measured.
pub(crate) fn markdown(rows: &Rows) -> String {
    let results = Results::of(rows);
    if results.bare.is_empty() {
        return String::new();
    }
    let sessions = results.added.values().map(Vec::len);
    let (least, most) = (sessions.clone().min().unwrap_or(0), sessions.max().unwrap_or(0));
    format!(
        "### Added nanoseconds per operation\n\nMedian of {least} to {most} sessions with its 95 % \
         interval.\n\n{}\n### Each probe alone, and empty programs on the hooks\n\n{}",
        results.goals(),
        results.each_probe()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(measured: &[(Operation, &str, f64)]) -> Rows {
        let mut rows = Rows::default();
        for (operation, observer, added) in measured {
            for noise in [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] {
                rows.push(Row::Operation {
                    operation: *operation,
                    observer: (*observer).to_owned(),
                    bare_ns: 1000.0,
                    with_ns: 1000.0 + added + noise,
                })
                .unwrap();
            }
        }
        rows
    }

    #[test]
    fn goals_are_judged_by_the_interval_and_against_the_best_peer() {
        let rows = rows(&[
            (Operation::Switch, ALL, 150.0),
            (Operation::Switch, "runqueue", 50.0),
            (Operation::Switch, "bpftrace", 400.0),
            (Operation::Switch, "runqlat", 300.0),
            (Operation::Getppid, ALL, 100.0),
        ]);
        let results = Results::of(&rows);
        assert_eq!(results.best_peer(Operation::Switch).unwrap().0, "runqlat");
        let [alone, all, met] = results.judgement(Operation::Switch);
        assert!(alone.starts_with("0.17 (") && alone.ends_with("of runqlat"), "{alone}");
        assert!(all.starts_with("0.50 ("), "{all}");
        assert_eq!(met, "yes / yes; no / no");
        let page = markdown(&rows);
        assert!(page.contains("| +152 (150..155) |"), "{page}");
        assert!(page.contains("getppid"), "{page}");
        assert_eq!(markdown(&Rows::default()), "");
    }

    #[test]
    fn what_is_within_the_noise_gives_no_ratio() {
        let rows = rows(&[(Operation::Madvise, ALL, 20.0), (Operation::Madvise, "perf", -3.0)]);
        let [alone, all, met] = Results::of(&rows).judgement(Operation::Madvise);
        assert_eq!((alone.as_str(), met.as_str()), (NONE, "yes"));
        assert_eq!(all, "perf is within the noise");
    }
}
