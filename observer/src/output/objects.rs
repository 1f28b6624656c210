//! In what the stalls of a cause waited, or for whom, in words.

use super::answer::HALF;
use super::text;
use crate::model::{CauseObject, CauseSummary, Summary};

/// A cause with a smaller share is not shown in parts.
const LEAST_SHARE: f64 = 0.05;
/// Characters of a system call with an address, or of a process.
const OBJECT_CHARACTERS: usize = 80;

/// `The service waited in clock_nanosleep for 96 % of that time.`, where one object has more than
/// half of a cause's time in slow requests.
pub(super) fn mostly(summary: &Summary, row: &CauseSummary) -> Option<String> {
    let most = row.objects.first()?;
    let share = object_share(summary, row, most);
    (share >= HALF).then(|| {
        let (what, share) = (text::clean(&most.what, OBJECT_CHARACTERS), text::percent(share));
        let mut object = row.cause.info().object.to_owned();
        object.get_mut(..1).iter_mut().for_each(|first| first.make_ascii_uppercase());
        format!("{object} {what} for {share} of that time.")
    })
}

/// `service_wait: the service waited in clock_nanosleep 24.0 ms (96 %), futex 911 µs (3.6 %)` for each cause
/// that has a part of the slow requests and says in what its stalls waited, or for whom.
pub(super) fn objects(summary: &Summary) -> Vec<String> {
    let rows = summary.causes.iter().filter(|row| row.share >= LEAST_SHARE);
    rows.filter(|row| !row.objects.is_empty())
        .map(|row| {
            let objects = row.objects.iter().map(|object| {
                let share = text::percent(object_share(summary, row, object));
                let what = text::clean(&object.what, OBJECT_CHARACTERS);
                format!("{what} {} ({share})", text::duration(object.slow_ns as f64))
            });
            let objects: Vec<String> = objects.collect();
            format!("{}: {} {}", row.cause.name(), row.cause.info().object, objects.join(", "))
        })
        .collect()
}

/// The part that an object has of the time of a cause in slow requests.
fn object_share(summary: &Summary, row: &CauseSummary, object: &CauseObject) -> f64 {
    let all = summary.account_ns.as_ref().and_then(|account| account.slow.get(&row.cause));
    let known: u64 = row.objects.iter().map(|object| object.slow_ns).sum();
    object.slow_ns as f64 / all.copied().unwrap_or(0).max(known).max(1) as f64
}
