//! The streams of events in a run directory: a file for each kind that occurred. A daemon's are cut
//! into segments, of which the oldest are removed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{BufReader, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{self, AtFlags};

use super::rundir::{RunDir, create_new};
use super::trace::{
    Damage, Ended, EventColumns, EventReader, TraceError, TraceEvent, TraceWriter, read_each,
};
use crate::clock::MonoNanos;
use crate::error::Result;
use crate::model::{Event, LossSpan, RecordRow, files};
use crate::pace::rest;

/// A trace of bounded size has this many segments; the oldest is removed to make room.
const SEGMENTS: u64 = 8;
/// Maximum number of stream files to read in a directory.
const FILES_MAX: usize = 10_000;

/// A file of a run directory that is named like a stream of events.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EventFile {
    /// Its kind, going by its name.
    kind: String,
    /// Which segment; 0 where there is but one.
    segment: u64,
    /// Its name.
    pub(super) name: String,
}

impl EventFile {
    /// `runqueue.arrows`, or `runqueue.12.arrows`.
    fn parse(name: &str) -> Option<Self> {
        let stem = name.strip_suffix(files::STREAM_SUFFIX).filter(|_| name != files::SAMPLES)?;
        let (kind, segment) = match stem.rsplit_once('.') {
            Some((kind, segment)) => (kind, segment.parse().ok()?),
            None => (stem, 0),
        };
        Some(Self { kind: kind.to_owned(), segment, name: name.to_owned() })
    }
}

/// Counts what is written to a file.
struct Counted {
    file: File,
    bytes: Arc<AtomicU64>,
}

impl Write for Counted {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.bytes.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// One stream that is being written.
struct Stream {
    writer: TraceWriter<EventColumns, Counted>,
    name: String,
    row: &'static RecordRow,
    /// Rows in this file.
    rows: u64,
}

/// Files that are removed together.
struct Segment {
    names: Vec<String>,
    rows: Vec<(&'static str, u64)>,
    bytes: u64,
    /// Everything in it ended before this instant.
    end: MonoNanos,
}

/// The segments of a trace of bounded size.
struct Ring {
    limit_bytes: u64,
    current: u64,
    closed: VecDeque<Segment>,
}

/// Rows by the name of the file that they are in.
pub type StreamRows = BTreeMap<String, u64>;

/// The events removed from a trace of bounded size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Rows, by kind.
    pub rows: BTreeMap<&'static str, u64>,
    /// Events that ended after this instant are still there, if they were written.
    pub until: MonoNanos,
}

/// Writes events, each into the stream of its kind. After a failed write, the files stay as they
/// are, readable up to the last complete batch of each stream.
pub struct EventWriter {
    directory: OwnedFd,
    run_id: Option<String>,
    streams: BTreeMap<u16, Stream>,
    /// Rows so far, by kind, removed ones included.
    rows: BTreeMap<u16, u64>,
    bytes: Arc<AtomicU64>,
    ring: Option<Ring>,
    removed: Removed,
}

impl EventWriter {
    /// Appends one event; its row in the stream of its kind.
    ///
    /// # Errors
    /// When a batch was due and could not be written, or a file could not be made.
    pub fn append(&mut self, event: &Event) -> std::result::Result<u64, TraceError> {
        let row = event.row();
        if !self.streams.contains_key(&row.kind) {
            let stream = self.start(row)?;
            self.streams.insert(row.kind, stream);
        }
        let number = self.rows.entry(row.kind).or_insert(0);
        if let Some(stream) = self.streams.get_mut(&row.kind) {
            stream.rows += 1;
            stream.writer.append(event)?;
        }
        *number += 1;
        Ok(*number - 1)
    }

    fn start(&self, row: &'static RecordRow) -> std::result::Result<Stream, TraceError> {
        let name = match &self.ring {
            None => format!("{}{}", row.name, files::STREAM_SUFFIX),
            Some(ring) => format!("{}.{}{}", row.name, ring.current, files::STREAM_SUFFIX),
        };
        let file = create_new(&self.directory, name.as_str()).map_err(std::io::Error::from)?;
        let file = Counted { file, bytes: Arc::clone(&self.bytes) };
        let writer = TraceWriter::new(file, EventColumns::new(row), self.run_id.as_deref())?;
        Ok(Stream { writer, name, row, rows: 0 })
    }

