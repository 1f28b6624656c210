//! Compares each probe, on a workload of its own, with every kernel counter that covers it. The
//! same comparison serves observer's own choice of tier and every tier that can be forced.

mod all_time;
mod calls;
mod clocks;
mod faults;
mod interrupts;
mod kernel_locks;
mod ran_instead;
mod reclaim;
mod requests;
mod runqueue;
mod sleeps;
mod sockets;
mod throttling;
mod who_ran;

pub use all_time::all_time;
pub use calls::{memory_call_time, memory_calls};
pub use faults::{copied_pages, families, fault_time, major_faults, minor_faults};
pub use interrupts::{irqs, softirqs};
pub use kernel_locks::kernel_locks;
pub use ran_instead::{other_processes, short_processes};
pub use reclaim::{freed_pages, memcg_reclaim};
pub use requests::requests;
pub use runqueue::{no_more_waits, processor_time, run_delay, run_delay_of};
pub use sleeps::{block_io, holds, locks, sleeps};
pub use sockets::{descriptors, sockets};
pub use throttling::{Limit, Throttled, throttled};
pub use who_ran::{another_process, own_threads};

use tempfile::TempDir;

use crate::results::not_applicable;
use crate::trial::{self, Trial};

/// A directory whose files are read from a device. `None` where there is none; the metric of the probe is then
/// noted as not compared.
fn directory_on_disk(trial: &Trial, probe: &str, metric: &str) -> Option<TempDir> {
    let directory = trial::directory();
    if trial::on_disk(directory.path()) {
        return Some(directory);
    }
    let reason = "no directory on a disk: name one in OBSERVER_TEST_DIR";
    not_applicable(trial.test, probe, metric, reason);
    None
}
