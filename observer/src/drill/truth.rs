//! The truth about a run, from the service's own log, the injector's schedule and the load generator's
//! samples. Nothing that observer found out is used.

use std::collections::BTreeMap;

use super::injector::Episode;
use super::rows::Truth;
use super::service::entry::Entry;
use crate::model::Sample;

/// The quantile above which requests are slow, as `observer run` has it by default.
const SLOW: f64 = 0.99;
/// Typical requests are those between these quantiles.
const TYPICAL: (f64, f64) = (0.25, 0.75);

/// What the service and the injector say.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) entries: &'a [Entry],
    /// When threads of a service that does not write it down waited for a CPU.
    pub(super) waits: Option<&'a [Episode]>,
    pub(super) episodes: &'a [Episode],
    pub(super) samples: &'a [Sample],
}

/// A stretch of a thread's time of which a known part is a kind of time.
#[derive(Clone, Copy, Debug)]
struct Segment {
    begin: u64,
    end: u64,
    part_ns: u64,
}

/// The segments of all threads.
type Threads = BTreeMap<u32, Vec<Segment>>;

/// Length of the common part of two intervals.
fn overlap(begin: u64, end: u64, other_begin: u64, other_end: u64) -> u64 {
    end.min(other_end).saturating_sub(begin.max(other_begin))
}

