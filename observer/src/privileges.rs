//! Giving up what the daemon no longer needs once its programs are attached.
//!
//! Capabilities belong to threads. A thread that is started has those of the thread that starts it, so
//! they are given up before the threads are started that talk to others.

use rustix::io::Result;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use crate::host::system;

/// What attaching loaded programs again, reading their maps, and following processes of other users
/// takes. (Loading programs for the hooks of cgroups takes `CAP_NET_ADMIN`, attaching them does not.)
pub const FOLLOWING: CapabilitySet = CapabilitySet::BPF
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::DAC_READ_SEARCH);

/// [`FOLLOWING`], and `CAP_SYS_ADMIN` where programs are attached through perf events and the kernel
/// lets nobody else open those: `kernel.perf_event_paranoid` above 2, which Debian and Ubuntu have added.
#[must_use]
pub fn following(has_perf_events: bool) -> CapabilitySet {
    let needs_admin =
        has_perf_events && system::perf_event_paranoid().is_some_and(|level| level > 2);
    if needs_admin { FOLLOWING.union(CapabilitySet::SYS_ADMIN) } else { FOLLOWING }
}

/// What [`FOLLOWING`] takes, and turning on the kernel's statistics of BPF programs.
pub const MEASURING: CapabilitySet = FOLLOWING.union(CapabilitySet::SYS_ADMIN);

/// Gives up all capabilities of the calling thread but these, for good: no program that it executes
/// gets more. `CAP_SYS_ADMIN` stays where it stands for others that the thread never had.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_only(kept: CapabilitySet) -> Result<()> {
    let permitted = capabilities(None)?.permitted;
    let stands_for_others = CapabilitySet::BPF.union(CapabilitySet::PERFMON);
    let kept = match permitted.contains(stands_for_others) || kept.is_empty() {
        true => kept,
        false => kept.union(CapabilitySet::SYS_ADMIN),
    };
    let kept = kept.intersection(permitted);
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    if permitted.contains(CapabilitySet::SETPCAP) {
        // Those that are kept too: this set limits only what a program gets that is executed. One that
        // the kernel does not know is not in it.
        for one in CapabilitySet::all().iter() {
            if capability_is_in_bounding_set(one) == Ok(true) {
                remove_capability_from_bounding_set(one)?;
            }
        }
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: none })
}
