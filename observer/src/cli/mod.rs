//! The command line: one file per subcommand, each with its `Args` and a `run`.

pub mod daemon;
pub mod doctor;
pub mod drill;
pub mod duration;
mod instant;
pub mod load;
mod load_args;
mod log;
pub mod probe_args;
mod records;
pub mod report;
mod request_args;
pub mod run;
mod signals;
pub mod stacks;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
use clap::{Parser, Subcommand};

use crate::error::{Error, Exit, Result};
use crate::limits;
use crate::session::supervisor;
use crate::stacks::worker;
use crate::text::{printable, printable_json};

const EXAMPLES: &str = "\
Examples:
  observer run --port 8080 --samples observer-load -- observer load http://127.0.0.1:8080 --rate 500
      The main use: load a service and find out which kernel stalls slow down its requests.
  observer doctor
      Check whether observer works on this host, and what to do about missing features.
  observer load http://127.0.0.1:8080/ --rate 1000 --duration 30s --out samples.jsonl
      Send requests at a fixed rate, and write one line per request.

See `observer COMMAND --help` for more examples.";

/// Find out which kernel stalls slow down requests in a load test.
#[derive(Debug, Parser)]
#[command(
    name = "observer",
    version,
    after_help = EXAMPLES,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Cli {
    /// What is logged.
    #[command(flatten)]
    log: log::LogArgs,
    #[command(subcommand)]
    command: Command,
}

/// The subcommands, in the order of the help.
#[derive(Debug, Subcommand)]
enum Command {
    /// Watch a target during a load test, and report which kernel stalls slowed down its requests
    Run(run::Args),
    /// Send requests at a fixed rate, and write one line per request
    Load(load::Args),
    /// Print the report of a run again, from its directory
    Report(report::Args),
    /// Show the stacks with which the target's threads waited, by cause
    Stacks(stacks::Args),
    /// Serve histograms of all kernel stalls as OpenMetrics
    Daemon(daemon::Args),
    /// Show what this kernel supports, and whether `observer run` works on this host
    Doctor(doctor::Args),
    /// Inject known faults into a throwaway service, and compare observer's answers with the truth
    Drill(drill::Args),
    /// The throwaway service
    #[command(hide = true)]
    DrillService(crate::drill::service::Args),
    /// Looks up functions in one file of the target
    #[command(name = worker::NAME, hide = true)]
    SymbolizeFile,
}

/// Parses the command line, runs it, and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    if name.as_encoded_bytes() == supervisor::NAME.to_bytes() {
        return supervisor::main();
    }
    if let Err(error) = limits::check_stack() {
        crate::log::failure(&error.to_string());
        return ExitCode::from(error.exit as u8);
    }
    limits::survive_file_size_limit();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, to standard output and with code 0.
            if error.kind() != DisplayHelpOnMissingArgumentOrSubcommand && error.use_stderr() {
                let message = printable(&error.render().to_string(), false);
                let _ = write!(io::stderr(), "observer: {message}");
            } else {
                let _ = error.print();
            }
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    crate::log::start(cli.log.verbosity(), cli.log.log_format);
    let result = dispatch(cli);
    crate::log::finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::log::failure(&error.to_string());
            ExitCode::from(error.exit as u8)
        }
    }
}

fn dispatch(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Daemon(args) => daemon::run(&args),
        Command::Load(args) => load::run(args),
        Command::Report(args) => report::run(&args),
        Command::Stacks(args) => stacks::run(&args),
        Command::Drill(args) => drill::run(&args),
        Command::DrillService(args) => crate::drill::service::run(&args),
        Command::SymbolizeFile => worker::run(),
        Command::Doctor(args) => doctor::run(&args, cli.log.verbosity().is_verbose()),
    }
}

/// Writes text to standard output, without what could rewrite a terminal. A reader that has closed the pipe (`observer report x | head`) is not an
/// error.
///
/// # Errors
/// When standard output cannot be written for another reason.
pub fn print(text: &str) -> Result<()> {
    write_out(&printable(text, false))
}

/// [`print`] for text that has observer's own styles if `styles` is set.
fn print_styled(text: &str, styles: bool) -> Result<()> {
    write_out(&printable(text, styles))
}

fn write_out(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::new(Exit::Failure, format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes JSON to standard output, for programs.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::new(Exit::Failure, format!("cannot write JSON: {error}")))?;
    write_out(&printable_json(&(text + "\n")))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_has_examples() {
        let command = Cli::command();
        let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
        for command in std::iter::once(&command).chain(shown) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n  observer "), "{}", command.get_name());
        }
    }

    /// The examples of every help text, taken from it.
    fn examples(command: &clap::Command) -> Vec<String> {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines = help.lines().map(str::trim_start);
        // A comment, if any, stands after two or more spaces.
        lines
            .filter(|line| line.starts_with("observer "))
            .map(|line| line.split("  ").next().unwrap_or(line).to_owned())
            .collect()
    }

    /// The words of a command as a shell would see them, up to a redirection.
    fn words(line: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quoted = false;
        for c in line.chars() {
            match c {
                '\'' => quoted = !quoted,
                ' ' if !quoted => words.push(String::new()),
                _ => words.last_mut().unwrap().push(c),
            }
        }
        let end = words.iter().position(|word| matches!(word.as_str(), ">" | "|" | "&"));
        words.truncate(end.unwrap_or(words.len()));
        words
    }

    #[test]
    fn the_examples_are_accepted_as_printed() {
        let command = Cli::command();
        let all = std::iter::once(&command).chain(command.get_subcommands());
        for example in all.flat_map(examples) {
            if let Err(error) = Cli::try_parse_from(words(&example)) {
                panic!("{example}: {error}");
            }
        }
    }
}
