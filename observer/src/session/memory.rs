//! The upper bound of user-space memory. Everything that grows with a run has a limit, and what
//! exceeds it is counted.

use crate::loadgen::{MAX_ERROR_BYTES, MAX_SAMPLES, RawRow};
use crate::model::{Event, OutgoingRequest, Sample, ServerRequest, Stall};

use super::capture::BATCHES;
use super::drain::BATCH_EVENTS;
use super::journal::ANCHORS_MAX;
use super::stacks::FRAMES_MAX;
use super::trace_sink::OTHERS_MAX;
use super::{EVENTS_MAX, NAMES_MAX};
use crate::clock::Anchor;
use crate::host::MemoryRoom;
use crate::kernel::{RING_BYTES, ThreadPlaces, plan, stacks_bytes};
use crate::text;

/// The program, the kernel's BTF, the BPF object while it is loaded, stacks, and what the allocator
/// holds on to.
const FIXED_BYTES: u64 = 96 << 20;
/// A name with its node in the table.
const NAME_BYTES: usize = 96;
/// Computing the answer takes this much memory per stall, in addition to the stall itself: the
/// stall clipped (32), its place among those open (40), its pieces (48), and the timelines twice
/// (64). By thread, the first two are gone when the pieces are put on lines: pieces (32), and lines of
/// one and of two threads (32 each) or, instead of the latter, of siblings, which are at most half as many
/// and are kept once more (24), what lies between the stalls, while it is put together (64), sleeps by
/// who ended them (20), and sleeps as they were recorded, before what threads waited for each other for was followed (16).
/// While that is followed, there are no lines, and it takes as much: the waits (40), or the pieces twice more (32) and
/// what they are made of (48), besides the parts that change (48), the pieces, and the timelines (64).
const ANALYSIS_BYTES: usize = 208;
/// What of this is gone when the requests are replayed: the lines, and what lies between the stalls.
const LINES_BYTES: u64 = 128;

/// What observer takes once it has attached its probes, without the maps: measured are 46 MiB.
pub(crate) const START_BYTES: u64 = 56 << 20;
/// The least memory for the data of a run that is worth a start.
const LEAST_DATA_BYTES: u64 = 8 << 20;

/// A stall, until the answer is there.
const STALL_BYTES: u64 = (size_of::<Stall>() + ANALYSIS_BYTES) as u64;
/// Matching a request with those of the target takes this much memory: its place and that of one of the
/// target's in two orders (16), and the result (6).
const MATCHING_BYTES: usize = 24;
/// A request: as a row while it is read, and as a sample besides while it is aligned; a failed one
/// with its error.
const SAMPLE_BYTES: u64 =
    (size_of::<RawRow>() + size_of::<Sample>() + MAX_ERROR_BYTES + MATCHING_BYTES) as u64;
/// For which part of its wait other threads than its reader were the reason (24), and its place in the order
/// in which threads read requests (4).
const HANDING_BYTES: usize = 28;
/// Replaying a request without a cause takes this much memory: what its thread did for it (88), a thread that
/// had it in between (24), what the replay needs of that (24), what is taken away (48), and what comes of it
/// (24), with the state of the replay (56).
const REPLAY_BYTES: usize = 264;
/// A request that the target served, and its places in three orders while it is matched. One that the target
/// made of another service takes less.
const REQUEST_BYTES: u64 =
    (size_of::<ServerRequest>() + MATCHING_BYTES + HANDING_BYTES + REPLAY_BYTES) as u64;
const _: () = assert!(size_of::<OutgoingRequest>() as u64 + 48 <= REQUEST_BYTES);
/// A frame of a stack: its address, its function while it is looked up (56 and a name of up to 160
/// characters), the frame with both names, and its text.
const FRAME_BYTES: u64 = 1_024;
/// All frames, at most.
pub(crate) const STACKS_BYTES: u64 = FRAMES_MAX as u64 * FRAME_BYTES;
/// Events between two threads.
const BATCHES_BYTES: u64 = ((BATCHES + 2) * BATCH_EVENTS * size_of::<Event>()) as u64;

/// The memory of a run, sized to the limits of the cgroups of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Most stalls that are kept.
    pub stalls: u64,
    /// Most requests that are kept.
    pub samples: usize,
    /// Most requests that the target served, and made of other services, which take part in the answer.
    pub requests: usize,
    /// Most frames of stacks that are kept; 0 without stacks.
    pub frames: usize,
    /// Upper bound of the resident set.
    pub resident_bound_bytes: u64,
    /// The limit, where there is one.
    pub room: Option<MemoryRoom>,
}

/// What the maps of this host take in the kernel, which counts it as memory of observer's cgroup.
fn map_bytes(ring_bytes: u32, by_cgroup: bool) -> u64 {
    let places = ThreadPlaces::tables("the larger of the two");
    plan(ring_bytes, by_cgroup, &places).iter().map(|map| map.bytes).sum()
}

