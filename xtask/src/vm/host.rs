//! The column of this host's own kernel: the same test programs, without a virtual machine.

use std::{fs, path::Path, time::Instant};

use super::{
    matrix::{self, Column, State},
    programs::Programs,
};
use crate::steps::{Counts, counted};

/// What it is called in the table.
pub(crate) const NAME: &str = "host";

/// Runs the tests here.
pub(crate) fn column(
    directory: &Path,
    programs: &Programs,
    arguments: &[String],
) -> Result<Column, String> {
    println!("vm: {NAME}");
    let results = matrix::results_file(directory, NAME);
    prepare(&results)?;
    fs::create_dir_all(&programs.scratch)
        .map_err(|error| format!("cannot make {}: {error}", programs.scratch.display()))?;
    let begin = Instant::now();
    let (mut counts, mut faults) = (Counts::default(), Vec::new());
    for test in &programs.tests {
        let mut command = test.privileged_command(&results)?;
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
        results: matrix::read_results(&results).unwrap_or_default(),
        seconds: begin.elapsed().as_secs_f64(),
    };
    Ok(Column { name: NAME.to_owned(), state })
}

/// The column from what tests of this host have left; they are counted elsewhere.
pub(crate) fn finished(directory: &Path) -> Column {
    let path = matrix::results_file(directory, NAME);
    let state = matrix::read_results(&path).map_or_else(
        || State::NotAvailable(format!("{} is missing", path.display())),
        |results| State::Counted { release: release(), results },
    );
    Column { name: NAME.to_owned(), state }
}

/// An empty file that whoever runs the tests may append to.
pub(crate) fn prepare(results: &Path) -> Result<(), String> {
    matrix::write_results(results, &[])
}

fn release() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}
