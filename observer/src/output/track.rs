//! A slow request drawn over its time: where it was, what its threads waited for, and when it was read
//! and answered.

use std::fmt::Write as _;

use super::answer::WorstRequest;
use super::text::duration;
use crate::clock::MonoNanos;
use crate::model::{Cause, Stall, inside};

/// Parts of a request's time in words.
const PARTS_SHOWN: usize = 4;

/// A piece of a request's time.
struct Piece {
    cause: Cause,
    from: MonoNanos,
    until: MonoNanos,
}

/// Where the request was, and on it the stalls and sleeps of its threads, which lie on what was drawn before
/// them.
fn pieces(request: &WorstRequest) -> Vec<Piece> {
    let WorstRequest { sample, served, stalls, .. } = request;
    let mut pieces = Vec::new();
    let mut add = |cause, from: MonoNanos, until: MonoNanos| {
        let (from, until) = (from.max(sample.begin()), until.min(sample.end));
        if from < until {
            pieces.push(Piece { cause, from, until });
        }
    };
    if let Some(served) = served {
        let arrival = served.arrival_ns.unwrap_or(served.read_ns);
        let sent = served.last_send_ns.unwrap_or(sample.end);
        add(Cause::NETWORK, sample.start, arrival);
        add(Cause::SERVICE_CPU, arrival, sent);
        add(Cause::NETWORK, sent, sample.end);
    }
    add(Cause::LOAD_GENERATOR, sample.begin(), sample.start);
    let mut on_it: Vec<Stall> =
        stalls.iter().flat_map(|(event, _)| Stall::of_event(event)).collect();
    on_it.sort_by_key(|stall| (stall.cause.is_stall(), stall.start));
    for stall in on_it {
        for (from, until) in inside(sample, served.as_ref(), &stall) {
            add(stall.cause, from, until);
        }
    }
    pieces
}

/// The request as a bar of its time; nothing for one that took no time. All texts in it are observer's own.
pub(super) fn bar(request: &WorstRequest) -> String {
    let sample = &request.sample;
    let begin = sample.begin();
    let all_ns = sample.end.since(begin) as f64;
    if all_ns <= 0.0 {
        return String::new();
    }
    let percent = |ns: u64| (ns as f64 / all_ns * 100.0).clamp(0.0, 100.0);
    let mut bar = String::from("<span class=\"track\">");
    for Piece { cause, from, until } in pieces(request) {
        let length_ns = until.since(from);
        let (name, length) = (cause.name(), duration(length_ns as f64));
        let after = duration(from.since(begin) as f64);
        let _ = write!(
            bar,
            "<span title=\"{name}: {length}, from {after} on\" \
             style=\"left:{:.2}%;width:{:.2}%;background:{}\"></span>",
            percent(from.since(begin)),
            percent(length_ns),
            cause.info().color
        );
    }
    let marks = request.served.iter().flat_map(|served| {
        let marks = [
            ("in the socket", served.arrival_ns),
            ("read", Some(served.read_ns)),
            ("answered", served.first_send_ns),
        ];
        marks.into_iter().filter_map(|(what, at)| Some((what, at?)))
    });
    for (what, at) in marks {
        let after_ns = at.since(begin);
        let _ = write!(
            bar,
            "<i title=\"{what} after {}\" style=\"left:{:.2}%\"></i>",
            duration(after_ns as f64),
            percent(after_ns)
        );
    }
    bar.push_str("</span>\n");
    bar
}

