//! Bursts: short stalls of one thread, summed up so that they leave as one record.

use bytemuck::{Pod, Zeroable};

use super::{Header, Owner, Record, RecordKind};

/// A pause between two short stalls that ends a burst, if that holds [`BURST_SPLIT_NS`] already.
/// Without it, a burst would reach from one request into the next one.
pub const BURST_GAP_NS: u64 = 100_000;

/// Time in stalls from which a pause ends a burst. Shorter ones go on over pauses until
/// [`BURST_LENGTH_NS`], so that a stall now and then does not make a record each time.
pub const BURST_SPLIT_NS: u64 = 20_000;

/// A burst that has lasted this long ends with its present stall. So a thread sends at most one
/// record a millisecond, and one for each [`BURST_SPLIT_NS`] in stalls.
pub const BURST_LENGTH_NS: u64 = 1_000_000;

/// Stalls of one kind below its floor, that a thread had and that are not sent yet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Burst {
    /// Begin of the first one.
    pub first_ns: u64,
    /// End of the last one.
    pub last_ns: u64,
    /// Their lengths together.
    pub sum_ns: u64,
    /// How many they are; 0 where there is no burst.
    pub count: u32,
    /// Explicit padding.
    pub reserved: u32,
}

impl Burst {
    /// Whether a stall that begins at this instant belongs to the next burst.
    #[inline(always)]
    #[must_use]
    pub const fn is_over_at(&self, begin_ns: u64) -> bool {
        // Wrapping, as in all programs: a check would cost more, and the clock never runs backwards.
        let paused = begin_ns.wrapping_sub(self.last_ns) > BURST_GAP_NS;
        let lasted = begin_ns.wrapping_sub(self.first_ns) >= BURST_LENGTH_NS;
        self.count != 0 && (lasted || (paused && self.sum_ns >= BURST_SPLIT_NS))
    }

    /// Adds a stall, the first one or one for which [`Self::is_over_at`] is false.
    #[inline(always)]
    pub const fn add(&mut self, begin_ns: u64, end_ns: u64) {
        if self.count == 0 {
            self.first_ns = begin_ns;
            self.sum_ns = 0;
        }
        self.last_ns = end_ns;
        self.sum_ns = self.sum_ns.wrapping_add(end_ns.wrapping_sub(begin_ns));
        self.count = self.count.wrapping_add(1);
    }

    /// Whether it has lasted long enough to be sent at once.
    #[inline(always)]
    #[must_use]
    pub const fn has_lasted(&self) -> bool {
        self.last_ns.wrapping_sub(self.first_ns) >= BURST_LENGTH_NS
    }

    /// The record of it.
    #[inline(always)]
    #[must_use]
    pub const fn record(&self, kind: u16, thread: Owner, cpu: u32) -> BurstRecord<0> {
        let Owner { tid, tgid } = thread;
        let (end_ns, duration_ns) = (self.last_ns, self.sum_ns);
        BurstRecord {
            header: Header { end_ns, duration_ns, tid, tgid, kind, flags: 0, cpu },
            first_ns: self.first_ns,
            count: self.count,
            reserved: 0,
        }
    }
}

/// A burst, sent as this kind of record. The header's end is the end of the last stall, its duration
/// is the time in all of them together: whoever knows nothing of bursts takes it for a stall of the right
/// length at about the right time.
///
/// It leaves after its end: with the thread's next short stall, when it exits, or when the run ends. So a
/// trace that is complete up to some instant may still lack one burst of each thread, of at most about
/// [`BURST_LENGTH_NS`]. (With the time of sending as its end, a trace would lack the same stalls, and
/// their time would be wrong as well.)
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BurstRecord<const KIND: u16> {
    /// Common part.
    pub header: Header,
    /// Begin of the first stall.
    pub first_ns: u64,
    /// How many stalls.
    pub count: u32,
    /// Explicit padding.
    pub reserved: u32,
}

