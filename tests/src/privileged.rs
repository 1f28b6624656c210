//! Tests that need root: run when they can, fail when they must, and say so otherwise.

use std::io::Write;
use std::sync::{Mutex, MutexGuard, PoisonError};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Set by `cargo xtask test`: a test that cannot run is then a failure.
const MUST_RUN: &str = "OBSERVER_TEST_PRIVILEGED";

/// `None`: the test does not run, and a message says so. The guard keeps the tests of one program
/// from disturbing each other's measurements, whatever `--test-threads` says.
///
/// # Panics
/// Without root when the tests were asked for by `OBSERVER_TEST_PRIVILEGED=1`.
#[must_use]
pub fn ready(test: &str) -> Option<MutexGuard<'static, ()>> {
    if rustix::process::geteuid().is_root() {
        return Some(ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner));
    }
    let must = std::env::var_os(MUST_RUN).is_some_and(|value| value == "1");
    assert!(!must, "{test} needs root, and {MUST_RUN}=1 says that it must run");
    // Not `eprintln!`: the test harness does not show what a passing test prints that way.
    let said = writeln!(std::io::stderr(), "{test}: not run: needs root (cargo xtask test)");
    // A message that cannot be written is no reason to fail.
    drop(said);
    None
}
