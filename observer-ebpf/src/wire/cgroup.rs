//! Histograms by cgroup: which row a cgroup uses, and what is in the row.
//!
//! A row has, for each stripe, [`SERIES`](super::SERIES) histograms with one bucket an octave. A
//! stripe is one CPU, or several neighbouring CPUs on hosts with many CPUs. The kernel side gives a
//! cgroup a row at its first event; user space takes the row back when the cgroup has been removed.
//!
//! A ticket identifies a row: it holds the row's number and how often the row was assigned. Threads
//! remember their cgroup's ticket, and each histogram stores the valid ticket next to its numbers,
//! so that an old ticket is detected at no cost.

use bytemuck::{Pod, Zeroable};

use super::{BUCKETS, BUCKETS_PER_OCTAVE};

/// Buckets of a [`CgroupHistogram`].
pub const OCTAVES: usize = 30;

/// Octaves of the full histogram that are one here, the lowest: everything up to 2⁻²¹ s (477 ns).
const OCTAVES_BELOW: usize = 3;

/// One histogram of one series of one cgroup on one stripe, 256 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct CgroupHistogram {
    /// The ticket that is valid for this row; 0 while the row is closed.
    pub ticket: u64,
    /// Sum of all observed durations, nanoseconds.
    pub sum_ns: u64,
    /// Observations per octave; indices from [`octave_of_bucket`].
    pub octaves: [u64; OCTAVES],
}

/// The octave that a bucket of [`Histogram`](super::Histogram) lies in, in `0..OCTAVES`.
///
/// Octave 0 holds everything up to 2⁻²¹ s, octave `k` the durations in `(2^(k-22), 2^(k-21)]`
/// seconds, the last one everything above 128 s.
#[inline(always)]
#[must_use]
pub const fn octave_of_bucket(bucket: usize) -> usize {
    bucket.div_ceil(BUCKETS_PER_OCTAVE as usize).saturating_sub(OCTAVES_BELOW)
}

/// Upper bound of an octave is 2 to the power of this, in seconds, inclusive; `None` for the last
/// octave, which has none.
#[must_use]
pub const fn octave_exponent(octave: usize) -> Option<i32> {
    if octave + 1 < OCTAVES { Some(octave as i32 - 21) } else { None }
}

const _: () = assert!(octave_of_bucket(BUCKETS - 1) == OCTAVES - 1);
const _: () = assert!(size_of::<CgroupHistogram>() == 256);

/// The row of all cgroups that have none of their own.
pub const CGROUP_ROW_OTHER: u64 = 0;

/// Most rows, the one for the others included. The loader makes fewer where memory is short.
pub const CGROUP_ROWS_MAX: usize = 1_152;

/// Low bits of a ticket: the number of its row. The other bits are how often the row was assigned.
pub const CGROUP_ROW_BITS: u32 = 11;

/// Mask of the number of the row in a ticket.
pub const CGROUP_ROW_MASK: u64 = (1 << CGROUP_ROW_BITS) - 1;

/// The mask of a ticket: threads keep it in 32 bits.
pub const CGROUP_TICKET_MASK: u64 = u32::MAX as u64;

/// The value of [`CgroupEntry::ticket`] while a CPU fetches a row. It is not a valid ticket: the
/// first ticket of each row is above [`CGROUP_ROW_MASK`].
pub const CGROUP_TICKET_PENDING: u64 = 1;

/// Places for tickets of free rows. A power of two above [`CGROUP_ROWS_MAX`].
pub const CGROUP_FREE_PLACES: usize = 2_048;

const _: () = assert!(CGROUP_ROWS_MAX < CGROUP_FREE_PLACES);
const _: () = assert!(CGROUP_FREE_PLACES <= 1 << CGROUP_ROW_BITS);

/// Entries of the index, a power of two. Seven times the number of rows: cgroups without a row are
/// in the index as well, and a search through [`CGROUP_PROBES`] entries then practically always
/// finds a free one.
pub const CGROUP_ENTRIES: usize = 8_192;

/// Entries that are searched for a cgroup.
pub const CGROUP_PROBES: usize = 16;

