//! What makes a process one of the target.

use observer_ebpf::wire::COMM_LEN;

/// What the kernel side compares a process with when its name or its program changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joining {
    /// Its command name, NUL padded.
    Comm([u8; COMM_LEN]),
    /// The file that it executes, as the kernel numbers files.
    Executable {
        /// `inode::i_ino`.
        inode: u64,
        /// `super_block::s_dev`.
        device: u64,
    },
}
