//! `report.html`: the answer as one self-contained page. No script, nothing from the network, and
//! everything of unknown origin (thread names, errors, paths) escaped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::answer::{Answer, WorstRequest};
use super::chart;
use super::objects::objects;
use super::stacks;
use super::terminal::{asked, counters, more, request_line, served};
use super::text::{cause, clean, count, detail, duration, instant, percent, thread};
use super::track;
use super::{conditions, over_time};
use crate::model::{Cause, CauseSummary, Outcome, ProbeState, Summary, by_owner};

/// Parts of an account named beside its bar.
const PARTS_SHOWN: usize = 3;
/// Overlapping stalls shown for one request.
const STALLS_SHOWN: usize = 12;

/// Text as HTML: markup characters escaped, control characters replaced.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in clean(text, 4_096).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

const STYLE: &str = include_str!("report.css");

/// The page.
#[must_use]
pub fn render(answer: &Answer) -> String {
    let mut page = String::new();
    let title = format!("observer: {}", answer.headline());
    // The policy is a second protection against hostile names, should an escape have missed one: no
    // script runs, and nothing is fetched.
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>{STYLE}</style></head><body><main>\n",
        escape(&title)
    );
    verdict(&mut page, answer);
    if let Some(summary) = &answer.summary {
        causes(&mut page, summary);
        account(&mut page, summary);
    }
    if let Some(waiting) = &answer.waiting {
        stacks::html::section(&mut page, waiting, answer.summary.as_ref(), &answer.path);
    }
    if let Some(svg) = chart::timeline(answer) {
        let _ = writeln!(
            page,
            "<section><h2>The run over time</h2><figure>{svg}<figcaption>Each dot is a request; \
             slow ones are large and red. Below, one row per cause: the darker, the larger the \
             part of that moment in which it stalled threads of the target. Rows named PSI say in how much of \
             it threads of the target's cgroup, or of the host, waited for the resource.</figcaption></figure>\
             </section>"
        );
    }
    if let Some(summary) = &answer.summary {
        requests(&mut page, answer, summary);
        conditions(&mut page, summary);
        probes(&mut page, summary);
    }
    recorded(&mut page, answer);
    worst(&mut page, answer);
    about(&mut page, answer);
    page.push_str("</main></body></html>\n");
    page
}

fn list(page: &mut String, class: &str, items: impl Iterator<Item = String>) {
    let items: Vec<_> = items.collect();
    if items.is_empty() {
        return;
    }
    let _ = write!(page, "<ul class=\"{class}\">");
    for item in items {
        let _ = write!(page, "<li>{}</li>", escape(&item));
    }
    page.push_str("</ul>\n");
}

fn verdict(page: &mut String, answer: &Answer) {
    let class = answer.summary.as_ref().map_or("inconclusive", |s| s.verdict.outcome.name());
    let verdict = answer.verdict();
    // The first sentence is the answer, the others say how much.
    let (first, rest) =
        verdict.find(". ").map_or((verdict.as_str(), ""), |end| verdict.split_at(end + 1));
    let _ = writeln!(
        page,
        "<header class=\"{class}\"><p class=\"outcome\">{}</p><h1>{}</h1>\n<p>{}</p>",
        escape(&answer.headline()),
        escape(first),
        escape(rest)
    );
    let reasons = answer.summary.iter().flat_map(|summary| &summary.verdict.reasons);
    list(page, "reasons", reasons.map(|reason| reason.text.clone()));
    let advice = answer.advice().into_iter();
    list(page, "advice", advice.map(|advice| format!("What to do about {advice}")));
    list(page, "warnings", answer.notes.iter().cloned());
    page.push_str("</header>\n");
}