    /// Puts everything appended so far into the files, in the order of the kinds. `true` when a new
    /// segment begins.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self, now: MonoNanos) -> std::result::Result<bool, TraceError> {
        for stream in self.streams.values_mut() {
            stream.writer.flush()?;
            rest();
        }
        let Some(ring) = &mut self.ring else { return Ok(false) };
        let segment_bytes = ring.limit_bytes / SEGMENTS;
        if self.bytes.load(Ordering::Relaxed) < segment_bytes {
            return Ok(false);
        }
        let mut segment = Segment { names: Vec::new(), rows: Vec::new(), bytes: 0, end: now };
        for stream in std::mem::take(&mut self.streams).into_values() {
            segment.names.push(stream.name);
            segment.rows.push((stream.row.name, stream.rows));
            stream.writer.finish()?;
        }
        segment.bytes = self.bytes.swap(0, Ordering::Relaxed);
        ring.closed.push_back(segment);
        ring.current += 1;
        let held = |ring: &Ring| ring.closed.iter().map(|segment| segment.bytes).sum::<u64>();
        while held(ring) + segment_bytes > ring.limit_bytes {
            let Some(oldest) = ring.closed.pop_front() else { break };
            for name in &oldest.names {
                match fs::unlinkat(&self.directory, name.as_str(), AtFlags::empty()) {
                    Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                    Err(errno) => return Err(TraceError::Io(errno.into())),
                }
            }
            for (kind, rows) in oldest.rows {
                *self.removed.rows.entry(kind).or_insert(0) += rows;
            }
            self.removed.until = oldest.end;
        }
        Ok(true)
    }

    /// The files that are there, with what has been appended to each.
    #[must_use]
    pub fn streams(&self) -> StreamRows {
        let open = self.streams.values().map(|stream| (stream.name.clone(), stream.rows));
        let closed = self.ring.iter().flat_map(|ring| &ring.closed);
        let closed = closed.flat_map(|segment| {
            segment.names.iter().cloned().zip(segment.rows.iter().map(|(_, rows)| *rows))
        });
        open.chain(closed).collect()
    }

    /// Rows so far, by kind.
    #[must_use]
    pub const fn rows(&self) -> &BTreeMap<u16, u64> {
        &self.rows
    }

    /// What was removed so far.
    #[must_use]
    pub const fn removed(&self) -> &Removed {
        &self.removed
    }

    /// Flushes, and marks the ends of the streams: a reader then knows that nothing is missing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> std::result::Result<(), TraceError> {
        self.streams.into_values().try_for_each(|stream| stream.writer.finish())
    }
}

/// What reading the streams of a run found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventsRead {
    /// Files read.
    pub files: usize,
    /// Rows, by kind; what version 2 kept in one stream is under `events`.
    pub rows: BTreeMap<String, u64>,
    /// Streams without their end mark: what was not flushed when the writer died is missing.
    pub cut: Vec<String>,
    /// Streams of which parts were skipped because they are damaged.
    pub skipped: Vec<(String, Damage)>,
    /// What was in the skipped parts, by kind and time.
    pub lost: Vec<LossSpan>,
    /// What should be there, going by `run.json`, and is not; one sentence each.
    pub absent: Vec<String>,
    /// Streams of which the rest, or all, cannot be read, with why.
    pub damaged: Vec<(String, String)>,
    /// Streams of kinds that this version does not know.
    pub unknown_kinds: Vec<String>,
    /// Columns that this version does not know.
    pub unknown_columns: BTreeSet<String>,
    /// Rows with a value that this version does not know.
    pub skipped_rows: u64,
}

