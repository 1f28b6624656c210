//! Writes the generated pages of docs/ anew. The same tests compare them otherwise.

use std::process::ExitCode;

use crate::{
    project::{Outcome, cargo, must},
    toolchain,
};

pub(crate) fn run() -> Outcome {
    toolchain::require(false, false)?;
    must(cargo(["test", "--package", "observer", "docs"]).env("OBSERVER_UPDATE_DOCS", "1"))?;
    must(
        std::process::Command::new("git")
            .args(["status", "--short", "docs"])
            .current_dir(crate::project::root()),
    )?;
    Ok(ExitCode::SUCCESS)
}
