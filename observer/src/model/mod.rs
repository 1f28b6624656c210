//! The data types of the product: events, stalls, causes, samples, and the files of a run.

mod cause;
mod detached;
mod event;
mod generator;
mod joining;
mod loss;
mod note;
mod outgoing_request;
mod reason;
mod record;
mod request_list;
mod run;
mod sample;
mod server_request;
mod slow_request;
mod stall;
mod summary;

pub use cause::*;
pub use detached::*;
pub use event::*;
pub use generator::*;
pub use joining::*;
pub use loss::*;
pub use note::*;
pub use outgoing_request::*;
pub use reason::*;
pub(crate) use record::field;
pub use record::*;
pub use request_list::*;
pub use run::*;
pub use sample::*;
pub use server_request::*;
pub use slow_request::*;
pub use stall::*;
pub use summary::*;