// SAFETY: plain numbers without padding, whatever the kind; all zeros are a value.
unsafe impl<const KIND: u16> Zeroable for BurstRecord<KIND> {}
// SAFETY: as above, and `repr(C)`. The derive macro does not take types with parameters.
unsafe impl<const KIND: u16> Pod for BurstRecord<KIND> {}

const _: () = assert!(size_of::<BurstRecord<0>>() == size_of::<Header>() + 16);

impl<const KIND: u16> Record for BurstRecord<KIND> {
    const KIND: u16 = KIND;
}

/// A burst of minor page faults.
pub type FaultBurstRecord = BurstRecord<{ RecordKind::FaultBurst as u16 }>;
/// A burst of hard interrupts.
pub type IrqBurstRecord = BurstRecord<{ RecordKind::IrqBurst as u16 }>;
/// A burst of memory-management calls.
pub type MmSyscallBurstRecord = BurstRecord<{ RecordKind::MmSyscallBurst as u16 }>;

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    /// What a thread sends for these stalls.
    fn sent(stalls: impl IntoIterator<Item = (u64, u64)>) -> (Vec<Burst>, Burst) {
        let (mut sent, mut burst) = (Vec::new(), Burst::default());
        for (begin_ns, end_ns) in stalls {
            if burst.is_over_at(begin_ns) {
                sent.push(core::mem::take(&mut burst));
            }
            burst.add(begin_ns, end_ns);
            if burst.has_lasted() {
                sent.push(core::mem::take(&mut burst));
            }
        }
        (sent, burst)
    }

    #[test]
    fn a_pause_ends_a_burst_that_holds_enough() {
        let dense = (0..40).map(|at| (at * 2_000, at * 2_000 + 1_000));
        let later = 39 * 2_000 + 1_000 + BURST_GAP_NS;
        let (bursts, rest) = sent(dense.clone().chain([(later, later + 500)]));
        assert_eq!((bursts.len(), rest.count), (0, 41), "no longer than the pause allows");
        let (bursts, rest) = sent(dense.chain([(later + 1, later + 501)]));
        let whole = Burst { last_ns: 79_000, sum_ns: 40_000, count: 40, ..Burst::default() };
        assert_eq!(bursts, [whole]);
        assert_eq!((rest.first_ns, rest.sum_ns, rest.count), (later + 1, 500, 1));
    }

    #[test]
    fn rare_stalls_share_a_record_of_a_millisecond() {
        let (bursts, rest) = sent((0..10_000).map(|at| (at * 150_000, at * 150_000 + 1_000)));
        assert!(bursts.iter().all(|burst| (6_000..=8_000).contains(&burst.sum_ns)), "{bursts:?}");
        assert!(bursts.len() < 1_500, "{} in 1.5 s", bursts.len());
        let sum_ns: u64 = bursts.iter().chain([&rest]).map(|burst| burst.sum_ns).sum();
        assert_eq!(sum_ns, 10_000_000);
    }

    #[test]
    fn no_stall_is_lost_and_bursts_do_not_overlap() {
        let mut number = 12_345u64;
        let mut random = |below: u64| {
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            number % below
        };
        let mut now = 1_000;
        let stalls: Vec<(u64, u64)> = (0..50_000)
            .map(|_| {
                let begin = now + random(300) * random(1_000);
                now = begin + 1 + random(3_000);
                (begin, now)
            })
            .collect();
        let (mut bursts, rest) = sent(stalls.iter().copied());
        bursts.push(rest);
        let lengths = stalls.iter().map(|(begin, end)| end - begin);
        assert_eq!(bursts.iter().map(|burst| burst.sum_ns).sum::<u64>(), lengths.sum::<u64>());
        assert_eq!(bursts.iter().map(|burst| burst.count).sum::<u32>(), 50_000);
        assert!(bursts.windows(2).all(|pair| pair[0].last_ns <= pair[1].first_ns));
        let length = |burst: &Burst| burst.last_ns - burst.first_ns;
        assert!(bursts.iter().all(|burst| length(burst) < BURST_LENGTH_NS + 3_001));
        assert!(bursts.iter().all(|burst| burst.sum_ns <= length(burst)));
    }
}