/// The ticket that follows this one when its row is assigned again. Never 0 and never
/// [`CGROUP_TICKET_PENDING`].
#[must_use]
pub const fn next_ticket(ticket: u64) -> u64 {
    let next = (ticket + (1 << CGROUP_ROW_BITS)) & CGROUP_TICKET_MASK;
    if next > CGROUP_ROW_MASK { next } else { next + (1 << CGROUP_ROW_BITS) }
}

/// Where the search for a cgroup begins in the index.
///
/// Ids are handed out in steps (19 and 33 were seen: a cgroup's files take ids as well), so that
/// their low bits repeat, and one multiplication leaves some steps in clusters. This is the
/// finalizer of SplitMix64.
#[inline(always)]
#[must_use]
pub const fn cgroup_home(id: u64) -> usize {
    let mixed = (id ^ (id >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) as usize & (CGROUP_ENTRIES - 1)
}

/// A cgroup that has counted events.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct CgroupEntry {
    /// Its id; 0 where the entry is free.
    pub id: u64,
    /// The ticket of its row; 0 where it has none, [`CGROUP_TICKET_PENDING`] for a moment before
    /// it gets one.
    pub ticket: u64,
}

/// The only value of the `CGROUPS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct CgroupTable {
    /// The ticket of [`CGROUP_ROW_OTHER`]. User space changes it to make the threads of cgroups
    /// without a row ask again.
    pub other_ticket: u64,
    /// Tickets taken from `free` so far, by the kernel side.
    pub taken: u64,
    /// Tickets put into `free` so far, by user space.
    pub given: u64,
    /// Explicit padding.
    pub reserved: u64,
    /// Tickets of free rows, a ring: the next to take is at `taken` modulo its length.
    pub free: [u64; CGROUP_FREE_PLACES],
    /// The index.
    pub entries: [CgroupEntry; CGROUP_ENTRIES],
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec;

    use super::super::{bucket_index, native_index};
    use super::*;

    #[test]
    fn an_octave_holds_the_buckets_between_its_bounds() {
        for bucket in 0..BUCKETS {
            let octave = octave_of_bucket(bucket);
            let Some(index) = native_index(bucket) else {
                assert_eq!((octave, octave_exponent(octave)), (OCTAVES - 1, None));
                continue;
            };
            let exponent = octave_exponent(octave).expect("a bound");
            assert!(index <= exponent * 8, "bucket {bucket}");
            assert!(octave == 0 || index > (exponent - 1) * 8, "bucket {bucket}");
        }
        assert_eq!(octave_of_bucket(bucket_index(1_000_000_000)), 21);
        assert_eq!(octave_of_bucket(bucket_index(u64::MAX)), OCTAVES - 1);
    }

    /// Most entries that a search looks at when these ids are entered one after the other.
    fn longest_search(ids: impl Iterator<Item = u64>) -> usize {
        let mut taken = vec![false; CGROUP_ENTRIES];
        let mut longest = 0;
        for id in ids {
            let home = cgroup_home(id);
            let probe = (0..CGROUP_ENTRIES)
                .find(|probe| !taken[(home + probe) % CGROUP_ENTRIES])
                .expect("a free entry");
            taken[(home + probe) % CGROUP_ENTRIES] = true;
            longest = longest.max(probe + 1);
        }
        longest
    }

    #[test]
    fn ids_in_steps_are_found_within_the_probes() {
        for step in (1..=256).chain([1 << 8, 1 << 16, (1 << 32) + 19]) {
            for first in [1, 4_711, 1 << 33] {
                let ids = (0..CGROUP_ROWS_MAX as u64).map(|nth| first + nth * step);
                let longest = longest_search(ids);
                assert!(longest <= CGROUP_PROBES, "ids in steps of {step}: {longest} looked at");
            }
        }
    }

    #[test]
    fn a_ticket_is_never_mistaken_for_none() {
        let mut ticket = CGROUP_ROW_OTHER;
        for _ in 0..3 {
            ticket = next_ticket(ticket);
            assert_eq!(ticket & CGROUP_ROW_MASK, CGROUP_ROW_OTHER);
            assert!(ticket > CGROUP_TICKET_PENDING && ticket <= CGROUP_TICKET_MASK);
        }
        let last = CGROUP_TICKET_MASK;
        assert_eq!(next_ticket(last), (1 << CGROUP_ROW_BITS) | CGROUP_ROW_MASK);
    }
}
