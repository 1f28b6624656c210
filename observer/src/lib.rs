//! observer: tells which kernel pause made the slow requests of a load test slow.
//!
//! The flow is one way: BPF programs fill a ring and in-kernel histograms ([`kernel`]), records
//! are decoded into events ([`probe`], [`model`]), events become stalls and distributions
//! ([`aggregate`]), a load generator's samples are put on the kernel's clock ([`loadgen`],
//! [`clock`]) and [`correlate`] splits the latency of the slow ones into causes; [`output`] writes
//! what was found. [`session`] wires it all, [`cli`] calls it.

pub mod aggregate;
pub mod cli;
pub mod clock;
pub mod correlate;
pub mod doctor;
pub mod error;
pub mod host;
pub mod kernel;
pub mod load;
pub mod loadgen;
pub mod log;
pub mod model;
pub mod output;
pub mod probe;
pub mod session;
pub mod target;
pub mod text;
