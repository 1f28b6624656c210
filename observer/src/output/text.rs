//! Numbers and names in words, of a run.

use time::OffsetDateTime;

use crate::clock::WallNanos;
use crate::model::{Cause, Event, RunInfo, Tid};
pub use crate::text::{bytes, clean, count, duration, instant, percent};

/// A time of the wall clock, to the microsecond: `2023-11-14 22:13:20.000000 UTC`.
#[must_use]
pub fn utc(wall: WallNanos) -> String {
    let Ok(time) = OffsetDateTime::from_unix_timestamp_nanos(i128::from(wall.0)) else {
        return format!("{} ns after 1970", wall.0);
    };
    let (date, clock) = (time.date(), time.time());
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}.{:06} UTC",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.microsecond()
    )
}

/// A thread by name and id: `worker-1 (101)`.
#[must_use]
pub fn thread(run: &RunInfo, tid: Tid) -> String {
    let name = run.thread_names.get(&tid.0).or_else(|| run.target_processes.get(&tid.0));
    name.map_or_else(|| tid.0.to_string(), |name| format!("{} ({})", clean(name, 16), tid.0))
}

/// What an event's fields say beyond its cause, thread and length, and the cgroup of the holder, or the thread
/// that ended a sleep.
#[must_use]
pub fn detail(run: &RunInfo, event: &Event) -> String {
    let detail = (event.row().detail)(event);
    let Some(holder) = event.holder() else { return detail };
    let cgroup = holder.cgroup.and_then(|id| run.holder_cgroups.get(&id.get()));
    match (event.cause(), cgroup) {
        (Some(Cause::LOCK_WAIT), _) => {
            format!("{detail} that thread {} had", thread(run, holder.tid))
        }
        (Some(Cause::SERVICE_WAIT), _) => {
            format!(
                "{detail}, until thread {} woke it, and what stalled that one counts here",
                thread(run, holder.tid)
            )
        }
        (_, Some(name)) => format!("{detail} in {}", clean(name, 64)),
        (_, None) => detail,
    }
}

/// The cause of an event's stall by name, or its kind.
#[must_use]
pub fn cause(event: &Event) -> &'static str {
    event.cause().map_or_else(|| event.name(), Cause::name)
}
