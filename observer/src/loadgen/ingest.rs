//! Turns the generator's bytes into samples. A session holds an [`Ingest`] while the generator runs.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::align::Clocks;
use super::framing::Framer;
use super::{
    ADAPTERS, Adapter, AdapterInfo, Alignment, ClockError, Framing, IngestError, RawRow, RelAnchor,
    Sink, Window, align,
};
use crate::clock::Anchors;
use crate::model::Sample;
use crate::pace::rest;

/// Rows kept; later ones are counted as `beyond_sample_cap`. A row takes about 90 bytes, and twice
/// that while they are aligned: 0.7 GB at the cap, which is over an hour at 1,000 requests a
/// second.
pub const MAX_SAMPLES: usize = 4_000_000;

/// Length of the beginning of the stream, kept to recognise a stream of another format.
const HEAD_BYTES: usize = 4 << 10;

/// Bytes of one piece of regular work: some ten rows.
const PIECE_BYTES: usize = 2 << 10;

/// Latencies above this are recorded as this in the live percentiles.
const LIVE_MAX_NS: u64 = 3_600_000_000_000;

/// Progress so far, for a line on the terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Live {
    /// Requests read.
    pub count: u64,
    /// Of these, failed.
    pub errors: u64,
    /// Requests per second, first to last start.
    pub rate_hz: f64,
    /// 99th percentile of the response time (from the intended start where the rows have one).
    pub p99_ns: u64,
}

/// The result of reading a generator's output.
#[derive(Clone, Debug, PartialEq)]
pub struct Ingested {
    /// On the kernel's clock, by begin.
    pub samples: Vec<Sample>,
    /// Records that gave no sample, by reason.
    pub skipped: BTreeMap<String, u64>,
    /// How far the samples' times may be off, without their own resolution.
    pub uncertainty_ns: u64,
    /// Notes for the user, one sentence each.
    pub notes: Vec<String>,
    /// The stream ended inside a record, or without the end mark of its format, so rows may be
    /// missing. `samples` has the complete ones.
    pub truncated: bool,
    /// The times were converted from the wall clock.
    pub over_wall_clock: bool,
    /// Every sample has an intended start.
    pub intended_start_known: bool,
    /// How the times were placed.
    pub alignment: Alignment,
}

/// Reads one generator's output in pieces.
pub struct Ingest {
    info: &'static AdapterInfo,
    adapter: Box<dyn Adapter>,
    framer: Framer,
    sink: Sink,
    head: Vec<u8>,
    bytes: u64,
    rest: usize,
    /// The first record was passed on, and with it what may stand in front of all text.
    begun: bool,
    live: LiveState,
    clock_error: ClockError,
}

/// Of the last recording in the stream.
struct LiveState {
    from: usize,
    latencies: Option<Histogram<u64>>,
    seen: usize,
    errors: u64,
    first_start_ns: u64,
    last_start_ns: u64,
}

impl LiveState {
    fn new(from: usize) -> Self {
        Self {
            from,
            // Three digits between 1 us and an hour: bounds that cannot be refused.
            latencies: Histogram::new_with_bounds(1_000, LIVE_MAX_NS, 3).ok(),
            seen: from,
            errors: 0,
            first_start_ns: u64::MAX,
            last_start_ns: 0,
        }
    }

    fn take(&mut self, rows: &[RawRow], earlier: usize) {
        if earlier != self.from || self.seen > rows.len() {
            *self = Self::new(earlier);
        }
        for row in rows.get(self.seen..).unwrap_or_default() {
            self.errors += u64::from(!row.ok);
            self.first_start_ns = self.first_start_ns.min(row.start_ns);
            self.last_start_ns = self.last_start_ns.max(row.start_ns);
            if let Some(latencies) = &mut self.latencies {
                latencies.saturating_record(row.response_ns());
            }
        }
        self.seen = rows.len();
    }
}

/// Some programs put a byte order mark in front of all text.
fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text)
}

/// A block of records, the first one without a byte order mark.
fn from_begin<'a>(begun: &mut bool, block: &'a [u8]) -> &'a [u8] {
    if std::mem::replace(begun, true) { block } else { without_mark(block) }
}

