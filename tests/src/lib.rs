//! What the tests and the demo share: starting services and workloads, doing them harm on a
//! schedule, running observer on them, and reading the kernel's own counters.

pub mod bpf;
pub mod cgroup;
pub mod clone;
pub mod command;
pub mod daemon;
pub mod disturbance;
pub mod episodes;
pub mod exact;
pub mod go;
pub mod hotplug;
pub mod http;
pub mod http2;
pub mod kernel_counters;
pub mod killed;
pub mod mapping;
pub mod passing;
pub mod poll;
pub mod privileged;
pub mod process;
pub mod results;
pub mod scenario;
pub mod scheduling;
pub mod small_disk;
pub mod switch_cost;
pub mod sysctl;
pub mod taskstats;
pub mod told;
pub mod trial;
pub mod watch;

/// What failed, on what, in one line.
pub type Result<T> = std::result::Result<T, String>;
