//! The tests on this host's own kernel, without a virtual machine.

use std::{fs, time::Instant};

use xtask_common::{
    counts::{Counts, counted},
    results,
};

use crate::{
    matrix::{Column, State},
    programs::Programs,
};

/// Runs the tests here.
pub(crate) fn column(programs: &Programs, arguments: &[String]) -> Result<Column, String> {
    println!("vm: {}", results::HOST);
    let file = results::file(results::HOST);
    // Tests append to it, through sudo as root.
    results::write(&file, &[])?;
    fs::create_dir_all(&programs.scratch)
        .map_err(|error| format!("cannot make {}: {error}", programs.scratch.display()))?;
    let begin = Instant::now();
    let (mut counts, mut faults) = (Counts::default(), Vec::new());
    for test in &programs.tests {
        let mut command = test.privileged_command(&file)?;
        command.args(arguments);
        let failed_before = counts.failed;
        if let Err(message) = counted(&mut command, &mut counts)
            && counts.failed == failed_before
        {
            faults.push(message);
        }
    }
    let state = State::Ran {
        release: release(),
        counts,
        faults,
        results: results::read(&file)?,
        seconds: begin.elapsed().as_secs_f64(),
    };
    Ok(Column { name: results::HOST.to_owned(), state })
}

fn release() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}
