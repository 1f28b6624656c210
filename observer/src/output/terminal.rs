//! The answer for users at a terminal.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IsTerminal;

use comfy_table::{CellAlignment, Table, presets};

use super::answer::{Answer, NOTHING_LOST, WorstRequest};
use super::conditions;
use super::objects::objects;
use super::stacks;
use super::text::{cause, clean, count, detail, duration, instant, percent, thread};
use super::track;
use crate::clock::MonoNanos;
use crate::model::{
    Accounts, AskedService, Cause, CauseSummary, Outcome, ProbeState, ProbeSummary, RunInfo,
    ServedBy, Summary,
};

/// Overlapping stalls shown for one request.
const STALLS_SHOWN: usize = 5;

/// Colours, or none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint(bool);

impl Paint {
    pub(super) const fn new(colour: bool) -> Self {
        Self(colour)
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.0 { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    pub(super) fn heading(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub(super) fn warning(self, text: &str) -> String {
        self.wrap("33", text)
    }

    fn verdict(self, outcome: Option<Outcome>, text: &str) -> String {
        let code = match outcome {
            Some(Outcome::Attributed) => "1;31",
            Some(Outcome::NoSlowSamples) => "1;32",
            Some(Outcome::Unexplained | Outcome::GeneratorLimited) => "1;36",
            Some(Outcome::Inconclusive | Outcome::Unknown) | None => "1;33",
        };
        self.wrap(code, text)
    }
}

/// Whether standard output is a terminal whose user has not set `NO_COLOR`.
#[must_use]
pub fn wants_colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !refused && std::io::stdout().is_terminal()
}

/// The answer as text, with or without colours.
#[must_use]
pub fn render(answer: &Answer, colour: bool) -> String {
    let paint = Paint(colour);
    let mut text = String::new();
    verdict(&mut text, answer, paint);
    if let Some(summary) = &answer.summary {
        causes(&mut text, summary, paint);
        account(&mut text, summary, paint);
    }
    waiting(&mut text, answer, paint);
    if let Some(summary) = &answer.summary {
        requests(&mut text, answer, summary, paint);
        conditions(&mut text, summary, paint);
        probes(&mut text, summary, paint);
    }
    recorded(&mut text, answer, paint);
    worst(&mut text, answer, paint);
    coverage(&mut text, answer, paint);
    let lost = answer.loss();
    let lost = if lost == NOTHING_LOST { lost } else { paint.warning(&lost) };
    line(&mut text, &format!("{} {lost}", paint.heading("Lost:")));
    for floor in answer.raised_floors() {
        line(
            &mut text,
            &format!("{} {}", paint.heading("Recording threshold raised:"), paint.warning(&floor)),
        );
    }
    if let Some(cost) = answer.cost() {
        line(&mut text, &format!("{} {cost}", paint.heading("observer used:")));
    }
    let path = answer.path.display().to_string();
    line(&mut text, &format!("{} {}", paint.heading("Run directory:"), clean(&path, 4_096)));
    text
}

fn line(text: &mut String, content: &str) {
    text.push_str(content);
    text.push('\n');
}

fn verdict(text: &mut String, answer: &Answer, paint: Paint) {
    let outcome = answer.summary.as_ref().map(|summary| summary.verdict.outcome);
    let headline = answer.headline().to_uppercase();
    line(text, &paint.verdict(outcome, &headline));
    wrapped(text, &answer.verdict(), "");
    let reasons = answer.summary.iter().flat_map(|summary| &summary.verdict.reasons);
    for reason in reasons {
        wrapped(text, &clean(&reason.text, 600), "  - ");
    }
    for advice in answer.advice() {
        wrapped(text, &format!("What to do about {advice}"), "  > ");
    }
    for note in &answer.notes {
        wrapped(text, &paint.warning(&clean(note, 400)), "  ! ");
    }
    text.push('\n');
}

/// Breaks long sentences at 100 columns, further lines as far in as the first one's text.
pub(super) fn wrapped(text: &mut String, sentence: &str, first: &str) {
    let mut column = first.chars().count();
    let indent = column;
    text.push_str(first);
    let mut fresh = true;
    for word in sentence.split(' ') {
        let width = word.chars().count();
        if !fresh && column + 1 + width > 100 {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent));
            column = indent;
            fresh = true;
        }
        if !fresh {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += width;
        fresh = false;
    }
    text.push('\n');
}

/// A table without lines; the columns in `right` hold numbers.
fn table(text: &mut String, header: &[&str], rows: Vec<Vec<String>>, right: &[usize]) {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for &index in right {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for row in table.lines() {
        line(text, format!(" {row}").trim_end());
    }
    text.push('\n');
}

fn causes(text: &mut String, summary: &Summary, paint: Paint) {
    if summary.causes.is_empty() {
        return;
    }
    let conclusive = summary.verdict.outcome != Outcome::Inconclusive;
    let title = if conclusive {
        "Causes of the extra latency of the slow requests"
    } else {
        "Possible causes of the extra latency (inconclusive; do not rely on them)"
    };
    line(text, &paint.heading(title));
    let rows = summary
        .causes
        .iter()
        .map(|row| {
            let CauseSummary { cause, share, ci95: [low, high], p_value, without, .. } = row;
            let verdict = match row.named && conclusive {
                _ if cause.is_rest() => "",
                true => "named",
                false => "not significant",
            };
            vec![
                cause.name().to_owned(),
                percent(*share),
                format!("{} to {}", percent(*low), percent(*high)),
                p_value.map_or_else(|| "-".to_owned(), |p| format!("{p:.3}")),
                duration(row.contribution_ns),
                if cause.is_recorded() { count(row.stalls) } else { "-".to_owned() },
                without.map_or_else(
                    || "-".to_owned(),
                    |without| duration(without.p99_without_ns as f64),
                ),
                verdict.to_owned(),
            ]
        })
        .collect();
    let header =
        ["cause", "share", "95 % interval", "p", "per slow request", "stalls", "p99 without", ""];
    table(text, &header, rows, &[1, 2, 3, 4, 5, 6]);
    let objects = objects(summary);
    if !objects.is_empty() {
        // Next to its table.
        text.pop();
        objects.iter().for_each(|objects| wrapped(text, objects, "  "));
        text.push('\n');
    }
}

/// Parts of less than this share of a slow request are shown together.
const SMALL_PART: f64 = 0.005;

fn account(text: &mut String, summary: &Summary, paint: Paint) {
    let Some(Accounts { slow, typical, .. }) = &summary.account_ns else { return };
    line(text, &paint.heading("Where the time of a request went (means)"));
    let sum = |parts: &BTreeMap<Cause, u64>| parts.values().sum::<u64>();
    let (slow_ns, typical_ns) = (sum(slow), sum(typical));
    let mut causes: Vec<Cause> = slow.keys().chain(typical.keys()).copied().collect();
    let of = |parts: &BTreeMap<Cause, u64>, cause: &Cause| parts.get(cause).copied().unwrap_or(0);
    causes.sort_by_key(|cause| (std::cmp::Reverse(of(slow, cause)), *cause));
    causes.dedup();
    let share = |part_ns: u64| percent(part_ns as f64 / slow_ns.max(1) as f64);
    let row = |name: &str, slow_ns: u64, typical_ns: u64| {
        let times = [slow_ns, typical_ns].map(|ns| duration(ns as f64));
        let [slow, typical] = times;
        vec![name.to_owned(), slow, share(slow_ns), typical]
    };
    let is_small = |cause: &Cause| {
        let limit = |all_ns: u64| (all_ns as f64 * SMALL_PART) as u64;
        of(slow, cause) < limit(slow_ns) && of(typical, cause) < limit(typical_ns)
    };
    let (small, large): (Vec<Cause>, Vec<Cause>) = causes.into_iter().partition(is_small);
    let mut rows: Vec<Vec<String>> =
        large.iter().map(|cause| row(cause.name(), of(slow, cause), of(typical, cause))).collect();
    let all = |parts: &BTreeMap<Cause, u64>| small.iter().map(|cause| of(parts, cause)).sum();
    if !small.is_empty() {
        rows.push(row("others", all(slow), all(typical)));
    }
    rows.push(row("together", slow_ns, typical_ns));
    table(text, &["part", "slow", "share", "typical"], rows, &[1, 2, 3]);
}

fn waiting(text: &mut String, answer: &Answer, paint: Paint) {
    let Some(waiting) = &answer.waiting else { return };
    line(text, &paint.heading("Where the threads waited"));
    for paragraph in stacks::text::brief(waiting, &answer.path) {
        wrapped(text, &paragraph, "  ");
    }
    text.push('\n');
}

fn requests(text: &mut String, answer: &Answer, summary: &Summary, paint: Paint) {
    let samples = &summary.samples;
    if samples.count == 0 {
        return;
    }
    line(text, &paint.heading("Requests, measured by the load generator"));
    let latency = samples.latency_ns;
    line(
        text,
        &format!(
            "  {} at {:.1}/s, {} failed; p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
            count(samples.count),
            samples.rate_hz,
            count(samples.errors),
            duration(latency.p50 as f64),
            duration(latency.p90 as f64),
            duration(latency.p99 as f64),
            duration(latency.p999 as f64),
            duration(latency.max as f64),
        ),
    );
    if let Some(matching) = answer.matching() {
        line(text, &format!("  {matching}"));
    }
    for warning in answer.sample_warnings() {
        wrapped(text, &paint.warning(&warning), "  ! ");
    }
    text.push('\n');
}

fn conditions(text: &mut String, summary: &Summary, paint: Paint) {
    for (heading, paragraphs) in conditions::sections(summary) {
        line(text, &paint.heading(heading));
        paragraphs.iter().for_each(|paragraph| wrapped(text, paragraph, "  "));
        text.push('\n');
    }
}

fn probes(text: &mut String, summary: &Summary, paint: Paint) {
    line(text, &paint.heading("Kernel events of the target (complete counts)"));
    let mut rows = Vec::new();
    for (name, probe) in &summary.probes {
        if !matches!(probe.state, ProbeState::Attached | ProbeState::Partial) {
            continue;
        }
        let five = |count_: u64, sum: u64, p50: u64, p99: u64, max: u64| {
            let time = |ns: u64| if count_ == 0 { "-".to_owned() } else { duration(ns as f64) };
            [count(count_), time(sum), time(p50), time(p99), time(max)]
        };
        let mut row = vec![clean(name, 20)];
        row.extend(five(probe.count, probe.sum_ns, probe.p50_ns, probe.p99_ns, probe.max_ns));
        row.push(count(probe.records));
        rows.push(row);
        for (part, summary) in &probe.parts {
            let mut row = vec![format!("  {}", clean(part, 20))];
            row.extend(five(
                summary.count,
                summary.sum_ns,
                summary.p50_ns,
                summary.p99_ns,
                summary.max_ns,
            ));
            row.push(String::new());
            rows.push(row);
        }
    }
    let header = ["probe", "count", "total", "p50", "p99", "max", "records"];
    table(text, &header, rows, &[1, 2, 3, 4, 5, 6]);
    let counters: Vec<_> = summary.probes.iter().filter_map(counters).collect();
    if !counters.is_empty() {
        // Next to its table.
        text.pop();
        counters.iter().for_each(|counters| line(text, &format!("  {counters}")));
        text.push('\n');
    }
}

/// `socket: created 3, live 2`, and the time that the attribution did not see.
pub(super) fn counters((name, probe): (&String, &ProbeSummary)) -> Option<String> {
    let mut facts: Vec<String> = probe
        .counters
        .iter()
        .map(|(counter, value)| format!("{} {value}", clean(counter, 40).replace('_', " ")))
        .collect();
    if probe.unrecorded_ns > 0 {
        let time = duration(probe.unrecorded_ns as f64);
        facts.push(format!("{time} in stalls below the recording threshold, not attributed"));
    }
    (!facts.is_empty()).then(|| format!("{}: {}", clean(name, 20), facts.join(", ")))
}

fn recorded(text: &mut String, answer: &Answer, paint: Paint) {
    if answer.recorded.is_empty() {
        return;
    }
    line(text, &paint.heading("Recorded stalls of the target"));
    let rows = answer
        .recorded
        .iter()
        .map(|(cause, five)| {
            let mut row = vec![cause.name().to_owned(), count(five.count)];
            let times = [five.sum_ns, five.p50_ns, five.p99_ns, five.max_ns];
            row.extend(times.map(|ns| duration(ns as f64)));
            row
        })
        .collect();
    table(text, &["cause", "count", "total", "p50", "p99", "max"], rows, &[1, 2, 3, 4, 5]);
}

fn worst(text: &mut String, answer: &Answer, paint: Paint) {
    if answer.worst.is_empty() {
        return;
    }
    line(
        text,
        &paint.heading(
            "The slowest requests and the stalls during them (times from the start of the run)",
        ),
    );
    for request in &answer.worst {
        line(text, &format!("  {}", request_line(answer, request)));
        if let Some(served) = served(answer, request) {
            line(text, &format!("      {served}"));
        }
        if let Some(asked) = asked(&request.asked, request.sample.begin()) {
            line(text, &format!("      {asked}"));
        }
        if let Some(account) = track::account(request) {
            line(text, &format!("      {account}"));
        }
        let mut rows = Vec::new();
        for (event, overlap_ns) in request.stalls.iter().take(STALLS_SHOWN) {
            rows.push(vec![
                "    ".to_owned(),
                instant(answer.offset_ns(event.start())),
                thread(&answer.run, event.tid),
                cause(event).to_owned(),
                duration(event.duration_ns as f64),
                if *overlap_ns == event.duration_ns {
                    String::new()
                } else {
                    format!("({} inside)", duration(*overlap_ns as f64))
                },
                detail(&answer.run, event),
            ]);
        }
        stall_rows(text, rows);
        if let Some(rest) = more(request, STALLS_SHOWN) {
            line(text, &format!("      {rest}"));
        }
    }
    text.push('\n');
}

fn stall_rows(text: &mut String, rows: Vec<Vec<String>>) {
    if rows.is_empty() {
        line(text, "      no stall of the target during it");
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.add_rows(rows);
    for index in [1, 4] {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for row in table.lines() {
        line(text, row.trim_end());
    }
}

/// `at 9.030000 s took 49.9 ms, status 200`.
pub(super) fn request_line(answer: &Answer, request: &WorstRequest) -> String {
    let sample = &request.sample;
    let mut text = format!(
        "at {} took {}",
        instant(answer.offset_ns(sample.begin())),
        duration(sample.response_ns() as f64),
    );
    if let Some(status) = sample.status {
        let _ = write!(text, ", status {status}");
    }
    if let Some(seq) = sample.seq {
        let _ = write!(text, ", request {seq}");
    }
    if sample.lateness_ns() > 0 {
        let _ = write!(text, ", sent {} late", duration(sample.lateness_ns() as f64));
    }
    if let Some(error) = &sample.error {
        let _ = write!(text, ", {}", clean(error, 80));
    }
    text
}

/// `in the socket after 41.0 µs, read after 60.2 µs by svc-1 (12), answered after 20.3 ms by svc-2 (13)`.
pub(super) fn served(answer: &Answer, request: &WorstRequest) -> Option<String> {
    let served = request.served.as_ref()?;
    let after = |time: MonoNanos| duration(time.since(request.sample.begin()) as f64);
    let mut text = served
        .arrival_ns
        .map_or_else(String::new, |arrival| format!("in the socket after {}, ", after(arrival)));
    let reader = thread(&answer.run, served.reader);
    let _ = write!(text, "read after {} by {reader}", after(served.read_ns));
    text.push_str(&handed(&answer.run, request.sample.begin(), served));
    text.push_str(", ");
    match served.first_send_ns {
        None => text.push_str("not answered"),
        Some(first) => {
            let _ = write!(text, "answered after {}", after(first));
            if served.sender != served.reader {
                let _ = write!(text, " by {}", thread(&answer.run, served.sender));
            }
        }
    }
    Some(text)
}

/// `, handed to worker-1 (13) after 80.3 µs`: the threads that had it between the reader and the sender, and
/// the sender where it is not the reader.
pub(super) fn handed(run: &RunInfo, begin: MonoNanos, served: &ServedBy) -> String {
    let mut text = String::new();
    for one in &served.handed {
        let after = duration(one.from_ns.since(begin) as f64);
        let _ = write!(text, ", handed to {} after {after}", thread(run, one.tid));
    }
    text
}

/// Services that are shown of one request.
const ASKED_SHOWN: usize = 4;

/// `asked 127.0.0.1:8080 after 90.1 µs, which replied after 25.3 ms`: the services that were asked for a
/// request, if there are any, with times from its begin.
pub(super) fn asked(services: &[AskedService], begin: MonoNanos) -> Option<String> {
    let after = |time: MonoNanos| duration(time.since(begin) as f64);
    let of = |service: &AskedService| {
        let (sent, replied) = (after(service.sent_ns), after(service.replied_ns));
        format!("{} after {sent}, which replied after {replied}", clean(&service.peer, 60))
    };
    let mut shown: Vec<String> = services.iter().take(ASKED_SHOWN).map(of).collect();
    let more = services.len().saturating_sub(ASKED_SHOWN);
    if more > 0 {
        shown.push(format!("and {more} more"));
    }
    (!shown.is_empty()).then(|| format!("asked {}", shown.join("; ")))
}

/// `and 12 shorter ones: runqueue 3.10 ms, mm_syscall 300 µs`, if there are any.
pub(super) fn more(request: &WorstRequest, shown: usize) -> Option<String> {
    let rest = request.stalls.get(shown..).unwrap_or_default();
    let number = rest.len() as u64 + request.omitted;
    let mut causes: Vec<(&str, u64)> = Vec::new();
    for (event, overlap_ns) in rest {
        let name = cause(event);
        match causes.iter_mut().find(|(known, _)| *known == name) {
            Some((_, sum_ns)) => *sum_ns = sum_ns.saturating_add(*overlap_ns),
            None => causes.push((name, *overlap_ns)),
        }
    }
    causes.sort_by_key(|(_, sum_ns)| std::cmp::Reverse(*sum_ns));
    let causes: Vec<_> = causes
        .into_iter()
        .map(|(name, sum_ns)| format!("{name} {}", duration(sum_ns as f64)))
        .collect();
    (number > 0).then(|| format!("and {} shorter ones: {}", count(number), causes.join(", ")))
}

fn coverage(text: &mut String, answer: &Answer, paint: Paint) {
    line(text, &paint.heading("Probes"));
    for (name, coverage) in &answer.run.coverage {
        let mut row = format!("  {}: {}", clean(name, 20), coverage.state.name());
        if let Some(tier) = &coverage.tier {
            let _ = write!(row, " ({})", clean(tier, 60));
        }
        if let Some(reason) = &coverage.reason {
            let _ = write!(row, ", {}", clean(reason, 200));
        }
        let whole = coverage.state == ProbeState::Attached;
        line(text, &if whole { row } else { paint.warning(&row) });
    }
    text.push('\n');
}

#[cfg(test)]
#[path = "terminal_tests.rs"]
mod tests;
