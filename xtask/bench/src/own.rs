//! An observer's own CPU time: its user space by the scheduler's counters, and its BPF programs by
//! the kernel's run-time statistics, in a separate interval, because the statistics themselves cost
//! time.

use std::{
    fs, io,
    os::fd::{FromRawFd, OwnedFd},
    thread,
    time::{Duration, Instant},
};

use super::{
    Operation,
    observers::{Bystander, Running, Session, daemon, run},
    rows::{Row, Rows},
    statistics::estimate,
    table::{self, Table},
    workload::Workload,
};

/// How long each figure is taken.
const USER_TIME: Duration = Duration::from_secs(10);
const PROGRAM_TIME: Duration = Duration::from_secs(1);

/// Processes that exist when observer starts are checked more often for five seconds.
const SETTLE: Duration = Duration::from_secs(6);

/// Names of the loads on the host.
const IDLE: &str = "idle";
const SWITCHES: &str = "context switches";

/// One row for each way to run observer and each load.
pub(crate) fn measure(
    observer: &std::path::Path,
    workload: &mut Workload,
    rows: &mut Rows,
) -> Result<(), String> {
    let bystander = Bystander::start()?;
    let other = bystander.id().to_string();
    let switcher = workload.id().to_string();
    // What everything together uses is measured here, so no probe may be detached for its cost.
    let whole = ["--budget", "none"];
    let of = |process| [&whole[..], &["--pid", process]].concat();
    let sessions = [
        daemon(observer, "daemon, host-wide", &whole, &[]),
        daemon(observer, "daemon, a target that sleeps", &of(&other), &[]),
        daemon(observer, "daemon, the workload its target", &of(&switcher), &[]),
        run(observer, "run, a target that sleeps", bystander.id(), &whole),
        run(observer, "run, the workload its target", workload.id(), &whole),
    ];
    // The first burst starts the other process of the pair, which must exist before observer
    // searches for a target.
    workload.measure(Operation::Switch)?;
    for session in sessions {
        eprintln!("own use: {}", session.observer);
        if let Err(reason) = one(&session, workload, rows) {
            super::operations::left_out(&session, reason, rows)?;
        }
    }
    Ok(())
}

fn one(session: &Session, workload: &mut Workload, rows: &mut Rows) -> Result<(), String> {
    let running = Running::start(session, None)?;
    let id = running.id();
    thread::sleep(SETTLE);
    for load in [IDLE, SWITCHES] {
        let mut done = 0;
        let mut work = |length: Duration| {
            if load == IDLE {
                thread::sleep(length);
                return Ok::<_, String>(0);
            }
            Ok(workload.burst(Operation::Switch, length)?.operations)
        };
        let (before, started) = (cpu_ns(id)?, Instant::now());
        done += work(USER_TIME)?;
        let (elapsed, used) = (started.elapsed().as_secs_f64(), cpu_ns(id)? - before);
        let statistics = statistics()?;
        let (before, started) = (programs_ns(id)?, Instant::now());
        work(PROGRAM_TIME)?;
        let programs = (programs_ns(id)? - before) as f64 / started.elapsed().as_secs_f64();
        drop(statistics);
        rows.push(Row::Own {
            observer: session.observer.clone(),
            load: load.to_owned(),
            seconds: elapsed,
            rate_hz: done as f64 / elapsed,
            cpu_seconds: used as f64 / 1e9,
            bpf_seconds: programs / 1e9 * elapsed,
        })?;
    }
    running.stop(session)
}

/// Time that all threads of a process have had a processor, in user mode and in the kernel.
pub(crate) fn cpu_ns(process: u32) -> Result<u64, String> {
    let failed = |error: io::Error| format!("process {process}: {error}");
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task")).map_err(failed)? {
        let path = thread.map_err(failed)?.path().join("schedstat");
        // A thread may end meanwhile.
        let Ok(told) = fs::read_to_string(path) else { continue };
        total += told.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(total)
}

/// Time in the BPF programs whose descriptors a process holds, while the statistics are on.
fn programs_ns(process: u32) -> Result<u64, String> {
    let failed = |error: io::Error| format!("process {process}: {error}");
    let mut total = 0;
    for descriptor in fs::read_dir(format!("/proc/{process}/fdinfo")).map_err(failed)? {
        let Ok(told) = fs::read_to_string(descriptor.map_err(failed)?.path()) else { continue };
        let field = told.lines().find_map(|line| line.strip_prefix("run_time_ns:"));
        total += field.and_then(|ns| ns.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(total)
}

/// Turns the kernel's BPF run-time statistics on for as long as the descriptor is open.
fn statistics() -> Result<OwnedFd, String> {
    const BPF_ENABLE_STATS: libc::c_int = 32;
    let run_time = 0u32;
    // SAFETY: the kernel reads the four bytes it is given; 0 asks for the run time.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_ENABLE_STATS, &raw const run_time, size_of_val(&run_time))
    };
    let descriptor = i32::try_from(result).unwrap_or(-1);
    if descriptor < 0 {
        return Err(format!("no BPF statistics: {}", io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Observer and load; rates, shares of user space, shares of programs.
type Figures<'rows> = ((&'rows str, &'rows str), [Vec<f64>; 3]);

/// The table, or nothing if it was not measured.
pub(crate) fn markdown(rows: &Rows) -> String {
    let mut figures: Vec<Figures<'_>> = Vec::new();
    for row in rows.iter() {
        let Row::Own { observer, load, seconds, rate_hz, cpu_seconds, bpf_seconds } = row else {
            continue;
        };
        let key = (observer.as_str(), load.as_str());
        let index = figures.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
            figures.push((key, Default::default()));
            figures.len() - 1
        });
        let values = [*rate_hz, cpu_seconds / seconds * 100.0, bpf_seconds / seconds * 100.0];
        for (kept, value) in figures[index].1.iter_mut().zip(values) {
            kept.push(value);
        }
    }
    if figures.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        "observer",
        "host",
        "switches a second",
        "user space, % of one CPU",
        "goal",
        "met",
        "BPF programs, % of one CPU",
    ]);
    for ((observer, load), [rates, user, programs]) in &figures {
        let goal = if *load == IDLE { 0.1 } else { 1.0 };
        let (rate, user, programs) = (estimate(rates), estimate(user), estimate(programs));
        table.row(&[
            (*observer).to_owned(),
            (*load).to_owned(),
            format!("{:.0}", rate.value),
            table::with_interval(user, 3),
            format!("{goal}"),
            table::judge(user.low, user.high, goal).to_owned(),
            format!("{:.2}", programs.value),
        ]);
    }
    format!("\n### Own use of the processor\n\n{}", table.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_one_processor() {
        let mut rows = Rows::default();
        rows.push(Row::Own {
            observer: "daemon".to_owned(),
            load: SWITCHES.to_owned(),
            seconds: 5.0,
            rate_hz: 3e5,
            cpu_seconds: 0.01,
            bpf_seconds: 0.25,
        })
        .unwrap();
        let page = markdown(&rows);
        let row = "| daemon | context switches | 300000 | 0.200 (0.200..0.200) | 1 | yes | 5.00 |";
        assert!(page.contains(row), "{page}");
        assert_eq!(markdown(&Rows::default()), "");
    }

    #[test]
    fn the_scheduler_counts_the_time_of_this_process() {
        let before = cpu_ns(std::process::id()).unwrap();
        let started = Instant::now();
        while started.elapsed() < Duration::from_millis(30) {}
        assert!(cpu_ns(std::process::id()).unwrap() > before);
    }
}
