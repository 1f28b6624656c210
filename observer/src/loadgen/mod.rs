//! The load generator's samples: adapters that read what generators write, and the alignment that
//! puts their times on the kernel's clock.
//!
//! An adapter is one file with one [`AdapterInfo`] and one row in [`ADAPTERS`]. It receives complete
//! records as they arrive (by the same code from a live stream and from a file) and returns
//! [`RawRow`]s on the generator's clock. A session holds an [`Ingest`]: it splits the byte stream into
//! records, passes them to the adapter, counts everything that cannot be used, and finally aligns the
//! rows with the clock anchors of the run.

mod align;
mod error;
mod framing;
mod hey;
mod ingest;
mod intended_start;
pub mod kept;
pub mod observer_load;

mod source;
mod spec;
mod vegeta;
mod vegeta_csv;
mod vegeta_json;
mod zero;

#[cfg(test)]
mod rows_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod zero_tests;

use std::collections::BTreeMap;

pub use align::{Alignment, BEFORE_RUN, ClockError, EARLIER_RECORDING, OUTSIDE_RUN, Window};
pub use error::IngestError;
pub use framing::{Framing, MAX_RECORD_BYTES};
pub use ingest::{Ingest, Ingested, Live, MAX_SAMPLES};
pub use source::{MOST_BYTES, SamplesFile};
pub use spec::{SamplesSource, SamplesSpec};

pub use crate::model::RelAnchor;

/// Every adapter, in the order in which the help lists them.
pub static ADAPTERS: &[&AdapterInfo] =
    &[&observer_load::INFO, &hey::INFO, &vegeta_csv::INFO, &vegeta_json::INFO];

/// The adapter with this name or alias.
#[must_use]
pub fn adapter(name: &str) -> Option<&'static AdapterInfo> {
    ADAPTERS.iter().copied().find(|info| info.name == name || info.aliases.contains(&name))
}

/// The zero of the times in a generator's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClockKind {
    /// `CLOCK_MONOTONIC` of this host: no conversion.
    Monotonic,
    /// The wall clock, read for each row: the rows contain its steps.
    WallPerEvent,
    /// The wall clock read once at the start, monotonic from there: the rows do not contain its
    /// steps.
    WallAtStart,
    /// Monotonic, from a time that the output does not contain: needs a [`RelAnchor`].
    Relative,
}

impl ClockKind {
    /// The name used in outputs and documentation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Monotonic => "monotonic",
            Self::WallPerEvent => "wall clock, read per request",
            Self::WallAtStart => "wall clock read once, monotonic from there",
            Self::Relative => "offset from the generator's start",
        }
    }

    /// Whether the rows are converted from the wall clock to the kernel's clock.
    #[must_use]
    pub const fn is_wall(self) -> bool {
        matches!(self, Self::WallPerEvent | Self::WallAtStart)
    }
}

/// Whether a generator's rows contain the time at which a request should have been sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntendedStart {
    /// In every row.
    Recorded,
    /// Computed from the request numbers when the rate was constant, else unknown.
    Derived,
    /// Never: the samples may suffer from coordinated omission.
    Unknown,
}

/// One row of [`ADAPTERS`].
pub struct AdapterInfo {
    /// What users write after `--samples`.
    pub name: &'static str,
    /// Older names, which keep working.
    pub aliases: &'static [&'static str],
    /// One line: how to make the generator write it.
    pub doc: &'static str,
    /// The clock of the times, unless the data names another one.
    pub clock: ClockKind,
    /// Whether coordinated omission can be corrected.
    pub intended_start: IntendedStart,
    /// How the stream is split into records.
    pub framing: Framing,
    /// Whether the first bytes of a stream look like this format.
    pub looks_like: fn(&[u8]) -> bool,
    /// A fresh adapter.
    pub start: fn() -> Box<dyn Adapter>,
}

impl std::fmt::Debug for AdapterInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdapterInfo").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Reads one generator's format.
pub trait Adapter: Send {
    /// Takes a block of whole records (lines, line ends included).
    fn records(&mut self, block: &[u8], sink: &mut Sink);

    /// Called after the last record: derives values that need all rows, and adds notes.
    fn finish(&mut self, sink: &mut Sink);

    /// The clock, where the data itself names it.
    fn clock(&self) -> Option<ClockKind> {
        None
    }

    /// How many end marks of the format were read so far.
    fn ends(&self) -> u64 {
        0
    }
}

/// One request on the generator's clock. All times are nanoseconds on that clock.
#[derive(Clone, Debug, PartialEq)]
pub struct RawRow {
    /// When the schedule wanted it sent.
    pub intended_start_ns: Option<u64>,
    /// When it was sent.
    pub start_ns: u64,
    /// From `start_ns` to the end of the answer, or to the failure.
    pub latency_ns: u64,
    /// HTTP status, if there was an answer.
    pub status: Option<u16>,
    /// What went wrong.
    pub error: Option<String>,
    /// The generator's own number.
    pub seq: Option<u64>,
    /// Port of the connection at the generator's end.
    pub local_port: Option<u16>,
    /// The generator counts it as a success.
    pub ok: bool,
}

