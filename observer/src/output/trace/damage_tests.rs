//! Damaged bits, holes, and bytes of other streams.

use super::*;

/// One bit a byte, and the highest.
fn damaged_copies(bytes: &[u8]) -> impl Iterator<Item = (usize, Vec<u8>)> {
    let bits = (0..bytes.len()).flat_map(|index| [(index, index % 8), (index, 7)]);
    bits.map(|(index, bit)| {
        let mut damaged = bytes.to_vec();
        damaged[index] ^= 1 << bit;
        (index, damaged)
    })
}

#[test]
fn a_damaged_bit_costs_one_batch_and_is_said() {
    let bytes = samples(3, 2);
    let whole = read_samples(&bytes).unwrap();
    assert_eq!((whole.rows.len(), &whole.damage, whole.truncated), (6, &Damage::default(), false));
    let mut counts = std::collections::BTreeMap::new();
    for (index, damaged) in damaged_copies(&bytes) {
        let Loaded { rows, truncated, damage } = read_samples(&damaged).unwrap();
        assert!(truncated || damage != Damage::default(), "byte {index} is damaged in silence");
        if damage.columns {
            assert_eq!((&rows, truncated), (&whole.rows, false), "byte {index}");
            assert_eq!(damage, Damage { columns: true, ..Damage::default() }, "byte {index}");
            *counts.entry("columns").or_insert(0) += 1;
            continue;
        }
        assert!(rows.iter().all(|row| whole.rows.contains(row)), "byte {index}");
        assert!(rows.len() >= 4, "byte {index}: {} rows are left", rows.len());
        let key = if rows.len() == 6 { "end mark" } else { "one batch" };
        *counts.entry(key).or_insert(0) += 1;
        // What lies between two whole batches is counted exactly.
        if rows.len() == 4 && rows[3] == whole.rows[5] {
            let first = Some(1 + u64::from(rows[1] == whole.rows[1]));
            let wanted = Damage { batches: 1, first, rows: 2, ..Damage::default() };
            assert_eq!(damage, wanted, "byte {index}");
        }
    }
    println!("{counts:?}");
    assert!(counts["one batch"] > 1_000 && counts["end mark"] == 16, "{counts:?}");
    assert_eq!(counts["columns"], 2 * end_of(0), "{counts:?}");
}

/// Where a stream of samples with so many batches ends, the end mark excepted.
fn end_of(batches: u64) -> usize {
    samples(batches, 2).len() - seal::PREFIX_BYTES
}

#[test]
fn a_stream_without_its_columns_is_read_by_a_copy_in_any_of_several_batches() {
    let bytes = samples(6, 2);
    let whole = read_samples(&bytes).unwrap();
    // The begin is zero, up to the end of so many batches.
    for lost in 0..6 {
        let mut damaged = bytes.clone();
        damaged[..end_of(lost)].fill(0);
        let loaded = read_samples(&damaged);
        // The last copy is in batch 4.
        if lost >= 4 {
            assert!(matches!(loaded, Err(TraceError::Schema(_))), "{loaded:?}");
            continue;
        }
        let loaded = loaded.unwrap();
        assert_eq!(loaded.rows, whole.rows[lost as usize * 2..]);
        let first = (lost > 0).then_some(1);
        let (batches, rows, columns) = (lost, lost * 2, true);
        let wanted = Damage { batches, first, rows, columns, ..Damage::default() };
        assert_eq!(loaded.damage, wanted);
    }
    // Copies are few.
    let columns = end_of(0);
    let length = |batch| end_of(batch) - end_of(batch - 1);
    for batch in 1..20u64 {
        let more = if batch.is_power_of_two() { columns } else { 0 };
        // Every other batch has a text.
        let without = if batch % 2 == 1 { 3 } else { 6 };
        assert_eq!(length(batch), length(without) + more, "batch {batch}");
    }
    // A stream that was cut in its columns has nothing else.
    let cut = read_samples(&bytes[..columns - 1]).unwrap();
    assert_eq!((cut.rows.len(), cut.truncated), (0, true));
}

#[test]
fn bytes_that_are_missing_repeated_or_foreign_are_said() {
    let bytes = samples(3, 2);
    let whole = read_samples(&bytes).unwrap().rows;
    let (one, two) = (samples(1, 2).len(), samples(2, 2).len());
    // Before the end mark.
    let (second, batch) = (one - 8, two - one);
    let mut without = bytes.clone();
    without.drain(second..second + batch);
    let loaded = read_samples(&without).unwrap();
    let lost = Damage { batches: 1, first: Some(2), rows: 2, ..Damage::default() };
    assert_eq!(loaded.damage, lost);
    assert_eq!(loaded.rows, [&whole[..2], &whole[4..]].concat());
    // A hole of any size costs the batches that it touches.
    let mut holed = bytes.clone();
    holed.drain(second + 10..second + batch - 10);
    let loaded = read_samples(&holed).unwrap();
    assert_eq!((loaded.damage, loaded.rows.len()), (lost, 4));
    let stray = Damage { stray: true, ..Damage::default() };
    for foreign in [&bytes[second..second + batch], b"something else"] {
        let mut more = bytes.clone();
        more.splice(second..second, foreign.iter().copied());
        let loaded = read_samples(&more).unwrap();
        assert_eq!((loaded.damage, &loaded.rows), (stray.clone(), &whole));
    }
}

#[test]
fn a_stream_of_another_run_is_refused() {
    let of_run = |id: Option<&str>| {
        let mut bytes = Vec::new();
        TraceWriter::new(&mut bytes, SampleColumns::default(), id).unwrap().finish().unwrap();
        bytes
    };
    let read = |bytes: Vec<u8>, id: Option<&str>| read(Cursor::new(bytes), id, &mut SampleReader);
    assert!(read(of_run(Some("a")), Some("a")).is_ok() && read(of_run(Some("a")), None).is_ok());
    assert!(matches!(read(of_run(Some("a")), Some("b")), Err(TraceError::OtherRun)));
    assert!(matches!(read(of_run(None), Some("b")), Err(TraceError::OtherRun)));
}
