//! What a run leaves, and what people and other programs read: one format a file.

#[cfg(test)]
#[allow(dead_code)]
pub(crate) mod example;
pub mod http;
pub mod openmetrics;
pub mod rundir;
pub mod trace;
