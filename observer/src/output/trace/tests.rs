use std::io::{self, Cursor, Write};
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, UInt64Builder};
use arrow_array::{Array, ArrayRef, RecordBatch, StringArray, UInt32Array, UInt64Array};
use arrow_schema::{DataType, Field as ArrowField};
use bytemuck::{Pod, Zeroable};
use observer_ebpf::wire::{
    Address, CompactionRecord, FD_ERRNOS, FaultBurstRecord, FaultRecord, FdFailureRecord,
    FdSyscall, Header, IrqBurstRecord, IrqRecord, KernelLockRecord, MmSyscallBurstRecord,
    MmSyscallRecord, NO_SYSCALL, OWN_KINDS, OutgoingRecord, RECLAIM_MEMCG, RUNQUEUE_PREEMPTED,
    ReclaimRecord, Record, RecordKind, RequestRecord, RunqueueRecord, SOCKET_ACCEPTED, Series,
    SleepRecord, SocketRecord, SoftirqRecord, StackRecord, TASK_EXEC, TASK_EXIT, TASK_FORK,
    TaskRecord,
};

use super::*;
use crate::clock::MonoNanos;
use crate::model::{
    Event, FloorChange, FloorReason, LossScope, LossSecond, ProbeChange, RecordRow, Sample,
    SamplingChange, StreamComplete, TraceRow, field,
};
use crate::output::example;
use crate::probe;

