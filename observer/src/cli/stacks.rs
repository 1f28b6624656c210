//! `observer stacks`: where the threads of the target waited, from the directory of a run.

use std::io::Write;
use std::path::PathBuf;

use clap::ValueEnum;

use super::write_out;
use crate::error::{Error, Exit, Result};
use crate::model::{Cause, Summary};
use crate::output::rundir::{RunDir, create_private_file};
use crate::output::stacks::{
    RecordedStacks, Selection, WaitingStacks, firefox, folded, json, text,
};
use crate::output::terminal;
use crate::session::{RecordedRun, SlowTimes};
use crate::text::{count, printable, printable_json};

const EXAMPLES: &str = "\
Examples:
  observer stacks observer-run-20260131-120000
      Show for each cause the ten stacks with the most time.
  observer stacks observer-run-20260131-120000 --cause lock_wait --top 3
      Show in which functions threads waited for locks.
  observer stacks observer-run-20260131-120000 --slow
      Show only what threads waited for while they had slow requests.
  observer stacks observer-run-20260131-120000 --format folded --out waits.folded
      Write a line a stack with its microseconds, for flame graphs (flamegraph.pl, inferno, speedscope).
  observer stacks observer-run-20260131-120000 --format firefox --out waits.json
      Write a profile that https://profiler.firefox.com opens ('Load a profile from file').

A run has stacks if it was made with `observer run --stacks TIME`. Does not need root, only read access to the
run directory.";

/// Show the stacks with which the target's threads were away from the CPU, by cause.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Run directory that `observer run --stacks` created
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Only time of this cause (lock_wait, block_io, unexplained, ...); may be given several times
    #[arg(long, value_name = "CAUSE", value_parser = parse_cause)]
    cause: Vec<Cause>,
    /// Only time in which the thread had a slow request
    #[arg(long)]
    slow: bool,
    /// Show so many stacks of each cause (10), with --format text
    #[arg(long, value_name = "N", value_parser = parse_top)]
    top: Option<usize>,
    /// How the stacks are written
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Text)]
    format: Format,
    /// Write to FILE, which must not exist, instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// How stacks are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For users: the stacks with the most time, by cause
    Text,
    /// A line a stack: names from the thread to the innermost function, and the time in microseconds
    Folded,
    /// A profile for the Firefox Profiler, in which the time is in milliseconds
    Firefox,
    /// All rows, for programs; the time is in nanoseconds
    Json,
}

/// Stacks of each cause that are shown without `--top`.
const TOP: usize = 10;

fn parse_cause(text: &str) -> std::result::Result<Cause, String> {
    Cause::all().find(|cause| cause.name() == text).ok_or_else(|| {
        let known = Cause::all().filter(|cause| cause.is_recorded() || cause.is_rest());
        let known: Vec<&str> = known.map(Cause::name).collect();
        format!("{text:?} is not a cause: use {}", known.join(", "))
    })
}

fn parse_top(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(top) if top > 0 => Ok(top),
        _ => Err("write a number from 1 on".to_owned()),
    }
}

/// Runs the command.
///
/// # Errors
/// [`Exit::RunUnreadable`] when the run cannot be read or has no stacks, [`Exit::Usage`] when options do not fit the
/// run or each other, [`Exit::Output`] when FILE cannot be written.
pub fn run(args: &Args) -> Result<()> {
    if args.top.is_some() && args.format != Format::Text {
        let text = "--top is for --format text; the other formats have all stacks";
        return Err(Error::new(Exit::Usage, text));
    }
    let directory = RunDir::open(&args.run)?;
    let run = directory.read_run()?;
    let summary = directory.read_summary()?;
    let stacks = RecordedStacks::read(&directory, &run, summary.as_ref())?.ok_or_else(|| {
        let text = format!(
            "run {} has no stacks: record them with `observer run --stacks 1ms ...`",
            args.run.display()
        );
        Error::new(Exit::RunUnreadable, text)
    })?;
    let mut selection = Selection { causes: args.cause.clone(), times: None };
    let mut notes = stacks.damage().to_vec();
    if args.slow {
        let SlowTimes { times, requests, matched } =
            slow_times(&directory, summary.as_ref(), args)?;
        selection.times = Some(times);
        if matched < requests {
            let (missing, all) = (count(requests - matched), count(requests));
            notes.push(format!(
                "of {missing} of the {all} slow requests it is not known which threads served them: \
                 their time is not shown"
            ));
        }
    }
    let mut waiting = stacks.sum_up(&selection);
    waiting.notes.extend(notes);
    if matches!(args.format, Format::Folded | Format::Firefox) {
        // These formats have no place for them.
        for note in &waiting.notes {
            tracing::warn!("{}: {note}", directory.path().display());
        }
    }
    write(args, &stacks, &selection, &waiting)
}

fn slow_times(directory: &RunDir, summary: Option<&Summary>, args: &Args) -> Result<SlowTimes> {
    let refused = |why: &str| {
        let text = format!("--slow cannot be used with run {}: {why}", args.run.display());
        Error::new(Exit::Usage, text)
    };
    let summary = summary.ok_or_else(|| refused("it has no answer, so no request is slow"))?;
    if summary.samples.slow_count == 0 {
        return Err(refused("none of its requests is slow, or it read no samples"));
    }
    let slow = RecordedRun::read(directory)?.slow_times(summary.samples.slow_threshold_ns);
    match slow.matched {
        0 => Err(refused("it is not known which threads served its slow requests")),
        _ => Ok(slow),
    }
}

fn write(
    args: &Args,
    stacks: &RecordedStacks,
    selection: &Selection,
    waiting: &WaitingStacks,
) -> Result<()> {
    let colour = args.out.is_none() && terminal::wants_colour();
    let no_json =
        |error: serde_json::Error| Error::new(Exit::Failure, format!("cannot write JSON: {error}"));
    let content = match args.format {
        Format::Text => printable(&text::render(waiting, args.top.unwrap_or(TOP), colour), colour),
        Format::Folded => printable(&folded::render(waiting), false),
        Format::Firefox => printable_json(&firefox::render(stacks, selection).map_err(no_json)?),
        Format::Json => {
            let list = serde_json::to_string_pretty(&json::list(waiting)).map_err(no_json)?;
            printable_json(&(list + "\n"))
        }
    };
    match &args.out {
        Some(path) => create_private_file(path)?.write_all(content.as_bytes()).map_err(|error| {
            Error::new(Exit::Output, format!("cannot write {}: {error}", path.display()))
        }),
        None => write_out(&content),
    }
}

#[cfg(test)]
#[path = "stacks_tests.rs"]
mod tests;
