//! Functions whose calls are counted exactly.

use std::ffi::OsString;
use std::hint::black_box;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::json;

use crate::stage::{report, wait_for_end, wait_for_go};

/// Found by its name in the symbol table of this program.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn observer_work_first(count: u64) -> u64 {
    black_box(count) + 1
}

/// As above; another function, with other instructions.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn observer_work_second(count: u64) -> u64 {
    black_box(count ^ 1) + 2
}

/// Calls the first function `times` times and the second twice as often, then executes `then`.
pub(crate) fn calls(times: u64, at_once: bool, then: &[OsString]) -> io::Result<()> {
    if !at_once && !wait_for_go()? {
        return Ok(());
    }
    for count in 0..times {
        black_box(observer_work_first(count));
        black_box(observer_work_second(count));
        black_box(observer_work_second(count));
    }
    if let Some((program, arguments)) = then.split_first() {
        return Err(Command::new(program).args(arguments).exec());
    }
    if at_once {
        return Ok(());
    }
    report(&json!({ "first": times, "second": 2 * times }))?;
    wait_for_end()
}
