//! `cargo xtask demo`: from a fresh clone to an answer about slow requests.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use xtask_common::{
    project::{Outcome, as_root, built, cargo, must, passed_on},
    toolchain,
};

#[derive(Args)]
pub(crate) struct Options {
    /// What slows the service down
    #[arg(long, value_enum, default_value_t = Scenario::Reclaim)]
    scenario: Scenario,
    /// Output directory of the runs; must not exist
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Scenario {
    /// A memory cgroup that is too small: requests stall in reclaim
    Reclaim,
    /// A CPU hog pinned to the same CPU: requests wait to run
    Hog,
    /// A handler that sleeps: observer must report service_wait, and no kernel cause
    Sleep,
    /// All of them, one after the other
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
    passed_on(&mut demo)
}