impl Ingest {
    /// How far the generator's wall clock may be from this host's, unless its output names this
    /// host.
    #[must_use]
    pub fn with_clock_error(self, clock_error: ClockError) -> Self {
        Self { clock_error, ..self }
    }

    /// Keeps so many rows, at most [`MAX_SAMPLES`].
    #[must_use]
    pub fn with_room_for(mut self, samples: usize) -> Self {
        self.sink.most = samples.min(MAX_SAMPLES);
        self
    }

    /// Nothing read yet.
    #[must_use]
    pub fn new(info: &'static AdapterInfo) -> Self {
        Self {
            info,
            adapter: (info.start)(),
            framer: Framer::new(info.framing),
            sink: Sink::new(),
            head: Vec::new(),
            bytes: 0,
            rest: 0,
            begun: false,
            live: LiveState::new(0),
            clock_error: ClockError::default(),
        }
    }

    /// Forgets everything: the stream starts again.
    pub fn restart(&mut self) {
        *self =
            Self::new(self.info).with_clock_error(self.clock_error).with_room_for(self.sink.most);
        self.sink.notes.push(
            "the samples file was replaced during the run: observer ignored its earlier content"
                .into(),
        );
    }

    /// Nothing read yet, of a run that was recorded on the boot `boot_id`: on this host or another,
    /// today or before. `None` when the run does not say.
    #[must_use]
    pub fn of_run(info: &'static AdapterInfo, boot_id: Option<String>) -> Self {
        let mut ingest = Self::new(info);
        ingest.sink.boot_id = boot_id;
        ingest
    }

    /// Takes the next piece, of any size.
    pub fn feed(&mut self, chunk: &[u8]) {
        self.bytes += chunk.len() as u64;
        let room = HEAD_BYTES - self.head.len();
        self.head.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if self.sink.fatal.is_some() {
            return;
        }
        let Self { framer, adapter, sink, begun, .. } = self;
        framer.push(chunk, |block| adapter.records(from_begin(begun, block), sink));
        self.live.take(&self.sink.rows, self.sink.earlier);
    }

    /// Takes the next bytes in small pieces, between which the thread may rest.
    pub fn feed_in_pieces(&mut self, bytes: &[u8]) {
        for piece in bytes.chunks(PIECE_BYTES) {
            self.feed(piece);
            rest();
        }
    }

    /// Progress so far.
    #[must_use]
    pub fn live(&self) -> Live {
        let span_ns = self.live.last_start_ns.saturating_sub(self.live.first_start_ns);
        let count = (self.live.seen - self.live.from) as u64;
        Live {
            count,
            errors: self.live.errors,
            rate_hz: if span_ns == 0 {
                0.0
            } else {
                count.saturating_sub(1) as f64 * 1e9 / span_ns as f64
            },
            p99_ns: self
                .live
                .latencies
                .as_ref()
                .map_or(0, |latencies| latencies.value_at_quantile(0.99)),
        }
    }

    /// How many end marks of the format were read so far.
    #[must_use]
    pub fn ends(&self) -> u64 {
        self.adapter.ends()
    }

    /// Whether nothing of it can be used; see [`Ingest::failed`].
    #[must_use]
    pub const fn is_of_no_use(&self) -> bool {
        self.sink.fatal.is_some()
    }

    /// Bytes read.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Why nothing that follows can be used, as soon as that is known (the format is another one): a
    /// session can say so while the generator still runs. Another clock is known at the end only, because
    /// a header that can be used may follow.
    #[must_use]
    pub fn failed(&self) -> Option<IngestError> {
        self.sink.fatal.clone().map(|error| self.with_looks_like(error))
    }

    fn with_looks_like(&self, error: IngestError) -> IngestError {
        match error {
            IngestError::WrongFormat { expected, detail, .. } => {
                let looks_like = ADAPTERS
                    .iter()
                    .find(|info| {
                        info.name != expected && (info.looks_like)(without_mark(&self.head))
                    })
                    .map(|info| info.name);
                IngestError::WrongFormat { expected, detail, looks_like }
            }
            other => other,
        }
    }

