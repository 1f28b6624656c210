//! Places in user-space binaries.

/// Places whose calls can be counted at a time: those with a cookie below this number.
pub const UPROBE_COUNTERS: u32 = 1024;
