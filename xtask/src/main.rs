//! Project commands, run as `cargo xtask <command>`.

mod demo;
mod docs;
mod drill;
mod exactness;
mod rules;
mod steps;
mod test;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};
use xtask_common::{
    project::{Outcome, cargo, finished, passed_on},
    toolchain,
};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Project commands of observer",
    version
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install everything that is needed to build and run observer on this host
    Setup {
        /// Also install what the tests need
        #[arg(long)]
        with_tests: bool,
        /// Also install the tools that the benchmark compares with
        #[arg(long)]
        with_bench: bool,
    },
    /// Set up, build, and let observer find the cause of slow requests
    Demo(demo::Options),
    /// Set up, lint, and run every test, including the privileged ones
    Test(test::Options),
    /// Measure the cost of observer and other tools per operation
    #[command(disable_help_flag = true)]
    Bench(Forwarded),
    /// Run the privileged tests on other kernels, in virtual machines
    #[command(disable_help_flag = true)]
    Vm(Forwarded),
    /// Play all drills with known answers, and write docs/DRILLS.md
    Drill(drill::Options),
    /// Write the generated pages of docs/ again
    Docs(docs::Options),
    /// Check the rules of the house that a program can check
    Check,
}

/// A command in a crate of its own, which is built when it is first used.
#[derive(clap::Args)]
struct Forwarded {
    /// See --help of this command
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    arguments: Vec<OsString>,
}

impl Forwarded {
    fn run(&self, package: &str) -> Outcome {
        let mut command = cargo(["run", "--quiet", "--package", package, "--"]);
        passed_on(command.args(&self.arguments))
    }
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Setup { with_tests, with_bench } => toolchain::setup(with_tests, with_bench),
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench(forwarded) => forwarded.run("xtask-bench"),
        Command::Vm(forwarded) => forwarded.run("xtask-vm"),
        Command::Drill(options) => drill::run(&options),
        Command::Docs(options) => docs::run(&options),
        Command::Check => rules::run(),
    };
    finished("cargo xtask", outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_commands_in_crates_of_their_own_are_passed_on_unread() {
        for line in [
            ["xtask", "vm", "--help"].as_slice(),
            &["xtask", "vm", "--kernel", "6.1", "--test", "exactness", "--", "reclaim"],
            &["xtask", "bench", "-h", "--unknown"],
        ] {
            let parsed = Arguments::try_parse_from(line).map(|arguments| arguments.command);
            let (Ok(Command::Vm(forwarded)) | Ok(Command::Bench(forwarded))) = parsed else {
                panic!("{line:?} is not forwarded");
            };
            assert_eq!(
                forwarded.arguments,
                line[2..].iter().map(OsString::from).collect::<Vec<_>>()
            );
        }
    }
}
