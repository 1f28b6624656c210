//! Where stalls count for a request: a line is the stalls of one thread, of two threads united, or
//! (where it is not known which threads served which request) of all threads united.

use std::collections::HashMap;

use super::handing::Handing;
use super::share::LEAST_UNCOVERED;
use super::timeline::{Span, Timeline, split};
use crate::clock::MonoNanos;
use crate::model::{Sample, ServerRequest};

/// A part of a request. Within it, the stalls of one line count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    line: u32,
    /// Since the start of the window, nanoseconds.
    start: u64,
    end: u64,
}

/// The parts of a request that have a line, in order.
pub(super) type Parts = Vec<Part>;

/// All of `[start, end)`, on the first line.
pub(super) fn whole(start: u64, end: u64) -> Parts {
    vec![Part { line: 0, start, end }]
}

/// What of the parts lies in a span.
pub(super) fn clipped(parts: &[Part], span: Span) -> Parts {
    let clip = |part: &Part| {
        let (start, end) = (part.start.max(span.start), part.end.min(span.end));
        (start < end).then_some(Part { start, end, ..*part })
    };
    parts.iter().filter_map(clip).collect()
}

/// Whose stalls a line consists of, by thread id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Line {
    /// Of one thread: each stall is in the way of the request that the thread serves.
    Thread(u32),
    /// Of one thread, except what it did for others while a request waited for something else.
    Aside(u32),
    /// Of no thread: the request was not with the target.
    Outside,
    /// Of threads that were woken for a request and did not read it, while its reader slept.
    Siblings,
    /// Of the reader and the sender of a request, while it is not known which of them works on it.
    Both { reader: u32, sender: u32 },
}

/// Gives lines their numbers.
#[derive(Debug)]
pub(super) struct Numbering {
    lines: Vec<Line>,
    numbers: HashMap<Line, u32>,
    window: (MonoNanos, MonoNanos),
    /// The kernel's clock minus that of the samples.
    offset_ns: i64,
}

impl Numbering {
    pub(super) fn new(window: (MonoNanos, MonoNanos), offset_ns: i64) -> Self {
        Self { lines: Vec::new(), numbers: HashMap::new(), window, offset_ns }
    }

    pub(super) fn finish(self) -> Vec<Line> {
        self.lines
    }

    fn number(&mut self, line: Line) -> u32 {
        let next = self.lines.len() as u32;
        let number = *self.numbers.entry(line).or_insert(next);
        if number == next {
            self.lines.push(line);
        }
        number
    }

    /// The parts of a sample in which its request was with the target: waiting in the socket for the
    /// reader, whatever that was busy with; with either thread; and while the sender wrote the rest.
    pub(super) fn parts(
        &mut self,
        sample: &Sample,
        requests: &[ServerRequest],
        place: usize,
        handing: Option<&Handing<'_>>,
    ) -> Parts {
        let Some(request) = requests.get(place) else { return Parts::default() };
        let window = self.window;
        let on_kernels = |time: MonoNanos| time.0.saturating_add_signed(self.offset_ns);
        let (start, end) = (on_kernels(sample.start), on_kernels(sample.end));
        let since = |time: u64| MonoNanos(time.clamp(start, end.max(start))).since(window.0);
        let since = |time: u64| since(time).min(window.1.since(window.0));
        let begin = since(request.begin().0);
        let read = since(request.read.0);
        let first = request.first_send.map_or(end, |time| time.0);
        let last = request.end().map_or(end, |time| time.0).max(first);
        let (first, last) = (since(first), since(last));
        let (reader, sender) = (request.reader.0, request.sender.0);
        let mut parts = Parts::new();
        let mut add = |line: Line, start: u64, end: u64| {
            if start < end {
                parts.push(Part { line: self.number(line), start, end });
            }
        };
        let Some(handing) = handing else {
            if reader == sender {
                add(Line::Thread(reader), begin, last);
            } else {
                add(Line::Thread(reader), begin, read);
                add(Line::Both { reader, sender }, read.max(begin), first);
                add(Line::Thread(sender), first, last);
            }
            return parts;
        };
        let route = handing.route(request);
        let last = last.max(begin);
        let left = route.left().unwrap_or(last).clamp(begin, last);
        let handed = route.handed().unwrap_or(last).clamp(left, last);
        // Both at the end of what is before, where no sibling was stalled.
        let of_siblings = handing.siblings.wait(place);
        let of_siblings = of_siblings.unwrap_or(Span { start: begin, end: begin });
        let [from, until] =
            [of_siblings.start, of_siblings.end].map(|time| time.clamp(begin, left));
        let read = read.clamp(until, left);
        let read_aside = handing.aside(reader, read, left);
        let sent_aside = handing.aside(sender, handed, last);
        add(Line::Outside, since(start), begin);
        add(Line::Thread(reader), begin, from);
        add(Line::Siblings, from, until);
        add(Line::Thread(reader), until, read_aside.start);
        add(Line::Aside(reader), read_aside.start, read_aside.end);
        add(Line::Thread(reader), read_aside.end, left);
        for (tid, span) in route.times_between() {
            add(Line::Thread(tid), span.start.clamp(left, handed), span.end.clamp(left, handed));
        }
        add(Line::Thread(sender), handed, sent_aside.start);
        add(Line::Aside(sender), sent_aside.start, sent_aside.end);
        add(Line::Thread(sender), sent_aside.end, last);
        add(Line::Outside, last, since(end));
        parts
    }
}

