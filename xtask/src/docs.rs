//! Writes the generated pages of docs/ anew. The same tests compare them otherwise.

use std::{path::PathBuf, process::ExitCode};

use crate::{
    exactness,
    project::{Outcome, cargo, must},
    toolchain, vm,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only docs/EXACTNESS.md, from the results that the last `cargo xtask test` or `vm` left
    #[arg(long)]
    exactness: bool,
    /// Where these results are [default: target/vm/results]
    #[arg(long, value_name = "DIRECTORY", requires = "exactness")]
    results: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Outcome {
    if options.exactness {
        let results = options.results.clone().unwrap_or_else(vm::results);
        exactness::write(&results)?;
        return Ok(ExitCode::SUCCESS);
    }
    toolchain::require(false, false)?;
    must(cargo(["test", "--package", "observer", "docs"]).env("OBSERVER_UPDATE_DOCS", "1"))?;
    must(
        std::process::Command::new("git")
            .args(["status", "--short", "docs"])
            .current_dir(crate::project::root()),
    )?;
    Ok(ExitCode::SUCCESS)
}