    /// Nothing more comes: aligns what was read. `window` is the part of the clock in which the
    /// probes were attached, `seen` what is known of the generator's start.
    ///
    /// # Errors
    ///
    /// When there is no sample to work with.
    pub fn finish(
        mut self,
        anchors: &Anchors,
        window: Window,
        seen: &RelAnchor,
    ) -> Result<Ingested, IngestError> {
        self.take_whole_rest();
        let clock = self.adapter.clock().unwrap_or(self.info.clock);
        // The output itself may name this host.
        let clock_error = match self.clock_error {
            ClockError::Unknown if self.sink.same_host => ClockError::SameHost,
            other => other,
        };
        let clocks = Clocks { kind: clock, error: clock_error, anchors, window };
        let any = !self.sink.rows.is_empty();
        let earlier = align::leave_out_earlier(&mut self.sink, &clocks);
        self.sink.too_long = self.framer.too_long;
        if self.sink.fatal.is_none() {
            self.adapter.finish(&mut self.sink);
        }
        if let Some(error) = self.failed() {
            return Err(error);
        }
        if self.bytes == 0 {
            return Err(IngestError::Empty);
        }
        let cut = self.framer.is_discarding() || self.rest > 0;
        if !any {
            return Err(self.no_rows(cut));
        }
        if cut {
            self.sink.notes.push(format!(
                "the samples end in the middle of a record ({} bytes left over): observer used \
                 the complete records",
                self.rest
            ));
            self.sink.skip("truncated_record");
        }
        let truncated = cut || self.sink.unfinished;
        let mut skipped = self.skipped();
        let (samples, alignment, notes) =
            align::align(self.sink, &clocks, seen, earlier, &mut skipped)?;
        Ok(Ingested {
            intended_start_known: samples.iter().all(|sample| sample.intended_start.is_some()),
            samples,
            skipped,
            uncertainty_ns: alignment.uncertainty_ns,
            notes,
            truncated,
            over_wall_clock: clock.is_wall(),
            alignment,
        })
    }

    /// A last line without its line end: a JSON object that closes is whole all the same. A CSV
    /// record may go on, so it is not.
    fn take_whole_rest(&mut self) {
        let rest = self.framer.take_rest();
        let rest = from_begin(&mut self.begun, &rest);
        let closed = serde_json::from_slice::<serde::de::IgnoredAny>(rest).is_ok();
        if rest.trim_ascii().is_empty() || (self.info.framing == Framing::Lines && closed) {
            if self.sink.fatal.is_none() {
                self.adapter.records(rest, &mut self.sink);
            }
        } else {
            self.rest = rest.len();
        }
    }

    fn skipped(&self) -> BTreeMap<String, u64> {
        let mut skipped: BTreeMap<String, u64> =
            self.sink.skipped.iter().map(|(reason, count)| ((*reason).into(), *count)).collect();
        if self.framer.too_long > 0 {
            skipped.insert("record_too_long".into(), self.framer.too_long);
        }
        skipped
    }

    fn no_rows(&self, cut: bool) -> IngestError {
        let mut skipped = self.skipped();
        skipped.remove(align::EARLIER_RECORDING);
        let skipped: u64 = skipped.values().sum();
        if skipped > 0 {
            return self.with_looks_like(IngestError::WrongFormat {
                expected: self.info.name,
                detail: format!("none of {skipped} records could be read"),
                looks_like: None,
            });
        }
        if cut {
            // Another format's only line, without its end, is still another format.
            let error = self.with_looks_like(IngestError::WrongFormat {
                expected: self.info.name,
                detail: "no whole record".into(),
                looks_like: None,
            });
            return match &error {
                IngestError::WrongFormat { looks_like: Some(_), .. } => error,
                _ => IngestError::Truncated,
            };
        }
        if self.sink.structural > 0 {
            return IngestError::HeaderOnly { hint: self.sink.empty_hint };
        }
        IngestError::Empty
    }
}
