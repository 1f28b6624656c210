//! The kernel features that the tiers need, detected once.

use rustix::mount::MountFlags;

use super::btf::Btf;
use super::load::Loaded;
use super::offsets::Offsets;
use super::support::{self, Support};
use crate::host::system;
use crate::probe::{Need, Probe, Tier};

/// The features that do not depend on a probe; `Err` says why a feature is missing.
pub(super) struct Offered {
    own_btf: Result<(), String>,
    fentry: Result<(), String>,
    kprobe: Result<(), String>,
    perf_events: Result<(), String>,
    tracefs: Result<(), String>,
    cgroup_v2: Result<(), String>,
}

impl Offered {
    /// Detects the features.
    pub(super) fn by(loaded: &Loaded) -> Self {
        let has = |there: bool, otherwise: &str| there.then_some(()).ok_or(otherwise.to_owned());
        Self {
            own_btf: loaded.own_btf.as_ref().map(|_| ()).map_err(Clone::clone),
            fentry: supported(support::fentry()),
            kprobe: supported(support::kprobe()),
            perf_events: has(system::perf_event_paranoid().is_some(), "no perf events"),
            tracefs: has(tracefs(), "tracefs is not mounted and cannot be").and_then(|()| {
                let calls = system::tracefs().map(|at| at.join("events/syscalls"));
                let there = calls.is_some_and(|calls| calls.is_dir());
                has(there, "this kernel has no tracepoints of system calls")
            }),
            cgroup_v2: has(
                loaded.cgroups.unified_mount_point().is_some(),
                "cgroup v2 is not mounted",
            ),
        }
    }

    /// The tiers of a probe, and whether each can be used.
    pub(super) fn tiers(
        &self,
        btf: &Btf,
        offsets: &Offsets,
        probe: &Probe,
    ) -> Vec<(&'static Tier, Result<(), String>)> {
        let meets = |need: &Need| match need {
            Need::OwnBtf => self.own_btf.clone(),
            Need::Fentry => self.fentry.clone(),
            Need::Kprobe => self.kprobe.clone(),
            Need::PerfEvents => self.perf_events.clone(),
            Need::Tracefs => self.tracefs.clone(),
            Need::CgroupV2 => self.cgroup_v2.clone(),
            Need::Tracepoint(name) => tracepoint(btf, name, 0),
            Need::Function(name) => function(btf, name),
        };
        let offer = |tier: &Tier| {
            tier.needs.iter().try_for_each(meets).and_then(|()| offsets.have(tier.reads))
        };
        probe.tiers.iter().map(|tier| (tier, offer(tier))).collect()
    }
}

fn supported(support: Support) -> Result<(), String> {
    match support {
        Support::Yes => Ok(()),
        Support::No(why) | Support::Unknown(why) => Err(why),
    }
}

/// Whether the kernel has this tracepoint, with at least this number of arguments.
pub(super) fn tracepoint(btf: &Btf, name: &str, arguments: usize) -> Result<(), String> {
    match btf.tracepoint_arguments(name) {
        None => Err(format!("no tracepoint {name}")),
        Some(offered) if offered < arguments => {
            Err(format!("tracepoint {name} has {offered} arguments here, {arguments} are needed"))
        }
        Some(_) => Ok(()),
    }
}

/// Whether the kernel has this function.
pub(super) fn function(btf: &Btf, name: &str) -> Result<(), String> {
    match btf.function_parameters(name) {
        None => Err(format!("no function {name}")),
        Some(_) => Ok(()),
    }
}

/// Whether tracefs is mounted; mounts it at its usual place if it is not.
fn tracefs() -> bool {
    const MOUNT_POINT: &str = "/sys/kernel/tracing";
    if system::tracefs().is_none() {
        // A failure is detected right below.
        let _ = rustix::mount::mount(
            "tracefs",
            MOUNT_POINT,
            "tracefs",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            None,
        );
    }
    system::tracefs().is_some()
}