impl EventsRead {
    /// Notes for the user, one sentence each.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        match self.cut.as_slice() {
            [] => {}
            [one] => notes.push(format!("{one} ends early: its last moments are missing")),
            several => notes
                .push(format!("{} end early: their last moments are missing", several.join(", "))),
        }
        notes.extend(self.skipped.iter().map(|(name, damage)| damage_note(name, damage)));
        notes.extend(self.absent.iter().cloned());
        notes.extend(self.damaged.iter().map(|(_, problem)| problem.clone()));
        if !self.unknown_kinds.is_empty() {
            notes.push(format!(
                "{} streams of kinds that this observer does not know were skipped: {}",
                self.unknown_kinds.len(),
                self.unknown_kinds.join(", ")
            ));
        }
        if !self.unknown_columns.is_empty() {
            let names: Vec<&str> = self.unknown_columns.iter().map(String::as_str).collect();
            notes.push(format!(
                "{} columns that this observer does not know were skipped: {}",
                names.len(),
                names.join(", ")
            ));
        }
        if self.skipped_rows > 0 {
            notes.push(format!(
                "{} rows contain values that this observer does not know and were skipped",
                crate::text::count(self.skipped_rows)
            ));
        }
        notes
    }

    /// Why stalls may be missing although their streams were written, if that is so.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        if let Some((_, problem)) = self.damaged.first() {
            return Some(problem.clone());
        }
        if let Some(absent) = self.absent.first() {
            return Some(absent.clone());
        }
        // What is known to be missing, and from when, counts as lost.
        if let Some((name, damage)) = self.skipped.iter().find(|(_, damage)| damage.more_rows) {
            return Some(damage_note(name, damage));
        }
        (self.skipped_rows > 0)
            .then(|| format!("{} rows cannot be read", crate::text::count(self.skipped_rows)))
    }
}

/// What is said of a damaged stream that could be read behind the damage.
#[must_use]
pub fn damage_note(name: &str, damage: &Damage) -> String {
    let mut text = format!("{name} is damaged");
    if damage.columns {
        text += ": the description of its columns, which was read from a copy";
        if *damage == (Damage { columns: true, ..Damage::default() }) {
            return text + ", and all batches were read";
        }
        text += ", and more";
    }
    if let Some(first) = damage.first {
        text += &format!(": {} of its batches", crate::text::count(damage.batches));
        text += if damage.batches == 1 { " does" } else { " do" };
        text += &format!(" not match their checksum or are missing, the first is batch {first}; ");
        text += &match (damage.rows, damage.more_rows) {
            (0, true) => "it is not known how many rows are missing".to_owned(),
            (rows, true) => format!("{} rows or more are missing", crate::text::count(rows)),
            (rows, false) => format!("{} rows are missing", crate::text::count(rows)),
        };
    } else {
        text += ": it has bytes that belong to no batch";
    }
    text + ", and all others were read"
}

/// The streams that a run wrote, going by `run.json`, less those that were found.
pub(super) struct Wanted {
    streams: StreamRows,
    absent: Vec<String>,
    /// The oldest segment that is there.
    oldest: Option<u64>,
}

impl Wanted {
    fn new(mut streams: StreamRows) -> Self {
        streams.retain(|name, _| EventFile::parse(name).is_some());
        Self { streams, absent: Vec::new(), oldest: None }
    }

    /// The requests alone.
    pub(super) fn of_samples(streams: &StreamRows) -> Self {
        let samples = streams.get_key_value(files::SAMPLES);
        let streams = samples.map(|(name, rows)| (name.clone(), *rows)).into_iter().collect();
        Self { streams, absent: Vec::new(), oldest: None }
    }

    /// It was read, and had so many rows.
    pub(super) fn note(&mut self, name: &str, rows: u64) {
        let segment = EventFile::parse(name).map_or(0, |file| file.segment);
        self.oldest = Some(self.oldest.map_or(segment, |oldest| oldest.min(segment)));
        let wanted = self.streams.remove(name).unwrap_or(0);
        if rows < wanted {
            self.absent.push(format!(
                "{name} has {} rows, and {} were written to it",
                crate::text::count(rows),
                crate::text::count(wanted)
            ));
        }
    }

    /// It cannot be read, which is said elsewhere.
    fn leave(&mut self, name: &str) {
        self.streams.remove(name);
    }

    /// What is missing, one sentence each. A daemon removes its oldest segments, and may have been
    /// killed before it noted that.
    pub(super) fn absent(mut self) -> Vec<String> {
        let oldest = self.oldest.unwrap_or(0);
        for (name, rows) in self.streams {
            let file = EventFile::parse(&name);
            if file.is_none_or(|file| file.segment == 0 || file.segment >= oldest) {
                let (name, rows) = (crate::text::clean(&name, 60), crate::text::count(rows));
                self.absent.push(format!("{name} is missing: the run wrote {rows} rows to it"));
            }
        }
        self.absent
    }
}

