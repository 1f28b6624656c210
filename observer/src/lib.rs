//! observer: finds out which kernel stalls slow down requests in a load test.
//!
//! Data flows in one direction. BPF programs fill a ring and in-kernel histograms ([`kernel`]).
//! Records are decoded into events ([`probe`], [`model`]), and events become stalls and distributions
//! ([`aggregate`]). A load generator's samples are converted to the kernel's clock ([`loadgen`],
//! [`clock`]). [`correlate`] splits the latency of the slow samples into causes, and [`output`] writes
//! the results. [`session`] connects these parts, and [`cli`] calls it. [`drill`] tries all of it on known
//! answers.

pub mod aggregate;
pub mod call_filter;
pub mod cli;
pub mod clock;
pub mod correlate;
pub mod doctor;
pub mod drill;
pub mod error;
pub mod host;
pub mod kernel;
pub mod limits;
pub mod load;
pub mod loadgen;
pub mod log;
pub mod model;
pub mod output;
pub mod pace;
pub mod place;
pub mod privileges;
pub mod probe;
pub mod session;
pub mod stacks;
pub mod target;
pub mod text;
