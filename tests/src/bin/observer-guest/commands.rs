//! Running the planned commands, each alone and no longer than it may.

use std::fs;
use std::io::{BufRead, BufReader, PipeReader};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::channel::Channel;
use crate::plan::Planned;

/// Where the tests leave their results, by the variable of that name.
const RESULTS: &str = "/tmp/observer-results.jsonl";
const RESULTS_VARIABLE: &str = "OBSERVER_TEST_RESULTS";

const PAUSE: Duration = Duration::from_millis(20);

/// Runs one command to its end and sends all of it to the host. Only what makes the guest useless
/// is an error; a command that fails is a result.
pub(crate) fn run(planned: &Planned, channel: &mut Channel) -> Result<()> {
    channel.started(&planned.name);
    let begin = Instant::now();
    let (reader, writer) = std::io::pipe().map_err(|error| format!("no pipe: {error}"))?;
    let second = writer.try_clone().map_err(|error| format!("no pipe: {error}"))?;
    let mut command = Command::new(&planned.program);
    command.args(&planned.arguments).current_dir(&planned.directory).env_clear();
    command.envs(&planned.variables).env(RESULTS_VARIABLE, RESULTS);
    command.stdin(Stdio::null()).stdout(writer).stderr(second);
    let spawned = command.spawn();
    // The command's own copies of the pipe must be the last ones, or its end is never seen.
    drop(command);
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => {
            let line = format!("cannot start {}: {error}", planned.program.display());
            channel.output(&planned.name, line.as_bytes());
            channel.ended(&planned.name, None, false, 0.0);
            return Ok(());
        }
    };
    let forwarder = forward(reader, planned.name.clone(), channel.clone());
    let status = wait(&mut child, Duration::from_secs(planned.timeout_seconds))?;
    let seconds = begin.elapsed().as_secs_f64();
    kill_all();
    if status.is_none() {
        child.wait().map_err(|error| format!("cannot wait for {}: {error}", planned.name))?;
    }
    let _ = forwarder.join();
    for line in fs::read_to_string(RESULTS).unwrap_or_default().lines() {
        channel.result(&planned.name, line);
    }
    let _ = fs::remove_file(RESULTS);
    channel.ended(&planned.name, status.and_then(|it| it.code()), status.is_none(), seconds);
    Ok(())
}

fn forward(reader: PipeReader, name: String, mut channel: Channel) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(std::result::Result::ok) {
            channel.output(&name, &line);
        }
    })
}

/// `None`: it still runs.
fn wait(child: &mut Child, timeout: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + timeout;
    loop {
        let ended = child.try_wait().map_err(|error| format!("cannot wait: {error}"))?;
        if ended.is_some() || Instant::now() > deadline {
            return Ok(ended);
        }
        thread::sleep(PAUSE);
    }
}

/// Ends every process but the first and this one, so that nothing of a command disturbs the next.
fn kill_all() {
    // SAFETY: touches no memory; -1 leaves out the caller and process 1.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}
