use std::io::{self, Cursor, Write};

use super::*;
use crate::clock::MonoNanos;
use crate::model::{
    Event, EventKind, FloorChange, FloorReason, MmCall, ReclaimScope, Sample, Tgid, Tid,
};
use observer_ebpf::wire::RecordKind;

fn event(index: u64) -> Event {
    let kinds = [
        EventKind::Runqueue {
            preempted: index.is_multiple_of(2),
            ran_tid: Tid(7),
            ran_tgid: Tgid(6),
            ran_comm: "hög\u{1b}[31m".into(),
        },
        EventKind::Fault { major: true, kernel_mode: false, address: u64::MAX },
        EventKind::Reclaim {
            scope: ReclaimScope::Memcg,
            reclaimed_pages: 512,
            order: 3,
            gfp_flags: 0x0014_00ca,
        },
        EventKind::Reclaim {
            scope: ReclaimScope::Direct,
            reclaimed_pages: 0,
            order: 0,
            gfp_flags: 0,
        },
        EventKind::Compaction { status: -3 },
        EventKind::MmSyscall {
            call: MmCall::Madvise,
            address: 0x7f00_0000_0000,
            length_bytes: 1 << 22,
            result: -12,
            argument: 4,
        },
        EventKind::SocketReleased {
            accepted: true,
            preexisting: false,
            family: 10,
            socket_type: 1,
        },
        EventKind::FdFailure { call: "accept", errno: 24 },
        EventKind::Fork { parent_tid: Tid(1), comm: String::new() },
        EventKind::Exec { comm: "nginx".into() },
        EventKind::Exit { comm: "nginx".into() },
        EventKind::Floor(FloorChange {
            record: RecordKind::MmSyscall,
            old_ns: 3_000,
            new_ns: 24_000,
            reason: FloorReason::Ring,
        }),
    ];
    Event {
        end: MonoNanos(1_000_000 + index * 1_000),
        duration_ns: index % 5 * 100,
        tid: Tid(4_000_000_000),
        tgid: Tgid(index as u32),
        cpu: 1,
        kind: kinds[index as usize % kinds.len()].clone(),
    }
}

fn sample(index: u64) -> Sample {
    Sample {
        intended_start: index.is_multiple_of(2).then_some(MonoNanos(index)),
        start: MonoNanos(index + 1),
        end: MonoNanos(index + 2),
        precision_ns: 1_000,
        status: index.is_multiple_of(3).then_some(503),
        ok: index.is_multiple_of(5),
        error: index.is_multiple_of(4).then(|| "refused, \"quoted\"\n".to_owned()),
        seq: index.is_multiple_of(7).then_some(index),
    }
}

/// A stream of `batches` batches of `rows` rows.
fn stream<R: Row>(batches: u64, rows: u64, make: impl Fn(u64) -> R, end: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TraceWriter::<R, _>::new(&mut bytes).unwrap();
    for batch in 0..batches {
        for row in 0..rows {
            writer.append(&make(batch * rows + row)).unwrap();
        }
        writer.flush().unwrap();
    }
    if end {
        writer.finish().unwrap();
    } else {
        drop(writer);
    }
    bytes
}

#[test]
fn every_kind_of_event_comes_back_as_it_was() {
    let bytes = stream(3, 12, event, true);
    let loaded = read::<Event>(Cursor::new(bytes)).unwrap();
    assert!(!loaded.truncated);
    assert_eq!(loaded.rows, (0..36).map(event).collect::<Vec<_>>());
}

#[test]
fn samples_come_back_as_they_were() {
    let rows = BATCH_ROWS as u64 + 5;
    let loaded = read::<Sample>(Cursor::new(stream(1, rows, sample, true))).unwrap();
    assert_eq!(loaded.rows, (0..rows).map(sample).collect::<Vec<_>>());
    let none = read::<Sample>(Cursor::new(stream(0, 0, sample, true))).unwrap();
    assert_eq!(none, Loaded { rows: Vec::new(), truncated: false });
}

#[test]
fn a_stream_cut_at_any_byte_gives_its_whole_batches() {
    let bytes = stream(3, 2, sample, true);
    let mut seen = std::collections::BTreeSet::new();
    for cut in 0..bytes.len() {
        let loaded = read::<Sample>(Cursor::new(&bytes[..cut]))
            .unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert!(loaded.truncated, "cut at {cut}");
        assert_eq!(loaded.rows, (0..loaded.rows.len() as u64).map(sample).collect::<Vec<_>>());
        seen.insert(loaded.rows.len());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 2, 4, 6]);
}