/// The least memory with which a run begins.
#[must_use]
pub fn run_needs_bytes(ring_bytes: u32) -> u64 {
    START_BYTES + map_bytes(ring_bytes, false) + BATCHES_BYTES + LEAST_DATA_BYTES
}

/// The least memory with which the daemon begins.
#[must_use]
pub fn daemon_needs_bytes() -> u64 {
    START_BYTES + map_bytes(RING_BYTES, true)
}

impl Memory {
    /// For a run on this host, with or without stacks.
    #[must_use]
    pub fn of_run(ring_bytes: u32, stacks: bool) -> Self {
        let room = MemoryRoom::read();
        let table = if stacks { stacks_bytes() } else { 0 };
        Self::within(room, run_needs_bytes(ring_bytes) - LEAST_DATA_BYTES + table, stacks)
    }

    /// Without what `fixed_bytes` are for, an eighth of the room is there for the requests that the
    /// target served, one for stacks, if there are any, and the rest for stalls and for those of the load
    /// generator alike.
    fn within(room: Option<MemoryRoom>, fixed_bytes: u64, stacks: bool) -> Self {
        let data = room.as_ref().map_or(u64::MAX, |room| room.bytes.saturating_sub(fixed_bytes));
        let requests = OTHERS_MAX.min(data / 8 / REQUEST_BYTES);
        let for_stacks = if stacks { data / 8 } else { 0 };
        let frames = (FRAMES_MAX as u64).min(for_stacks / FRAME_BYTES);
        let half = data / 16 * if stacks { 6 } else { 7 };
        let stalls = EVENTS_MAX.min(half / STALL_BYTES);
        let samples = MAX_SAMPLES.min((half / SAMPLE_BYTES) as usize);
        let small = (ANCHORS_MAX * size_of::<Anchor>() + NAMES_MAX * NAME_BYTES) as u64;
        // Stalls are put on lines before the requests are replayed.
        let on_lines = stalls * STALL_BYTES + requests * (REQUEST_BYTES - REPLAY_BYTES as u64);
        let replayed = stalls * (STALL_BYTES - LINES_BYTES) + requests * REQUEST_BYTES;
        let grown = samples as u64 * SAMPLE_BYTES + on_lines.max(replayed) + frames * FRAME_BYTES;
        let all = FIXED_BYTES + BATCHES_BYTES + grown + small;
        let resident_bound_bytes = room.as_ref().map_or(all, |room| all.min(room.limit_bytes));
        let (requests, frames) = (requests as usize, frames as usize);
        Self { stalls, samples, requests, frames, resident_bound_bytes, room }
    }

    /// What the limit means for a run, for users; `None` where it means nothing.
    #[must_use]
    pub fn cut(&self) -> Option<String> {
        let room = self.room.as_ref()?;
        if self.stalls == EVENTS_MAX && self.samples == MAX_SAMPLES {
            return None;
        }
        Some(format!(
            "memory is limited to {} by {}, and {} are left for observer: it keeps at most {} stalls and \
             {} requests",
            text::bytes(room.limit_bytes),
            room.file.display(),
            text::bytes(room.bytes),
            text::count(self.stalls),
            text::count(self.samples as u64)
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(bytes: Option<u64>, stacks: bool) -> Memory {
        let room = |bytes| MemoryRoom { bytes, limit_bytes: bytes, file: "memory.max".into() };
        Memory::within(bytes.map(room), 80 << 20, stacks)
    }

    #[test]
    fn the_bound_is_affordable() {
        for stacks in [false, true] {
            let memory = within(None, stacks);
            let others = memory.resident_bound_bytes - memory.frames as u64 * FRAME_BYTES;
            assert!((1 << 30..3 << 30).contains(&others), "{memory:?}");
            let kept = (memory.stalls, memory.samples, memory.cut());
            assert_eq!(kept, (EVENTS_MAX, MAX_SAMPLES, None));
            assert_eq!(memory.frames, if stacks { FRAMES_MAX } else { 0 });
        }
    }

    #[test]
    fn what_grows_fits_into_the_room() {
        let rooms = [80, 81, 100, 512, 2048, 8192].map(|mib| [(mib, false), (mib, true)]);
        for (mib, stacks) in rooms.into_iter().flatten() {
            let room = mib << 20;
            let memory = within(Some(room), stacks);
            let data = memory.stalls * STALL_BYTES
                + memory.samples as u64 * SAMPLE_BYTES
                + memory.requests as u64 * REQUEST_BYTES
                + memory.frames as u64 * FRAME_BYTES;
            assert!(data + (80 << 20) <= room, "{memory:?}");
            assert!(memory.resident_bound_bytes <= room, "{memory:?}");
            assert_eq!(memory.cut().is_none(), mib == 8192, "{memory:?}");
        }
        let memory = within(Some(100 << 20), true);
        assert!(memory.stalls > 10_000 && memory.samples > 10_000, "{memory:?}");
        assert!(memory.frames > 1_000, "{memory:?}");
    }
}
