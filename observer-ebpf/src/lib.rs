//! What the kernel side and user space share: record layouts, histogram layout, map names and
//! configuration. `no_std`, and free of any BPF or user-space dependency, so that both sides
//! compile the very same definitions.
#![no_std]

pub mod wire;
