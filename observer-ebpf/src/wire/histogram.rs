//! In-kernel histograms: the buckets of a Prometheus native histogram, schema 3, in seconds.
//!
//! Bucket boundaries are `2^(i/8)` seconds, upper bound inclusive (Prometheus native histogram
//! specification, "standard exponential buckets"). Nanoseconds are first turned into units of
//! 2⁻³⁰ s, so that the octave is the position of the highest bit.

use bytemuck::{Pod, Zeroable};

use super::Series;

/// Buckets per octave (8, that is schema 3).
pub const BUCKETS_PER_OCTAVE: u32 = 8;
/// Everything up to 2^`MIN_EXPONENT` units of 2⁻³⁰ s (60 ns) falls into bucket 0.
pub const MIN_EXPONENT: u32 = 6;
/// Everything above 2^`MAX_EXPONENT` units of 2⁻³⁰ s (128 s) falls into the last bucket.
pub const MAX_EXPONENT: u32 = 37;
/// Buckets in use: one below, 8 an octave, one above.
pub const BUCKETS: usize = ((MAX_EXPONENT - MIN_EXPONENT) * BUCKETS_PER_OCTAVE) as usize + 2;
/// Bucket array length, rounded up so that a [`Histogram`] is a power of two of bytes.
pub const BUCKET_SLOTS: usize = 254;

/// One histogram of one series on one CPU, 2,048 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Histogram {
    /// Sum of all observed durations, nanoseconds.
    pub sum_ns: u64,
    /// Largest observed duration, nanoseconds.
    pub max_ns: u64,
    /// Observations per bucket; indices from [`bucket_index`].
    pub buckets: [u64; BUCKET_SLOTS],
}

/// Whose histograms there are at full resolution: the target's, and those of everything else.
pub const SCOPES: usize = 2;

/// Among [`SCOPES`], every task that is not the target's.
pub const SCOPE_REST: usize = 0;

/// Among [`SCOPES`], the target.
pub const SCOPE_TARGET: usize = 1;

/// Histograms of one scope or cgroup: as many as there are series.
pub const SERIES: usize = Series::ALL.len();

/// Bits 31..0 of `2^(j/8)` scaled so that 1.0 is 2³¹, for j in 0..8, rounded down. The values are
/// irrational but for j = 0, so "greater than" needs no tie rule there.
const MANTISSA: [u32; 8] = [
    0x8000_0000,
    0x8b95_c1e3,
    0x9837_f051,
    0xa5fe_d6a9,
    0xb504_f333,
    0xc567_2a11,
    0xd744_fcca,
    0xeac0_c6e7,
];

/// Nanoseconds to units of 2⁻³⁰ s, low by less than one part in 10⁹, up to 2³⁷ ns.
#[inline(always)]
#[must_use]
pub const fn to_units(duration_ns: u64) -> u64 {
    // 2^30 / 10^9 - 1 = 0.073741824, here as a fraction of 2^30. The product stays below 2^64
    // up to 2^37 ns. Rounded down (79,179,680.7), so that a duration that is exactly a boundary
    // never lands above it.
    const FRACTION: u64 = 79_179_680;
    const LIMIT: u64 = 1 << 37;
    let ns = if duration_ns > LIMIT { LIMIT } else { duration_ns };
    ns + ((ns * FRACTION) >> 30)
}

/// For each value of the top six bits of `DE_BRUIJN * (2^(n+1) - 1)`, the `n`.
static LOG2: [u8; 64] = log2_table();

/// A de Bruijn sequence of order 6: its 64 six-bit windows are all different.
const DE_BRUIJN: u64 = 0x03f6_eaf2_cd27_1461;

const fn log2_table() -> [u8; 64] {
    let mut table = [0; 64];
    let mut log = 0;
    while log < 64 {
        let filled = if log == 63 { u64::MAX } else { (1 << (log + 1)) - 1 };
        table[(filled.wrapping_mul(DE_BRUIJN) >> 58) as usize] = log as u8;
        log += 1;
    }
    table
}

