//! The column of this host's own kernel: the same test programs, without a virtual machine.

use std::{ffi::OsStr, fs, path::Path, time::Instant};

use super::{
    matrix::{self, Column, State},
    programs::Programs,
};
use crate::{
    project::{as_root, root},
    steps::{Counts, counted},
};

/// What it is called in the table.
pub(crate) const NAME: &str = "host";

/// Variable by which the tests are told where to write what they compared.
pub(crate) const RESULTS: &str = "OBSERVER_TEST_RESULTS";

/// Runs the tests here.
pub(crate) fn column(
    directory: &Path,
    programs: &Programs,
    arguments: &[String],
) -> Result<Column, String> {
    println!("vm: {NAME}");
    let results = matrix::results_file(directory, NAME);
    prepare(&results)?;
    let working_directory = root().join("tests");
    let variables: [(&str, &OsStr); 3] = [
        ("OBSERVER_TEST_PRIVILEGED", OsStr::new("1")),
        ("CARGO_MANIFEST_DIR", working_directory.as_os_str()),
        (RESULTS, results.as_os_str()),
    ];
    fs::create_dir_all(&programs.scratch)
        .map_err(|error| format!("cannot make {}: {error}", programs.scratch.display()))?;
    let begin = Instant::now();
    let (mut counts, mut faults) = (Counts::default(), Vec::new());
    for test in &programs.tests {
        let mut command = as_root(&test.path, &variables)?;
        command.arg("--test-threads=1").args(arguments).current_dir(&working_directory);
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
