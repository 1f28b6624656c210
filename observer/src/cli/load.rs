//! `observer load`: the open-loop generator on the command line.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::ProgressBar;

pub use super::load_args::Args;
use super::load_args::config;
use crate::clock::namespace_offset_ns;
use crate::error::{Error, Exit, Result};
use crate::limits::{self, Needs};
use crate::load::{Config, LoadError, Output, Report, Snapshot, Stop, generate};

/// Runs it.
///
/// # Errors
///
/// When nothing can be sent or written, or no request got an answer.
#[expect(clippy::needless_pass_by_value)]
pub fn run(args: Args) -> Result<()> {
    let stop = Stop::default();
    let config = config(&args)?;
    namespace_offset_ns().map_err(|reason| {
        let todo = "start observer in a new process: unshare --time --fork observer load ...";
        Error::new(Exit::Kernel, format!("cannot know the kernel's clock: {reason}; {todo}"))
    })?;
    raise_file_limit();
    limits::check(Needs::LOAD)?;
    // Opened after the address was checked: a wrong address must not leave an empty file behind.
    let out = open_output(&args.out)?;
    catch_signals(&stop);
    let bar = progress_bar(&args, &config);
    let report = generate(&config, out, &stop, |now| show(bar.as_ref(), now));
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let report = report.map_err(|error| match error {
        LoadError::Output(_) => Error::new(Exit::Output, format!("{}: {error}", args.out)),
        LoadError::Start(_) | LoadError::Thread(_) => {
            Error::new(Exit::Failure, format!("load: {error}"))
        }
    })?;
    summarize(&config, &report, &mut std::io::stderr().lock());
    if report.totals.answered == 0 && report.totals.sent > 0 && !report.interrupted {
        let kinds = kinds(&report);
        return Err(Error::new(
            Exit::Target,
            format!("{}: no request got an answer ({kinds}); is the service running?", args.url),
        ));
    }
    Ok(())
}

fn open_output(out: &Output) -> Result<Box<dyn Write + Send>> {
    out.open().map_err(|error| {
        let what = match (out, error.kind()) {
            (Output::File(_), std::io::ErrorKind::AlreadyExists) => {
                "already exists and is never overwritten: use another file".into()
            }
            (Output::Unix(_), _) => {
                format!("cannot connect ({error}): is anything listening there?")
            }
            _ => format!("cannot be written: {error}"),
        };
        Error::new(Exit::Output, format!("{out}: {what}"))
    })
}

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

extern "C" fn on_signal(_: libc::c_int) {
    if let Some(flag) = STOP.get() {
        flag.store(true, Ordering::Relaxed);
    }
}

/// The first SIGINT or SIGTERM ends the schedule, the second one ends the process.
fn catch_signals(stop: &Stop) {
    if STOP.set(stop.flag()).is_err() {
        return;
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: an all-zero sigaction is a valid one (no flags, empty mask); the handler only
        // reads an initialised static and stores to an atomic, which is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESETHAND;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// Every connection needs a descriptor; the usual soft limit of 1024 exists for select(2).
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // If it cannot be raised, connections fail with `no_file_descriptor` and are counted.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// None where it would mix with the rows.
fn progress_bar(args: &Args, config: &Config) -> Option<ProgressBar> {
    let rows_on_terminal = args.out == Output::Stdout && std::io::stdout().is_terminal();
    if rows_on_terminal || !crate::log::shows_progress() {
        return None;
    }
    let bar = ProgressBar::new_spinner();
    bar.set_prefix(format!("{} req/s for {:?}", config.rate_hz, config.duration));
    if let Ok(style) =
        indicatif::ProgressStyle::with_template("{spinner} {elapsed} of {prefix}  {msg}")
    {
        bar.set_style(style);
    }
    Some(bar)
}

fn show(bar: Option<&ProgressBar>, now: Snapshot) {
    if let Some(bar) = bar {
        let lost = if now.lost > 0 { format!(", {} rows lost", now.lost) } else { String::new() };
        bar.set_message(format!("{} requests, {} errors{lost}", now.rows, now.errors));
        bar.tick();
    }
}

fn kinds(report: &Report) -> String {
    let kinds: Vec<String> =
        report.totals.errors.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    kinds.join(", ")
}

/// Writes the human-readable summary.
fn summarize(config: &Config, report: &Report, out: &mut impl Write) {
    let totals = &report.totals;
    let ms = |ns: u64| ns as f64 / 1e6;
    let mut lines = vec![format!(
        "sent {} requests at {:.1}/s (requested: {} {}), {} ok, {} errors, at most {} connections",
        totals.sent,
        totals.rate_hz(),
        config.rate_hz,
        config.arrivals.name(),
        totals.ok,
        totals.error_count(),
        report.peak_connections,
    )];
    let histograms = [
        ("latency (from the intended start)", &totals.response),
        ("latency (from the actual start)", &totals.service),
        ("lateness (actual - intended start)", &totals.lateness),
    ];
    for (name, histogram) in histograms.into_iter().filter(|(_, histogram)| !histogram.is_empty()) {
        lines.push(format!(
            "{name:<34} p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3} ms",
            ms(histogram.value_at_quantile(0.5)),
            ms(histogram.value_at_quantile(0.9)),
            ms(histogram.value_at_quantile(0.99)),
            ms(histogram.value_at_quantile(0.999)),
            ms(histogram.max()),
        ));
    }
    if !totals.errors.is_empty() {
        lines.push(format!("errors: {}", kinds(report)));
    }
    if report.ahead_failed > 0 {
        lines.push(format!("{} connections could not be opened in advance", report.ahead_failed));
    }
    if report.rows_lost > 0 {
        lines.push(format!(
            "{} rows were lost: the reader of the output was too slow",
            report.rows_lost
        ));
    }
    if report.interrupted {
        lines.push("interrupted before the end of the schedule".into());
    }
    for line in lines {
        // Standard error may be gone; the rows are written.
        let _ = writeln!(out, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::load_args::tests::parse;
    use super::*;

    #[test]
    fn a_service_that_is_not_there_leaves_rows_and_an_exit_code() {
        let address = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let line =
            format!("load http://{address}/ --rate 50 --duration 200ms --out {}", path.display());
        let error = run(parse(&line).unwrap()).unwrap_err();
        assert_eq!(error.exit, Exit::Target);
        assert!(error.to_string().contains("10 refused"), "{error}");
        let rows = std::fs::read_to_string(&path).unwrap();
        assert_eq!(rows.lines().filter(|line| line.contains("\"error\":\"refused: ")).count(), 10);
        assert!(rows.lines().last().unwrap().starts_with("{\"summary\":"));
        // The same line again: the file is there now.
        let error = run(parse(&line).unwrap()).unwrap_err();
        assert_eq!(error.exit, Exit::Output);
        assert!(error.to_string().contains("never overwritten"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), rows);
    }
}
