//! What a run leaves, and what people and other programs read: one format a file.

pub mod answer;
pub mod chart;
#[cfg(test)]
pub(crate) mod example;
pub mod html;
pub mod http;
pub mod openmetrics;
pub mod rundir;
pub mod terminal;
pub mod text;
pub mod trace;