/// `service_wait 19.8 ms (97 %), service_cpu 512 µs (2.5 %)`: the largest parts of the request's time, as
/// far as they are known.
pub(super) fn account(request: &WorstRequest) -> Option<String> {
    let account = request.account_ns.as_ref()?;
    let all_ns = request.sample.response_ns().max(1) as f64;
    let mut parts: Vec<(Cause, u64)> = account.iter().map(|(cause, ns)| (*cause, *ns)).collect();
    parts.sort_by_key(|(cause, ns)| (std::cmp::Reverse(*ns), *cause));
    let rest_ns: u64 = parts.iter().skip(PARTS_SHOWN).map(|(_, ns)| ns).sum();
    let of = |name: &str, ns: u64| {
        let share = super::text::percent(ns as f64 / all_ns);
        format!("{name} {} ({share})", duration(ns as f64))
    };
    let mut texts: Vec<String> =
        parts.iter().take(PARTS_SHOWN).map(|(cause, ns)| of(cause.name(), *ns)).collect();
    if rest_ns > 0 {
        texts.push(of("others", rest_ns));
    }
    Some(texts.join(", "))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::{Sample, ServedBy, Tid};
    use crate::output::example;

    const MS: u64 = 1_000_000;

    fn request() -> WorstRequest {
        let at = |ms: u64| MonoNanos(ms * MS);
        let served = ServedBy {
            arrival_ns: Some(at(120)),
            read_ns: at(130),
            first_send_ns: Some(at(180)),
            last_send_ns: Some(at(190)),
            reader: Tid(7),
            sender: Tid(7),
            handed: Vec::new(),
        };
        let fault = |tid, end_ms, length_ms| {
            let mut event = example::fault(end_ms * MS, length_ms * MS, 0);
            event.tid = Tid(tid);
            (event, length_ms * MS)
        };
        WorstRequest {
            sample: Sample {
                intended_start: Some(at(100)),
                ..Sample::of_times(110 * MS, 200 * MS)
            },
            served: Some(served),
            asked: Vec::new(),
            account_ns: Some(BTreeMap::from([
                (Cause::FAULT_MINOR, 20 * MS),
                (Cause::SERVICE_CPU, 50 * MS),
                (Cause::NETWORK, 20 * MS),
                (Cause::LOAD_GENERATOR, 10 * MS),
            ])),
            // Begun before the request was there, and of a thread that did not serve it.
            stalls: vec![fault(7, 130, 30), fault(8, 170, 10)],
            omitted: 0,
        }
    }

    #[test]
    fn a_request_is_drawn_with_its_stalls_clipped_to_it() {
        let bar = bar(&request());
        let piece = |name: &str, length: &str, after: &str, left: &str, width: &str| {
            let wanted = format!(
                "<span title=\"{name}: {length}, from {after} on\" style=\"left:{left}%;width:{width}%;"
            );
            assert!(bar.contains(&wanted), "{wanted} is missing in\n{bar}");
        };
        piece("load_generator", "10.0 ms", "0 ns", "0.00", "10.00");
        piece("network", "10.0 ms", "10.0 ms", "10.00", "10.00");
        piece("service_cpu", "70.0 ms", "20.0 ms", "20.00", "70.00");
        piece("network", "10.0 ms", "90.0 ms", "90.00", "10.00");
        piece("fault_minor", "10.0 ms", "20.0 ms", "20.00", "10.00");
        assert_eq!(bar.matches("fault_minor").count(), 1, "{bar}");
        for mark in ["in the socket after 20.0 ms", "read after 30.0 ms", "answered after 80.0 ms"]
        {
            assert!(bar.contains(mark), "{mark} is missing in\n{bar}");
        }
        let all = "service_cpu 50.0 ms (50 %), fault_minor 20.0 ms (20 %), network 20.0 ms (20 %), \
                   load_generator 10.0 ms (10 %)";
        assert_eq!(account(&request()).as_deref(), Some(all));
    }

    #[test]
    fn a_request_of_unknown_threads_has_no_account() {
        let request = WorstRequest { served: None, account_ns: None, ..request() };
        assert_eq!(account(&request), None);
        // Stalls of all threads may concern it.
        assert_eq!(bar(&request).matches("fault_minor").count(), 2);
        let none = WorstRequest { sample: Sample::of_times(5, 5), stalls: Vec::new(), ..request };
        assert_eq!(bar(&none), "");
    }
}