/// When one cause was at work, by line.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    lines: Vec<Timeline>,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    /// One line of all threads.
    United,
    /// Of each line, the part of the run that it covers by coincidence.
    ByThread(Vec<f64>),
}

impl Lines {
    /// One line, of all threads.
    pub(super) fn united(timeline: Timeline) -> Self {
        Self { lines: vec![timeline], kind: Kind::United }
    }

    /// One line for each of `lines`.
    pub(super) fn by_thread(timelines: Vec<Timeline>, lines: &[Line]) -> Self {
        let by_chance = |(timeline, line): (&Timeline, &Line)| match line {
            Line::Thread(_) | Line::Aside(_) | Line::Outside | Line::Siblings => 0.0,
            Line::Both { .. } => timeline.duty(),
        };
        let by_chance = timelines.iter().zip(lines).map(by_chance).collect();
        Self { lines: timelines, kind: Kind::ByThread(by_chance) }
    }

    /// Share of the window that is covered, where that says how much coincidence would bring.
    pub(super) fn duty(&self) -> f64 {
        match self.kind {
            Kind::United => self.lines.first().map_or(0.0, Timeline::duty),
            Kind::ByThread(_) => 0.0,
        }
    }

    /// The timeline of a line.
    pub(super) fn number(&self, number: usize) -> &Timeline {
        &self.lines[number]
    }

    /// Gives a line another timeline.
    pub(super) fn replace(&mut self, number: usize, timeline: Timeline) {
        self.lines[number] = timeline;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.iter().all(Timeline::is_empty)
    }

    fn line(&self, part: &Part) -> Option<&Timeline> {
        self.lines.get(part.line as usize).filter(|_| part.start < part.end)
    }

    /// Weighted nanoseconds of the parts that are covered.
    pub(super) fn exposure(&self, parts: &[Part]) -> f64 {
        let of = |part: &Part| Some(self.line(part)?.exposure(part.start, part.end));
        parts.iter().filter_map(of).sum()
    }

    /// The same with the stalls moved in time, on the window bent into a circle.
    pub(super) fn shifted_exposure(&self, parts: &[Part], shift: u64) -> f64 {
        let of = |part: &Part| Some(self.line(part)?.shifted_exposure(part.start, part.end, shift));
        parts.iter().filter_map(of).sum()
    }

    /// The exposure without what coincidence brings to lines that are not all in the way of the request,
    /// by the formula in `share` for one cause.
    pub(super) fn own_exposure(&self, parts: &[Part]) -> f64 {
        let Kind::ByThread(by_chance) = &self.kind else { return self.exposure(parts) };
        let of = |part: &Part| {
            let exposure = self.line(part)?.exposure(part.start, part.end);
            let by_chance = by_chance[part.line as usize];
            let expected = by_chance * (part.end - part.start) as f64;
            Some((exposure - expected) / (1.0 - by_chance).max(LEAST_UNCOVERED))
        };
        parts.iter().filter_map(of).sum()
    }
}