/// Position of the highest set bit of a non-zero number. BPF has no count-leading-zeros
/// instruction, and a binary search by branches multiplies the paths the verifier follows; this
/// has none: fill the bits below the highest one, multiply, look the top bits up.
#[inline(always)]
fn floor_log2(value: u64) -> u32 {
    let mut filled = value;
    filled |= filled >> 1;
    filled |= filled >> 2;
    filled |= filled >> 4;
    filled |= filled >> 8;
    filled |= filled >> 16;
    filled |= filled >> 32;
    u32::from(LOG2[(filled.wrapping_mul(DE_BRUIJN) >> 58) as usize])
}

/// The bucket of a duration, in `0..BUCKETS`.
///
/// Bucket 0 holds everything up to 2^[`MIN_EXPONENT`] units, the last one everything above
/// 2^[`MAX_EXPONENT`] units, bucket `1 + k` the durations in
/// `(2^(MIN_EXPONENT + k/8), 2^(MIN_EXPONENT + (k+1)/8)]` units of 2⁻³⁰ s.
#[inline(always)]
#[must_use]
pub fn bucket_index(duration_ns: u64) -> usize {
    let units = to_units(duration_ns);
    if units <= 1 << MIN_EXPONENT {
        return 0;
    }
    if units > 1 << MAX_EXPONENT {
        return BUCKETS - 1;
    }
    let exponent = floor_log2(units);
    let mantissa = ((units << (63 - exponent)) >> 32) as u32;
    // How many of the eight lower boundaries of the octave lie below: a binary search, since the
    // verifier follows each of eight comparisons otherwise.
    let mut position = 0;
    if mantissa > MANTISSA[4] {
        position = 4;
        if mantissa > MANTISSA[6] {
            position += if mantissa > MANTISSA[7] { 4 } else { 3 };
        } else if mantissa > MANTISSA[5] {
            position += 2;
        } else {
            position += 1;
        }
    } else if mantissa > MANTISSA[2] {
        position += if mantissa > MANTISSA[3] { 4 } else { 3 };
    } else if mantissa > MANTISSA[1] {
        position += 2;
    } else if mantissa > MANTISSA[0] {
        position += 1;
    }
    ((exponent - MIN_EXPONENT) * BUCKETS_PER_OCTAVE + position) as usize
}

/// The index of a bucket in a Prometheus native histogram of schema 3 whose unit is the second
/// (its upper bound is `2^(index/8)` s); `None` for the overflow bucket.
#[must_use]
pub const fn native_index(bucket: usize) -> Option<i32> {
    if bucket >= BUCKETS - 1 {
        return None;
    }
    Some((MIN_EXPONENT as i32 - 30) * BUCKETS_PER_OCTAVE as i32 + bucket as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_boundary_falls_into_the_lower_bucket() {
        // Whole octaves of seconds are exact in nanoseconds from 2^-9 s up.
        for exponent in -9i32..=7 {
            let ns = if exponent < 0 {
                1_000_000_000 >> -exponent
            } else {
                1_000_000_000u64 << exponent
            };
            let index = bucket_index(ns);
            assert_eq!(native_index(index), Some(exponent * 8), "2^{exponent} s");
            assert_eq!(bucket_index(ns + ns / 1000), index + 1, "just above 2^{exponent} s");
        }
    }

    #[test]
    fn indices_rise_with_the_duration_and_stay_in_range() {
        let mut previous = 0;
        let mut ns = 1u64;
        while ns < 1 << 45 {
            let index = bucket_index(ns);
            assert!(index >= previous && index < BUCKETS, "{ns} ns");
            assert!(index <= previous + 1 || ns < 400, "no bucket is skipped at {ns} ns");
            previous = index;
            ns += ns / 64 + 1;
        }
        assert_eq!(bucket_index(0), 0);
        assert_eq!(bucket_index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_bucket_holds_what_the_specification_says() {
        for ns in [61u64, 100, 777, 5_000, 64_123, 999_999, 1_000_000_001, 77_000_000_000] {
            let index = native_index(bucket_index(ns)).expect("in range");
            let seconds = ns as f64 / 1e9;
            let upper = libm_exp2(f64::from(index) / 8.0);
            let lower = libm_exp2(f64::from(index - 1) / 8.0);
            // One unit of 2^-30 s is the resolution of the integer conversion.
            assert!(
                seconds > lower - 1e-9 && seconds <= upper + 1e-9,
                "{ns} ns: ({lower}, {upper}]"
            );
        }
    }

    fn libm_exp2(exponent: f64) -> f64 {
        extern crate std;
        std::primitive::f64::exp2(exponent)
    }
}
