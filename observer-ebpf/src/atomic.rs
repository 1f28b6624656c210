//! Atomic read-modify-write on map values, and other single instructions.
//!
//! The BPF instruction set has them (v3, Linux 5.12), Rust's BPF target does not offer them yet
//! (`atomic_cas` is off in its description), hence the assembly.

use core::{arch::asm, ptr};

/// Stores `new` if the value is `expected`, and returns whether it was.
#[inline(always)]
pub(crate) fn compare_exchange(value: *mut u64, expected: u64, new: u64) -> bool {
    let found: u64;
    // SAFETY: `value` points into a map value (the verifier checks it); the instruction compares
    // with and returns in r0.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({value} + 0, r0, {new})",
            value = in(reg) value,
            new = in(reg) new,
            inlateout("r0") expected => found,
        );
    }
    found == expected
}

/// Stores `new` and returns what was there. All stores before it are visible to whoever finds `new`.
#[inline(always)]
pub(crate) fn exchange(value: *mut u64, new: u64) -> u64 {
    let mut result = new;
    // SAFETY: `value` points into a map value (the verifier checks it).
    unsafe {
        asm!(
            "{number} = xchg_64({value} + 0, {number})",
            value = in(reg) value,
            number = inout(reg) result,
        );
    }
    result
}

/// Sets the bits of `mask`.
#[inline(always)]
pub(crate) fn or(value: *mut u64, mask: u64) {
    // SAFETY: `value` points into a map value (the verifier checks it).
    unsafe {
        asm!("lock *(u64 *)({value} + 0) |= {mask}", value = in(reg) value, mask = in(reg) mask);
    }
}

/// Keeps the bits of `mask`.
#[inline(always)]
pub(crate) fn and(value: *mut u64, mask: u64) {
    // SAFETY: `value` points into a map value (the verifier checks it).
    unsafe {
        asm!("lock *(u64 *)({value} + 0) &= {mask}", value = in(reg) value, mask = in(reg) mask);
    }
}

/// Adds to the value.
#[inline(always)]
pub(crate) fn add(value: *mut u64, number: u64) {
    // SAFETY: `value` points into a map value (the verifier checks it).
    unsafe {
        asm!(
            "lock *(u64 *)({value} + 0) += {number}",
            value = in(reg) value,
            number = in(reg) number,
        );
    }
}

/// Adds to the value and returns what it was.
#[inline(always)]
pub(crate) fn fetch_add(value: *mut u64, number: u64) -> u64 {
    let mut result = number;
    // SAFETY: `value` points into a map value (the verifier checks it).
    unsafe {
        asm!(
            "{number} = atomic_fetch_add((u64 *)({value} + 0), {number})",
            value = in(reg) value,
            number = inout(reg) result,
        );
    }
    result
}

/// Reads the value once, because other CPUs may write it.
#[inline(always)]
pub(crate) fn load(value: *const u64) -> u64 {
    // SAFETY: as above; aligned loads of eight bytes do not tear.
    unsafe { ptr::read_volatile(value) }
}

/// Writes the value once, because other CPUs may read it.
#[inline(always)]
pub(crate) fn store(value: *mut u64, new: u64) {
    // SAFETY: as above; aligned stores of eight bytes do not tear.
    unsafe { ptr::write_volatile(value, new) }
}

/// A pointer as a plain number, byte-swapped. The verifier forbids arithmetic on some pointers
/// (contexts), but treats a register as a plain number once its bytes were swapped.
#[inline(always)]
pub(crate) fn swapped_address(pointer: *const u8) -> u64 {
    let mut result = pointer as u64;
    // SAFETY: arithmetic on one register.
    unsafe { asm!("{0} = be64 {0}", inout(reg) result, options(pure, nomem, nostack)) };
    result
}

/// The low eight bits of a number, hidden from the compiler: it would otherwise remove the bound
/// check that the verifier needs to see.
#[inline(always)]
pub(crate) fn low_byte(number: usize) -> usize {
    let mut result = number;
    // SAFETY: arithmetic on one register. An empty template would suffice, but it puts two entries
    // of line information on one instruction, which the kernel refuses.
    unsafe { asm!("{0} &= 255", inout(reg) result, options(pure, nomem, nostack)) };
    result
}
