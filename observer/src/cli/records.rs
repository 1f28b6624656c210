//! Options about the records: their floors, and the size of the ring.

use observer_ebpf::wire::RecordKind;

use super::duration;
use crate::probe;

/// Smallest ring: a few hundred records.
const RING_MIN_BYTES: u64 = 64 << 10;
/// Largest ring the kernel's accounting and a 32-bit size allow with ease.
const RING_MAX_BYTES: u64 = 1 << 30;

/// Smallest trace of bounded size: a second of the largest rate fits into each of its parts.
const TRACE_MIN_BYTES: u64 = 1 << 20;
/// The same in words.
const TRACE_MIN: &str = "1M";

/// Parses `runqueue=20us`: a kind of record that has a length, and its floor.
///
/// # Errors
/// With what is wrong, for clap to print.
pub(super) fn parse_floor(text: &str) -> Result<(RecordKind, u64), String> {
    let (name, floor) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not KIND=TIME, like runqueue=20us"))?;
    // A floor on a kind without a length would hide all of its records.
    let known = || probe::with_floor().map(|(kind, _)| kind);
    let kind = known().find(|kind| kind.name() == name).ok_or_else(|| {
        let known: Vec<&str> = known().map(RecordKind::name).collect();
        let known = known.join(", ");
        format!("{name:?} is not a kind of record with a minimum duration: use {known}")
    })?;
    let floor = duration::parse(floor)?;
    Ok((kind, u64::try_from(floor.as_nanos()).unwrap_or(u64::MAX)))
}

/// Parses the size of the ring: bytes, or with K, M or G.
///
/// # Errors
/// With what is wrong, for clap to print.
pub(super) fn parse_ring_bytes(text: &str) -> Result<u32, String> {
    let wrong = || format!("{text:?} is not a power of two between 64K and 1G, like 8M");
    let bytes = parse_bytes(text).ok_or_else(wrong)?;
    if !bytes.is_power_of_two() || !(RING_MIN_BYTES..=RING_MAX_BYTES).contains(&bytes) {
        return Err(wrong());
    }
    u32::try_from(bytes).map_err(|_| wrong())
}

/// Parses the disk space of a trace: bytes, or with K, M or G.
///
/// # Errors
/// With what is wrong, for clap to print.
pub(super) fn parse_trace_bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size of {TRACE_MIN} or more, like 256M or 2G");
    parse_bytes(text).filter(|bytes| *bytes >= TRACE_MIN_BYTES).ok_or_else(wrong)
}

/// A number of bytes, with K, M or G behind it or nothing.
fn parse_bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G']) {
        None => (text, 0),
        Some(digits) => (
            digits,
            match text.as_bytes()[digits.len()] {
                b'K' => 10,
                b'M' => 20,
                _ => 30,
            },
        ),
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_shl(shift).filter(|bytes| bytes >> shift == number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::RING_BYTES;

    #[test]
    fn floors_are_for_kinds_with_a_length() {
        assert_eq!(parse_floor("runqueue=20us"), Ok((RecordKind::Runqueue, 20_000)));
        assert_eq!(parse_floor("mm_syscall=0ns"), Ok((RecordKind::MmSyscall, 0)));
        for wrong in ["runqueue", "task=1us", "socket=1us", "runqueue=5", "=1us"] {
            assert!(parse_floor(wrong).is_err(), "{wrong}");
        }
        assert!(parse_floor("x=1us").unwrap_err().contains("compaction"));
    }

    #[test]
    fn rings_are_powers_of_two_of_a_sane_size() {
        assert_eq!(parse_ring_bytes("8M"), Ok(RING_BYTES));
        assert_eq!(parse_ring_bytes("65536"), Ok(65_536));
        assert_eq!(parse_ring_bytes("1G"), Ok(1 << 30));
        for wrong in ["", "M", "3M", "32K", "2G", "-1", "18446744073709551615K", "8m"] {
            assert!(parse_ring_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn traces_have_any_size_that_holds_something() {
        assert_eq!(parse_trace_bytes("256M"), Ok(256 << 20));
        assert_eq!(parse_trace_bytes("3G"), Ok(3 << 30));
        for wrong in ["", "G", "1K", "99999999999G", "-1", "1m"] {
            assert!(parse_trace_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
