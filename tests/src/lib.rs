//! What the tests share: starting services and workloads, and reading the kernel's own books.

pub mod mapping;
pub mod poll;
