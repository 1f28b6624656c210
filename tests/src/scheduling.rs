//! The scheduling policy of a thread.

use std::io;

/// Sets the policy of this thread (`SCHED_FIFO` and others, sched(7)), and its priority where the
/// policy has one.
///
/// # Errors
/// When this process may not have that policy.
pub fn set_policy(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the parameters live through the call.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
