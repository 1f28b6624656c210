//! Who is watched, and following it through fork, exec, restart and exit.
//!
//! [`TargetSpec`] is what the command line names, [`Membership`] the processes that stand for it
//! at this moment. The BPF side follows forks by itself, without a gap; what is done here, by
//! looking at `/proc`, is the rest: finding the first processes, noticing those that join by
//! another way than a fork, and knowing when the last one is gone.

mod error;
mod liveness;
mod membership;
mod spec;

#[cfg(test)]
mod tests;

pub use error::TargetError;
pub use membership::{Changes, Membership};
pub use spec::{TargetArgs, TargetSpec};
