//! `vegeta attack | vegeta encode -to json`: one object a line, live.

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::vegeta::{self, Hit};
use super::{Adapter, AdapterInfo, ClockKind, Framing, IntendedStart, MALFORMED, Sink};

/// The row of this adapter.
pub(super) static INFO: AdapterInfo = AdapterInfo {
    name: "vegeta-json",
    aliases: &[],
    doc: "`vegeta attack -max-body 0 ... | vegeta encode -to json`",
    clock: ClockKind::WallAtStart,
    intended_start: IntendedStart::Derived,
    framing: Framing::Lines,
    looks_like,
    start: || Box::new(VegetaJson),
};

/// The keys that are used; body and headers are passed over.
#[derive(Deserialize)]
struct Line {
    seq: u64,
    code: u16,
    timestamp: String,
    latency: u64,
    #[serde(default)]
    error: Option<String>,
}

impl Line {
    fn hit(self) -> Option<Hit> {
        let start = OffsetDateTime::parse(&self.timestamp, &Rfc3339).ok()?;
        Some(Hit {
            start_ns: u64::try_from(start.unix_timestamp_nanos()).ok()?,
            latency_ns: self.latency,
            code: self.code,
            seq: self.seq,
            error: self.error.unwrap_or_default(),
        })
    }
}

fn looks_like(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    let first = text.lines().next().unwrap_or_default();
    let keys = ["\"seq\":", "\"code\":", "\"timestamp\":", "\"latency\":"];
    first.starts_with('{') && keys.iter().all(|key| first.contains(key))
}

#[derive(Debug)]
struct VegetaJson;

impl Adapter for VegetaJson {
    fn records(&mut self, block: &[u8], sink: &mut Sink) {
        for line in block.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii) {
            if line.is_empty() {
                continue;
            }
            match serde_json::from_slice::<Line>(line).ok().and_then(Line::hit) {
                Some(hit) => vegeta::push(hit, sink),
                None => sink.skip(MALFORMED),
            }
        }
    }

    fn finish(&mut self, sink: &mut Sink) {
        vegeta::finish(sink);
    }
}
