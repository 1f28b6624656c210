//! Distributions: what the kernel's histograms and the target's records say about how long stalls
//! took.
//!
//! Counts and sums come from the in-kernel histograms ([`Snapshot`]), which lose nothing;
//! percentiles with three significant digits come from records ([`CauseRecorder`]), where they
//! exist.

mod distribution;
mod probe_summary;
mod recorder;
mod snapshot;

pub use distribution::{Distribution, Octaves, bucket_upper_ns};
pub use recorder::CauseRecorder;
pub use snapshot::{CgroupCounts, CgroupDistributions, Snapshot, TraceState};