/// The given causes again, with every instant of a line that several of them cover shared equally.
pub(super) fn split_lines(causes: &[&Lines]) -> Vec<Lines> {
    let mut result: Vec<Lines> = causes
        .iter()
        .map(|lines| Lines {
            lines: Vec::with_capacity(lines.lines.len()),
            kind: lines.kind.clone(),
        })
        .collect();
    let count = causes.first().map_or(0, |lines| lines.lines.len());
    for line in 0..count {
        let timelines: Vec<&Timeline> = causes.iter().map(|lines| &lines.lines[line]).collect();
        for (lines, part) in result.iter_mut().zip(split(&timelines)) {
            lines.lines.push(part);
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::super::Ignored;
    use super::super::aside::Asides;
    use super::super::siblings::Siblings;
    use super::super::timeline::Timelines;
    use super::*;
    use crate::model::{Cause, Stall, Tgid, Tid};

    const WINDOW: (MonoNanos, MonoNanos) = (MonoNanos(1_000), MonoNanos(2_000));

    fn request(reader: u32, sender: u32) -> ServerRequest {
        ServerRequest {
            arrival: Some(MonoNanos(1_110)),
            read: MonoNanos(1_200),
            first_send: Some(MonoNanos(1_300)),
            last_send: Some(MonoNanos(1_400)),
            tgid: Tgid(1),
            reader: Tid(reader),
            sender: Tid(sender),
            is_unix: false,
            local_port: 80,
            remote_port: 7,
            bytes_in: 1,
            bytes_out: 1,
        }
    }

    /// The parts that are not empty, and whose they are.
    fn parts(sample: &Sample, request: &ServerRequest, offset_ns: i64) -> Vec<(Line, u64, u64)> {
        let mut numbering = Numbering::new(WINDOW, offset_ns);
        let parts = numbering.parts(sample, std::slice::from_ref(request), 0, None);
        let lines = numbering.finish();
        let there = parts.iter().filter(|part| part.start < part.end);
        there.map(|part| (lines[part.line as usize], part.start, part.end)).collect()
    }

    #[test]
    fn the_parts_of_a_request_lie_within_the_sample() {
        let both = Line::Both { reader: 1, sender: 2 };
        let whole = Sample::of_times(1_100, 1_450);
        assert_eq!(
            parts(&whole, &request(1, 2), 0),
            [(Line::Thread(1), 110, 200), (both, 200, 300), (Line::Thread(2), 300, 400)]
        );
        assert_eq!(parts(&whole, &request(1, 1), 0), [(Line::Thread(1), 110, 400)]);
        // The client had the answer before the write returned.
        let early = Sample::of_times(1_100, 1_290);
        assert_eq!(
            parts(&early, &request(1, 2), 0),
            [(Line::Thread(1), 110, 200), (both, 200, 290)]
        );
        let apart = Sample::of_times(100, 450);
        assert_eq!(parts(&apart, &request(1, 2), 1_000), parts(&whole, &request(1, 2), 0));
        let mut unanswered = request(1, 1);
        (unanswered.arrival, unanswered.first_send, unanswered.last_send) = (None, None, None);
        assert_eq!(parts(&whole, &unanswered, 0), [(Line::Thread(1), 200, 450)]);
        assert_eq!(
            parts(&Sample::of_times(1_950, 2_500), &unanswered, 0),
            [(Line::Thread(1), 950, 1_000)]
        );
        assert_eq!(parts(&Sample::of_times(1_500, 1_400), &request(1, 2), 0), []);
    }

    #[test]
    fn stalls_of_the_serving_threads_count_and_no_others() {
        let stall = |tid, start, end| Stall::of_thread(tid, Cause::RUNQUEUE, start, end);
        let mut stalls = vec![
            stall(1, 1_100, 1_150),
            stall(1, 1_210, 1_260),
            stall(1, 1_310, 1_390),
            stall(2, 1_120, 1_190),
            stall(2, 1_250, 1_280),
            stall(2, 1_395, 1_500),
            stall(3, 1_000, 2_000),
        ];
        let on_lines = |stalls: &[Stall], request: &ServerRequest| {
            let mut numbering = Numbering::new(WINDOW, 0);
            let parts = numbering.parts(
                &Sample::of_times(1_100, 1_450),
                std::slice::from_ref(request),
                0,
                None,
            );
            let timelines = Timelines::new(stalls, WINDOW, true, &mut Ignored::default());
            (
                timelines.on_lines(&numbering.finish(), &Siblings::default(), &Asides::default()),
                parts,
            )
        };
        let (lines, parts) = on_lines(&stalls, &request(1, 1));
        assert_eq!(lines.of(Cause::RUNQUEUE).exposure(&parts), 40.0 + 50.0 + 80.0);
        assert_eq!(lines.of(Cause::RUNQUEUE).own_exposure(&parts), 170.0);
        assert_eq!(lines.stalls(Cause::RUNQUEUE), 7);
        assert!(lines.of(Cause::COMPACTION).is_empty());
        assert_eq!(lines.of(Cause::COMPACTION).exposure(&parts), 0.0);

        let (lines, parts) = on_lines(&stalls, &request(1, 2));
        let runqueue = lines.of(Cause::RUNQUEUE);
        assert_eq!(runqueue.exposure(&parts), 40.0 + 70.0 + 5.0);
        // One of them or both are stalled 345 ns of 1,000; that much comes to the 100 ns by chance.
        let own = 40.0 + (70.0 - 34.5) / (1.0 - 0.345) + 5.0;
        assert!((runqueue.own_exposure(&parts) - own).abs() < 1e-9);
        assert_eq!(runqueue.shifted_exposure(&parts, 0), 115.0);
        assert_eq!(runqueue.duty(), 0.0);

        // Where both threads together have most of the stalls, they are affordable once.
        stalls.truncate(6);
        let mut numbering = Numbering::new(WINDOW, 0);
        let first = numbering.parts(&Sample::of_times(1_100, 1_450), &[request(1, 2)], 0, None);
        let second = numbering.parts(&Sample::of_times(1_100, 1_450), &[request(2, 1)], 0, None);
        let timelines = Timelines::new(&stalls, WINDOW, true, &mut Ignored::default());
        let lines =
            timelines.on_lines(&numbering.finish(), &Siblings::default(), &Asides::default());
        assert_eq!(lines.of(Cause::RUNQUEUE).exposure(&first), 115.0);
        let sender_alone = 70.0 + 50.0 + 80.0;
        assert_eq!(lines.of(Cause::RUNQUEUE).exposure(&second), sender_alone);
    }
}