/// Events of every kind, with values at the ends of their ranges.
fn events(index: u64) -> Vec<Event> {
    let at = 1_000_000 + index * 1_000;
    let header = |kind, flags| Header {
        tid: 4_000_000_000,
        tgid: index as u32,
        ..example::header(kind, flags, 1, at, index % 5 * 100)
    };
    let mut ran_comm = [0; 16];
    ran_comm[..9].copy_from_slice("hög\u{1b}[31m".as_bytes());
    let task = |flags| TaskRecord {
        header: header(RecordKind::Task, flags),
        parent_tid: if flags == TASK_FORK { 9 } else { 0 },
        reserved: 0,
        comm: ran_comm,
    };
    let reclaim = |flags| ReclaimRecord {
        header: header(RecordKind::Reclaim, flags),
        reclaimed_pages: 512,
        gfp_flags: 0x0014_00ca,
        order: 3,
    };
    vec![
        example::event(&RunqueueRecord {
            header: header(RecordKind::Runqueue, RUNQUEUE_PREEMPTED * (index % 2) as u16),
            ran_tid: 7,
            ran_tgid: 6,
            ran_comm,
            ran_cgroup: u64::MAX,
            other_ns: index,
            own_ns: u64::MAX,
            idle_ns: 3,
            throttled_ns: 4,
        }),
        example::event(&FaultRecord {
            header: header(RecordKind::Fault, (index % 4) as u16),
            address: u64::MAX,
        }),
        example::event(&reclaim(RECLAIM_MEMCG)),
        example::event(&reclaim(0)),
        example::event(&CompactionRecord {
            header: header(RecordKind::Compaction, 0),
            status: -3,
            reserved: 0,
        }),
        example::event(&MmSyscallRecord {
            header: header(RecordKind::MmSyscall, 0),
            address: 0x7f00_0000_0000,
            length_bytes: 1 << 22,
            result: -12,
            series: Series::Madvise as u32,
            argument: 4,
        }),
        example::event(&SocketRecord {
            header: header(RecordKind::Socket, SOCKET_ACCEPTED),
            family: 10,
            socket_type: 1,
        }),
        example::event(&FdFailureRecord {
            header: header(RecordKind::FdFailure, 0),
            syscall: FdSyscall::Accept as u32,
            errno: FD_ERRNOS[0].0,
        }),
        example::event(&SoftirqRecord {
            header: header(RecordKind::Softirq, 0),
            vector: index as u32 % 10,
            reserved: 0,
        }),
        example::event(&IrqRecord {
            header: header(RecordKind::Irq, 0),
            kind: index as u32 % 6,
            number: 36,
            name: *b"virtio1-req.0\0\0\0",
        }),
        example::event(&IrqBurstRecord {
            header: header(RecordKind::IrqBurst, 0),
            first_ns: index,
            count: 2,
            reserved: 0,
        }),
        example::event(&StackRecord {
            header: header(RecordKind::Stack, (index % 2) as u16),
            kernel_stack: i32::MAX,
            user_stack: -14,
        }),
        example::event(&KernelLockRecord {
            header: header(RecordKind::KernelLock, (index % 16) as u16),
            holder_tid: u32::MAX,
            holder_tgid: 5,
            holder_syscall: 11,
            syscall: u32::MAX,
        }),
        example::event(&RequestRecord {
            header: header(RecordKind::Request, (index % 8) as u16),
            read_ns: at,
            first_send_ns: u64::MAX,
            bytes_in: 1,
            bytes_out: u64::MAX,
            sender_tid: u32::MAX,
            sends: 3,
            local_port: 80,
            remote_port: 65_535,
            remote_address: Address(match index % 2 {
                0 => std::net::Ipv4Addr::new(192, 0, 2, 255).to_ipv6_mapped().octets(),
                _ => std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets(),
            }),
        }),
        example::event(&OutgoingRecord {
            header: header(RecordKind::Outgoing, (index % 2) as u16),
            sender_tid: u32::MAX,
            remote_port: 6_379,
            remote_address: Address(std::net::Ipv6Addr::LOCALHOST.octets()),
        }),
        example::event(&FaultBurstRecord {
            header: header(RecordKind::FaultBurst, 0),
            first_ns: at - 1_000,
            count: u32::MAX,
            reserved: 0,
        }),
        example::event(&MmSyscallBurstRecord {
            header: header(RecordKind::MmSyscallBurst, 0),
            first_ns: index,
            count: 1,
            reserved: 0,
        }),
        example::event(&SleepRecord {
            header: header(RecordKind::Sleep, (index % 16) as u16),
            syscall: if index.is_multiple_of(3) { NO_SYSCALL } else { 230 },
            remote_port: 6_379,
            argument_1: u64::MAX,
            argument_2: index,
            argument_3: 0,
            remote_address: Address(std::net::Ipv6Addr::LOCALHOST.octets()),
            waker_tid: 1_000 + index as u32,
            waker_tgid: 1_000,
        }),
        example::event(&task(TASK_FORK)),
        example::event(&task(TASK_EXEC)),
        example::event(&task(TASK_EXIT)),
        FloorChange {
            record: RecordKind::MmSyscall,
            old_ns: 3_000,
            new_ns: 24_000,
            reason: FloorReason::Ring,
        }
        .event(MonoNanos(at)),
        LossSecond { loss: 3, scope: LossScope::Host, count: u64::MAX }
            .event(MonoNanos(at), MonoNanos(at - 10)),
        SamplingChange { record: RecordKind::Socket, old_one_in: 1, new_one_in: 8 }
            .event(MonoNanos(at)),
        ProbeChange { probe: "mm_syscall", attached: index.is_multiple_of(2) }.event(MonoNanos(at)),
        StreamComplete { until: MonoNanos(at), kind: index as u16 % 5, rows: u64::MAX }
            .event(MonoNanos(at)),
    ]
}

/// The events of one kind.
fn of_kind(name: &str, indices: std::ops::Range<u64>) -> Vec<Event> {
    indices.flat_map(events).filter(|event| event.name() == name).collect()
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
        local_port: index.is_multiple_of(2).then_some(40_000 + (index % 1_000) as u16),
    }
}

/// A stream of batches.
fn stream<C: Columns>(columns: C, batches: &[Vec<C::Row>], end: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = TraceWriter::new(&mut bytes, columns, None).unwrap();
    for batch in batches {
        batch.iter().for_each(|row| writer.append(row).unwrap());
        writer.flush().unwrap();
    }
    if end {
        writer.finish().unwrap();
    } else {
        drop(writer);
    }
    bytes
}

fn samples(batches: u64, rows: u64) -> Vec<u8> {
    let batch = |batch| (batch * rows..(batch + 1) * rows).map(sample).collect();
    stream(SampleColumns::default(), &(0..batches).map(batch).collect::<Vec<_>>(), true)
}

fn read_samples(bytes: &[u8]) -> Result<Loaded<Sample>, TraceError> {
    read(Cursor::new(bytes), None, &mut SampleReader)
}

fn read_events(bytes: &[u8]) -> Result<Loaded<TraceEvent>, TraceError> {
    read(Cursor::new(bytes), None, &mut EventReader::default())
}

