use std::path::Path;

use super::*;
use crate::model::{EndReason, Outcome, RunInfo};
use crate::output::example;

fn page(summary: Option<Summary>) -> String {
    let answer = Answer::new(
        Path::new("/tmp/<run>"),
        if summary.is_some() { example::run() } else { example::crashed_run() },
        summary,
        example::samples(),
        &example::events(),
    );
    render(&answer)
}

#[test]
fn the_page_holds_the_answer_and_a_picture() {
    let page = page(Some(example::attributed()));
    for wanted in [
        "attributed to reclaim_memcg",
        "71 % (95 % interval 64 % to 78 %)",
        "<svg",
        "madvise(DONTNEED) 4 MiB",
        "accept: this kernel has no fexit",
        "410 ms of CPU time",
        "<h2>CPU limits</h2>",
        "Cgroup /demo/&lt;/b&gt;&lt;i&gt;?[31m may use 150 ms",
        "On average it used 20 % of the limit: short bursts",
        "matched with requests that the target served: 2,980",
    ] {
        assert!(page.contains(wanted), "{wanted}");
    }
    assert_eq!(page.matches("<details").count(), 10);
}

/// Rectangles behind the latencies and in the lanes of the picture, and its height.
fn picture(change: impl FnOnce(&mut Summary)) -> (usize, String) {
    let mut summary = example::attributed();
    change(&mut summary);
    let page = page(Some(summary));
    let (_, picture) = page.split_once("<svg").expect("a picture");
    let (picture, _) = picture.split_once("</svg>").expect("its end");
    (picture.matches("<rect").count(), picture.to_owned())
}

#[test]
fn pressure_is_drawn_below_the_stalls() {
    let (with, picture_with) = picture(|_| ());
    let without = picture(|summary| summary.conditions.pressure.clear());
    // That of the target's cgroup: a tenth of its time is in each of ten seconds, one after the other.
    assert_eq!(with, without.0 + 1, "one lane with one dark piece");
    assert!(picture_with.contains("PSI memory") && !without.1.contains("PSI"));
    let (low, _) = picture(|summary| {
        for pressure in &mut summary.conditions.pressure {
            pressure.some_us /= 10;
        }
    });
    assert_eq!(low, without.0, "too little to be shown");
    // Older runs have no parts, and one that ended early has fewer.
    let older = picture(|summary| {
        for pressure in &mut summary.conditions.pressure {
            (pressure.part_ns, pressure.some_by_part_us) = (0, Vec::new());
        }
    });
    assert_eq!(older.0, without.0);
    let hostile = picture(|summary| {
        summary.conditions.pressure[0].resource = example::HOSTILE.to_owned();
    });
    assert!(hostile.1.contains("PSI") && !hostile.1.contains("<i>"), "{}", hostile.1);
}

#[test]
fn failed_requests_are_the_heading() {
    let page = page(Some(example::failing()));
    assert!(page.contains("<title>observer: requests failed</title>"));
    assert!(page.contains("<h1>90 % of the requests failed"));
    assert!(page.contains("<li>2,700 of 3,000 requests failed (90 %): 2,700 refused."));
}

#[test]
fn nothing_hostile_becomes_markup_and_nothing_is_fetched() {
    let page = page(Some(example::attributed()));
    assert!(page.contains("&lt;/b&gt;&lt;i&gt;?[31m (102)"));
    assert!(page.contains("hog&lt;script&gt;"));
    for forbidden in ["<script", "<i>", "\u{1b}", "href=", "src=\"", "url(", "@import", "<run>"] {
        assert!(!page.contains(forbidden), "{forbidden}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn every_outcome_makes_a_whole_page() {
    let outcomes = [
        Some(example::with_outcome(Outcome::Unexplained, &[])),
        Some(example::with_outcome(Outcome::Inconclusive, &["12 records were lost"])),
        Some(example::with_outcome(Outcome::NoSlowSamples, &[])),
        Some(example::without_samples()),
        None,
    ];
    for summary in outcomes {
        let page = page(summary);
        assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
        for tag in
            ["section", "h1", "p", "table", "tr", "td", "ul", "dl", "div", "details", "figure"]
        {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}

#[test]
fn many_requests_make_a_small_page() {
    let mut samples = example::samples();
    let template = samples[0].clone();
    samples.extend((0..100_000u64).map(|index| {
        let mut sample = template.clone();
        sample.start.0 += index * 299_000;
        sample.intended_start = None;
        sample.end.0 = sample.start.0 + 1_000_000 + index % 7_000;
        sample
    }));
    let answer = Answer::new(
        Path::new("/tmp/run"),
        example::run(),
        Some(example::attributed()),
        samples,
        &[],
    );
    let page = render(&answer);
    assert!(page.len() < 600_000, "{}", page.len());
}

#[test]
fn extreme_times_still_make_a_page() {
    let ends = [0, 1, 1_000, 1_000_001, 5_000_000_000, u64::MAX - 1];
    for (start, end) in ends.into_iter().flat_map(|start| ends.map(|end| (start, end))) {
        let mut run = example::run();
        (run.start_ns.0, run.end_ns.0) = (start, end);
        let mut samples = example::samples();
        let mut events = example::events();
        samples[0].end.0 = u64::MAX;
        samples[1].end.0 = 0;
        samples[2].intended_start = Some(crate::clock::MonoNanos(0));
        events[0].duration_ns = u64::MAX;
        events[1].end.0 = u64::MAX;
        for run in [run.clone(), RunInfo { end_reason: EndReason::Running, ..run }] {
            let summary = Some(example::attributed());
            let answer = Answer::new(Path::new("/"), run, summary, samples.clone(), &events);
            assert!(render(&answer).ends_with("</html>\n"));
        }
    }
}