#[test]
fn a_writer_that_died_leaves_what_it_flushed() {
    let bytes = stream(2, 4, event, false);
    let loaded = read::<Event>(Cursor::new(bytes)).unwrap();
    assert!(loaded.truncated);
    assert_eq!(loaded.rows.len(), 8);
}

#[test]
fn another_content_or_format_is_refused() {
    let events = stream(1, 1, event, true);
    let error = read::<Sample>(Cursor::new(&events)).unwrap_err().to_string();
    assert!(error.contains("events") && error.contains("samples"), "{error}");
    for other in [&b"start,end\n1,2\n"[..], b"{\"a\": 1}", &[0u8; 64]] {
        assert!(matches!(read::<Event>(Cursor::new(other)), Err(TraceError::Schema(_))));
    }
    let newer = schema::<Event>().with_metadata(
        [(key::VERSION, "3"), (key::CONTENT, "events")]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    let writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &newer).unwrap();
    let error = read::<Event>(Cursor::new(writer.into_inner().unwrap())).unwrap_err().to_string();
    assert!(error.contains("newer"), "{error}");
}

#[test]
fn damaged_streams_never_panic_and_never_grow() {
    use rand::{RngExt, SeedableRng};
    let whole = stream(2, 12, event, true);
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    let mut refused = 0;
    for _ in 0..4_000 {
        let mut bytes = whole.clone();
        for _ in 0..random.random_range(1..4) {
            let at = random.random_range(0..bytes.len());
            bytes[at] = random.random();
        }
        match read::<Event>(Cursor::new(&bytes)) {
            Ok(loaded) => assert!(loaded.rows.len() <= 24),
            Err(_) => refused += 1,
        }
    }
    assert!(refused > 100, "{refused}");
}

/// A disk with room for so many bytes.
struct Disk {
    room: usize,
    held: Vec<u8>,
}

impl Write for &mut Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fits = bytes.len().min(self.room);
        if fits == 0 && !bytes.is_empty() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room -= fits;
        self.held.extend_from_slice(&bytes[..fits]);
        Ok(fits)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_an_error_and_the_stream_stays_readable() {
    let mut disk = Disk { room: 8_000, held: Vec::new() };
    let mut writer = TraceWriter::<Sample, _>::new(&mut disk).unwrap();
    let mut flushed = 0;
    let error = loop {
        writer.append(&sample(flushed)).unwrap();
        match writer.flush() {
            Ok(()) => flushed += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(&error, TraceError::Io(io) if io.kind() == io::ErrorKind::StorageFull));
    assert!(matches!(writer.append(&sample(0)), Err(TraceError::Broken)));
    assert!(matches!(writer.finish(), Err(TraceError::Broken)));
    let loaded = read::<Sample>(Cursor::new(&disk.held)).unwrap();
    assert!(loaded.truncated && flushed > 2);
    assert_eq!(loaded.rows, (0..flushed).map(sample).collect::<Vec<_>>());
}

#[test]
fn a_disk_that_is_full_from_the_start_refuses_the_stream() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert!(TraceWriter::<Event, _>::new(full).is_err());
}

#[test]
fn the_documented_columns_are_those_of_the_tables() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/TRACE_FORMAT.md");
    let mut text = std::fs::read_to_string(path).unwrap();
    if std::env::var_os("OBSERVER_UPDATE_DOCS").is_some() {
        for (title, table) in [
            ("### events.arrows\n", columns_markdown::<Event>()),
            ("### samples.arrows\n", columns_markdown::<Sample>()),
        ] {
            let section = text.find(title).unwrap();
            let from = section + text[section..].find("| column |").unwrap();
            let to = from + text[from..].find("\n\n").unwrap() + 1;
            text.replace_range(from..to, &table);
        }
        std::fs::write(path, &text).unwrap();
    }
    for table in [columns_markdown::<Event>(), columns_markdown::<Sample>()] {
        assert!(text.contains(&table), "run with OBSERVER_UPDATE_DOCS=1 to rewrite\n{table}");
    }
}
