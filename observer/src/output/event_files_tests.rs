use std::os::unix::fs::symlink;

use super::*;
use crate::model::TraceRow;
use crate::output::example;

fn directory() -> (tempfile::TempDir, RunDir) {
    let root = tempfile::tempdir().unwrap();
    let directory = RunDir::create(Some(&root.path().join("run"))).unwrap();
    (root, directory)
}

fn write(directory: &RunDir, events: &[Event]) {
    let mut writer = directory.create_events().unwrap();
    for event in events {
        writer.append(event).unwrap();
    }
    writer.finish().unwrap();
}

fn names(directory: &RunDir) -> Vec<String> {
    directory.event_files().unwrap().into_iter().map(|file| file.name).collect()
}

#[test]
fn each_kind_has_a_stream_and_all_come_back_by_time() {
    let (_root, directory) = directory();
    assert!(directory.read_events().unwrap().is_none());
    let mut events = example::events();
    write(&directory, &events);
    assert_eq!(names(&directory), ["mm_syscall.arrows", "reclaim.arrows", "runqueue.arrows"]);
    let loaded = directory.read_events().unwrap().unwrap();
    events.sort_by_key(|event| event.end);
    assert_eq!(loaded.rows, events);
    assert!(!loaded.truncated);
    assert_eq!(loaded.found.notes(), [""; 0]);
    assert_eq!(loaded.found.missing(), None);
    assert_eq!(loaded.found.rows.values().sum::<u64>(), events.len() as u64);
}

#[test]
fn a_damaged_stream_costs_its_rest_and_not_the_run() {
    let (_root, directory) = directory();
    let events = example::events();
    write(&directory, &events);
    std::fs::write(directory.path().join("reclaim.arrows"), "not arrow at all").unwrap();
    std::fs::write(directory.path().join("lock_wait.arrows"), "").unwrap();
    let loaded = directory.read_events().unwrap().unwrap();
    assert_eq!(loaded.rows.len(), events.len() / 3 * 2);
    assert!(loaded.rows.iter().all(|event| event.name() != "reclaim"));
    assert_eq!(loaded.found.cut, ["lock_wait.arrows"], "made, and nothing written yet");
    let problem = loaded.found.missing().unwrap();
    assert!(problem.contains("reclaim.arrows") && problem.contains("not an Arrow"), "{problem}");
    assert_eq!(loaded.found.notes().len(), 2);
    // What is no file of ours is not read.
    std::fs::remove_file(directory.path().join("reclaim.arrows")).unwrap();
    symlink("/dev/zero", directory.path().join("reclaim.arrows")).unwrap();
    let problem = directory.read_events().unwrap().unwrap().found.missing().unwrap();
    assert!(problem.contains("symbolic link"), "{problem}");
}

#[test]
fn a_stream_whose_columns_are_damaged_is_read_and_said() {
    let (_root, directory) = directory();
    let mut events = example::events();
    write(&directory, &events);
    let path = directory.path().join("reclaim.arrows");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100..600].fill(0);
    std::fs::write(&path, bytes).unwrap();
    let loaded = directory.read_events().unwrap().unwrap();
    events.sort_by_key(|event| event.end);
    assert_eq!(loaded.rows, events);
    assert_eq!((loaded.truncated, loaded.found.missing()), (false, None));
    let said = "reclaim.arrows is damaged: the description of its columns, which was read from a \
                copy, and all batches were read";
    assert_eq!(loaded.found.notes(), [said]);
}

#[test]
fn a_link_in_the_place_of_a_stream_is_not_followed() {
    let (root, directory) = directory();
    let aim = root.path().join("aim");
    symlink(&aim, directory.path().join("fault.arrows")).unwrap();
    let mut writer = directory.create_events().unwrap();
    assert!(writer.append(&example::fault(1, 1, 1)).is_err());
    assert!(!aim.exists());
}

