//! The service's own log: what happened to each request, as the service itself measured it.

use serde::{Deserialize, Serialize};

/// One request. Instants are nanoseconds of the monotonic clock. What a log does not have is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// Port of the client's end; of the client of a proxy that tells it.
    pub port: u16,
    /// Number of the thread that read it.
    pub reader: u32,
    /// Number of the thread that answered it.
    pub worker: u32,
    /// When it had been read.
    pub read_ns: u64,
    /// When the thread that answered began.
    pub begin_ns: u64,
    /// When the answer had been written.
    pub end_ns: u64,
    /// How long the reading thread could run and did not, since its last work and until it read.
    pub read_wait_ns: u64,
    /// The same of the answering thread until it began; 0 if it is the thread that read.
    pub begin_wait_ns: u64,
    /// How long the answering thread could run and did not, from `begin_ns` to `end_ns`.
    pub waited_ns: u64,
    /// From `begin_ns` to `end_ns`, without the time on a CPU and without `slept_ns`: also what a
    /// hypervisor took.
    pub off_cpu_ns: u64,
    /// What the handler slept on purpose.
    pub slept_ns: u64,
    /// CPU time that the handler burnt because of the injection.
    pub burnt_ns: u64,
    /// How long the handler touched pages because of the injection, without waits for a CPU.
    pub faulted_ns: u64,
    /// What the handler spent in mmap and munmap because of the injection, without waits for a CPU.
    pub mapped_ns: u64,
    /// How long the handler slept in fsync because of the injection.
    pub synced_ns: u64,
    /// How long the handler waited for a lock because of the injection, without waits for a CPU.
    pub locked_ns: u64,
}