/// All events of a run, by the instant they ended.
#[derive(Debug)]
pub struct EventsLoaded {
    /// The events.
    pub rows: Vec<Event>,
    /// A stream does not end with its end mark.
    pub truncated: bool,
    /// What reading found.
    pub found: EventsRead,
}

impl RunDir {
    /// Writes events into this directory, a stream a kind.
    ///
    /// # Errors
    /// When the directory's descriptor cannot be copied.
    pub fn create_events(&self) -> Result<EventWriter> {
        self.events_writer(None)
    }

    /// Like [`RunDir::create_events`], with a limit of the disk space: the oldest events are
    /// removed.
    ///
    /// # Errors
    /// As [`RunDir::create_events`].
    pub fn create_event_ring(&self, limit_bytes: u64) -> Result<EventWriter> {
        self.events_writer(Some(Ring { limit_bytes, current: 1, closed: VecDeque::new() }))
    }

    fn events_writer(&self, ring: Option<Ring>) -> Result<EventWriter> {
        let directory = self.directory.try_clone().map_err(|error| {
            let text = format!("cannot write events into {}: {error}", self.path().display());
            crate::error::Error::new(crate::error::Exit::Output, text)
        })?;
        Ok(EventWriter {
            directory,
            run_id: self.run_id(),
            streams: BTreeMap::new(),
            rows: BTreeMap::new(),
            bytes: Arc::default(),
            ring,
            removed: Removed::default(),
        })
    }

    /// The streams of events in the directory, going by their names: by kind, the oldest first.
    pub(super) fn event_files(&self) -> rustix::io::Result<Vec<EventFile>> {
        let mut found = Vec::new();
        for entry in fs::Dir::read_from(&self.directory)? {
            found.extend(entry?.file_name().to_str().ok().and_then(EventFile::parse));
            if found.len() >= FILES_MAX {
                break;
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Hands over the events of all streams, a batch at a time, one kind behind the other. The rest
    /// of a damaged stream is skipped, and the result reports it.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub fn each_event(&self, mut each: impl FnMut(&[TraceEvent])) -> Result<EventsRead> {
        let names = self.event_files().map_err(|errno| self.read_error(".", errno))?;
        let mut found = EventsRead::default();
        let run_id = self.run_id();
        let mut wanted = Wanted::new(self.wanted_streams());
        for EventFile { kind, name, .. } in names {
            let file = match self.open_file(&name) {
                Ok(Some(file)) => file,
                // Removed by its writer since the directory was listed.
                Ok(None) => continue,
                Err(error) => {
                    wanted.leave(&name);
                    found.damaged.push((name, error.to_string()));
                    continue;
                }
            };
            let rows = found.rows.entry(kind).or_insert(0);
            let before = *rows;
            let mut reader = EventReader::starting_at(*rows);
            let input = BufReader::with_capacity(1 << 18, file);
            let read = read_each(input, run_id.as_deref(), &mut reader, |batch| each(batch));
            *rows = reader.next_row();
            found.files += 1;
            wanted.note(&name, *rows - before);
            found.skipped_rows += reader.skipped_rows;
            found.lost.append(&mut reader.lost);
            found.unknown_columns.append(&mut reader.unknown_columns);
            match read {
                Ok(Ended { truncated, damage }) => {
                    if damage != Damage::default() {
                        found.skipped.push((name.clone(), damage));
                    }
                    if truncated {
                        found.cut.push(name);
                    }
                }
                Err(TraceError::UnknownKind(kind)) => found.unknown_kinds.push(kind),
                Err(error) => {
                    wanted.leave(&name);
                    let problem = self.read_error(&name, error).to_string();
                    found.damaged.push((name, problem));
                }
            }
        }
        found.absent = wanted.absent();
        Ok(found)
    }

    /// Reads all events, by the instant they ended; `None` when there are no streams.
    ///
    /// # Errors
    /// As [`RunDir::each_event`].
    pub fn read_events(&self) -> Result<Option<EventsLoaded>> {
        let mut rows = Vec::new();
        let found =
            self.each_event(|events| rows.extend(events.iter().map(|event| event.event)))?;
        rows.sort_by_key(|event: &Event| event.end);
        let truncated = !found.cut.is_empty();
        Ok((found.files > 0 || !found.damaged.is_empty()).then_some(EventsLoaded {
            rows,
            truncated,
            found,
        }))
    }
}

#[cfg(test)]
#[path = "event_files_tests.rs"]
mod tests;
