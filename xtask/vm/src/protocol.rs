//! Messages of a guest: one JSON object a line on its second serial port, written by
//! tests/src/bin/observer-guest/channel.rs.

use serde_json::Value;

/// One line of a guest.
#[derive(Debug, PartialEq)]
pub(crate) enum Message {
    /// The system is up; facts about it.
    Booted(Value),
    /// A test program begins.
    Started(String),
    /// A line that it printed.
    Output { name: String, text: String },
    /// A line of its results, as it wrote it.
    Result(Value),
    /// It ended.
    Ended(End),
    /// Everything is done: the guest powers off.
    Done,
    /// The guest gave up.
    Failed(String),
}

/// How a test program ended.
#[derive(Debug, PartialEq)]
pub(crate) struct End {
    pub(crate) name: String,
    /// `None` when a signal ended it, or it was killed at its time limit.
    pub(crate) code: Option<i64>,
    pub(crate) timed_out: bool,
    pub(crate) seconds: f64,
}

impl Message {
    /// Reads a line; `None` for anything else, which firmware may print.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let object: Value = serde_json::from_str(line.trim()).ok()?;
        let text = |key: &str| object[key].as_str().map(str::to_owned);
        Some(match object["event"].as_str()? {
            "booted" => Self::Booted(object["system"].clone()),
            "started" => Self::Started(text("name")?),
            "output" => Self::Output { name: text("name")?, text: text("text")? },
            "result" => Self::Result(object["result"].clone()),
            "ended" => Self::Ended(End {
                name: text("name")?,
                code: object["code"].as_i64(),
                timed_out: object["timed_out"].as_bool()?,
                seconds: object["seconds"].as_f64()?,
            }),
            "done" => Self::Done,
            "failed" => Self::Failed(text("message")?),
            _ => return None,
        })
    }
}

/// Messages of a kernel that is in trouble, and whether a slow host can be the reason.
const COMPLAINTS: &[(&str, bool)] = &[
    ("Kernel panic", false),
    ("Oops", false),
    ("BUG: soft lockup", true),
    ("detected stall", true),
    ("BUG: ", false),
    ("WARNING: ", false),
    ("Out of memory: Killed process", false),
];

/// The first such line of the kernel's console that a slow host cannot explain.
pub(crate) fn complaint(console: &str) -> Option<&str> {
    console.lines().map(str::trim).find(|line| {
        let found = COMPLAINTS.iter().find(|(mark, _)| line.contains(mark));
        found.is_some_and(|(_, slow_host)| !slow_host)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_are_read_and_noise_is_not() {
        let parse = |value: Value| Message::parse(&format!("{value}\r\n"));
        assert_eq!(
            parse(json!({"event": "booted", "system": {"kernel": "6.1.0"}})),
            Some(Message::Booted(json!({"kernel": "6.1.0"})))
        );
        assert_eq!(
            parse(json!({"event": "output", "name": "run", "text": "test a ... ok"})),
            Some(Message::Output { name: "run".into(), text: "test a ... ok".into() })
        );
        assert_eq!(
            parse(
                json!({"event": "ended", "name": "run", "code": null, "timed_out": true, "seconds": 2.5})
            ),
            Some(Message::Ended(End {
                name: "run".into(),
                code: None,
                timed_out: true,
                seconds: 2.5
            }))
        );
        assert_eq!(
            parse(json!({"event": "result", "name": "run", "result": {"probe": "fault"}})),
            Some(Message::Result(json!({"probe": "fault"})))
        );
        assert_eq!(parse(json!({"event": "done"})), Some(Message::Done));
        assert_eq!(
            parse(json!({"event": "failed", "message": "no disk"})),
            Some(Message::Failed("no disk".into()))
        );
        for noise in [
            "",
            "SeaBIOS (version 1.16.2)",
            "{",
            r#"{"event": "later"}"#,
            r#"{"event": "started"}"#,
            "[1]",
        ] {
            assert_eq!(Message::parse(noise), None, "{noise}");
        }
    }

    #[test]
    fn complaints_of_the_kernel_are_found_but_not_those_of_a_slow_host() {
        let console = "\
[    1.0] Linux version 6.1.0
[    9.0] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [observer:210]
[   10.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
";
        assert_eq!(complaint(console), None);
        let bad =
            format!("{console}[   11.0] BUG: scheduling while atomic: observer/12/0x00000002\n");
        let found = complaint(&bad).expect("a complaint");
        assert!(found.contains("scheduling while atomic"), "{found}");
        assert!(complaint("[ 1.0] Kernel panic - not syncing: init").is_some());
    }
}
