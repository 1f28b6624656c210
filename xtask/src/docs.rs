//! `cargo xtask docs`: writes the generated pages of docs/ again. Tests compare them otherwise.

use std::{path::PathBuf, process::Command, process::ExitCode};

use xtask_common::{
    project::{Outcome, cargo, must, root},
    results, toolchain,
};

use crate::exactness;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write only docs/EXACTNESS.md, after putting the results of the last `cargo xtask test` or `vm`
    /// into docs/exactness.jsonl
    #[arg(long)]
    exactness: bool,
    /// Directory of these results [default: target/vm/results]
    #[arg(long, value_name = "DIRECTORY", requires = "exactness")]
    results: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Outcome {
    if options.exactness {
        exactness::update(&options.results.clone().unwrap_or_else(results::directory))?;
        return Ok(ExitCode::SUCCESS);
    }
    exactness::write_page()?;
    toolchain::require(false, false)?;
    must(cargo(["test", "--package", "observer", "docs"]).env("OBSERVER_UPDATE_DOCS", "1"))?;
    must(Command::new("git").args(["status", "--short", "docs"]).current_dir(root()))?;
    Ok(ExitCode::SUCCESS)
}