impl Facts<'_> {
    /// Share of the extra latency of the slow requests that is time of this kind, 0 to 1; `None` where
    /// nothing is slow, or requests cannot be found in the service's log.
    pub(super) fn share(&self, truth: Truth) -> Option<f64> {
        let mut samples: Vec<&Sample> = self.samples.iter().filter(|sample| sample.ok).collect();
        samples.sort_by_key(|sample| sample.response_ns());
        let place = |quantile: f64| (samples.len() as f64 * quantile) as usize;
        let slow = samples.get(place(SLOW)..)?;
        let typical = samples.get(place(TYPICAL.0)..place(TYPICAL.1))?;
        let threads = self.threads(truth);
        let entries = self.by_port();
        let mean = |group: &[&Sample]| {
            let parts: Vec<(f64, f64)> = group
                .iter()
                .filter_map(|sample| {
                    let part = self.part_ns(truth, sample, &threads, &entries)?;
                    Some((sample.response_ns() as f64, part))
                })
                .collect();
            // Most of them must be found.
            if parts.is_empty() || parts.len() * 2 < group.len() {
                return None;
            }
            let count = parts.len() as f64;
            let sums = parts.iter().fold((0.0, 0.0), |sums, one| (sums.0 + one.0, sums.1 + one.1));
            Some((sums.0 / count, sums.1 / count))
        };
        let (slow, typical) = (mean(slow)?, mean(typical)?);
        let excess = slow.0 - typical.0;
        (excess > 0.0).then(|| ((slow.1 - typical.1) / excess).clamp(0.0, 1.0))
    }

    /// Requests of the log by the port of their connection, in order.
    fn by_port(&self) -> BTreeMap<u16, Vec<&Entry>> {
        let mut ports: BTreeMap<u16, Vec<&Entry>> = BTreeMap::new();
        for entry in self.entries {
            ports.entry(entry.port).or_default().push(entry);
        }
        for entries in ports.values_mut() {
            entries.sort_by_key(|entry| entry.read_ns);
        }
        ports
    }

    /// Nanoseconds of the kind in a request; `None` if the log does not have it.
    fn part_ns(
        &self,
        truth: Truth,
        sample: &Sample,
        threads: &Threads,
        ports: &BTreeMap<u16, Vec<&Entry>>,
    ) -> Option<f64> {
        let (begin, start, end) = (sample.begin().0, sample.start.0, sample.end.0);
        let within = |all: &[Episode], begin, end| -> f64 {
            let of = |one: &Episode| overlap(begin, end, one.begin, one.end);
            all.iter().map(of).sum::<u64>() as f64
        };
        let in_episodes = |begin, end| within(self.episodes, begin, end);
        match truth {
            Truth::None => return Some(0.0),
            Truth::Stopped => return Some(in_episodes(begin, end)),
            Truth::SentLate => return Some(in_episodes(begin, start)),
            _ => {}
        }
        if let (Truth::Waited, Some(waits)) = (truth, self.waits) {
            return Some(within(waits, begin, end));
        }
        let entries = ports.get(&sample.local_port?)?;
        // A connection has one request at a time: the first one that was read after the sample's start.
        let next = entries.partition_point(|entry| entry.read_ns < start);
        let entry = entries.get(next).filter(|entry| entry.read_ns <= end)?;
        if entry.reader == entry.worker {
            return Some(of_thread(threads, entry.worker, begin, end));
        }
        let read = of_thread(threads, entry.reader, begin, entry.read_ns);
        Some(read + of_thread(threads, entry.worker, entry.read_ns, end))
    }

    /// The stretches of each thread, in order.
    fn threads(&self, truth: Truth) -> Threads {
        let usual_ns = self.usual_busy_ns();
        let mut threads = Threads::new();
        for entry in self.entries {
            let busy_ns = busy_ns(entry);
            let part_ns = match truth {
                Truth::Slept => entry.slept_ns,
                Truth::Burnt => entry.burnt_ns,
                Truth::Faulted => entry.faulted_ns,
                Truth::Mapped => entry.mapped_ns,
                Truth::Synced => entry.synced_ns,
                Truth::Locked => entry.locked_ns,
                Truth::Waited => entry.waited_ns,
                Truth::Squeezed if self.is_in_episode(entry) => busy_ns.saturating_sub(usual_ns),
                Truth::Squeezed | Truth::None | Truth::Stopped | Truth::SentLate => 0,
            };
            let handler = Segment { begin: entry.begin_ns, end: entry.end_ns, part_ns };
            threads.entry(entry.worker).or_default().push(handler);
            if truth == Truth::Waited {
                let mut waited = |thread: u32, until: u64, length: u64| {
                    let wait = Segment {
                        begin: until.saturating_sub(length),
                        end: until,
                        part_ns: length,
                    };
                    threads.entry(thread).or_default().push(wait);
                };
                waited(entry.reader, entry.read_ns, entry.read_wait_ns);
                waited(entry.worker, entry.begin_ns, entry.begin_wait_ns);
            }
        }
        for segments in threads.values_mut() {
            segments.sort_by_key(|segment| segment.begin);
        }
        threads
    }

    fn is_in_episode(&self, entry: &Entry) -> bool {
        self.episodes
            .iter()
            .any(|episode| overlap(entry.begin_ns, entry.end_ns, episode.begin, episode.end) > 0)
    }

    /// The median of [`busy_ns`] outside of all episodes.
    fn usual_busy_ns(&self) -> u64 {
        let mut busy: Vec<u64> =
            self.entries.iter().filter(|entry| !self.is_in_episode(entry)).map(busy_ns).collect();
        busy.sort_unstable();
        busy.get(busy.len() / 2).copied().unwrap_or(0)
    }
}

/// Length of a handler without what it slept and without waits for a CPU.
fn busy_ns(entry: &Entry) -> u64 {
    let length_ns = entry.end_ns.saturating_sub(entry.begin_ns);
    length_ns.saturating_sub(entry.waited_ns + entry.slept_ns)
}

/// Nanoseconds of the kind in `[begin, end)` of a thread: the known part of a stretch is taken to be
/// spread evenly over it.
fn of_thread(threads: &Threads, thread: u32, begin: u64, end: u64) -> f64 {
    let Some(segments) = threads.get(&thread) else { return 0.0 };
    let part = |segment: &Segment| {
        let length = segment.end.saturating_sub(segment.begin);
        if length == 0 {
            return 0.0;
        }
        let inside = overlap(begin, end, segment.begin, segment.end) as f64 / length as f64;
        inside * segment.part_ns as f64
    };
    segments.iter().take_while(|segment| segment.begin < end).map(part).sum()
}

