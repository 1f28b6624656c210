//! What the kernel counts of disks (block devices), and what processes read from them and write to them.

use std::path::Path;

use super::read_start;
use crate::model::Tgid;

/// Most bytes that are read of the list of disks: a thousand of them and their partitions.
const LIST_BYTES: u64 = 1 << 20;
/// Most bytes that are read of a process's file.
const FILE_BYTES: u64 = 1_024;
/// Bytes of a sector in the kernel's counts, whatever the device has.
const SECTOR_BYTES: u64 = 512;

/// Requests of one direction that a disk has completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskRequests {
    /// How many; several that were merged are one.
    pub count: u64,
    /// Their bytes; 0 of a flush.
    pub bytes: u64,
    /// Time from each one's begin to its end, added up, milliseconds. The kernel shows its low 32 bits.
    pub time_ms: u32,
}

/// What the kernel has counted of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Reads.
    pub reads: DiskRequests,
    /// Writes.
    pub writes: DiskRequests,
    /// Flushes of the disk's own cache, which fsync(2) needs (since Linux 5.5).
    pub flushes: DiskRequests,
    /// Time in which at least one request was there, milliseconds, low 32 bits.
    pub busy_ms: u32,
    /// Time of all requests, added up while they are there, milliseconds, low 32 bits.
    pub queued_ms: u32,
}

/// The whole disks of the host by name, without their partitions; `None` where they cannot be read.
#[must_use]
pub fn disks() -> Option<Vec<(String, DiskCounters)>> {
    let text = read_start("/proc/diskstats", LIST_BYTES).ok()?;
    let mut disks = parse(&String::from_utf8_lossy(&text));
    disks.retain(|(name, _)| Path::new("/sys/block").join(name.replace('/', "!")).exists());
    Some(disks)
}

/// `254 0 vda 365 66 152 698 922 453 377 158 0 364 867 569 158 298 912 173 161`
/// (Documentation/admin-guide/iostats.rst): of reads, writes and discards how many, merged, sectors, and
/// milliseconds; between the last two, requests that are there, busy and queued milliseconds; at the end
/// flushes and their milliseconds.
fn parse(text: &str) -> Vec<(String, DiskCounters)> {
    let of_line = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(2);
        let name = words.next()?.to_owned();
        let numbers: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        let requests = |first: usize| {
            let [count, _, sectors, time_ms] = numbers.get(first..first + 4)?[..] else {
                return None;
            };
            let bytes = sectors.saturating_mul(SECTOR_BYTES);
            Some(DiskRequests { count, bytes, time_ms: time_ms as u32 })
        };
        let flushes = match numbers.get(15..17) {
            Some([count, time_ms]) => {
                DiskRequests { count: *count, bytes: 0, time_ms: *time_ms as u32 }
            }
            _ => DiskRequests::default(),
        };
        let [busy_ms, queued_ms] = numbers.get(9..11)?[..] else { return None };
        let (busy_ms, queued_ms) = (busy_ms as u32, queued_ms as u32);
        let (reads, writes) = (requests(0)?, requests(4)?);
        Some((name, DiskCounters { reads, writes, flushes, busy_ms, queued_ms }))
    };
    text.lines().filter_map(of_line).collect()
}

/// What a process has read from disks and written for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskBytes {
    /// Bytes that were read from a disk for it.
    pub read: u64,
    /// Bytes that it has written to the page cache of a disk, or to the disk itself.
    pub written: u64,
}

/// Those of a process; `None` where it is gone, or where its file may not be read.
#[must_use]
pub fn of_process(process: Tgid) -> Option<DiskBytes> {
    let text = read_start(format!("/proc/{}/io", process.0), FILE_BYTES).ok()?;
    parse_process(&String::from_utf8_lossy(&text))
}

/// `read_bytes: 12288` and the like, proc_pid_io(5).
fn parse_process(text: &str) -> Option<DiskBytes> {
    let of = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().parse().ok()
    };
    Some(DiskBytes { read: of("read_bytes")?, written: of("write_bytes")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = " 254       0 vda 10 1 16 700 20 2 4096 800 3 650 1600 5 0 80 9 6 90\n";

    #[test]
    fn the_counters_of_a_disk_are_read() {
        let wanted = DiskCounters {
            reads: DiskRequests { count: 10, bytes: 8_192, time_ms: 700 },
            writes: DiskRequests { count: 20, bytes: 2_097_152, time_ms: 800 },
            flushes: DiskRequests { count: 6, bytes: 0, time_ms: 90 },
            busy_ms: 650,
            queued_ms: 1_600,
        };
        assert_eq!(parse(LINE), [("vda".to_owned(), wanted)]);
        // Before Linux 4.18 and 5.5.
        let old = LINE.split_once(" 5 0 80").expect("discards").0;
        let without = DiskCounters { flushes: DiskRequests::default(), ..wanted };
        assert_eq!(parse(old), [("vda".to_owned(), without)]);
    }

    #[test]
    fn garbage_is_no_disk() {
        let numbers = "99999999999999999999 ".repeat(17);
        for garbage in
            ["", "\0", "254 0", "254 0 vda", "254 0 vda 1 2 3", "254 0 vda x 2 3 4 5 6 7 8"]
        {
            assert_eq!(parse(garbage), [], "{garbage:?}");
        }
        assert_eq!(parse(&format!("254 0 vda {numbers}")), []);
        // The largest number that there is.
        let most = format!("254 0 vda {}", format!("{} ", u64::MAX).repeat(17));
        assert_eq!(parse(&most)[0].1.reads.bytes, u64::MAX);
    }

    #[test]
    fn the_bytes_of_a_process_are_read() {
        let text =
            "rchar: 5\nwchar: 6\nread_bytes: 12288\nwrite_bytes: 4096\ncancelled_write_bytes: 0\n";
        assert_eq!(parse_process(text), Some(DiskBytes { read: 12_288, written: 4_096 }));
        for garbage in ["", "read_bytes: 1", "read_bytes: x\nwrite_bytes: 1"] {
            assert_eq!(parse_process(garbage), None);
        }
        assert_eq!(of_process(Tgid(u32::MAX)), None);
    }
}
