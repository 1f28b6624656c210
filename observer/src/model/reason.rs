//! Reasons: why an answer is what it is, for programs and for users.

use serde::{Deserialize, Serialize};

/// One reason: a code for programs, a sentence for users, and the numbers behind both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(from = "Written")]
pub struct Reason {
    /// What it is about: one of [`REASON_CODES`], or a code of another version.
    pub code: String,
    /// The same in English.
    pub text: String,
    /// The numbers, by name: an object.
    pub evidence: serde_json::Value,
}

/// The codes of this version, and what each says.
pub static REASON_CODES: &[(&str, &str)] = &[
    ("cause_named", "a cause accounts for a part of the extra latency"),
    ("nothing_found", "no watched cause accounts for the extra latency"),
    ("no_samples", "no load generator was read"),
    ("none_slow", "no request is slow by the rule"),
    ("healthy", "the slow requests are hardly slower than the typical ones"),
    ("samples_unusable", "none of the samples can be used"),
    ("samples_skipped", "so many rows could not be used that they may be the slow ones"),
    ("samples_error", "the load generator's output could not be read"),
    ("samples_damaged", "the load generator's output, as it was kept, is damaged"),
    ("samples_note", "a remark about how the samples were read"),
    ("samples_left_out", "samples outside the run, or that end before they begin"),
    ("few_typical", "too few typical requests to compare with"),
    ("few_slow", "too few slow requests"),
    ("few_episodes", "too few separate episodes of slow requests to rule out coincidence"),
    ("few_phases", "so few slow phases that the answer is about these alone"),
    ("same_period", "a cause recurs with the period of the slow requests, which proves nothing"),
    ("thin_evidence", "a cause may account for much, but is not statistically significant"),
    ("covers_most", "the stalls of a cause cover so much that its part cannot be told"),
    ("not_watched", "a cause was not watched, or not completely"),
    ("records_lost", "records or events of the target were lost"),
    ("seconds_left_out", "slow requests in the seconds of a loss were left out"),
    ("thresholds_raised", "short stalls went unrecorded while recording thresholds were raised"),
    (
        "short_stalls",
        "stalls too short for records may be more than half of `service_cpu`, or of what is unexplained",
    ),
    ("clock_stepped", "the wall clock stepped during the run"),
    ("foreign_clock", "all recorded stalls lie far outside the run"),
    ("clock_inexact", "the samples' times are not exact enough"),
    ("observer_cpu", "observer itself used too much CPU time"),
    ("requests_failed", "so many requests failed that latency is not the problem"),
    ("some_failed", "some requests failed, too few of them to be the problem"),
    ("intended_start_unknown", "latencies are open to coordinated omission"),
    ("closed_loop", "the load generator waits for answers before it sends again"),
    ("stalls_left_out", "stalls of no length"),
    ("stalls_missing", "the trace could not be read back"),
    ("trace_incomplete", "the trace could not be written to its end"),
    ("trace_damaged", "batches of a stream are damaged; what was in them counts as lost"),
    ("recovered", "the answer was worked out from the files of a run that did not end by itself"),
    ("counted_by_thread", "stalls were counted for the threads that served the requests"),
    (
        "counted_together",
        "stalls of all threads were counted, because too few requests could be matched",
    ),
    (
        "multiplexed",
        "connections carried several requests at a time (HTTP/2), so that these could not be matched",
    ),
    ("no_stalls", "ruled out: no stall of it was seen"),
    ("share_bounded", "ruled out: the interval of its share ends below what is worth naming"),
];

/// The code of a reason that was written as text alone, in schema 1.
pub const TEXT_ONLY: &str = "text";

impl Reason {
    /// A reason with its numbers, as `serde_json::json!` makes them.
    #[must_use]
    pub fn new(code: &str, text: impl Into<String>, evidence: serde_json::Value) -> Self {
        Self { code: code.to_owned(), text: text.into(), evidence }
    }
}

/// As it stands in a file: schema 1 had the text alone.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Whole {
        #[serde(default)]
        code: String,
        #[serde(default)]
        text: String,
        #[serde(default)]
        evidence: serde_json::Value,
    },
}

impl From<Written> for Reason {
    fn from(written: Written) -> Self {
        match written {
            Written::Text(text) => Self::new(TEXT_ONLY, text, serde_json::json!({})),
            Written::Whole { code, text, evidence } => Self { code, text, evidence },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_any_version_can_be_read() {
        let read = |text: &str| serde_json::from_str::<Reason>(text).expect("a reason");
        assert_eq!(read("\"lost records\"").text, "lost records");
        assert_eq!(read("\"lost records\"").code, TEXT_ONLY);
        let later = read(r#"{"code": "moon_phase", "text": "t", "evidence": {"n": 1}, "new": []}"#);
        assert_eq!((later.code.as_str(), later.text.as_str()), ("moon_phase", "t"));
        assert_eq!(later.evidence["n"], 1);
        let again = serde_json::to_string(&later).expect("text");
        assert_eq!(read(&again), later);
    }

    #[test]
    fn every_code_is_documented() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/TRACE_FORMAT.md");
        let page = std::fs::read_to_string(path).expect("the page");
        for (code, about) in REASON_CODES {
            assert!(page.contains(&format!("| `{code}` | {about} |")), "{code}: {about}");
        }
    }
}