/// A quantile of the latencies that the load generator saw, nanoseconds; 0 without any.
pub(super) fn quantile_ns(samples: &[Sample], quantile: f64) -> u64 {
    let mut latencies: Vec<u64> =
        samples.iter().filter(|sample| sample.ok).map(Sample::response_ns).collect();
    latencies.sort_unstable();
    let place = (latencies.len() as f64 * quantile) as usize;
    latencies.get(place.min(latencies.len().saturating_sub(1))).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MonoNanos;

    const MS: u64 = 1_000_000;

    fn sample(begin: u64, end: u64, port: u16) -> Sample {
        Sample { local_port: Some(port), ..Sample::of_times(begin, end) }
    }

    /// A hundred requests of 1 ms, one every 10 ms, by thread 1; the last one sleeps 30 ms in between.
    fn one_sleeps() -> (Vec<Entry>, Vec<Sample>) {
        let of = |number: u64| {
            let begin = number * 10 * MS;
            let slept_ns = if number == 99 { 30 * MS } else { 0 };
            let end = begin + MS + slept_ns;
            let entry = Entry {
                port: 7,
                reader: 1,
                worker: 1,
                read_ns: begin,
                begin_ns: begin,
                end_ns: end,
                slept_ns,
                ..Entry::default()
            };
            (entry, sample(begin, end, 7))
        };
        (0..100).map(of).unzip()
    }

    #[test]
    fn what_the_slow_request_slept_is_its_excess() {
        let (entries, samples) = one_sleeps();
        let facts = Facts { entries: &entries, waits: None, episodes: &[], samples: &samples };
        assert!((facts.share(Truth::Slept).unwrap() - 1.0).abs() < 1e-9);
        assert_eq!(facts.share(Truth::Burnt), Some(0.0));
        assert_eq!(facts.share(Truth::None), Some(0.0));
        assert_eq!(quantile_ns(&samples, 0.99), 31 * MS);
        assert_eq!(quantile_ns(&[], 0.99), 0);
    }

    #[test]
    fn a_request_that_waits_for_the_thread_inherits_what_that_does() {
        let (mut entries, mut samples) = one_sleeps();
        // While thread 1 sleeps in request 99, another one waits in the socket, for 30 of its 31 ms.
        let begin = 991 * MS;
        let end = 1022 * MS;
        entries.push(Entry {
            port: 8,
            reader: 1,
            worker: 1,
            read_ns: 1021 * MS,
            begin_ns: 1021 * MS,
            end_ns: end,
            ..Entry::default()
        });
        samples.push(sample(begin, end, 8));
        samples.rotate_left(1);
        let facts = Facts { entries: &entries, waits: None, episodes: &[], samples: &samples };
        let share = facts.share(Truth::Slept).unwrap();
        // 30 of 31 ms of the stretch were sleep, spread evenly.
        assert!((0.95..=1.0).contains(&share), "{share}");
    }

    #[test]
    fn episodes_are_the_truth_of_what_was_stopped() {
        let samples: Vec<Sample> = (0..100)
            .map(|number| {
                let mut one = sample(number * 10 * MS, number * 10 * MS + MS, 7);
                if number == 50 {
                    one.end = MonoNanos(one.end.0 + 20 * MS);
                    one.intended_start = Some(one.start);
                    one.start = MonoNanos(one.start.0 + 5 * MS);
                }
                one
            })
            .collect();
        let episodes = [Episode { begin: 501 * MS, end: 509 * MS }];
        let facts = Facts { entries: &[], waits: None, episodes: &episodes, samples: &samples };
        assert!((facts.share(Truth::Stopped).unwrap() - 0.4).abs() < 1e-9);
        assert!((facts.share(Truth::SentLate).unwrap() - 0.2).abs() < 1e-9);
        assert_eq!(facts.share(Truth::Waited), None, "the service's log has no such request");
        let waits = [Episode { begin: 512 * MS, end: 518 * MS }];
        let facts = Facts { waits: Some(&waits), ..facts };
        assert!((facts.share(Truth::Waited).unwrap() - 0.3).abs() < 1e-9);
    }
}
