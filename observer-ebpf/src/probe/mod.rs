//! Programs only, one file a probe family, named after their hooks.

mod fault;
mod reclaim;
mod runqueue;
mod socket;
mod syscall;
mod task;
