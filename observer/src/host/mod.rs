//! What the host says about itself: small parsers over `/proc` and `/sys`.
//!
//! Each file keeps the parsing (pure, on text) apart from the reading. Processes come and go while
//! they are read, so a reader answers `None` for one that is gone and never fails because of it.

use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

pub mod cgroups;
pub mod cpu_limits;
pub mod cpu_time;
pub mod descendants;
pub mod descriptors;
pub mod disks;
pub mod hotplug;
pub mod memory_limits;
pub mod memory_room;
pub mod network;
pub mod network_counters;
pub mod owner;
pub mod perf_counters;
pub mod pressure;
pub mod process;
mod sock_diag;
pub mod sockets;
pub mod system;
pub mod tcp_sockets;
pub mod usage;

pub use cgroups::{CgroupNames, Cgroups, Hierarchy, Layout};
pub use cpu_limits::CpuCgroups;
pub use hotplug::CpuEvents;
pub use memory_room::MemoryRoom;
pub use owner::Owners;
pub use process::Process;
pub use sockets::{SocketCensus, ip_sockets_of};

/// Whether a path leads to a file that somebody may execute.
pub(crate) fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// Reads a file of `/proc` or `/sys` in as few system calls as it takes: these files report no
/// size, and [`std::fs::read`] would begin with 32 bytes.
///
/// # Errors
/// When it cannot be opened or read.
pub(crate) fn read_small(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    read_start(path, u64::MAX)
}

/// The same of at most so many bytes.
///
/// # Errors
/// When it cannot be opened or read.
pub(crate) fn read_start(path: impl AsRef<Path>, most_bytes: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4096);
    // Without the limit the size would be asked for first, which is always 0.
    std::fs::File::open(path)?.take(most_bytes).read_to_end(&mut bytes)?;
    Ok(bytes)
}