#[test]
fn every_kind_of_event_comes_back_as_it_was() {
    for row in probe::records() {
        let batches = [of_kind(row.name, 0..12), of_kind(row.name, 12..17)];
        let loaded = read_events(&stream(EventColumns::new(row), &batches, true)).unwrap();
        assert!(!loaded.truncated && !loaded.rows.is_empty(), "{}", row.name);
        let rows = loaded.rows.iter().map(|event| event.row);
        assert!(rows.eq((0..loaded.rows.len() as u64).map(|index| TraceRow::new(row.kind, index))));
        let events: Vec<Event> = loaded.rows.iter().map(|event| event.event).collect();
        assert_eq!(events, batches.concat(), "{}", row.name);
    }
}

#[test]
fn samples_come_back_as_they_were() {
    let rows = BATCH_ROWS as u64 + 5;
    let loaded = read_samples(&samples(1, rows)).unwrap();
    assert_eq!(loaded.rows, (0..rows).map(sample).collect::<Vec<_>>());
    let none = read_samples(&samples(0, 0)).unwrap();
    assert_eq!(none, Loaded { rows: Vec::new(), truncated: false, damage: Damage::default() });
}

/// A record of the future: a list, and a field that older versions lack.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ListRecord {
    header: Header,
    frames: [u64; 6],
    depth: u32,
    reserved: u32,
}

impl Record for ListRecord {
    const KIND: u16 = OWN_KINDS + 100;
}

static LIST: RecordRow = RecordRow::new::<ListRecord>(
    "list",
    "A list.",
    &[
        field!(ListRecord.frames, "frames", "return addresses"),
        field!(ListRecord.depth, "depth", "how many there are").optional(),
    ],
);

#[test]
fn lists_keep_their_lengths() {
    let record = |frames: &[u64]| {
        let mut record = ListRecord::zeroed();
        record.frames[..frames.len()].copy_from_slice(frames);
        record.depth = frames.len() as u32;
        Event::decode(&LIST, bytemuck::bytes_of(&record)).unwrap()
    };
    let events = [record(&[1, u64::MAX, 3]), record(&[]), record(&[9; 6])];
    let mut columns = EventColumns::new(&LIST);
    events.iter().for_each(|event| columns.push(event));
    let schema = Arc::new(columns.schema());
    let batch = RecordBatch::try_new(schema, columns.finish()).unwrap();
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event::tests::event_of(&batch, &LIST, index).unwrap(), Some(*event));
    }
    assert_eq!((LIST.detail)(&events[0]), "frames [1, 18446744073709551615, 3], depth 3");
    // Without the column that may be missing.
    let batch = batch.project(&[0, 1, 2, 3]).unwrap();
    let found = event::tests::event_of(&batch, &LIST, 2).unwrap().unwrap();
    assert_eq!(
        found.record::<ListRecord>().map(|stack| (stack.frames, stack.depth)),
        Some(([9; 6], 0))
    );
    let batch = batch.project(&[0, 1, 2]).unwrap();
    let error = event::tests::event_of(&batch, &LIST, 2).unwrap_err().to_string();
    assert!(error.contains("frames") && error.contains("missing"), "{error}");
}

