//! `observer report`: prints the report of a run from its directory alone.

use std::io::Write;
use std::path::PathBuf;

use super::duration::parse_slow;
use super::print_styled;
use super::request_args::RequestArgs;
use crate::error::{Error, Exit, Result};
use crate::model::{RunInfo, Summary, files};
use crate::output::answer::Answer;
use crate::output::rundir::{RunDir, create_private_file};
use crate::output::{html, terminal};
use crate::session::{Finished, Recovered, recover};

const EXAMPLES: &str = "\
Examples:
  observer report observer-run-20260131-120000
      Print the report again, as text.
  observer report observer-run-20260131-120000 --json
      Print summary.json, for programs.
  observer report observer-run-20260131-120000 --html answer.html
      Print the text, and write a web page as well.
  observer report observer-run-20260131-120000 --requests 20
      List the 20 slowest requests, each with the parts of its time.
  observer report observer-run-20260131-120000 --slower-than 50ms --json
      List all requests of 50 ms or longer, for programs.
  observer report observer-run-20260131-120000 --at 9.5s
      List the requests that were in flight 9.5 s after the begin of the run.

Does not need root, only read access to the run directory.";

/// Print the report of a run again, from its directory.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Run directory that `observer run` created
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Which requests are listed.
    #[command(flatten)]
    requests: RequestArgs,
    /// Print summary.json, or the listed requests as JSON, instead of human-readable text
    #[arg(long)]
    json: bool,
    /// Also write a self-contained web page to FILE
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Show COMMAND's arguments in FILE; they may hold secrets
    #[arg(long, requires = "html")]
    show_arguments: bool,
}

/// Runs the command.
///
/// # Errors
/// [`Exit::RunUnreadable`] when the run cannot be read, [`Exit::Output`] when FILE cannot be
/// written, [`Exit::Usage`] when `--at` is not within the run.
pub fn run(args: &Args) -> Result<()> {
    let directory = RunDir::open(&args.run)?;
    if args.requests.is_given() {
        return args.requests.print(&directory, args.json);
    }
    let (summary, answer) = answer(&directory, !args.json || args.html.is_some())?;
    let Some(mut answer) = answer else {
        warn_of_doubts(&directory);
        return print_json(&directory, &summary);
    };
    answer.shows_arguments = args.show_arguments;
    if let Some(path) = &args.html {
        let mut file = create_private_file(path)?;
        file.write_all(html::render(&answer).as_bytes()).map_err(|error| {
            Error::new(Exit::Output, format!("cannot write {}: {error}", path.display()))
        })?;
    }
    if args.json {
        warn_of_doubts(&directory);
        return print_json(&directory, &summary);
    }
    print_answer(&answer)
}

/// JSON has no place for it, and a program may not look.
fn warn_of_doubts(directory: &RunDir) {
    for doubt in directory.doubts() {
        tracing::warn!("{}: {doubt}", directory.path().display());
    }
}

/// The answer that was left, or, for a run that did not get that far, the one that can be worked
/// out from its streams. Builds the complete answer only if `all` is set.
fn answer(directory: &RunDir, all: bool) -> Result<(Summary, Option<Answer>)> {
    if let Some(summary) = directory.read_summary()? {
        let answer = if all { Some(Answer::load(directory)?) } else { None };
        return Ok((summary, answer));
    }
    let run = directory.read_run()?;
    let slow = parse_slow(&run.slow_rule).unwrap_or_default();
    let Recovered { summary, samples, end_ns } = recover(directory, &run, slow)?;
    let run = RunInfo { end_ns, ..run };
    let answer = all.then(|| Answer::recovered(directory, run, Some(summary.clone()), samples));
    Ok((summary, answer))
}

/// Everything known about a run that has just ended: from its directory, and should that not be
/// readable (the disk was full), from what is in memory. With `report.html` written into it, or why
/// that was not possible.
pub fn finished(finished: &Finished, shows_arguments: bool) -> (Answer, Result<()>) {
    let directory = &finished.directory;
    match Answer::load(directory) {
        Ok(mut answer) => {
            answer.shows_arguments = shows_arguments;
            let page = directory.write(files::REPORT, html::render(&answer).as_bytes());
            (answer, page)
        }
        Err(error) => {
            let (info, summary) = (finished.info.clone(), finished.summary.clone());
            let answer = Answer::new(directory.path(), info, Some(summary), Vec::new(), &[]);
            (answer, Err(error))
        }
    }
}

/// Prints an answer for users.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_answer(answer: &Answer) -> Result<()> {
    let colour = terminal::wants_colour();
    print_styled(&terminal::render(answer, colour), colour)
}

fn print_json(directory: &RunDir, summary: &Summary) -> Result<()> {
    // A directory without run.json is not a run directory, whatever else it contains.
    directory.read_run()?;
    super::print_json(summary)
}
