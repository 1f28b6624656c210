//! What run.json says when a run begins.

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::{Anchor, Anchors, MonoNanos};
use crate::host::{cgroups::Cgroups, process, system};
use crate::kernel::Kernel;
use crate::model::{Conditions, EndReason, LossSummary, RUN_SCHEMA, RunInfo, SlowSpec, Tgid};
use crate::target::Membership;

/// The description of a run that begins now: what is watched, and how.
pub(super) fn describe(target: String, membership: &Membership, kernel: &Kernel) -> RunInfo {
    let uname = system::uname();
    let start = MonoNanos::now();
    RunInfo {
        schema: RUN_SCHEMA,
        observer_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: uname.release,
        boot_id: system::boot_id(),
        run_id: None,
        machine: uname.machine,
        cpus: system::online_cpus().len() as u32,
        target,
        target_processes: membership
            .processes()
            .map(|process| (process.tgid.0, process.comm.clone()))
            .collect(),
        target_cpus: target_cpus(membership),
        target_owners: membership.owners(),
        target_cgroup: target_cgroup(membership),
        conditions: Conditions::default(),
        command: Vec::new(),
        command_user: None,
        command_exit: None,
        cut_bytes: BTreeMap::new(),
        kept: BTreeMap::new(),
        generator: None,
        samples_format: None,
        clock_error_ns: None,
        slow_rule: SlowSpec::default().to_string(),
        start_ns: start,
        end_ns: start,
        end_reason: EndReason::Running,
        anchors: Anchors(vec![Anchor::take()]),
        coverage: kernel.coverage(),
        floors_ns: kernel.floors_ns(),
        loss: LossSummary::default(),
        removed: BTreeMap::new(),
        streams: BTreeMap::new(),
        thread_names: thread_names(membership),
        holder_cgroups: BTreeMap::new(),
    }
}

/// Cgroup of the target's first process, in the hierarchy the histograms are kept by.
pub(super) fn target_cgroup(membership: &Membership) -> Option<String> {
    Cgroups::read().memory_cgroup_of(membership.primary()?.tgid)
}

/// CPUs that are online and that some thread of the target may run on; `None` without a thread.
fn target_cpus(membership: &Membership) -> Option<u32> {
    let online: BTreeSet<u32> = system::online_cpus().into_iter().collect();
    let mut allowed = BTreeSet::new();
    for tid in membership.tgids().into_iter().flat_map(process::threads) {
        let status = process::status(Tgid(tid.0)).unwrap_or_default();
        allowed.extend(status.allowed_cpus.into_iter().filter(|cpu| online.contains(cpu)));
        // Most threads may use all, and there may be many threads.
        if allowed == online {
            break;
        }
    }
    u32::try_from(allowed.len()).ok().filter(|cpus| *cpus > 0)
}

/// Command names of the target's threads that live now.
pub(super) fn thread_names(membership: &Membership) -> BTreeMap<u32, String> {
    membership
        .tgids()
        .into_iter()
        .flat_map(process::threads)
        .filter_map(|tid| Some((tid.0, process::thread_comm(tid)?)))
        .collect()
}
