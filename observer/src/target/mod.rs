//! Who is watched, and following it through fork, exec, restart and exit.
//!
//! [`TargetSpec`] is the target as named on the command line, [`Membership`] its processes at this
//! moment. The BPF side follows forks by itself, without a gap, and takes in the processes that get
//! the name or execute the program of the target. This module scans `/proc` for the rest: finding the
//! first processes, noticing those that join in another way, and knowing when the last one is gone.

mod error;
mod liveness;
mod membership;
mod spec;

#[cfg(test)]
mod tests;

pub use error::TargetError;
pub use membership::{Changes, Membership};
pub use spec::{TargetArgs, TargetSpec};
