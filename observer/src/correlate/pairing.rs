//! Pairs samples with requests, one to one, so that the times outside the server are as usual as
//! possible.
//!
//! Samples are taken in order of start, a few thousand at a time with some that follow: each is
//! compared with the requests nearest in time, the least unusual pairs are taken first, and pairs are
//! exchanged as long as that makes both together more usual. Time and memory grow linearly.

use super::matching::{NONE, PairQuality, Sides};
use super::usual::Usual;

/// Samples that are decided together, and how many that follow them take part.
const CORE: usize = 4_096;
const BEHIND: usize = 1_024;
/// Requests that a sample is compared with in either direction of time, and of those already taken that
/// are passed over.
const LOOKED_AT: usize = 64;
const PASSED: usize = 256;
/// Of them, so many are kept.
const KEPT: usize = 6;
/// Exchanges end after so many rounds at the latest.
const ROUNDS: usize = 6;

/// What has been decided.
pub(super) struct Pairs {
    request_of: Vec<u32>,
    quality: Vec<PairQuality>,
    taken: Vec<bool>,
    count: usize,
}

impl Pairs {
    pub(super) fn new(samples: usize, requests: usize) -> Self {
        Self {
            request_of: vec![NONE; samples],
            quality: vec![PairQuality::Unmatched; samples],
            taken: vec![false; requests],
            count: 0,
        }
    }

    pub(super) fn request_of(&self, sample: u32) -> u32 {
        self.request_of[sample as usize]
    }

    pub(super) fn is_taken(&self, request: u32) -> bool {
        self.taken[request as usize]
    }

    pub(super) const fn len(&self) -> usize {
        self.count
    }

    pub(super) fn finish(self) -> (Vec<u32>, Vec<PairQuality>) {
        (self.request_of, self.quality)
    }
}

/// Pairs these samples with these requests, both in order of time, as far as they are not taken.
pub(super) fn pair(
    sides: &Sides<'_>,
    usual: &Usual,
    samples: &[u32],
    requests: &[u32],
    pairs: &mut Pairs,
) {
    if requests.is_empty() {
        return;
    }
    for first in (0..samples.len()).step_by(CORE) {
        let last = (first + CORE + BEHIND).min(samples.len());
        let mut group = Group::new(sides, usual, &samples[first..last], requests, pairs);
        group.take_the_best();
        group.exchange();
        let quality = group.judge();
        let decided = samples[first..].iter().zip(group.choice).zip(quality).take(CORE);
        for ((sample, choice), quality) in decided {
            let Some(Candidate { position, .. }) = choice else { continue };
            let request = requests[position];
            pairs.request_of[*sample as usize] = request;
            pairs.quality[*sample as usize] = quality;
            pairs.taken[request as usize] = true;
            pairs.count += 1;
        }
    }
}

/// A request that a sample may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    /// Among the requests.
    position: usize,
    /// How unusual the times of the pair are.
    deviation_ns: i64,
}

/// Samples that are decided together.
struct Group<'a> {
    sides: &'a Sides<'a>,
    usual: &'a Usual,
    samples: &'a [u32],
    requests: &'a [u32],
    /// Of each sample, the least unusual first.
    candidates: Vec<Vec<Candidate>>,
    choice: Vec<Option<Candidate>>,
    /// The sample that has a request, by the position of the request minus `low`.
    owner: Vec<u32>,
    low: usize,
}

impl<'a> Group<'a> {
    fn new(
        sides: &'a Sides<'a>,
        usual: &'a Usual,
        samples: &'a [u32],
        requests: &'a [u32],
        pairs: &Pairs,
    ) -> Self {
        let mut group = Self {
            sides,
            usual,
            samples,
            requests,
            candidates: Vec::with_capacity(samples.len()),
            choice: vec![None; samples.len()],
            owner: Vec::new(),
            low: 0,
        };
        for sample in samples {
            let candidates = if pairs.request_of(*sample) == NONE {
                group.nearest(*sample, pairs)
            } else {
                Vec::new()
            };
            group.candidates.push(candidates);
        }
        let positions = || group.candidates.iter().flatten().map(|candidate| candidate.position);
        let low = positions().min().unwrap_or(0);
        group.owner = vec![NONE; positions().max().map_or(0, |high| high - low + 1)];
        group.low = low;
        group
    }

    fn deviation_ns(&self, sample: u32, position: usize) -> Option<i64> {
        let outside = self.sides.outside(sample, self.requests[position])?;
        Some(self.usual.deviation_ns(outside))
    }

    /// The least unusual requests of a sample.
    fn nearest(&self, sample: u32, pairs: &Pairs) -> Vec<Candidate> {
        let expected = self.sides.start(sample) + self.usual.there_ns;
        let begin = |position: usize| self.sides.begin(self.requests[position]);
        let middle = self.requests.partition_point(|request| self.sides.begin(*request) < expected);
        let (first, last) = self.sides.arrivals(sample);
        let mut kept: Vec<Candidate> = Vec::with_capacity(KEPT + 1);
        let mut look = |positions: &mut dyn Iterator<Item = usize>| {
            let mut looked_at = 0;
            for position in positions.take(LOOKED_AT + PASSED) {
                let away_ns = (begin(position) - expected).abs();
                let worst_ns = kept.get(KEPT - 1).map_or(i64::MAX, |worst| worst.deviation_ns);
                if away_ns >= worst_ns || !(first..=last).contains(&begin(position)) {
                    return;
                }
                if pairs.is_taken(self.requests[position]) {
                    continue;
                }
                if let Some(deviation_ns) = self.deviation_ns(sample, position) {
                    let at = kept.partition_point(|other| other.deviation_ns <= deviation_ns);
                    kept.insert(at, Candidate { position, deviation_ns });
                    kept.truncate(KEPT);
                }
                looked_at += 1;
                if looked_at == LOOKED_AT {
                    return;
                }
            }
        };
        // Both ways begin inside of what is possible, and end at its limits.
        let from = self.requests.partition_point(|request| self.sides.begin(*request) < first);
        let until = self.requests.partition_point(|request| self.sides.begin(*request) <= last);
        look(&mut (middle.max(from)..until));
        look(&mut (from..middle.min(until)).rev());
        kept
    }

