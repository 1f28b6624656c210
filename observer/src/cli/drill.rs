//! `observer drill`: known answers on the command line.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::signals;
use crate::drill::report::{self, Report};
use crate::drill::rows::{INJECTIONS, Injection};
use crate::drill::services::Service;
use crate::drill::{Options, Told, all_pairs, play_all};
use crate::error::{Error, Exit, Result};
use crate::log;

const EXAMPLES: &str = "\
Examples:
  observer drill --quick
      A self-test for this host, in at most three minutes.
  observer drill --only pool/hog --runs 5
      One service and one injection, with five seeds.
  observer drill --only nginx --only node
      Programs of this host, with every injection that is played on them.
  observer drill --only sleep --only hog --keep drills
      Two injections with every service. The run directories stay in ./drills for `observer report`.
  observer drill --json > drills.json
      Everything, for programs; docs/TRACE_FORMAT.md describes the keys.
  observer drill --list
      Show the services and the injections.

Each drill starts a small service in a cgroup of its own on 127.0.0.1, sends it requests with `observer
load`, injects a fault on a schedule that the seed decides, and lets `observer run` find out why requests
are slow, without telling it. The service is observer's own in one of four forms, or a program that this
host has: nginx, Java, Node.js, Go. The truth comes from the log of the service, from the schedule, and for
waits of nginx and of Go from the scheduler's counters. A drill counts only if the injection made the p99
longer; what this host cannot do is shown as skipped.

Exit codes:
  0    every drill that counts was right
  1    something unexpected failed
  2    invalid command line
  3    not root
  6    the directory cannot be written
  16   the directory already exists
  20   a drill was missed or failed, or none counts
  130  interrupted";

/// Inject known faults into a throwaway service, and compare observer's answers with the truth.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Play only this drill, service and injection, or all with this service or injection (pool/hog,
    /// pool, hog); may be repeated
    #[arg(long, value_name = "SERVICE/INJECTION", value_parser = parse_only)]
    pub only: Vec<Only>,
    /// Play a selection with a shorter load: a self-test within three minutes
    #[arg(long)]
    pub quick: bool,
    /// Decides when requests are sent, which of them are harmed, and when episodes begin
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// How often to play each drill, each time with the next seed
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub runs: u64,
    /// Keep the run directories in DIR, which must not exist
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
    /// Print the result as JSON to standard output
    #[arg(long)]
    pub json: bool,
    /// Show the services and the injections, and play none
    #[arg(long, conflicts_with_all = ["json", "keep"])]
    pub list: bool,
}

/// What `--only` selects.
#[derive(Clone, Debug)]
pub struct Only(Vec<(Service, &'static Injection)>);

fn parse_only(text: &str) -> std::result::Result<Only, String> {
    let pairs: Vec<_> = match text.split_once('/') {
        Some((service, injection)) => {
            let service = Service::find(service)
                .ok_or(format!("there is no service {service:?}; see --list"))?;
            let row = Injection::find(injection)
                .ok_or(format!("there is no injection {injection:?}; see --list"))?;
            if !service.plays(row) {
                return Err(format!(
                    "{} is not played on {}; see --list",
                    row.name,
                    service.name()
                ));
            }
            vec![(service, row)]
        }
        None => all_pairs()
            .filter(|(service, row)| service.name() == text || row.name == text)
            .collect(),
    };
    if pairs.is_empty() {
        return Err(format!("there is no service and no injection {text:?}; see --list"));
    }
    Ok(Only(pairs))
}

fn list() -> String {
    let mut text =
        String::from("Services of observer itself, on which every injection is played:\n");
    for service in Service::ALL {
        if let Service::Own(_) = service {
            text += &format!("  {:<22} {}\n", service.name(), service.text());
        }
    }
    text += "\nPrograms of this host:\n";
    for service in Service::ALL {
        let Service::Real(real) = service else { continue };
        let program = real.program().map_or_else(
            || format!("skipped: this host has no program {:?}", real.program_name()),
            |program| crate::text::clean(&program.display().to_string(), 100),
        );
        text += &format!("  {:<22} {} ({program})\n", service.name(), service.text());
        let played = INJECTIONS.iter().filter(|row| service.plays(row));
        let names: Vec<&str> = played.map(|row| row.name).collect();
        text += &format!("  {:<22} with {}\n", "", names.join(", "));
    }
    text += "\nInjections, and the answers that are right:\n";
    for row in INJECTIONS {
        text += &format!("  {:<22} {} -> {}\n", row.name, row.text, row.expected_text());
    }
    text
}

/// Runs it.
///
/// # Errors
/// See the exit codes of the help text.
pub fn run(args: &Args) -> Result<()> {
    if args.list {
        return super::print(&list());
    }
    if !rustix::process::geteuid().is_root() {
        let what = "drill needs root: it makes a cgroup and loads BPF programs; use sudo";
        return Err(Error::new(Exit::Permission, what));
    }
    let only: Vec<_> = args.only.iter().flat_map(|only| only.0.iter().copied()).collect();
    let (seed, runs, quick) = (args.seed, args.runs, args.quick);
    let options = Options { seed, runs, only, quick, keep: args.keep.clone() };
    let stop = Arc::new(AtomicBool::new(false));
    signals::raise_on_interrupt(&stop)?;
    let bar = progress_bar();
    let played = play_all(&options, &stop, |told| show(&bar, told));
    log::set_progress(None);
    bar.finish_and_clear();
    let report = played?;
    if args.json {
        super::print_json(&report)?;
    } else {
        super::print(&report.tables())?;
    }
    complaint(&report)
}

fn complaint(report: &Report) -> Result<()> {
    if report.is_good() {
        return Ok(());
    }
    let what =
        format!("not every drill that counts was right, or none counts: {}", report.headline());
    Err(Error::new(Exit::DrillMissed, what))
}

fn progress_bar() -> ProgressBar {
    if !log::shows_progress() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed_precise} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    log::set_progress(Some(bar.clone()));
    bar
}

fn show(bar: &ProgressBar, told: &Told<'_>) {
    match told {
        Told::Begins(name, number, all) => {
            bar.set_message(format!("drill {number} of {all}: {name}"));
        }
        Told::Ended(drill) => tracing::info!(target: log::NOTICE, "{}", report::line(drill)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drill_is_chosen_by_its_service_its_injection_or_both() {
        let names = |text: &str| parse_only(text).map(|only| only.0.len());
        assert_eq!(names("pool/hog"), Ok(1));
        assert_eq!(names("nginx/stop-service"), Ok(1));
        assert_eq!(names("pool"), Ok(INJECTIONS.len()));
        assert_eq!(names("nothing"), Ok(Service::ALL.len()));
        assert!(parse_only("nginx/quota").unwrap_err().contains("quota is not played on nginx"));
        for bad in ["", "x", "pool/x", "x/hog", "pool/", "/hog", "nginx/burn"] {
            let error = names(bad).unwrap_err();
            assert!(error.contains("see --list"), "{bad}: {error}");
        }
    }

    #[test]
    fn the_list_has_every_service_and_injection_with_its_answer() {
        let text = list();
        for service in Service::ALL {
            assert!(text.contains(service.text()), "{}", service.name());
        }
        for row in INJECTIONS {
            assert!(text.contains(&format!("{} -> {}", row.text, row.expected_text())));
        }
    }
}
