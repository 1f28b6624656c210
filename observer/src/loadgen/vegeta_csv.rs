//! `vegeta attack | vegeta encode -to csv`: twelve columns, no header, live.

use super::vegeta::{self, Hit};
use super::{Adapter, AdapterInfo, ClockKind, Framing, IntendedStart, MALFORMED, Sink};

/// The row of this adapter.
pub(super) static INFO: AdapterInfo = AdapterInfo {
    name: "vegeta-csv",
    aliases: &[],
    doc: "`vegeta attack -max-body 0 ... | vegeta encode -to csv`",
    clock: ClockKind::WallAtStart,
    intended_start: IntendedStart::Derived,
    framing: Framing::Csv,
    looks_like,
    start: || Box::new(VegetaCsv),
};

/// start, code, latency, bytes out, bytes in, error, body, attack, seq, method, URL, headers. The
/// comment in lib/results.go lists body before error; the code writes error first.
const COLUMNS: usize = 12;

/// No wall-clock time in nanoseconds has fewer digits since 2001.
const MIN_START_NS: u64 = 1_000_000_000_000_000_000;

fn looks_like(head: &[u8]) -> bool {
    // A body in the first record may be longer than the head: the first columns suffice.
    let text = String::from_utf8_lossy(head);
    let mut fields = text.lines().next().unwrap_or_default().splitn(6, ',');
    let mut number = || fields.next().and_then(|field| field.parse::<u64>().ok());
    number().is_some_and(|start| start >= MIN_START_NS)
        && number().is_some_and(|code| code <= 999)
        && number().is_some()
        && number().is_some()
        && number().is_some()
}

fn hit(record: &csv::ByteRecord) -> Option<Hit> {
    if record.len() != COLUMNS {
        return None;
    }
    let text = |column: usize| record.get(column).and_then(|field| std::str::from_utf8(field).ok());
    let start_ns = text(0)?.parse().ok().filter(|start| *start >= MIN_START_NS)?;
    Some(Hit {
        start_ns,
        code: text(1)?.parse().ok()?,
        latency_ns: text(2)?.parse().ok()?,
        error: String::from_utf8_lossy(record.get(5)?).into_owned(),
        seq: text(8)?.parse().ok()?,
    })
}

#[derive(Debug)]
struct VegetaCsv;

impl Adapter for VegetaCsv {
    fn records(&mut self, block: &[u8], sink: &mut Sink) {
        let mut reader =
            csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(block);
        let mut record = csv::ByteRecord::new();
        // Reading from a slice, flexible and as bytes: no error is left that could end this early.
        while let Ok(true) = reader.read_byte_record(&mut record) {
            match hit(&record) {
                Some(hit) => vegeta::push(hit, sink),
                None => sink.skip(MALFORMED),
            }
        }
    }

    fn finish(&mut self, sink: &mut Sink) {
        vegeta::finish(sink);
    }
}