/// A stream as a later version might write it.
fn foreign(metadata: &[(&str, &str)], columns: Vec<(&str, ArrayRef)>) -> Vec<u8> {
    let fields: Vec<_> = columns
        .iter()
        .map(|(name, array)| ArrowField::new(*name, array.data_type().clone(), true))
        .collect();
    let metadata: std::collections::HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let schema = Arc::new(Schema::new(fields).with_metadata(metadata));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(schema.clone(), arrays).unwrap();
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(Vec::new(), &schema).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

fn numbers(values: &[u64]) -> ArrayRef {
    Arc::new(UInt64Array::from(values.to_vec()))
}

fn ids(values: &[u32]) -> ArrayRef {
    Arc::new(UInt32Array::from(values.to_vec()))
}

#[test]
fn columns_are_read_by_name_and_unknown_ones_are_skipped() {
    let mut frames = ListBuilder::new(UInt64Builder::new());
    frames.append_value([Some(1), Some(2)]);
    frames.append_value([]);
    let metadata = [(key::VERSION, "3"), (key::CONTENT, "event"), (key::KIND, "fd_failure")];
    let columns = |call: [&str; 2]| -> Vec<(&str, ArrayRef)> {
        vec![
            ("errno", ids(&[24, 23])),
            ("syscall", Arc::new(StringArray::from(call.to_vec()))),
            ("container", Arc::new(StringArray::from(vec!["a", "b"]))),
            ("cpu", ids(&[1, 0])),
            ("tid", ids(&[5, 6])),
            ("tgid", ids(&[5, 5])),
            ("duration_ns", numbers(&[0, 0])),
            ("end_ns", numbers(&[100, 200])),
        ]
    };
    let mut with_list = columns(["accept", "open"]);
    with_list.insert(0, ("frames", Arc::new(frames.finish())));
    let mut reader = EventReader::default();
    let loaded = read(Cursor::new(foreign(&metadata, with_list)), None, &mut reader).unwrap();
    assert_eq!(loaded.rows.len(), 2);
    assert_eq!(
        loaded.rows[1]
            .event
            .record::<FdFailureRecord>()
            .map(|record| (record.syscall, record.errno)),
        Some((FdSyscall::Open as u32, 23))
    );
    assert_eq!(Vec::from_iter(reader.unknown_columns), ["container", "frames"]);
    // A row with a word that only a later version knows is skipped.
    let mut reader = EventReader::default();
    let bytes = foreign(&metadata, columns(["pidfd_open", "open"]));
    let loaded = read(Cursor::new(bytes), None, &mut reader).unwrap();
    let kind = RecordKind::FdFailure as u16;
    assert_eq!((loaded.rows.len(), reader.skipped_rows), (1, 1));
    assert_eq!(loaded.rows[0].row, TraceRow::new(kind, 1), "the row that was skipped counts");
    // All kinds in one stream, as version 2 has them: no row in a stream of its kind.
    let metadata_2 = [(key::VERSION, "2"), (key::CONTENT, "events")];
    let mut all = columns(["accept", "open"]);
    all.push(("kind", Arc::new(StringArray::from(vec!["fd_failure"; 2]))));
    let loaded = read_events(&foreign(&metadata_2, all)).unwrap();
    assert_eq!(loaded.rows.iter().map(|event| event.row).collect::<Vec<_>>(), [None, None]);
    // A column that is needed costs the stream.
    let mut short = columns(["accept", "open"]);
    short.remove(0);
    let error = read_events(&foreign(&metadata, short)).unwrap_err().to_string();
    assert!(error.contains("errno"), "{error}");
    let metadata = [(key::VERSION, "3"), (key::CONTENT, "event"), (key::KIND, "lock_wait")];
    let error = read_events(&foreign(&metadata, columns(["a", "b"]))).unwrap_err();
    assert!(matches!(&error, TraceError::UnknownKind(kind) if kind == "lock_wait"), "{error}");
}

#[test]
fn a_stream_cut_at_any_byte_gives_its_whole_batches() {
    let bytes = samples(3, 2);
    let mut seen = std::collections::BTreeSet::new();
    for cut in 0..bytes.len() {
        let loaded =
            read_samples(&bytes[..cut]).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert!(loaded.truncated, "cut at {cut}");
        assert_eq!(loaded.rows, (0..loaded.rows.len() as u64).map(sample).collect::<Vec<_>>());
        seen.insert(loaded.rows.len());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 2, 4, 6]);
}

#[test]
fn a_writer_that_died_leaves_what_it_flushed() {
    let row = probe::record(RecordKind::Fault).unwrap();
    let batches = [of_kind("fault", 0..4), of_kind("fault", 4..8)];
    let loaded = read_events(&stream(EventColumns::new(row), &batches, false)).unwrap();
    assert!(loaded.truncated);
    assert_eq!(loaded.rows.len(), 8);
}

#[test]
fn another_content_or_format_is_refused() {
    let row = probe::record(RecordKind::Fault).unwrap();
    let events = stream(EventColumns::new(row), &[of_kind("fault", 0..1)], true);
    let error = read_samples(&events).unwrap_err().to_string();
    assert!(error.contains("event") && error.contains("samples"), "{error}");
    assert!(read_events(&samples(1, 1)).is_err());
    for other in [&b"start,end\n1,2\n"[..], b"{\"a\": 1}", &[0u8; 64]] {
        assert!(matches!(read_events(other), Err(TraceError::Schema(_))));
    }
    let newer = [(key::VERSION, "5"), (key::CONTENT, "event"), (key::KIND, "fault")];
    let error = read_events(&foreign(&newer, vec![("end_ns", numbers(&[1]))])).unwrap_err();
    assert!(error.to_string().contains("newer"), "{error}");
}

