//! `observer report --requests`, `--slower-than` and `--at`: single requests of a run.

use std::time::Duration;

use super::duration::parse_positive;
use super::instant::{self, At};
use super::{print, print_json, print_styled};
use crate::error::Result;
use crate::model::{REQUESTS_LISTED_MAX, RequestSelection, RunInfo};
use crate::output::request_text::{Details, render};
use crate::output::rundir::RunDir;
use crate::output::terminal;
use crate::session::{Listed, RecordedRun};

/// Requests listed without `--requests`.
const LISTED: u64 = 1_000;

/// Which requests are listed.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct RequestArgs {
    /// List the N slowest requests (at most 10000) instead of the answer: how each was matched, who
    /// served it, and where its time went
    #[arg(long, value_name = "N", value_parser = parse_requests, conflicts_with = "html")]
    requests: Option<u64>,
    /// List the requests that took this time or longer (50ms): the slowest 1000, or N with --requests
    #[arg(long, value_name = "TIME", value_parser = parse_positive, conflicts_with = "html")]
    slower_than: Option<Duration>,
    /// List the requests that were in flight at this moment: 12:00:09.5 (UTC, on the day of the run),
    /// 2026-01-31T12:00:09.5Z, or 9.5s (since the begin of the run)
    #[arg(long, value_name = "TIME", value_parser = instant::parse, conflicts_with = "html")]
    at: Option<At>,
}

fn parse_requests(text: &str) -> std::result::Result<u64, String> {
    match text.parse() {
        Ok(requests) if (1..=REQUESTS_LISTED_MAX).contains(&requests) => Ok(requests),
        _ => Err(format!(
            "write a number from 1 to {REQUESTS_LISTED_MAX}; choose among more requests with \
             --slower-than or --at"
        )),
    }
}

impl RequestArgs {
    /// Whether requests are to be listed.
    pub(super) const fn is_given(&self) -> bool {
        self.requests.is_some() || self.slower_than.is_some() || self.at.is_some()
    }

    fn selection(&self, run: &RunInfo) -> Result<RequestSelection> {
        let slower_than_ns = self.slower_than.map(|time| time.as_nanos());
        Ok(RequestSelection {
            requests: self.requests.unwrap_or(LISTED),
            slower_than_ns: slower_than_ns.and_then(|ns| u64::try_from(ns).ok()),
            at_ns: self.at.as_ref().map(|at| at.within(run)).transpose()?,
        })
    }

    /// Prints them.
    ///
    /// # Errors
    /// When the run cannot be read, or `--at` is not within it.
    pub(super) fn print(&self, directory: &RunDir, json: bool) -> Result<()> {
        let run = RecordedRun::read(directory)?;
        let nothing = run.nothing_to_list();
        let selection = match &nothing {
            None => self.selection(&run.info)?,
            // Nothing is known to be within it.
            Some(_) => RequestArgs { at: None, ..self.clone() }.selection(&run.info)?,
        };
        let Listed { list, samples } = run.list(selection);
        if json {
            for note in nothing.iter().chain(&list.notes) {
                tracing::warn!("{}: {note}", directory.path().display());
            }
            return print_json(&list);
        }
        if let Some(nothing) = nothing {
            return print(&format!("{nothing}\n"));
        }
        let details = Details::read(directory, &list)?;
        let colour = terminal::wants_colour();
        print_styled(&render(&run.info, &list, &samples, &details, colour), colour)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::clock::MonoNanos;
    use crate::error::Exit;
    use crate::output::example;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        requests: RequestArgs,
        #[arg(long)]
        html: Option<String>,
    }

    fn parse(arguments: &[&str]) -> std::result::Result<RequestArgs, clap::Error> {
        let all = ["report"].iter().chain(arguments);
        Command::try_parse_from(all).map(|command| command.requests)
    }

    fn selection(arguments: &[&str]) -> RequestSelection {
        let args = parse(arguments).unwrap_or_else(|error| panic!("{error}"));
        assert!(args.is_given());
        args.selection(&example::run()).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn the_options_select_alone_and_together() {
        assert!(!parse(&[]).expect("nothing").is_given());
        let all = RequestSelection { requests: LISTED, slower_than_ns: None, at_ns: None };
        let most = RequestSelection { requests: 10_000, ..all };
        assert_eq!(selection(&["--requests", "10000"]), most);
        let slow = RequestSelection { slower_than_ns: Some(50_000_000), ..all };
        assert_eq!(selection(&["--slower-than", "50ms"]), slow);
        let at_ns = Some(MonoNanos(example::run().start_ns.0 + 9_500_000_000));
        assert_eq!(selection(&["--at", "9.5s"]), RequestSelection { at_ns, ..all });
        assert_eq!(
            selection(&["--at", "9.5s", "--requests", "3", "--slower-than", "50ms"]),
            RequestSelection { requests: 3, at_ns, ..slow }
        );
    }

    #[test]
    fn wrong_values_are_refused_with_what_to_do() {
        for (arguments, wanted) in [
            (["--requests", "0"], "write a number from 1 to 10000"),
            (["--requests", "10001"], "choose among more requests with --slower-than or --at"),
            (["--requests", "ten"], "write a number from 1 to 10000"),
            (["--slower-than", "50"], "write 50s for seconds"),
            (["--slower-than", "0ms"], "must be longer than zero"),
            (["--at", "noon"], "is not a time"),
        ] {
            let error = parse(&arguments).expect_err("wrong");
            assert_eq!(error.exit_code(), Exit::Usage as i32);
            assert!(error.to_string().contains(wanted), "{error}");
        }
        let error = parse(&["--requests", "3", "--html", "x"]).expect_err("two outputs");
        assert!(error.to_string().contains("cannot be used with"), "{error}");
    }
}
