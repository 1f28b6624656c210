//! Who ran instead of the target, over time: rows of a table in the page.

use std::fmt::Write as _;

use super::html::escape;
use super::text::{count, duration, percent};
use crate::model::{RanInsteadSummary, RanKind};

/// Rows that are shown.
const SHOWN: usize = 12;

/// The columns.
pub(super) const HEADER: &[&str] =
    &["Who had the CPU", "Time", "Of all waits", "Waits", "Cgroup", "Over time"];
/// Columns behind the first one that are numbers.
pub(super) const NUMBERS: usize = 3;

const fn colour(kind: RanKind) -> &'static str {
    match kind {
        RanKind::Own => "#2471a3",
        RanKind::Other => "#c0392b",
        RanKind::KernelThread => "#7d3c98",
    }
}

/// Cells in HTML.
pub(super) fn rows(ran: &RanInsteadSummary) -> Vec<Vec<String>> {
    // Comparable: the darkest is the most that anybody had in a part.
    let times = ran.by.iter().flat_map(|row| &row.by_part_ns).chain(&ran.others_by_part_ns);
    let most_ns = times.max().copied().unwrap_or(0);
    let share = |ns: u64| percent((ns as f64 / ran.wait_ns.max(1) as f64).min(1.0));
    let mut rows: Vec<Vec<String>> = ran
        .by
        .iter()
        .take(SHOWN)
        .map(|row| {
            let name = if row.name.is_empty() { "(ended)" } else { &row.name };
            let whose = match row.kind {
                RanKind::Own => " <small>target</small>",
                RanKind::Other => "",
                RanKind::KernelThread => " <small>kernel thread</small>",
            };
            vec![
                format!("{}{whose}", escape(name)),
                duration(row.time_ns as f64),
                share(row.time_ns),
                count(row.waits),
                escape(row.cgroup.as_deref().unwrap_or_default()),
                strip(ran, &row.by_part_ns, colour(row.kind), most_ns),
            ]
        })
        .collect();
    let rest = ran.by.get(SHOWN..).unwrap_or_default();
    let rest_ns = ran.others_ns + rest.iter().map(|row| row.time_ns).sum::<u64>();
    if rest_ns > 0 {
        let name = format!("others ({})", count(ran.beyond + rest.len() as u64));
        let empty = String::new;
        rows.push(vec![name, duration(rest_ns as f64), share(rest_ns), empty(), empty(), empty()]);
    }
    rows
}

/// The parts of the run, the darker the more time.
fn strip(ran: &RanInsteadSummary, by_part_ns: &[u64], colour: &str, most_ns: u64) -> String {
    let mut strip = "<span class=\"track narrow\">".to_owned();
    let of_run = |ns: u64| (100.0 * ns as f64 / ran.observed_ns.max(1) as f64).min(100.0);
    for (part, time_ns) in by_part_ns.iter().enumerate().filter(|(_, time_ns)| **time_ns > 0) {
        let from_ns = part as u64 * ran.part_ns;
        let (left, right) = (of_run(from_ns), of_run(from_ns + ran.part_ns));
        // The least is still seen.
        let opacity = 0.15 + 0.85 * *time_ns as f64 / most_ns.max(1) as f64;
        let _ = write!(
            strip,
            "<span title=\"{} from {} on\" \
             style=\"left:{left:.2}%;width:{:.2}%;background:{colour};opacity:{opacity:.2}\"></span>",
            duration(*time_ns as f64),
            duration(from_ns as f64),
            right - left,
        );
    }
    strip + "</span>"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::example;

    #[test]
    fn each_row_has_its_time_by_parts_of_the_run() {
        let mut ran = example::ran_instead();
        let side_car = &rows(&ran)[0];
        assert!(side_car[0].starts_with("&lt;/b&gt;&lt;i&gt;"), "{side_car:?}");
        assert_eq!(side_car[1..4], ["1.21 s", "66 %", "120"]);
        assert_eq!(side_car[5].matches("<span title").count(), 6);
        assert!(side_car[5].contains("200 ms from 4.00 s on"), "{side_car:?}");
        assert!(side_car[5].contains("left:13.33%;width:3.33%;background:#c0392b;opacity:0.96"));
        assert_eq!(rows(&ran).len(), 3);
        ran.by = vec![ran.by[1].clone(); SHOWN + 2];
        let last = &rows(&ran)[SHOWN];
        assert_eq!(last[..3], ["others (2)", "600 ms", "33 %"]);
    }
}