/// Reason for skipping a record that cannot be read.
const MALFORMED: &str = "malformed_line";

/// Longest error text kept for one row: every failed request repeats it, and some generators include
/// the whole answer.
pub const MAX_ERROR_BYTES: usize = 256;

impl RawRow {
    /// End on the generator's clock.
    #[must_use]
    pub const fn end_ns(&self) -> u64 {
        self.start_ns.saturating_add(self.latency_ns)
    }

    /// From the intended start where known.
    #[must_use]
    pub fn response_ns(&self) -> u64 {
        self.end_ns().saturating_sub(self.intended_start_ns.unwrap_or(self.start_ns))
    }
}

/// What a row's status and error text mean, for every format: status, error, and whether the request
/// succeeded. A status of 0 is a request without an answer; an empty text is no error.
fn outcome(status: Option<u16>, error: Option<String>) -> (Option<u16>, Option<String>, bool) {
    let error = error.filter(|error| !error.trim_ascii().is_empty());
    let ok = error.is_none() && status.is_none_or(observer_load::is_success);
    (status.filter(|status| *status != 0), error, ok)
}

/// Receives what an adapter reads.
#[derive(Debug, Default)]
pub struct Sink {
    /// Rows, in the order they came.
    pub rows: Vec<RawRow>,
    /// So many of them, the first ones, stand in front of a later header.
    pub earlier: usize,
    /// One of the recordings that those belong to has no end mark, or lacks rows.
    pub earlier_is_cut: bool,
    /// Records that did not become rows, by reason.
    pub skipped: BTreeMap<&'static str, u64>,
    /// Notes about the samples for the user, one sentence each.
    pub notes: Vec<String>,
    /// Records that were too long, and are counted elsewhere.
    pub too_long: u64,
    /// The end mark of the format is missing, so rows may be missing.
    pub unfinished: bool,
    /// Resolution of the times; 1 unless the adapter sets it.
    pub precision_ns: u64,
    /// A relative clock: the requests of the last recording that opened a connection.
    pub dials: Dials,
    /// A relative clock: what the name of the generator's process begins with.
    pub program: &'static str,
    /// Headers so far, where a generator that is run again writes another one.
    pub recordings: usize,
    /// What a header without a request means.
    pub empty_hint: &'static str,
    /// An error after which nothing can be used.
    pub fatal: Option<IngestError>,
    /// Lines that belong to the format without being a request (headers, end marks).
    pub structural: u64,
    /// The boot of the host under test, with which a monotonic clock is compared; `None` when it is
    /// not known.
    pub boot_id: Option<String>,
    /// The output says that it was written on that boot.
    pub same_host: bool,
    /// Most rows that are kept.
    most: usize,
}

/// A request that opened a connection of its own, on a relative clock: when it may have done so, with
/// the error of its times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dial {
    /// Not before.
    pub earliest_ns: u64,
    /// Not after.
    pub latest_ns: u64,
}

/// The requests that opened connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dials {
    /// All of them.
    pub count: usize,
    /// Those that did so first.
    pub first: Vec<Dial>,
}

impl Dials {
    /// No more than these are compared with the connections of a process.
    const KEPT: usize = 64;

    /// Takes another one.
    pub fn push(&mut self, dial: Dial) {
        self.count += 1;
        self.first.push(dial);
        if self.first.len() >= 2 * Self::KEPT {
            self.first.sort_unstable_by_key(|dial| dial.latest_ns);
            self.first.truncate(Self::KEPT);
        }
    }
}

impl Sink {
    fn new() -> Self {
        let boot_id = crate::host::system::boot_id();
        Self { precision_ns: 1, boot_id, most: MAX_SAMPLES, ..Self::default() }
    }

    /// Takes a row; beyond the most that are kept it is only counted. A row whose times exceed the clock is
    /// as malformed as one whose numbers cannot be read.
    pub fn push(&mut self, mut row: RawRow) {
        if row.start_ns.checked_add(row.latency_ns).is_none() {
            self.skip(MALFORMED);
            return;
        }
        if self.rows.len() >= self.most {
            self.skip("beyond_sample_cap");
            return;
        }
        if let Some(error) = &mut row.error
            && error.len() > MAX_ERROR_BYTES
        {
            let cut = error.floor_char_boundary(MAX_ERROR_BYTES);
            error.truncate(cut);
            error.shrink_to_fit();
        }
        self.rows.push(row);
    }

    /// Counts a record that does not become a row.
    pub fn skip(&mut self, reason: &'static str) {
        self.skip_many(reason, 1);
    }

    /// Counts several of them.
    pub fn skip_many(&mut self, reason: &'static str, count: u64) {
        if count > 0 {
            *self.skipped.entry(reason).or_default() += count;
        }
    }
}
