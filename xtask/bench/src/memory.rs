//! Resident and locked memory over a long run: is it flat?
//!
//! The target does context switches, page faults and memory calls all the time, so that records,
//! floors and histograms are all at work. Several observers watch it at once, each sampled every
//! few seconds from the kernel's counters (`/proc/PID/statm`, `memlock` of the maps' fdinfo).

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{
    Operation,
    observers::{Running, daemon, run},
    rows::{Row, Rows},
    table::Table,
    workload::Workload,
};

/// One burst of each of these, again and again.
const LOAD: [Operation; 4] =
    [Operation::Switch, Operation::Fault, Operation::Mmap, Operation::Madvise];
const BURST: Duration = Duration::from_millis(200);
/// Memory is taken after this part of the time, when everything has been touched once, and at the
/// end.
const WARM: f64 = 0.1;
/// Growth over the rest of the time that still is flat.
const FLAT_PERCENT: f64 = 5.0;

/// One row for each way to run observer.
pub(crate) fn measure(
    observer: &std::path::Path,
    workload: &mut Workload,
    seconds: u64,
    rows: &mut Rows,
) -> Result<(), String> {
    eprintln!("memory: {seconds} s");
    let target = workload.id().to_string();
    // Starts the other process of the pair.
    workload.measure(Operation::Switch)?;
    let sessions = [
        run(observer, "run, busy target", workload.id(), &["--budget", "none"]),
        daemon(observer, "daemon, host-wide", &[], &[]),
        daemon(
            observer,
            "daemon, busy target, --trace",
            &["--pid", &target, "--trace", "trace"],
            &[],
        ),
    ];
    let mut observers = Vec::new();
    for session in &sessions {
        observers.push((session, Running::start(session, None)?, Vec::new()));
    }
    let begun = Instant::now();
    let pause = Duration::from_secs_f64((seconds as f64 / 100.0).clamp(0.5, 10.0));
    let mut next = begun;
    while begun.elapsed() < Duration::from_secs(seconds) {
        for operation in LOAD {
            workload.burst(operation, BURST)?;
        }
        if Instant::now() >= next {
            next = Instant::now() + pause;
            for (_, running, samples) in &mut observers {
                samples.push((begun.elapsed().as_secs_f64(), resident_bytes(running.id())?));
            }
        }
    }
    for (session, running, samples) in observers {
        let warm = samples.iter().find(|(at, _)| *at >= seconds as f64 * WARM);
        let (Some((_, first)), Some((_, last))) = (warm, samples.last()) else {
            return Err("too short a time to see anything".to_owned());
        };
        rows.push(Row::Memory {
            observer: session.observer.clone(),
            seconds: begun.elapsed().as_secs_f64(),
            first_bytes: *first as f64,
            last_bytes: *last as f64,
            most_bytes: samples.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0) as f64,
            map_bytes: map_bytes(running.id())? as f64,
        })?;
        running.stop(session)?;
    }
    Ok(())
}

fn resident_bytes(process: u32) -> Result<u64, String> {
    let path = format!("/proc/{process}/statm");
    let text = fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let pages = text.split_ascii_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok());
    pages
        .map(|pages| pages * rustix::param::page_size() as u64)
        .ok_or_else(|| format!("{path}: {text:?}"))
}

/// Kernel memory of the maps that a process holds, as the kernel accounts it.
fn map_bytes(process: u32) -> Result<u64, String> {
    let path = format!("/proc/{process}/fdinfo");
    let mut total = 0;
    let mut seen = std::collections::BTreeSet::new();
    for descriptor in fs::read_dir(&path).map_err(|error| format!("{path}: {error}"))?.flatten() {
        let Ok(told) = fs::read_to_string(descriptor.path()) else { continue };
        let field = |name: &str| {
            let value = told.lines().find_map(|line| line.strip_prefix(name));
            value.and_then(|value| value.trim().parse::<u64>().ok())
        };
        if let Some(id) = field("map_id:")
            && seen.insert(id)
        {
            total += field("memlock:").unwrap_or(0);
        }
    }
    Ok(total)
}

/// The table, or nothing if it was not measured.
pub(crate) fn markdown(rows: &Rows) -> String {
    let mut table = Table::new(&[
        "observer",
        "seconds",
        "resident after a tenth, MiB",
        "at the end, MiB",
        "growth",
        "most, MiB",
        "maps held open, MiB",
        "flat",
    ]);
    let mib = |bytes: f64| format!("{:.1}", bytes / f64::from(1 << 20));
    let mut any = false;
    for row in rows.iter() {
        let Row::Memory { observer, seconds, first_bytes, last_bytes, most_bytes, map_bytes } = row
        else {
            continue;
        };
        any = true;
        let growth = (last_bytes / first_bytes - 1.0) * 100.0;
        table.row(&[
            observer.clone(),
            format!("{seconds:.0}"),
            mib(*first_bytes),
            mib(*last_bytes),
            format!("{growth:+.1} %"),
            mib(*most_bytes),
            mib(*map_bytes),
            if growth <= FLAT_PERCENT { "yes" } else { "no" }.to_owned(),
        ]);
    }
    if any { format!("\n### Memory over time\n\n{}", table.finish()) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_shown_and_judged() {
        let mut rows = Rows::default();
        assert_eq!(markdown(&rows), "");
        for (observer, last_bytes) in [("flat", 41.0), ("leaks", 80.0)] {
            let mib = f64::from(1 << 20);
            rows.push(Row::Memory {
                observer: observer.to_owned(),
                seconds: 600.0,
                first_bytes: 40.0 * mib,
                last_bytes: last_bytes * mib,
                most_bytes: last_bytes * mib,
                map_bytes: 18.0 * mib,
            })
            .unwrap();
        }
        let page = markdown(&rows);
        assert!(
            page.contains("| flat | 600 | 40.0 | 41.0 | +2.5 % | 41.0 | 18.0 | yes |"),
            "{page}"
        );
        assert!(page.contains("| +100.0 % | 80.0 | 18.0 | no |"), "{page}");
    }

    #[test]
    fn this_process_is_resident_and_has_no_maps() {
        assert!(resident_bytes(std::process::id()).unwrap() > 1 << 16);
        assert_eq!(map_bytes(std::process::id()), Ok(0));
    }
}
