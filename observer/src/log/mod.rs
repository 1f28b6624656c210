//! Log lines on standard error: which levels are shown, in which form, and how often.
//!
//! The library logs with `tracing`; only the program decides what becomes of it ([`start`]).
//! Results for users (the report, figures, the progress line) are output, not log lines.

mod limit;
mod line;

use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use limit::{Admission, Key, RateLimit, Suppressed};
use line::{Destination, Line};

use crate::text::{printable, printable_json};

/// Target of messages at level `INFO` that are shown without `-v`: what a user has to know to go
/// on, like the address the daemon serves on.
pub const NOTICE: &str = "observer::notice";

/// Target of what the BPF programs say about an event that they give up on.
pub const BPF: &str = "observer::bpf";

/// Target of the lines that report suppressed messages. They are never suppressed themselves.
const SUPPRESSED: &str = "observer::suppressed";

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Errors only, and no progress line.
    Quiet,
    /// Warnings, errors and notices.
    #[default]
    Default,
    /// What is done and why.
    Verbose,
    /// Everything, including what the BPF programs say.
    Debug,
}

impl Verbosity {
    /// Whether the user asked for more than the default.
    #[must_use]
    pub fn is_verbose(self) -> bool {
        self >= Self::Verbose
    }

    fn targets(self) -> Targets {
        let level = match self {
            Self::Quiet => LevelFilter::ERROR,
            Self::Default => LevelFilter::WARN,
            Self::Verbose => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
        };
        let targets = Targets::new().with_target("observer", level);
        if self == Self::Quiet { targets } else { targets.with_target(NOTICE, level.max(INFO)) }
    }
}

const INFO: LevelFilter = LevelFilter::INFO;

/// Form of the log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One line for users; with the time, unless a terminal or journald reads it.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// What [`start`] set up.
struct Started {
    verbosity: Verbosity,
    format: Format,
    destination: Destination,
    limit: Arc<Mutex<RateLimit>>,
}

static STARTED: OnceLock<Started> = OnceLock::new();

/// The progress line on the terminal, which must not be written through.
static PROGRESS: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Starts logging to standard error. Call it once, before anything is logged.
pub fn start(verbosity: Verbosity, format: Format) {
    let destination = Destination::of_standard_error();
    let limit = Arc::new(Mutex::new(RateLimit::default()));
    let layer =
        tracing_subscriber::fmt::layer().with_writer(|| StandardError).log_internal_errors(false);
    let targets = verbosity.targets();
    let registry = tracing_subscriber::registry();
    // Refused only when a subscriber is there already, which then keeps working.
    let _ = match format {
        Format::Text => {
            let line = Line { destination };
            // Its message is clean, and the rest is from here.
            let form = |_| Limited { inner: line, clean: str::to_owned, limit: Arc::clone(&limit) };
            registry.with(layer.map_event_format(form).with_filter(targets)).try_init()
        }
        Format::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(false);
            let clean = printable_json;
            let form = |inner| Limited { inner, clean, limit: Arc::clone(&limit) };
            registry.with(layer.map_event_format(form).with_filter(targets)).try_init()
        }
    };
    let _ = STARTED.set(Started { verbosity, format, destination, limit });
}

/// Reports what was suppressed and not reported yet. Call it before the process ends.
pub fn finish() {
    if let Some(started) = STARTED.get() {
        report(&started.limit, None);
    }
}

/// Writes the one line that says why a command failed. It is shown at every verbosity, and is
/// never suppressed.
pub fn failure(message: &str) {
    let message = printable(&message.replace(['\n', '\r'], " "), false);
    match STARTED.get() {
        Some(Started { format: Format::Json, .. }) => tracing::error!("{message}"),
        Some(Started { destination: Destination::Journal, .. }) => {
            tracing::error!("{message}");
        }
        _ => {
            // A closed standard error is no error.
            let _ = writeln!(StandardError, "observer: error: {message}");
        }
    }
}

/// Whether the progress line is to be shown: on a terminal, unless the user asked for quiet.
#[must_use]
pub fn shows_progress() -> bool {
    let quiet = STARTED.get().is_some_and(|started| started.verbosity == Verbosity::Quiet);
    !quiet && io::stderr().is_terminal()
}

/// Makes log lines appear above this progress line; `None` when it is gone.
pub fn set_progress(bar: Option<ProgressBar>) {
    *PROGRESS.lock().unwrap_or_else(PoisonError::into_inner) = bar;
}

/// Standard error, above the progress line if there is one.
struct StandardError;

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let bar = PROGRESS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match bar {
            Some(bar) => bar.suspend(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A form of log lines, and the limit of how often each is written.
struct Limited<F> {
    inner: F,
    /// Takes away what could rewrite a terminal.
    clean: fn(&str) -> String,
    limit: Arc<Mutex<RateLimit>>,
}

impl<S, N, F> FormatEvent<S, N> for Limited<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        if event.metadata().target() != SUPPRESSED {
            let (key, text) = Key::of(event);
            let level = *event.metadata().level();
            let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
            match limit.admit(key, level, &text, Instant::now()) {
                Admission::Show => {}
                Admission::Suppress => return Ok(()),
                Admission::SuppressFirst(until) => {
                    drop(limit);
                    report_later(&self.limit, until);
                    return Ok(());
                }
            }
        }
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        writer.write_str(&(self.clean)(&line))
    }
}

/// Reports what is suppressed when its minute is over, also if nothing else is logged by then.
fn report_later(limit: &Arc<Mutex<RateLimit>>, after: Duration) {
    let limit = Arc::clone(limit);
    // Without the thread, the next message or the end of the process reports it.
    let _ = std::thread::Builder::new().name("observer-log".into()).spawn(move || {
        std::thread::sleep(after);
        report(&limit, Some(Instant::now()));
    });
}

/// Logs what was suppressed in minutes that are over at `now`; without `now`, in all of them.
fn report(limit: &Mutex<RateLimit>, now: Option<Instant>) {
    let due = limit.lock().unwrap_or_else(PoisonError::into_inner).take_due(now);
    for Suppressed { count, level, example } in due {
        let text = format!("suppressed {count} similar messages, the last one: {example}");
        match level {
            Level::ERROR => tracing::error!(target: SUPPRESSED, "{text}"),
            Level::WARN => tracing::warn!(target: SUPPRESSED, "{text}"),
            Level::INFO => tracing::info!(target: SUPPRESSED, "{text}"),
            _ => tracing::debug!(target: SUPPRESSED, "{text}"),
        }
    }
}
