//! ^C and SIGTERM set a flag, and the current work then ends in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::thread::CapabilitySet;
use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Error, Exit, Result};
use crate::privileges::keep_only;

/// Raises `flag` on SIGINT, SIGTERM and SIGHUP, for as long as the process lives, and wakes the
/// calling thread if it is parked.
///
/// # Errors
/// When the system provides no thread or signal handler.
pub(super) fn raise_on_interrupt(flag: &Arc<AtomicBool>) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::new(Exit::Failure, format!("cannot handle signals: {error}"))
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(failed)?;
    // Registered before this function returns, so that no later signal is lost.
    let (mut interrupt, mut terminate, mut hangup) = {
        let _context = runtime.enter();
        (
            signal(SignalKind::interrupt()).map_err(failed)?,
            signal(SignalKind::terminate()).map_err(failed)?,
            signal(SignalKind::hangup()).map_err(failed)?,
        )
    };
    let (flag, caller) = (Arc::clone(flag), std::thread::current());
    std::thread::Builder::new()
        .name("observer-signal".into())
        .spawn(move || {
            // It needs none. Should the kernel refuse, it keeps what all other threads have.
            let _ = keep_only(CapabilitySet::empty());
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = interrupt.recv() => {}
                        _ = terminate.recv() => {}
                        _ = hangup.recv() => {}
                    }
                    flag.store(true, Ordering::Relaxed);
                    caller.unpark();
                }
            });
        })
        .map_err(failed)?;
    Ok(())
}