    fn owner(&self, position: usize) -> Option<usize> {
        let owner = self.owner.get(position.checked_sub(self.low)?)?;
        (*owner != NONE).then_some(*owner as usize)
    }

    fn give(&mut self, sample: usize, candidate: Candidate) {
        self.choice[sample] = Some(candidate);
        self.owner[candidate.position - self.low] = sample as u32;
    }

    /// The least unusual pair first.
    fn take_the_best(&mut self) {
        let mut pairs: Vec<(i64, usize, usize)> = Vec::new();
        for (sample, candidates) in self.candidates.iter().enumerate() {
            pairs.extend(candidates.iter().map(|one| (one.deviation_ns, sample, one.position)));
        }
        pairs.sort_unstable();
        for (deviation_ns, sample, position) in pairs {
            if self.choice[sample].is_none() && self.owner(position).is_none() {
                self.give(sample, Candidate { position, deviation_ns });
            }
        }
    }

    /// What it costs that a sample takes this candidate from its owner, who gets the sample's own
    /// request or none; `None` where that cannot be.
    fn price_ns(&self, sample: usize, wanted: Candidate) -> Option<(i64, Option<usize>)> {
        let own = self.choice[sample];
        let Some(owner) = self.owner(wanted.position) else {
            return Some((wanted.deviation_ns - own?.deviation_ns, None));
        };
        let had = self.choice[owner]?;
        let Some(own) = own else {
            return Some((wanted.deviation_ns - had.deviation_ns, Some(owner)));
        };
        let instead = self.deviation_ns(self.samples[owner], own.position)?;
        let before = own.deviation_ns + had.deviation_ns;
        Some((wanted.deviation_ns + instead - before, Some(owner)))
    }

    /// Exchanges requests as long as that makes the pairs more usual.
    fn exchange(&mut self) {
        for _ in 0..ROUNDS {
            let mut is_better = false;
            for sample in 0..self.samples.len() {
                for index in 0..self.candidates[sample].len() {
                    let wanted = self.candidates[sample][index];
                    let own = self.choice[sample];
                    if own == Some(wanted) {
                        continue;
                    }
                    let Some((price_ns, owner)) = self.price_ns(sample, wanted) else {
                        if own.is_none() && self.owner(wanted.position).is_none() {
                            self.give(sample, wanted);
                            is_better = true;
                        }
                        continue;
                    };
                    if price_ns >= 0 {
                        continue;
                    }
                    is_better = true;
                    if let Some(own) = own {
                        self.owner[own.position - self.low] = NONE;
                    }
                    if let Some(owner) = owner {
                        self.choice[owner] = None;
                        let position = own.map(|own| own.position);
                        let instead = position.and_then(|position| {
                            let deviation_ns = self.deviation_ns(self.samples[owner], position)?;
                            Some(Candidate { position, deviation_ns })
                        });
                        if let Some(instead) = instead {
                            self.give(owner, instead);
                        }
                    }
                    self.give(sample, wanted);
                }
            }
            if !is_better {
                return;
            }
        }
    }

    /// How sure each choice is.
    fn judge(&self) -> Vec<PairQuality> {
        let mut quality: Vec<PairQuality> = self
            .choice
            .iter()
            .map(|choice| match choice {
                None => PairQuality::Unmatched,
                Some(choice) => self.on_its_own(*choice),
            })
            .collect();
        for sample in 0..self.samples.len() {
            let own = self.choice[sample];
            for wanted in &self.candidates[sample] {
                if own == Some(*wanted) {
                    continue;
                }
                let Some((price_ns, owner)) = self.price_ns(sample, *wanted) else { continue };
                if price_ns >= self.usual.clear_ns() {
                    continue;
                }
                let doubt = match own {
                    Some(own) if self.same_threads(own.position, wanted.position) => {
                        PairQuality::SameThreads
                    }
                    _ => PairQuality::Ambiguous,
                };
                for one in [own.map(|_| sample), owner].into_iter().flatten() {
                    quality[one] = match quality[one] {
                        PairQuality::Ambiguous | PairQuality::Unusual => PairQuality::Ambiguous,
                        _ => doubt,
                    };
                }
            }
        }
        quality
    }

    /// Without others that come into question.
    fn on_its_own(&self, choice: Candidate) -> PairQuality {
        let is_unusual = choice.deviation_ns > self.usual.unusual_ns();
        if is_unusual && !self.sides.by_port { PairQuality::Unusual } else { PairQuality::Matched }
    }

    fn same_threads(&self, one: usize, other: usize) -> bool {
        let threads = |position: usize| {
            let request = &self.sides.requests[self.requests[position] as usize];
            (request.tgid, request.reader, request.sender)
        };
        threads(one) == threads(other)
    }
}
