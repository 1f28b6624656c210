//! What this process itself has used.

use std::mem::MaybeUninit;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Own consumption since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time of all threads.
    pub cpu_seconds: f64,
    /// Peak resident set.
    pub max_rss_bytes: u64,
    /// Resident set now.
    pub rss_bytes: u64,
}

fn seconds(time: libc::timeval) -> f64 {
    time.tv_sec as f64 + time.tv_usec as f64 / 1e6
}

/// getrusage(2) of this process, children not included.
#[must_use]
pub fn own() -> Usage {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a writable `rusage`; all-zero bytes are a valid one, so reading
    // it is sound whatever the call returns.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let rss_bytes = rss_bytes();
    Usage {
        cpu_seconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
        // Kilobytes on Linux. The kernel updates the peak only now and then, from a counter of
        // which each CPU may hold back a part, so the current value may be larger.
        max_rss_bytes: (u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024).max(rss_bytes),
        rss_bytes,
    }
}

/// CPU time of this thread. It does not count the time in which other threads have the CPU.
#[must_use]
pub fn of_thread() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(used.tv_sec.unsigned_abs(), u32::try_from(used.tv_nsec).unwrap_or(0))
}

/// Resident set.
fn rss_bytes() -> u64 {
    statm_bytes()[1]
}

/// The part of the resident set that is not in files.
#[must_use]
pub fn anonymous_bytes() -> u64 {
    let [_, resident, shared] = statm_bytes();
    resident.saturating_sub(shared)
}

/// The first three fields of `/proc/self/statm`, which are pages.
fn statm_bytes() -> [u64; 3] {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut fields = statm.split_ascii_whitespace().map(|field| field.parse::<u64>().unwrap_or(0));
    std::array::from_fn(|_| fields.next().unwrap_or(0) * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_up_as_cpu_time_and_memory_as_rss() {
        let before = own();
        let mut block = vec![0_u8; 64 << 20];
        let mut state = 1_u64;
        for byte in &mut block {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        }
        std::hint::black_box(&block);
        let after = own();
        assert!(after.cpu_seconds > before.cpu_seconds);
        assert!(after.max_rss_bytes >= 64 << 20);
        assert!(after.rss_bytes >= 64 << 20, "{after:?}");
        assert!(after.max_rss_bytes >= after.rss_bytes, "{after:?}");
    }
}
