//! `hey -o csv`, as of 0.1.4 (requester/print.go): written at the end, offsets from hey's own
//! process start, 0.1 ms resolution, without failed requests.

use super::{
    Adapter, AdapterInfo, ClockKind, Dial, Dials, Framing, IngestError, IntendedStart, MALFORMED,
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

/// hey stops keeping rows here (requester/requester.go, `maxRes`).
const HEY_MAX_ROWS: usize = 1_000_000;

const LATENCY: &str = "response-time";
const DIAL: &str = "DNS+dialup";
const DNS: &str = "DNS";
/// What follows the dial until the end of the answer (requester/requester.go, `makeRequest`).
const AFTER_DIAL: [&str; 3] = ["Request-write", "Response-delay", "Response-read"];
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
    after_dial: [Option<usize>; 3],
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
            after_dial: AFTER_DIAL.map(at),
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
        if dialled {
            // The connection is there when the request is written. Each time is rounded to the next
            // step, and so half a step off at most.
            let after_ns: u64 = columns.after_dial.into_iter().flatten().filter_map(time).sum();
            let earliest_ns = (start_ns + dns_ns).saturating_sub(PRECISION_NS);
            let end_ns = start_ns.saturating_add(latency_ns);
            let latest_ns = end_ns.saturating_sub(after_ns).saturating_add(3 * PRECISION_NS);
            let latest_ns = latest_ns.max(earliest_ns + PRECISION_NS);
            sink.dials.push(Dial { earliest_ns, latest_ns });
        }
        let (status, error, ok) = outcome(Some(status), None);
        Some(RawRow {
            intended_start_ns: None,
            start_ns,
            latency_ns,
            status,
            error,
            seq: None,
            local_port: None,
            ok,
        })
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
                            sink.dials = Dials::default();
                            sink.recordings += 1;
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
        // Its releases are named hey_linux_amd64.
        sink.program = INFO.name;
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
