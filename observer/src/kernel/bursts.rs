//! Bursts of short stalls that are still open at the end of a run.

use std::sync::atomic::Ordering;

use aya::maps::Map;
use bytemuck::Zeroable;
use observer_ebpf::wire::{Burst, Owner, RecordKind};

use super::Kernel;
use super::mapped::MappedWords;
use crate::model::Event;
use crate::probe::{PROBES, PerThread, decode};

/// Bytes of a table that are mapped at a time: mapped whole it would count as resident memory.
const PART_BYTES: usize = 1 << 16;
const BURST_WORDS: usize = size_of::<Burst>() / 8;

impl Kernel {
    /// The burst of each thread of the target that no further stall has ended, as events. Call it
    /// once, after [`Kernel::forget_targets`]. Those in task-local storage cannot be read: their time
    /// is in no record.
    #[must_use]
    pub fn open_bursts(&self) -> Vec<Event> {
        let mut bursts = Vec::new();
        for probe in PROBES.into_iter().filter(|probe| !self.places.is_stored(probe)) {
            let Some((state, (kind, offset))) =
                probe.per_thread.as_ref().and_then(|state| Some((state, state.burst?)))
            else {
                continue;
            };
            let floor_ns = self.floors().get(kind);
            let read = self.each_slot(state, |slot| {
                bursts.extend(open_burst(slot, kind, offset, floor_ns));
            });
            if let Err(error) = read {
                tracing::warn!("cannot map BPF map {} into memory: {error}", state.table);
            }
        }
        bursts
    }

    /// Passes the words of each entry of a table of threads.
    fn each_slot(&self, state: &PerThread, mut each: impl FnMut(&[u64])) -> std::io::Result<()> {
        let Some(Map::Array(map)) = self.ebpf.map(state.table) else { return Ok(()) };
        let all_bytes = self.shape.task_slots as usize * state.slot_bytes;
        // Whole pages that hold whole entries.
        let part_bytes = PART_BYTES * state.slot_bytes / 8;
        let mut slot = vec![0; state.slot_bytes / 8];
        for from_bytes in (0..all_bytes).step_by(part_bytes) {
            let length = part_bytes.min(all_bytes - from_bytes);
            let part = MappedWords::part(map.fd(), from_bytes, length)?;
            for words in part.words().chunks_exact(slot.len()) {
                let copied = slot.iter_mut().zip(words);
                copied.for_each(|(copy, word)| *copy = word.load(Ordering::Relaxed));
                each(&slot);
            }
        }
        Ok(())
    }
}

/// The burst at this offset of a table's entry, if it is long enough to be recorded.
fn open_burst(slot: &[u64], kind: RecordKind, offset: usize, floor_ns: u64) -> Option<Event> {
    let owner: Owner = bytemuck::cast(*slot.first()?);
    let mut burst = Burst::zeroed();
    let copy: &mut [u64; BURST_WORDS] = bytemuck::cast_mut(&mut burst);
    copy.copy_from_slice(slot.get(offset / 8..offset / 8 + BURST_WORDS)?);
    if burst.count == 0 || burst.sum_ns < floor_ns {
        return None;
    }
    decode(bytemuck::bytes_of(&burst.record(kind as u16, owner, 0))).ok()
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use observer_ebpf::wire::{FaultState, Slot};

    use super::*;
    use crate::clock::MonoNanos;
    use crate::model::Summed;

    #[test]
    fn an_open_burst_is_the_event_that_its_end_would_have_sent() {
        const OFFSET: usize = offset_of!(Slot<FaultState>, state.burst);
        let burst = Burst { first_ns: 100, last_ns: 900, sum_ns: 500, count: 3, reserved: 0 };
        let slot = |burst: Burst| {
            let mut words = [0u64; size_of::<Slot<FaultState>>() / 8];
            words[0] = bytemuck::cast(Owner { tid: 7, tgid: 5 });
            let burst: [u64; BURST_WORDS] = bytemuck::cast(burst);
            words[OFFSET / 8..OFFSET / 8 + BURST_WORDS].copy_from_slice(&burst);
            words
        };
        let open = |burst| open_burst(&slot(burst), RecordKind::FaultBurst, OFFSET, 500);
        let event = open(burst).expect("a burst");
        assert_eq!((event.tid.0, event.tgid.0, event.duration_ns), (7, 5, 500));
        assert_eq!(event.end, MonoNanos(900));
        assert_eq!(event.summed(), Some(Summed { first: MonoNanos(100), count: 3 }));
        assert!(open(Burst { count: 0, ..burst }).is_none());
        assert!(open(Burst { sum_ns: 499, ..burst }).is_none(), "below the floor");
        assert!(open_burst(&[0; 4], RecordKind::FaultBurst, OFFSET, 0).is_none());
    }
}
