//! Which requests a sample may be at all, whatever the difference of the clocks, and the trips that follow.

use super::matching::ns;
use crate::model::{Sample, ServerRequest};

/// Requests that a sample is compared with: the nearest to the expected time.
const COMPARED: usize = 256;
/// The write that ends a request may return so long after the client has had the answer.
const RETURN_NS: i64 = 200_000;

/// A sample and a request that it may be, on clocks that may differ.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trip {
    /// The kernel's clock minus that of the samples, if both ways took equally long.
    pub(super) difference_ns: i64,
    /// Both ways together: no difference of the clocks changes it.
    pub(super) both_ns: i64,
}

impl Trip {
    /// The way there if the clocks differ by so much.
    pub(super) fn there_ns(self, difference_ns: f64) -> f64 {
        self.both_ns as f64 / 2.0 + self.difference_ns as f64 - difference_ns
    }

    /// The way back.
    pub(super) fn back_ns(self, difference_ns: f64) -> f64 {
        self.both_ns as f64 - self.there_ns(difference_ns)
    }
}

/// The answered requests in order of their middle, by connection if `by_port`.
pub(super) struct Requests<'a> {
    requests: &'a [ServerRequest],
    order: Vec<u32>,
    by_port: bool,
}

/// The middle of a request, and how long it was with the server.
fn served(request: &ServerRequest) -> Option<(i64, i64)> {
    let (begin, end) = (ns(request.begin()), ns(request.end()?));
    (begin <= end).then_some((begin + (end - begin) / 2, end - begin))
}

/// The middle of a sample.
pub(super) fn middle(sample: &Sample) -> i64 {
    let (start, end) = (ns(sample.start), ns(sample.end));
    start + (end - start) / 2
}

impl<'a> Requests<'a> {
    /// `asked` are the requests that samples may be.
    pub(super) fn new(requests: &'a [ServerRequest], asked: &[u32], by_port: bool) -> Self {
        let mut result = Self { requests, order: Vec::new(), by_port };
        let is_answered = |place: &u32| served(&requests[*place as usize]).is_some();
        let mut order: Vec<u32> = asked.iter().copied().filter(is_answered).collect();
        order.sort_unstable_by_key(|place| (result.key(*place), *place));
        result.order = order;
        result
    }

    fn key(&self, place: u32) -> (u16, i64) {
        let request = &self.requests[place as usize];
        let port = if self.by_port { request.remote_port } else { 0 };
        (port, served(request).map_or(0, |(middle, _)| middle))
    }

    /// The trips of a sample if the clocks differ by `about_ns`, give or take `most_ns`, in order of the
    /// difference.
    pub(super) fn trips(
        &self,
        sample: &Sample,
        about_ns: i64,
        most_ns: i64,
    ) -> impl Iterator<Item = Trip> + '_ {
        let port = sample.local_port.filter(|_| self.by_port).unwrap_or(0);
        let of_sample = middle(sample);
        let expected = of_sample.saturating_add(about_ns);
        let at = |time: i64| self.order.partition_point(|place| self.key(*place) < (port, time));
        let centre = at(expected);
        let from = at(expected.saturating_sub(most_ns)).max(centre.saturating_sub(COMPARED / 2));
        let until = at(expected.saturating_add(most_ns)).min(centre + COMPARED / 2);
        let length_ns = ns(sample.end) - ns(sample.start);
        let least_ns = -RETURN_NS - sample.precision_ns.min(1 << 40) as i64;
        let trip = move |place: &u32| {
            let (middle, served_ns) = served(&self.requests[*place as usize])?;
            let both_ns = length_ns - served_ns;
            let trip = Trip { difference_ns: middle - of_sample, both_ns };
            (both_ns >= least_ns).then_some(trip)
        };
        self.order[from..until.max(from)].iter().filter_map(trip)
    }
}
