//! The CPU time of observer's own threads while they read the samples of a load generator, as a part of
//! the generator's: that tells how much it is on a host of any speed.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{
    observers::{Running, Session, run_with_load},
    own::cpu_ns,
    rows::{Row, Rows},
    statistics::estimate,
    table::{self, Table},
};

/// Requests a second.
const RATES_HZ: [u32; 2] = [150, 1_500];
/// The first seconds cost more: run.json is brought up to date more often, and the state is checked
/// more often.
const SETTLE: Duration = Duration::from_secs(6);
const TIME: Duration = Duration::from_secs(10);

/// The service under test; ended when dropped.
struct Service {
    child: Child,
    url: String,
}

impl Service {
    fn start(program: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", program.display());
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(failed)?;
        let output = child.stdout.take();
        let mut service = Self { child, url: String::new() };
        let mut line = String::new();
        if let Some(output) = output {
            BufReader::new(output).read_line(&mut line).map_err(failed)?;
        }
        let url = line.trim().strip_prefix("listening on ");
        service.url = url.ok_or_else(|| format!("the service says {line:?}"))?.to_owned();
        Ok(service)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // Both fail for a child that has ended already, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One row for each rate.
pub(crate) fn measure(observer: &Path, service: &Path, rows: &mut Rows) -> Result<(), String> {
    let service = Service::start(service)?;
    for rate_hz in RATES_HZ {
        let session = run_with_load(observer, service.child.id(), &service.url, rate_hz);
        eprintln!("own use: {}", session.observer);
        if let Err(reason) = one(&session, rate_hz, rows) {
            super::operations::left_out(&session, reason, rows)?;
        }
    }
    Ok(())
}

fn one(session: &Session, rate_hz: u32, rows: &mut Rows) -> Result<(), String> {
    let running = Running::start(session, None)?;
    let id = running.id();
    thread::sleep(SETTLE);
    let generator = descendants(id);
    if generator.is_empty() {
        return Err("it has no load generator".to_owned());
    }
    let used = || -> Result<(u64, u64), String> {
        let of_generator: Result<u64, String> = generator.iter().map(|id| cpu_ns(*id)).sum();
        Ok((cpu_ns(id)?, of_generator?))
    };
    let (before, started) = (used()?, Instant::now());
    thread::sleep(TIME);
    let (after, elapsed) = (used()?, started.elapsed());
    rows.push(Row::OwnRequests {
        observer: session.observer.clone(),
        rate_hz: f64::from(rate_hz),
        seconds: elapsed.as_secs_f64(),
        cpu_seconds: (after.0 - before.0) as f64 / 1e9,
        generator_cpu_seconds: (after.1 - before.1) as f64 / 1e9,
    })?;
    running.stop(session)
}

/// The processes that this one has started, and those that these have.
fn descendants(process: u32) -> BTreeSet<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let with_parent = |id: u32| {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // Behind the name, which may hold anything: the state, then the parent.
        let parent = stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()?;
        Some((id, parent))
    };
    let all: Vec<(u32, u32)> = ids.filter_map(with_parent).collect();
    let mut found = BTreeSet::from([process]);
    loop {
        let before = found.len();
        let children = all.iter().filter(|(_, parent)| found.contains(parent));
        let children: Vec<u32> = children.map(|(id, _)| *id).collect();
        found.extend(children);
        if found.len() == before {
            break;
        }
    }
    found.remove(&process);
    found
}

/// Observer and rate; CPU time a second and a request, as a part of the generator's.
type Figures<'rows> = (&'rows str, f64, [Vec<f64>; 3]);

/// The table, or nothing if it was not measured.
pub(crate) fn markdown(rows: &Rows) -> String {
    let mut figures: Vec<Figures<'_>> = Vec::new();
    for row in rows.iter() {
        let Row::OwnRequests { observer, rate_hz, seconds, cpu_seconds, generator_cpu_seconds } =
            row
        else {
            continue;
        };
        let index = figures.iter().position(|(known, ..)| known == observer).unwrap_or_else(|| {
            figures.push((observer, *rate_hz, Default::default()));
            figures.len() - 1
        });
        let share = cpu_seconds / seconds;
        let values = [share * 1e3, share * 1e6 / rate_hz, cpu_seconds / generator_cpu_seconds];
        for (kept, value) in figures[index].2.iter_mut().zip(values) {
            kept.push(value);
        }
    }
    if figures.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        "observer",
        "requests a second",
        "own threads, ms a second",
        "own threads, µs a request",
        "own threads / generator",
    ]);
    for (observer, rate_hz, values) in &figures {
        let [second, request, ratio] = values;
        table.row(&[
            (*observer).to_owned(),
            format!("{rate_hz:.0}"),
            table::with_interval(estimate(second), 1),
            table::with_interval(estimate(request), 1),
            table::with_interval(estimate(ratio), 3),
        ]);
    }
    format!("\n### Own use of the processor while samples are read\n\n{}", table.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_that_of_a_second_of_a_request_and_of_the_generator() {
        let mut rows = Rows::default();
        for cpu_seconds in [0.2, 0.1, 0.4] {
            rows.push(Row::OwnRequests {
                observer: "run".to_owned(),
                rate_hz: 100.0,
                seconds: 10.0,
                cpu_seconds,
                generator_cpu_seconds: 0.8,
            })
            .unwrap();
        }
        let page = markdown(&rows);
        let row = "| run | 100 | 20.0 (10.0..40.0) | 200.0 (100.0..400.0) | 0.250 (0.125..0.500) |";
        assert!(page.contains(row), "{page}");
        assert_eq!(markdown(&Rows::default()), "");
    }

    #[test]
    fn children_of_children_are_found() {
        let mut shell = Command::new("sh")
            .args(["-c", "sleep 60 & echo; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let found = descendants(std::process::id());
        let of_shell = descendants(shell.id());
        for id in &of_shell {
            let id = rustix::process::Pid::from_raw(i32::try_from(*id).unwrap()).unwrap();
            rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        }
        shell.wait().unwrap();
        assert_eq!(of_shell.len(), 1);
        assert!(found.contains(&shell.id()) && found.is_superset(&of_shell), "{found:?}");
    }
}
