//! `cargo xtask demo`: from a fresh clone to an answer about slow requests.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, ValueEnum};

use crate::{
    project::{Outcome, as_root, built, cargo, must, status},
    toolchain,
};

#[derive(Args)]
pub(crate) struct Options {
    /// What is done to the service
    #[arg(long, value_enum, default_value_t = Scenario::Reclaim)]
    scenario: Scenario,
    /// Where the run directories go (must not exist)
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scenario {
    /// Its memory cgroup is squeezed: requests stall in reclaim
    Reclaim,
    /// A CPU hog is pinned beside it: requests wait to run
    Hog,
    /// It sleeps in its handler: no kernel cause is to be named
    Sleep,
    /// One after the other
    All,
}

pub(crate) fn run(options: &Options) -> Outcome {
    toolchain::require(false, false)?;
    println!("demo: building (the first build takes a few minutes)");
    must(&mut cargo(["build", "--package", "observer", "--package", "observer-tests", "--bins"]))?;
    let built = built("debug");
    let mut demo = as_root(&built.join("observer-demo"), &[])?;
    demo.arg("--observer").arg(built.join("observer"));
    demo.arg("--service").arg(built.join("observer-service"));
    if let Some(value) = options.scenario.to_possible_value() {
        demo.args(["--scenario", value.get_name()]);
    }
    if let Some(out) = &options.out {
        demo.arg("--out").arg(out);
    }
    let status = status(&mut demo)?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Ok(ExitCode::from(code))
}