#[test]
fn columns_that_cannot_be_stepped_over_are_refused() {
    let metadata = [(key::VERSION, "3"), (key::CONTENT, "event"), (key::KIND, "fault")];
    let dictionary: arrow_array::DictionaryArray<arrow_array::types::Int32Type> =
        vec!["a"].into_iter().collect();
    assert!(matches!(dictionary.data_type(), DataType::Dictionary(..)));
    let columns: Vec<(&str, ArrayRef)> =
        vec![("end_ns", numbers(&[1])), ("words", Arc::new(dictionary))];
    assert!(read_events(&foreign(&metadata, columns)).is_err());
}

#[test]
fn damaged_streams_never_panic_and_never_grow() {
    use rand::{RngExt, SeedableRng};
    let mut random = rand::rngs::StdRng::seed_from_u64(1);
    let mut frames = ListBuilder::new(UInt64Builder::new());
    (0..24).for_each(|_| frames.append_value([Some(1), Some(2)]));
    let rows: Vec<u64> = (0..24).collect();
    let small: Vec<u32> = (0..24).collect();
    let metadata = [(key::VERSION, "3"), (key::CONTENT, "event"), (key::KIND, "fd_failure")];
    let listed = foreign(
        &metadata,
        vec![
            ("frames", Arc::new(frames.finish())),
            ("end_ns", numbers(&rows)),
            ("duration_ns", numbers(&rows)),
            ("tid", ids(&small)),
            ("tgid", ids(&small)),
            ("cpu", ids(&small)),
            ("errno", ids(&small)),
            ("syscall", Arc::new(StringArray::from(vec!["open"; 24]))),
        ],
    );
    assert_eq!(read_events(&listed).unwrap().rows.len(), 24);
    let row = probe::record(RecordKind::Runqueue).unwrap();
    let batches = [of_kind("runqueue", 0..12), of_kind("runqueue", 12..24)];
    for whole in [stream(EventColumns::new(row), &batches, true), listed] {
        let mut noticed = 0;
        for _ in 0..3_000 {
            let mut bytes = whole.clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            match read_events(&bytes) {
                Ok(loaded) => {
                    assert!(loaded.rows.len() <= 24);
                    noticed += u32::from(loaded.truncated || loaded.damage != Damage::default());
                }
                Err(_) => noticed += 1,
            }
        }
        assert!(noticed > 100, "{noticed}");
    }
}

/// A disk with room for this many bytes.
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
    let mut writer = TraceWriter::new(&mut disk, SampleColumns::default(), None).unwrap();
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
    let loaded = read_samples(&disk.held).unwrap();
    assert!(loaded.truncated && flushed > 2);
    assert_eq!(loaded.rows, (0..flushed).map(sample).collect::<Vec<_>>());
}

#[test]
fn a_disk_that_is_full_from_the_start_refuses_the_stream() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert!(TraceWriter::new(full, SampleColumns::default(), None).is_err());
}

#[test]
fn docs_trace_format_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/TRACE_FORMAT.md");
    let mut text = std::fs::read_to_string(path).unwrap();
    let parts = [
        ("common", common_markdown()),
        ("kinds", fields_markdown()),
        ("samples", columns_markdown()),
    ];
    let mark = |end: &str, name: &str| format!("<!-- {end}generated: {name} -->\n");
    if std::env::var_os("OBSERVER_UPDATE_DOCS").is_some() {
        for (name, table) in &parts {
            let begin = mark("", name);
            let from = text.find(&begin).unwrap() + begin.len();
            let to = text.find(&mark("end of ", name)).unwrap();
            text.replace_range(from..to, &format!("\n{}\n", table.trim_end()));
        }
        std::fs::write(path, &text).unwrap();
    }
    for (_, table) in &parts {
        assert!(text.contains(table.trim_end()), "run `cargo xtask docs` to rewrite it\n{table}");
    }
}

#[path = "damage_tests.rs"]
mod damage;
