//! CPU time and memory of an answer, by the number of requests: do both grow in proportion to it?

use std::path::Path;

use super::{
    json_of,
    rows::{Row, Rows},
    statistics::estimate,
    table::{self, Table},
};

/// Requests of a run. The last number is the most that an answer is worked out from.
const REQUESTS: [&str; 3] = ["100000", "300000", "1000000"];
/// What still is in proportion: sorting is not quite, and caches hold less of a longer run.
const PROPORTIONAL: f64 = 1.5;

/// What was measured of one answer, or of one list of single requests.
struct Figures {
    what: &'static str,
    requests: f64,
    seconds: Vec<f64>,
    bytes: Vec<f64>,
}

/// One row for each number of requests.
pub(crate) fn measure(program: &Path, rows: &mut Rows) -> Result<(), String> {
    for requests in REQUESTS {
        eprintln!("answer: {requests} requests");
        let figures = json_of(program, &["--requests", requests])?;
        if figures["has_account"] != true || figures["is_replayed"] != true {
            return Err(format!("no account or no replay: {figures}"));
        }
        let number = |key: &str| figures[key].as_f64().unwrap_or(f64::NAN);
        rows.push(Row::Answer {
            requests: number("requests"),
            answer_seconds: number("answer_seconds"),
            answer_bytes: number("answer_bytes"),
            list_seconds: number("list_seconds"),
            list_bytes: number("list_bytes"),
        })?;
    }
    Ok(())
}

/// The table, or nothing if it was not measured.
pub(crate) fn markdown(rows: &Rows) -> String {
    let mut all: Vec<Figures> = Vec::new();
    let mut add = |what, requests: f64, seconds, bytes| {
        let place = all.iter().position(|one| one.what == what && one.requests == requests);
        let place = place.unwrap_or_else(|| {
            all.push(Figures { what, requests, seconds: Vec::new(), bytes: Vec::new() });
            all.len() - 1
        });
        all[place].seconds.push(seconds);
        all[place].bytes.push(bytes);
    };
    for row in rows.iter() {
        let Row::Answer { requests, answer_seconds, answer_bytes, list_seconds, list_bytes } = row
        else {
            continue;
        };
        add("answer", *requests, *answer_seconds, *answer_bytes);
        add("list of 10,000", *requests, *list_seconds, *list_bytes);
    }
    if all.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&[
        "what",
        "requests",
        "CPU seconds",
        "µs a request",
        "bytes a request",
        "time, for one of the fewest",
        "in proportion",
    ]);
    all.sort_by(|one, other| {
        one.what.cmp(other.what).then(one.requests.total_cmp(&other.requests))
    });
    for one in &all {
        let seconds = estimate(&one.seconds).value;
        let fewest = all.iter().find(|other| other.what == one.what).unwrap_or(one);
        let growth = seconds / one.requests / (estimate(&fewest.seconds).value / fewest.requests);
        table.row(&[
            one.what.to_owned(),
            format!("{:.0}", one.requests),
            format!("{seconds:.2}"),
            format!("{:.2}", seconds / one.requests * 1e6),
            format!("{:.0}", estimate(&one.bytes).value / one.requests),
            format!("{growth:.2}"),
            table::judge(growth, growth, PROPORTIONAL).to_owned(),
        ]);
    }
    format!("\n### Answers of long runs\n\n{}", table.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_judged_for_each_request() {
        let mut rows = Rows::default();
        assert_eq!(markdown(&rows), "");
        for (requests, answer_seconds) in [(1e5, 1.0), (3e5, 3.3), (1e6, 20.0)] {
            rows.push(Row::Answer {
                requests,
                answer_seconds,
                answer_bytes: requests * 500.0,
                list_seconds: requests / 1e6,
                list_bytes: requests * 100.0,
            })
            .unwrap();
        }
        let page = markdown(&rows);
        assert!(page.contains("| answer | 300000 | 3.30 | 11.00 | 500 | 1.10 | yes |"), "{page}");
        assert!(page.contains("| answer | 1000000 | 20.00 | 20.00 | 500 | 2.00 | no |"), "{page}");
        assert!(
            page.contains("| list of 10,000 | 1000000 | 1.00 | 1.00 | 100 | 1.00 | yes |"),
            "{page}"
        );
    }
}
