//! The first process of a guest that `cargo xtask vm` boots: makes the system that the tests
//! expect, runs them, reports the results on the second serial port, and powers the guest off.
//!
//! There is no shell and no distribution around it, only the files of the initramfs.

mod channel;
mod commands;
mod plan;
mod system;

use std::env;
use std::process::{Child, Command, ExitCode};

use rustix::process::{WaitOptions, wait};
use rustix::system::{RebootCommand, reboot};

use crate::channel::Channel;

/// The text of an error, in one line.
type Result<T> = std::result::Result<T, String>;

/// The argument by which the first process starts itself again as the one that works.
const WORK: &str = "work";

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some(WORK) {
        return work();
    }
    if std::process::id() != 1 {
        eprintln!("observer-guest: only for guests of `cargo xtask vm`, as their first process");
        return ExitCode::from(2);
    }
    if let Err(message) = supervise() {
        eprintln!("observer-guest: {message}");
    }
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        eprintln!("observer-guest: cannot power off: {error}");
    }
    // The end of the first process is a kernel panic, which ends the guest as well.
    ExitCode::FAILURE
}

/// The first process inherits all orphans and has to wait for them; the work is left to a second.
fn supervise() -> Result<()> {
    system::mount_basics()?;
    let worker = Command::new("/proc/self/exe")
        .arg(WORK)
        .spawn()
        .map_err(|error| format!("cannot start the process that works: {error}"))?;
    wait_for(&worker)
}

fn wait_for(worker: &Child) -> Result<()> {
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if pid.as_raw_nonzero().get() as u32 == worker.id() => return Ok(()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("cannot wait for children: {error}")),
        }
    }
}

fn work() -> ExitCode {
    let mut channel = match Channel::open() {
        Ok(channel) => channel,
        Err(message) => {
            eprintln!("observer-guest: {message}");
            return ExitCode::FAILURE;
        }
    };
    let done = plan::read().and_then(|plan| {
        let made = system::prepare(&plan)?;
        channel.booted(&made);
        plan.commands.iter().try_for_each(|command| commands::run(command, &mut channel))
    });
    match done {
        Ok(()) => {
            channel.done();
            ExitCode::SUCCESS
        }
        Err(message) => {
            channel.failed(&message);
            ExitCode::FAILURE
        }
    }
}
