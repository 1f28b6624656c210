//! The output: rows as they come, and the figures they add up to.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::client::Done;
use crate::loadgen::observer_load::{EndLine, EndSummary, Header, Quantiles, Row, is_success};

/// Rows between the requests and the writer. When the reader of the output stops reading, this
/// many are held before rows are lost (counted): the schedule never waits for the output.
pub(super) const QUEUE_ROWS: usize = 1 << 18;

/// A row waits this long at most for others before it is flushed.
const FLUSH_EVERY: Duration = Duration::from_millis(20);

/// Latencies above an hour are recorded as an hour.
const MAX_NS: u64 = 3_600_000_000_000;

/// A finished request on its way to the output.
pub(super) struct Finished {
    pub(super) seq: u64,
    pub(super) intended_ns: u64,
    pub(super) done: Done,
}

/// Counts for the progress line.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) rows: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) lost: AtomicU64,
}

/// Where requests leave their result.
#[derive(Clone)]
pub(super) struct RowSender(SyncSender<Finished>);

impl RowSender {
    /// Never waits; a row that finds no room is counted.
    pub(super) fn send(&self, row: Finished, progress: &Progress) {
        match self.0.try_send(row) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                progress.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

pub(super) fn queue(capacity: usize) -> (RowSender, Receiver<Finished>) {
    let (sender, receiver) = sync_channel(capacity);
    (RowSender(sender), receiver)
}

/// What all rows add up to.
#[derive(Debug)]
pub struct Totals {
    /// Rows.
    pub sent: u64,
    /// Successes: an answer with an HTTP status of 200 to 399, or without a status.
    pub ok: u64,
    /// Failures by kind; `status_503` for an answer that is no success.
    pub errors: BTreeMap<String, u64>,
    /// Requests that got any answer.
    pub answered: u64,
    /// End minus intended start, of answered requests.
    pub response: Histogram<u64>,
    /// End minus actual start, of answered requests.
    pub service: Histogram<u64>,
    /// Actual minus intended start, of all.
    pub lateness: Histogram<u64>,
    /// First actual start.
    pub first_start_ns: u64,
    /// Last actual start.
    pub last_start_ns: u64,
}

impl Totals {
    fn new() -> Result<Self, hdrhistogram::CreationError> {
        let histogram = || Histogram::new_with_bounds(1, MAX_NS, 3);
        Ok(Self {
            sent: 0,
            ok: 0,
            errors: BTreeMap::new(),
            answered: 0,
            response: histogram()?,
            service: histogram()?,
            lateness: histogram()?,
            first_start_ns: u64::MAX,
            last_start_ns: 0,
        })
    }

    fn take(&mut self, finished: &Finished) {
        let Done { start, end, outcome, .. } = &finished.done;
        self.sent += 1;
        self.first_start_ns = self.first_start_ns.min(start.0);
        self.last_start_ns = self.last_start_ns.max(start.0);
        self.lateness.saturating_record(start.0.saturating_sub(finished.intended_ns));
        match outcome {
            Ok(status) => {
                self.answered += 1;
                self.response.saturating_record(end.0.saturating_sub(finished.intended_ns));
                self.service.saturating_record(end.since(*start));
                match status {
                    Some(status) if !is_success(*status) => {
                        *self.errors.entry(format!("status_{status}")).or_default() += 1;
                    }
                    _ => self.ok += 1,
                }
            }
            Err(failure) => {
                *self.errors.entry(failure.kind().to_owned()).or_default() += 1;
            }
        }
    }

    /// Failures of all kinds.
    #[must_use]
    pub fn error_count(&self) -> u64 {
        self.sent - self.ok
    }

    /// Requests per second, by actual starts.
    #[must_use]
    pub fn rate_hz(&self) -> f64 {
        let span_ns = self.last_start_ns.saturating_sub(self.first_start_ns);
        if span_ns == 0 { 0.0 } else { (self.sent - 1) as f64 * 1e9 / span_ns as f64 }
    }
}

/// Median, 99th percentile and largest.
pub(super) fn quantiles(histogram: &Histogram<u64>) -> Quantiles {
    if histogram.is_empty() {
        return Quantiles::default();
    }
    Quantiles {
        p50: histogram.value_at_quantile(0.5),
        p99: histogram.value_at_quantile(0.99),
        max: histogram.max(),
    }
}

fn row(finished: &Finished) -> Row {
    let Done { start, end, local_port, outcome } = &finished.done;
    let (status, error) = match outcome {
        Ok(status) => (*status, None),
        Err(failure) => (None, Some(format!("{}: {failure}", failure.kind()))),
    };
    Row {
        seq: Some(finished.seq),
        intended_start_ns: Some(finished.intended_ns),
        start_ns: start.0,
        latency_ns: end.since(*start),
        status,
        error,
        local_port: *local_port,
    }
}

/// Writes rows until every sender is gone, then the summary line.
pub(super) struct Writer<W: Write> {
    out: W,
    buffer: Vec<u8>,
    totals: Totals,
}

impl<W: Write> Writer<W> {
    /// Writes the header line.
    pub(super) fn begin(out: W, header: &Header) -> std::io::Result<Self> {
        let totals = Totals::new().map_err(std::io::Error::other)?;
        let mut writer = Self { out, buffer: Vec::with_capacity(64 << 10), totals };
        writer.line(header)?;
        writer.flush()?;
        Ok(writer)
    }

    fn line(&mut self, value: &impl serde::Serialize) -> std::io::Result<()> {
        serde_json::to_writer(&mut self.buffer, value)?;
        self.buffer.push(b'\n');
        Ok(())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if !self.buffer.is_empty() {
            self.out.write_all(&self.buffer)?;
            self.buffer.clear();
        }
        self.out.flush()
    }

    /// Runs until the last request is done.
    // The receiver goes with the writer: after a failed write, rows have nowhere to wait.
    #[expect(clippy::needless_pass_by_value)]
    pub(super) fn run(
        mut self,
        rows: Receiver<Finished>,
        progress: &Progress,
        interrupted: impl Fn() -> bool,
    ) -> std::io::Result<Totals> {
        // Rows that come close together share a write, so that a high rate costs few system calls
        // and a low one is still live.
        let mut flushed = Instant::now();
        loop {
            let next = if self.buffer.is_empty() {
                rows.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                rows.recv_timeout(FLUSH_EVERY.saturating_sub(flushed.elapsed()))
            };
            match next {
                Ok(finished) => {
                    if self.buffer.is_empty() {
                        flushed = Instant::now();
                    }
                    self.totals.take(&finished);
                    self.line(&row(&finished))?;
                    progress.rows.fetch_add(1, Ordering::Relaxed);
                    progress.errors.store(self.totals.error_count(), Ordering::Relaxed);
                    if flushed.elapsed() >= FLUSH_EVERY {
                        self.flush()?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => self.flush()?,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let summary = EndSummary {
            sent: self.totals.sent,
            ok: self.totals.ok,
            errors: self.totals.error_count(),
            rows_lost: progress.lost.load(Ordering::Relaxed),
            lateness_ns: quantiles(&self.totals.lateness),
            interrupted: interrupted(),
        };
        self.line(&EndLine { summary })?;
        self.flush()?;
        Ok(self.totals)
    }
}
