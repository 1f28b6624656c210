//! The files of a run, and the outputs for users and other programs: one file for each format.

pub mod answer;
pub mod chart;
mod conditions;
mod digest;
pub mod event_files;
#[cfg(test)]
pub(crate) mod example;
pub mod html;
pub mod http;
mod json_seal;
mod kept_files;
mod objects;
pub mod openmetrics;
mod over_time;
pub mod request_text;
pub mod rundir;
pub mod stacks;
pub mod terminal;
pub mod text;
pub mod trace;
mod track;

/// No room on the disk, no more of this user's share of it, or a file as large as the process may make
/// it.
#[must_use]
pub fn is_disk_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
