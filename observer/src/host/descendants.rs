//! All processes that descend from one, and signals to them.

use std::collections::HashMap;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::process::{self, Process};
use crate::model::Tgid;

/// The live processes that descend from `ancestor`, parents first.
#[must_use]
pub fn descendants(ancestor: Tgid) -> Vec<Process> {
    let mut children: HashMap<Tgid, Vec<Process>> = HashMap::new();
    for process in process::all() {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = children.remove(&ancestor).unwrap_or_default();
    let mut next = 0;
    while let Some(process) = found.get(next) {
        let more = children.remove(&process.tgid).unwrap_or_default();
        found.extend(more);
        next += 1;
    }
    found
}

/// Sends a signal to all processes that descend from `ancestor`. A process that starts meanwhile
/// may not get it.
pub fn signal_descendants(ancestor: Tgid, signal: Signal) {
    if signal == Signal::KILL {
        // What is stopped starts nothing more.
        send(&descendants(ancestor), Signal::STOP);
    }
    send(&descendants(ancestor), signal);
}

fn send(processes: &[Process], signal: Signal) {
    for process in processes {
        let Some(pid) = i32::try_from(process.tgid.0).ok().and_then(Pid::from_raw) else {
            continue;
        };
        let Ok(handle) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        // The handle belongs to the process that had this id when it was opened.
        if process.is_alive() {
            // One that has just ended, or may not be signalled, stays as it is.
            let _ = pidfd_send_signal(&handle, signal);
        }
    }
}
