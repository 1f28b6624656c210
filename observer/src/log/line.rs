//! The text form of a log line.

use std::fmt;
use std::io::IsTerminal;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::NOTICE;
use crate::text::printable;

/// Who reads the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// A person, in colours or without.
    Terminal {
        /// Whether escape codes are understood and wanted.
        colour: bool,
    },
    /// journald, which notes the time and the program itself and wants the priority
    /// (sd-daemon(3)).
    Journal,
    /// A file, or another program: with the time of each line.
    File,
}

impl Destination {
    /// Finds out what standard error is.
    pub(super) fn of_standard_error() -> Self {
        let stderr = std::io::stderr();
        if stderr.is_terminal() {
            let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
            let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
            return Self::Terminal { colour: !is_set("NO_COLOR") && !dumb };
        }
        let journal = std::env::var("JOURNAL_STREAM").ok();
        let is_journal = rustix::fs::fstat(&stderr)
            .is_ok_and(|stat| is_stream(journal.as_deref(), stat.st_dev, stat.st_ino));
        if is_journal { Self::Journal } else { Self::File }
    }
}

/// Whether `JOURNAL_STREAM` (systemd.exec(5)) names this file. It is inherited by programs whose
/// standard error has been redirected, so it has to be compared.
fn is_stream(journal: Option<&str>, device: u64, inode: u64) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    journal
        .and_then(|text| text.split_once(':'))
        .is_some_and(|(dev, ino)| number(dev) == Some(device) && number(ino) == Some(inode))
}

/// Formats events as text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) destination: Destination,
}

/// The word before a message; what a user reads as plain news has none.
const fn word(level: Level) -> (&'static str, &'static str) {
    match level {
        Level::ERROR => ("error: ", "1;31"),
        Level::WARN => ("warning: ", "33"),
        Level::INFO => ("", ""),
        _ => ("debug: ", "2"),
    }
}

/// Priority for journald, see sd-daemon(3).
fn priority(level: Level, target: &str) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO if target == NOTICE => 5,
        Level::INFO => 6,
        _ => 7,
    }
}

impl Line {
    /// Writes `text`; further lines of it are indented, and each has its own priority, since
    /// journald splits at line ends.
    fn write(
        self,
        out: &mut impl fmt::Write,
        level: Level,
        target: &str,
        text: &str,
    ) -> fmt::Result {
        let (word, code) = word(level);
        let mut indent = "";
        for line in printable(text, false).lines() {
            match (self.destination, indent.is_empty()) {
                (Destination::Journal, _) => {
                    write!(out, "<{}>{indent}", priority(level, target))?;
                }
                (Destination::Terminal { colour: true }, true) if !word.is_empty() => {
                    write!(out, "observer: \u{1b}[{code}m{word}\u{1b}[0m")?;
                }
                (Destination::Terminal { .. }, true) => write!(out, "observer: {word}")?,
                (Destination::File, true) => {
                    SystemTime.format_time(&mut Writer::new(out))?;
                    write!(out, " observer: {word}")?;
                }
                (_, false) => out.write_str(indent)?,
            }
            writeln!(out, "{line}")?;
            indent = "    ";
        }
        Ok(())
    }
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        let metadata = event.metadata();
        self.write(&mut writer, *metadata.level(), metadata.target(), &text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(destination: Destination, level: Level, target: &str, text: &str) -> String {
        let mut out = String::new();
        Line { destination }.write(&mut out, level, target, text).unwrap();
        out
    }

    #[test]
    fn a_terminal_sees_the_program_and_the_level() {
        let plain = Destination::Terminal { colour: false };
        assert_eq!(written(plain, Level::WARN, "observer", "full"), "observer: warning: full\n");
        assert_eq!(written(plain, Level::INFO, "observer", "a\nb"), "observer: a\n    b\n");
        let colour = Destination::Terminal { colour: true };
        let error = written(colour, Level::ERROR, "observer", "full");
        assert_eq!(error, "observer: \u{1b}[1;31merror: \u{1b}[0mfull\n");
    }

    #[test]
    fn journald_gets_a_priority_on_each_line_and_nothing_else() {
        let journal = |level, target| written(Destination::Journal, level, target, "a\nb");
        assert_eq!(journal(Level::ERROR, "observer"), "<3>a\n<3>    b\n");
        assert_eq!(journal(Level::WARN, "observer"), "<4>a\n<4>    b\n");
        assert_eq!(journal(Level::INFO, NOTICE), "<5>a\n<5>    b\n");
        assert_eq!(journal(Level::INFO, "observer"), "<6>a\n<6>    b\n");
        assert_eq!(journal(Level::DEBUG, "observer"), "<7>a\n<7>    b\n");
    }

    #[test]
    fn a_file_has_the_time() {
        let line = written(Destination::File, Level::WARN, "observer", "full");
        let (time, rest) = line.split_once(' ').unwrap();
        assert_eq!(rest, "observer: warning: full\n");
        let format = &time::format_description::well_known::Rfc3339;
        assert!(time::OffsetDateTime::parse(time, format).is_ok(), "{time}");
    }

    #[test]
    fn only_the_stream_of_the_journal_is_the_journal() {
        assert!(is_stream(Some("8:25"), 8, 25));
        for other in [None, Some("8:26"), Some("9:25"), Some(""), Some("8"), Some("x:25")] {
            assert!(!is_stream(other, 8, 25), "{other:?}");
        }
    }
}
