//! What the host's disks did while the target ran, and what the target read from them and wrote.

use serde::{Deserialize, Serialize};

/// Requests of one direction that a disk completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRequestsSummary {
    /// How many; several that the kernel merged are one.
    pub count: u64,
    /// Their bytes; 0 of flushes.
    pub bytes: u64,
    /// Time from each one's begin to its end, in the queue and in the device, added up, milliseconds.
    pub time_ms: u64,
}

impl DiskRequestsSummary {
    /// Mean time of a request, nanoseconds; `None` without one.
    #[must_use]
    pub fn mean_ns(&self) -> Option<f64> {
        (self.count > 0).then(|| self.time_ms as f64 * 1e6 / self.count as f64)
    }
}

/// A disk (block device) of the host, for all programs together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskSummary {
    /// Its name, as in `/proc/diskstats`.
    pub disk: String,
    /// Reads.
    pub reads: DiskRequestsSummary,
    /// Writes.
    pub writes: DiskRequestsSummary,
    /// Flushes of the disk's own cache.
    pub flushes: DiskRequestsSummary,
    /// Time in which at least one request was there, milliseconds.
    pub busy_ms: u64,
    /// Time of all requests, added up while they were there, milliseconds: divided by the time of the run, how many
    /// there were at a time on average.
    pub queued_ms: u64,
    /// The largest part of the time between two readings in which it was busy.
    pub busiest_share: f64,
    /// Time between the first and the last reading, nanoseconds.
    pub observed_ns: u64,
}

impl DiskSummary {
    /// The part of the time in which at least one request was there.
    #[must_use]
    pub fn busy_share(&self) -> f64 {
        self.share(self.busy_ms).min(1.0)
    }

    /// Requests that were there at a time, on average.
    #[must_use]
    pub fn mean_queue(&self) -> f64 {
        self.share(self.queued_ms)
    }

    fn share(&self, ms: u64) -> f64 {
        ms as f64 * 1e6 / self.observed_ns.max(1) as f64
    }
}

/// What processes of the target read from disks and wrote for them, while they were watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskBytesSummary {
    /// Bytes that were read from a disk for them.
    pub read: u64,
    /// Bytes that they wrote to the page cache of a disk, or to the disk itself.
    pub written: u64,
}