#[test]
fn a_trace_of_bounded_size_keeps_its_newest_part() {
    const LIMIT_BYTES: u64 = 400_000;
    let (_root, directory) = directory();
    let mut writer = directory.create_event_ring(LIMIT_BYTES).unwrap();
    let mut largest = 0;
    let mut at = 0;
    for second in 1..200u64 {
        for _ in 0..100 {
            at += 1;
            // Rows count on where a segment begins.
            assert_eq!(writer.append(&example::fault(at, 1, at)).unwrap(), at - 1);
        }
        writer.flush(MonoNanos(at)).unwrap();
        let bytes: u64 = names(&directory)
            .iter()
            .map(|name| std::fs::metadata(directory.path().join(name)).unwrap().len())
            .sum();
        largest = largest.max(bytes);
        assert!(bytes <= LIMIT_BYTES, "{bytes} bytes after {second} seconds");
    }
    assert!(largest > LIMIT_BYTES / 2, "{largest}");
    let removed = writer.removed().clone();
    writer.finish().unwrap();
    let loaded = directory.read_events().unwrap().unwrap();
    assert!(!loaded.truncated);
    // None is missing between what was removed and the end.
    assert_eq!(removed.rows["fault"], at - loaded.rows.len() as u64);
    assert_eq!(loaded.rows[0].end.0, removed.until.0 + 1);
    let ends: Vec<u64> = loaded.rows.iter().map(|event| event.end.0).collect();
    assert_eq!(ends, (removed.until.0 + 1..=at).collect::<Vec<_>>());
    assert!(names(&directory).len() > 4);
    // Rows count what is still there, over all segments.
    let mut next = 0;
    directory
        .each_event(|events| {
            for event in events {
                assert_eq!(event.row, TraceRow::new(event.event.row().kind, next));
                next += 1;
            }
        })
        .unwrap();
    assert_eq!(next, loaded.rows.len() as u64);
}

#[test]
fn rows_lead_to_the_records_also_of_a_stream_that_was_torn() {
    let (_root, directory) = directory();
    let mut writer = directory.create_events().unwrap();
    let mut written: BTreeMap<(u16, u64), Event> = BTreeMap::new();
    let mut runqueue_rows = Vec::new();
    for batch in 1..=4u64 {
        // Kinds that take turns, with a different number of each in every batch.
        for (index, mut event) in example::events().into_iter().enumerate() {
            event.end.0 += batch;
            let times = if index % 3 == 0 { batch } else { 1 };
            for fault in 0..times {
                let fault = example::fault(event.end.0 + fault, 1, batch);
                written.insert((fault.row().kind, writer.append(&fault).unwrap()), fault);
            }
            written.insert((event.row().kind, writer.append(&event).unwrap()), event);
        }
        runqueue_rows.push(written.values().filter(|event| event.name() == "runqueue").count());
        writer.flush(MonoNanos(batch)).unwrap();
    }
    writer.finish().unwrap();
    // The last batch of a stream: its end mark of eight bytes, and a part of its body.
    let torn = std::fs::File::options()
        .write(true)
        .open(directory.path().join("runqueue.arrows"))
        .unwrap();
    torn.set_len(torn.metadata().unwrap().len() - 50).unwrap();
    let mut stalls = Vec::new();
    let found = directory
        .each_event(|events| {
            for event in events {
                let stall = event.stalls().next().unwrap();
                let row = stall.row.expect("it is in the trace");
                let key = (row.kind(), u64::from(row.row()));
                assert_eq!(written.remove(&key), Some(event.event), "{row:?}");
                assert_eq!(stall.holder, event.event.holder());
                stalls.push(stall);
            }
        })
        .unwrap();
    assert_eq!(found.cut, ["runqueue.arrows"]);
    assert_eq!(found.rows["runqueue"], runqueue_rows[2] as u64);
    // What was not read is the torn batch, and nothing else.
    assert_eq!(written.len(), runqueue_rows[3] - runqueue_rows[2]);
    assert!(written.values().all(|event| event.name() == "runqueue"));
    assert!(stalls.iter().any(|stall| stall.holder.is_some()));
}
