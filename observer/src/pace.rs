//! Regular work in small pieces.
//!
//! On a host whose CPUs are all busy, a service waits while observer runs. The requests that are in
//! flight on that CPU are then later by as much as observer works at a stretch, and a stretch as long as
//! a request takes is seen in its p99. So observer's regular work rests after each small piece, in which
//! time the service runs.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Work after which a thread rests.
const PIECE: Duration = Duration::from_micros(50);
/// The rest. The service may have a queue by then, which it works off first.
const REST: Duration = Duration::from_millis(1);

thread_local! {
    /// Since when this thread works, if its work is regular.
    static BEGUN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// While it lives, the regular work of this thread is done in pieces.
pub struct Pieces(());

impl Pieces {
    /// The first piece begins.
    #[must_use]
    pub fn begin() -> Self {
        BEGUN.set(Some(Instant::now()));
        Self(())
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        BEGUN.set(None);
    }
}

/// Between two pieces of work. It does nothing where the work is not done in pieces.
pub fn rest() {
    if BEGUN.get().is_some_and(|begun| begun.elapsed() >= PIECE) {
        std::thread::sleep(REST);
        BEGUN.set(Some(Instant::now()));
    }
}
