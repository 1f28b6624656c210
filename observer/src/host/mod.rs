//! What the host says about itself: small parsers over `/proc` and `/sys`.
//!
//! Each file keeps the parsing (pure, on text) apart from the reading. Processes come and go while
//! they are read, so a reader answers `None` for one that is gone and never fails because of it.

pub mod cgroups;
pub mod network;
pub mod process;
pub mod sockets;
pub mod system;
pub mod usage;

pub use cgroups::{CgroupNames, Cgroups, Hierarchy, Layout};
pub use process::Process;
pub use sockets::{SocketCensus, ip_sockets_of};