/// A table; columns from the second on hold numbers, up to `numbers` of them.
fn table(page: &mut String, header: &[&str], numbers: usize, rows: &[Vec<String>]) {
    page.push_str("<div class=\"wide\"><table><thead><tr>");
    let class = |column: usize| {
        if (1..=numbers).contains(&column) { " class=\"n\"" } else { "" }
    };
    for (column, name) in header.iter().enumerate() {
        let _ = write!(page, "<th{}>{}</th>", class(column), escape(name));
    }
    page.push_str("</tr></thead><tbody>\n");
    for row in rows {
        page.push_str("<tr>");
        for (column, cell) in row.iter().enumerate() {
            let _ = write!(page, "<td{}>{cell}</td>", class(column));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></div>\n");
}

fn causes(page: &mut String, summary: &Summary) {
    if summary.causes.is_empty() {
        return;
    }
    let conclusive = summary.verdict.outcome != Outcome::Inconclusive;
    page.push_str("<section><h2>Causes of the extra latency of the slow requests</h2>\n");
    if !conclusive {
        page.push_str("<p class=\"warn\">The run is inconclusive; do not rely on these.</p>\n");
    }
    let rows: Vec<_> = summary
        .causes
        .iter()
        .map(|row| {
            let CauseSummary { cause, share, ci95: [low, high], p_value, without, .. } = row;
            let named = row.named && conclusive;
            let colour = cause.info().color;
            let bar = format!(
                "<span class=\"bar\"><span style=\"width:{:.1}%;background:{colour}\"></span>\
                 <i style=\"left:{:.1}%;width:{:.1}%\"></i></span>",
                share.clamp(0.0, 1.0) * 100.0,
                low.clamp(0.0, 1.0) * 100.0,
                (high.clamp(0.0, 1.0) - low.clamp(0.0, 1.0)).max(0.0) * 100.0,
            );
            let verdict = match named {
                _ if cause.is_rest() => "",
                true => "named",
                false => "not significant",
            };
            let name = format!(
                "<b>{}</b> <small>{verdict}</small><br><small>{}</small>",
                cause.name(),
                escape(cause.info().sentence)
            );
            vec![
                name,
                percent(*share),
                format!("{} to {}", percent(*low), percent(*high)),
                p_value.map_or_else(|| "–".to_owned(), |p| format!("{p:.3}")),
                duration(row.contribution_ns),
                if cause.is_recorded() { count(row.stalls) } else { "–".to_owned() },
                without.map_or_else(
                    || "–".to_owned(),
                    |without| duration(without.p99_without_ns as f64),
                ),
                bar,
            ]
        })
        .collect();
    let header =
        ["cause", "share", "95 % interval", "p", "per slow request", "stalls", "p99 without", ""];
    table(page, &header, 6, &rows);
    list(page, "counters", objects(summary).into_iter());
    page.push_str("</section>\n");
}

/// A mean latency as a bar, cut into its parts.
fn bar(parts: &BTreeMap<Cause, u64>) -> String {
    let all_ns: u64 = parts.values().sum();
    let mut bar = String::from("<span class=\"parts\">");
    for (cause, part_ns) in parts {
        let width = *part_ns as f64 / all_ns.max(1) as f64 * 100.0;
        let title = format!("{}: {}", cause.name(), duration(*part_ns as f64));
        let _ = write!(
            bar,
            "<span title=\"{}\" style=\"width:{width:.2}%;background:{}\"></span>",
            escape(&title),
            cause.info().color
        );
    }
    bar.push_str("</span>");
    bar
}

fn account(page: &mut String, summary: &Summary) {
    let Some(accounts) = &summary.account_ns else { return };
    page.push_str(
        "<section><h2>Where the time of the requests went</h2>\n<p class=\"sub\">Mean parts \
         of the requests for which it is known which threads served them, by latency. Each bar is a whole \
         mean latency.</p>\n",
    );
    let sum = |parts: &BTreeMap<Cause, u64>| parts.values().sum::<u64>();
    let row = |name: String, requests: Option<u64>, parts: &BTreeMap<Cause, u64>| {
        let mut largest: Vec<(&Cause, &u64)> = parts.iter().collect();
        largest.sort_by_key(|(_, part_ns)| std::cmp::Reverse(**part_ns));
        let largest: Vec<String> = largest
            .iter()
            .take(PARTS_SHOWN)
            .map(|(cause, part_ns)| format!("{} {}", cause.name(), duration(**part_ns as f64)))
            .collect();
        vec![
            name,
            requests.map_or_else(|| "–".to_owned(), count),
            duration(sum(parts) as f64),
            bar(parts),
            escape(&largest.join(", ")),
        ]
    };
    let mut rows: Vec<_> = accounts
        .bands
        .iter()
        .map(|band| {
            let name = format!("{} to {}", quantile(band.from), quantile(band.to));
            row(name, Some(band.requests), &band.parts_ns)
        })
        .collect();
    rows.push(row("<b>typical</b>".to_owned(), None, &accounts.typical));
    rows.push(row("<b>slow</b>".to_owned(), None, &accounts.slow));
    table(page, &["latency", "requests", "mean", "parts", ""], 2, &rows);
    page.push_str("<ul class=\"legend\">");
    let bands = accounts.bands.iter().map(|band| &band.parts_ns);
    let all = bands.chain([&accounts.slow, &accounts.typical]).flat_map(BTreeMap::keys);
    for cause in all.collect::<BTreeSet<_>>() {
        let info = cause.info();
        let _ = write!(
            page,
            "<li><i style=\"background:{}\"></i>{} <small>{}</small></li>",
            info.color,
            cause.name(),
            escape(info.title)
        );
    }
    page.push_str("</ul></section>\n");
}

/// `p99.9`; the ends of the range in words.
fn quantile(quantile: f64) -> String {
    match quantile {
        0.0 => "fastest".to_owned(),
        1.0 => "slowest".to_owned(),
        _ => format!("p{}", (quantile * 1_000.0).round() / 10.0),
    }
}

fn requests(page: &mut String, answer: &Answer, summary: &Summary) {
    let samples = &summary.samples;
    if samples.count == 0 {
        return;
    }
    page.push_str("<section><h2>Requests, measured by the load generator</h2><dl class=\"tiles\">");
    let latency = samples.latency_ns;
    for (name, value) in [
        ("requests", count(samples.count)),
        ("rate", format!("{:.1}/s", samples.rate_hz)),
        ("failed", count(samples.errors)),
        ("p50", duration(latency.p50 as f64)),
        ("p90", duration(latency.p90 as f64)),
        ("p99", duration(latency.p99 as f64)),
        ("p99.9", duration(latency.p999 as f64)),
        ("max", duration(latency.max as f64)),
    ] {
        let _ = write!(page, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    page.push_str("</dl>\n");
    if let Some(matching) = answer.matching() {
        let _ = writeln!(page, "<p class=\"sub\">{}</p>", escape(&matching));
    }
    list(page, "warnings", answer.sample_warnings().into_iter());
    page.push_str("</section>\n");
}

fn conditions(page: &mut String, summary: &Summary) {
    for (heading, paragraphs) in conditions::sections(summary) {
        let _ = writeln!(page, "<section><h2>{}</h2>", escape(heading));
        list(page, "counters", paragraphs.into_iter());
        if let Some(ran) = &summary.conditions.ran_instead
            && heading == conditions::RAN_INSTEAD
        {
            table(page, over_time::HEADER, over_time::NUMBERS, &over_time::rows(ran));
        }
        page.push_str("</section>\n");
    }
}

fn probes(page: &mut String, summary: &Summary) {
    page.push_str(
        "<section><h2>Kernel events of the target</h2>\
         <p class=\"sub\">Complete counts.</p>\n",
    );
    let mut rows = Vec::new();
    for (name, probe) in &summary.probes {
        if !matches!(probe.state, ProbeState::Attached | ProbeState::Partial) {
            continue;
        }
        let cells = |name: String, count_: u64, times: [u64; 4], records: String| {
            let mut row = vec![name, count(count_)];
            row.extend(
                times.map(|ns| if count_ == 0 { "–".to_owned() } else { duration(ns as f64) }),
            );
            row.push(records);
            row
        };
        rows.push(cells(
            format!("<b>{}</b>", escape(name)),
            probe.count,
            [probe.sum_ns, probe.p50_ns, probe.p99_ns, probe.max_ns],
            count(probe.records),
        ));
        for (part, five) in &probe.parts {
            rows.push(cells(
                format!("<span class=\"part\">{}</span>", escape(part)),
                five.count,
                [five.sum_ns, five.p50_ns, five.p99_ns, five.max_ns],
                String::new(),
            ));
        }
    }
    let header = ["probe", "count", "total", "p50", "p99", "max", "records"];
    table(page, &header, 6, &rows);
    list(page, "counters", summary.probes.iter().filter_map(counters));
    page.push_str("</section>\n");
}

fn recorded(page: &mut String, answer: &Answer) {
    if answer.recorded.is_empty() {
        return;
    }
    page.push_str(
        "<section><h2>Recorded stalls of the target</h2>\
         <p class=\"sub\">Stalls above the recording threshold.</p>\n",
    );
    let rows: Vec<_> = answer
        .recorded
        .iter()
        .map(|(cause, five)| {
            let mut row = vec![format!("<b>{}</b>", cause.name()), count(five.count)];
            let times = [five.sum_ns, five.p50_ns, five.p99_ns, five.max_ns];
            row.extend(times.map(|ns| duration(ns as f64)));
            row
        })
        .collect();
    table(page, &["cause", "count", "total", "p50", "p99", "max"], 5, &rows);
    page.push_str("</section>\n");
}

fn worst(page: &mut String, answer: &Answer) {
    if answer.worst.is_empty() {
        return;
    }
    page.push_str(
        "<section><h2>The slowest requests and the stalls during them</h2>\
         <p class=\"sub\">Times from the start of the run. Each bar is the time of a request, in the \
         colours of the causes; the lines in it say when it was in the socket of the service, read, and \
         answered.</p>\n",
    );
    for (index, request) in answer.worst.iter().enumerate() {
        let open = if index < 3 { " open" } else { "" };
        let summary = escape(&request_line(answer, request));
        let _ = writeln!(page, "<details{open}><summary>{summary}</summary>");
        overlaps(page, answer, request);
        page.push_str("</details>\n");
    }
    page.push_str("</section>\n");
}

fn overlaps(page: &mut String, answer: &Answer, request: &WorstRequest) {
    if let Some(served) = served(answer, request) {
        let _ = writeln!(page, "<p class=\"sub\">{}</p>", escape(&served));
    }
    if let Some(asked) = asked(&request.asked, request.sample.begin()) {
        let _ = writeln!(page, "<p class=\"sub\">{}</p>", escape(&asked));
    }
    page.push_str(&track::bar(request));
    if let Some(account) = track::account(request) {
        let _ = writeln!(page, "<p class=\"sub\">{}</p>", escape(&account));
    }
    if request.stalls.is_empty() {
        page.push_str("<p class=\"sub\">No stall of the target during it.</p>\n");
        return;
    }
    let rows: Vec<_> = request
        .stalls
        .iter()
        .take(STALLS_SHOWN)
        .map(|(event, overlap_ns)| {
            vec![
                cause(event).to_owned(),
                instant(answer.offset_ns(event.start())),
                duration(event.duration_ns as f64),
                duration(*overlap_ns as f64),
                escape(&thread(&answer.run, event.tid)),
                escape(&detail(&answer.run, event)),
            ]
        })
        .collect();
    table(page, &["cause", "at", "length", "inside", "thread", "detail"], 3, &rows);
    if let Some(rest) = more(request, STALLS_SHOWN) {
        let _ = write!(page, "<p class=\"sub\">{rest}</p>");
    }
}

fn about(page: &mut String, answer: &Answer) {
    let run = &answer.run;
    page.push_str("<section><h2>Data quality</h2>\n");
    let rows: Vec<_> = run
        .coverage
        .iter()
        .map(|(name, coverage)| {
            let state = coverage.state.name();
            vec![
                format!("<b>{}</b>", escape(name)),
                format!("<span class=\"state {state}\">{state}</span>"),
                escape(coverage.tier.as_deref().unwrap_or("–")),
                escape(coverage.reason.as_deref().unwrap_or("")),
            ]
        })
        .collect();
    table(page, &["probe", "state", "attached by", ""], 0, &rows);
    page.push_str("<dl class=\"about\">");
    let command = match run.command.as_slice() {
        [program, arguments @ ..] if !arguments.is_empty() && !answer.shows_arguments => {
            format!("{program} (its {} arguments are in run.json)", arguments.len())
        }
        words => words.join(" "),
    };
    let length = duration(answer.length_ns() as f64);
    let kernel = format!("{} {}, {} CPUs", run.kernel_release, run.machine, run.cpus);
    let processes = run.target_processes.iter().map(|(tgid, comm)| (*tgid, comm.as_str()));
    let rows = [
        ("Lost", answer.loss()),
        ("Recording thresholds raised", answer.raised_floors().join("; ")),
        ("observer used", answer.cost().unwrap_or_default()),
        ("Target", run.target.clone()),
        ("Processes at the start", by_owner(processes, &run.target_owners)),
        ("Load generator", command),
        ("Length", if answer.length_ns() == 0 { String::new() } else { length }),
        ("Kernel", kernel),
        ("observer", run.observer_version.clone()),
        ("Run directory", answer.path.display().to_string()),
    ];
    for (name, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = write!(page, "<dt>{name}</dt><dd>{}</dd>", escape(value));
    }
    page.push_str("</dl></section>\n");
}

#[cfg(test)]
#[path = "html_tests.rs"]
mod tests;
