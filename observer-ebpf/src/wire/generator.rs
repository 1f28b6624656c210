//! What the processes of the load generator do: their log gives the start of generators that report
//! times relative to a start which they do not report.

use bytemuck::{Pod, Zeroable};

use super::COMM_LEN;

/// Length of the log; later events are only counted.
pub const GENERATOR_EVENTS: u32 = 4096;

/// Connections of one program of a process that are logged; a generator may open one for each
/// request.
pub const GENERATOR_CONNECTS: u64 = 32;

/// Entries of the table that counts them, found at `tgid & (entries - 1)`: the process and the number
/// in a word.
pub const GENERATOR_PROCESSES: u32 = 1024;

/// execve succeeded.
pub const GENERATOR_EXEC: u16 = 1;
/// connect(2) began a connection.
pub const GENERATOR_CONNECT: u16 = 2;
/// The last thread exits.
pub const GENERATOR_EXIT: u16 = 3;

/// Something that observer's descendants did.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct GeneratorEvent {
    /// When, `CLOCK_MONOTONIC` nanoseconds; 0 while the entry is free.
    pub at_ns: u64,
    /// The process.
    pub tgid: u32,
    /// What: [`GENERATOR_EXEC`] and so on.
    pub what: u16,
    /// The port it connected to; 0 where that is not known.
    pub port: u16,
    /// The name of the process, NUL padded; only of execve.
    pub comm: [u8; COMM_LEN],
}
