//! The words of the product as types: events, stalls, causes, samples, and what a run leaves.

mod cause;
mod event;
mod run;
mod sample;
mod stall;
mod summary;

pub use cause::*;
pub use event::*;
pub use run::*;
pub use sample::*;
pub use stall::*;
pub use summary::*;
