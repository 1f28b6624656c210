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
        if let Some((from, until)) = inside(sample, served.as_ref(), &stall) {
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
