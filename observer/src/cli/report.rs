//! `observer report`: the answer of a run again, from its directory alone.

use std::io::Write;
use std::path::PathBuf;

use super::print;
use crate::error::{Error, Exit, Result};
use crate::model::files;
use crate::output::answer::Answer;
use crate::output::rundir::{RunDir, create_private_file};
use crate::output::{html, terminal};
use crate::session::Finished;

const EXAMPLES: &str = "\
Examples:
  observer report observer-run-20260131-120000
      The answer again, for people.
  observer report observer-run-20260131-120000 --json
      summary.json, for programs.
  observer report observer-run-20260131-120000 --html answer.html
      The text, and a page for a browser as well.

Needs no root: whoever may read the run directory may see the report.";

/// Arguments of `observer report`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Directory that `observer run` left
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Print summary.json instead of the text for people
    #[arg(long)]
    json: bool,
    /// Write the answer as a self-contained web page to FILE as well
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// [`Exit::RunUnreadable`] when the run cannot be read, [`Exit::Output`] when FILE cannot be
/// written.
pub fn run(args: &Args) -> Result<()> {
    let directory = RunDir::open(&args.run)?;
    if args.json && args.html.is_none() {
        return print_json(&directory);
    }
    let answer = Answer::load(&directory)?;
    if let Some(path) = &args.html {
        let mut file = create_private_file(path)?;
        file.write_all(html::render(&answer).as_bytes()).map_err(|error| {
            Error::new(Exit::Output, format!("cannot write {}: {error}", path.display()))
        })?;
    }
    if args.json {
        return print_json(&directory);
    }
    print(&terminal::render(&answer, terminal::wants_colour()))
}

/// Writes `report.html` into the run directory.
///
/// # Errors
/// When the run cannot be read back or the page cannot be written.
pub fn write_html(directory: &RunDir) -> Result<()> {
    let answer = Answer::load(directory)?;
    directory.write(files::REPORT, html::render(&answer).as_bytes())
}

/// Prints the answer of a run that has just ended, for people: from its directory, and should that
/// not be readable (the disk was full), what is in memory.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_finished(finished: &Finished) -> Result<()> {
    let answer = Answer::load(&finished.directory).unwrap_or_else(|_| {
        let (info, summary) = (finished.info.clone(), finished.summary.clone());
        Answer::new(finished.directory.path(), info, Some(summary), Vec::new(), Vec::new())
    });
    print(&terminal::render(&answer, terminal::wants_colour()))
}

fn print_json(directory: &RunDir) -> Result<()> {
    // A directory without run.json is none of ours, whatever else it holds.
    directory.read_run()?;
    let Some(summary) = directory.read_summary()? else {
        return Err(Error::new(
            Exit::RunUnreadable,
            format!(
                "{} has no summary.json: the run ended before its answer was worked out; without \
                 --json the report shows what there is",
                directory.path().display()
            ),
        ));
    };
    let mut text = serde_json::to_string_pretty(&summary)
        .map_err(|error| Error::new(Exit::Failure, format!("cannot print the summary: {error}")))?;
    text.push('\n');
    print(&text)
}
