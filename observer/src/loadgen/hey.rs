//! `hey -o csv`, as of 0.1.4 (requester/print.go): written at the end, offsets from hey's own
//! process start, 0.1 ms resolution, without failed requests.

use super::{
    Adapter, AdapterInfo, ClockKind, FirstDial, Framing, IngestError, IntendedStart, MALFORMED,
    RawRow, Sink, outcome,
};

/// The row of this adapter.
pub(super) static INFO: AdapterInfo = AdapterInfo {
    name: "hey",
    aliases: &[],
    doc: "`hey -o csv URL`: written when hey ends; hey omits failed requests",
    clock: ClockKind::Relative,
    intended_start: IntendedStart::Unknown,
    framing: Framing::Csv,
    looks_like,
    start: || Box::<Hey>::default(),
};

/// Seconds with four decimals.
const PRECISION_NS: u64 = 100_000;

/// hey's zero (its package initialisation) came 2.5 to 14 ms after the spawn, where it was
/// measured; a slower host may take longer.
const ZERO_AFTER_SPAWN_NS: (u64, u64) = (1_500_000, 20_000_000);

/// hey stops keeping rows here (requester/requester.go, `maxRes`).
const HEY_MAX_ROWS: usize = 1_000_000;

const LATENCY: &str = "response-time";
const DIAL: &str = "DNS+dialup";
const DNS: &str = "DNS";
const STATUS: &str = "status-code";
const OFFSET: &str = "offset";

fn looks_like(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    let first = text.lines().next().unwrap_or_default();
    Columns::of(first.split(',')).is_some()
}

/// Position of each value. Columns are found by name, so that another order is not misread.
#[derive(Clone, Copy, Debug)]
struct Columns {
    latency: usize,
    status: usize,
    offset: usize,
    dial: Option<usize>,
    dns: Option<usize>,
}

impl Columns {
    fn of<'a>(names: impl Iterator<Item = &'a str>) -> Option<Self> {
        let names: Vec<&str> = names.map(str::trim).collect();
        let at = |wanted: &str| names.iter().position(|name| *name == wanted);
        Some(Self {
            latency: at(LATENCY)?,
            status: at(STATUS)?,
            offset: at(OFFSET)?,
            dial: at(DIAL),
            dns: at(DNS),
        })
    }
}

/// Seconds in decimal notation as nanoseconds, without passing through a float.
fn seconds_to_ns(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let sub: u64 = format!("{fraction:0<9}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1_000_000_000)?.checked_add(sub)
}

#[derive(Debug, Default)]
struct Hey {
    columns: Option<Columns>,
}

impl Hey {
    fn row(columns: Columns, record: &csv::StringRecord, sink: &mut Sink) -> Option<RawRow> {
        let time = |column: usize| record.get(column).and_then(seconds_to_ns);
        let start_ns = time(columns.offset)?;
        let latency_ns = time(columns.latency)?;
        let status: u16 = record.get(columns.status)?.parse().ok()?;
        let dial_ns = columns.dial.and_then(time).unwrap_or(0);
        let dns_ns = columns.dns.and_then(time).unwrap_or(0);
        // A dial that took longer than its request is an odd number, and no anchor.
        let dialled = (1..=latency_ns + PRECISION_NS).contains(&dial_ns) && dns_ns <= dial_ns;
        if dialled && sink.first_dial.is_none_or(|first| start_ns < first.start_ns) {
            sink.first_dial = Some(FirstDial { start_ns, dns_ns });
        }
        let (status, error, ok) = outcome(Some(status), None);
        Some(RawRow { intended_start_ns: None, start_ns, latency_ns, status, error, seq: None, ok })
    }
}

impl Adapter for Hey {
    fn records(&mut self, block: &[u8], sink: &mut Sink) {
        let mut reader =
            csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(block);
        let mut record = csv::StringRecord::new();
        loop {
            if sink.fatal.is_some() {
                return;
            }
            match reader.read_record(&mut record) {
                Ok(false) => return,
                Err(_) => sink.skip("not_utf8"),
                Ok(true) => match self.columns {
                    Some(columns) if record.get(columns.latency) != Some(LATENCY) => {
                        match Self::row(columns, &record, sink) {
                            Some(row) => sink.push(row),
                            None => sink.skip(MALFORMED),
                        }
                    }
                    _ => match Columns::of(record.iter()) {
                        Some(columns) => {
                            // hey was run again, on the same file: the times count from anew.
                            self.columns = Some(columns);
                            sink.earlier = sink.rows.len();
                            sink.first_dial = None;
                            sink.structural += 1;
                        }
                        None => {
                            sink.fatal = Some(IngestError::WrongFormat {
                                expected: INFO.name,
                                detail: format!(
                                    "the first line has no columns {LATENCY}, {STATUS}, {OFFSET} \
                                     (was hey called with -o csv?)"
                                ),
                                looks_like: None,
                            });
                        }
                    },
                },
            }
        }
    }

    fn finish(&mut self, sink: &mut Sink) {
        sink.precision_ns = PRECISION_NS;
        sink.zero_after_spawn_ns = Some(ZERO_AFTER_SPAWN_NS);
        sink.empty_hint = "hey omits failed requests from its CSV: run it without -o csv to see \
                           the errors";
        sink.notes.push(
            "hey writes times in steps of 0.1 ms, omits failed requests, and sends nothing while \
             it waits for a slow answer: these samples lack errors and part of the slow time"
                .into(),
        );
        if sink.rows.len() >= HEY_MAX_ROWS {
            sink.notes
                .push(format!("hey keeps at most {HEY_MAX_ROWS} rows: later requests are missing"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_read_exactly() {
        assert_eq!(seconds_to_ns("0.0007"), Some(700_000));
        assert_eq!(seconds_to_ns("3.0011"), Some(3_001_100_000));
        assert_eq!(seconds_to_ns("12"), Some(12_000_000_000));
        for bad in ["", "-1.0", "1e3", ".5", "NaN", "0.0000000001", "99999999999999999999"] {
            assert_eq!(seconds_to_ns(bad), None, "{bad}");
        }
    }
}
