//! Child processes with a chosen id.

use std::io;
use std::mem::size_of;

/// Forks. The child has the id `pid` (in the namespace of the caller) where one is named; it runs
/// `work` and ends.
///
/// For programs of one thread: locks that another thread held at the fork stay locked in the child.
///
/// # Errors
/// When the kernel refuses, for example because the id is in use.
pub fn clone_with_pid(pid: Option<i32>, work: impl FnOnce()) -> io::Result<i32> {
    // SAFETY: a plain structure; zero is "nothing asked for".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    let ids = [pid.unwrap_or_default()];
    if pid.is_some() {
        arguments.set_tid = ids.as_ptr() as u64;
        arguments.set_tid_size = 1;
    }
    // SAFETY: without CLONE_VM this is a fork; the structure and the ids live through the call.
    let child = unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>())
    };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            work();
            // SAFETY: ends this process; nothing of the parent's is flushed twice.
            unsafe { libc::_exit(0) }
        }
        child => i32::try_from(child).map_err(io::Error::other),
    }
}

/// Waits for a child.
///
/// # Errors
/// When there is none.
pub fn wait_for(child: i32) -> io::Result<libc::c_int> {
    let mut status = 0;
    // SAFETY: the status lives through the call.
    if unsafe { libc::waitpid(child, &raw mut status, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status)
}
