//! Project commands, run as `cargo xtask <command>`.

mod bench;
mod demo;
mod docs;
mod exactness;
mod project;
mod rules;
mod steps;
mod test;
mod test_programs;
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Project commands of observer", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing to build and run observer on this host
    Setup {
        /// Also what the tests use
        #[arg(long)]
        with_tests: bool,
        /// Also the observers that the benchmark compares with
        #[arg(long)]
        with_bench: bool,
    },
    /// Set up, build, and show observer find the cause of slow requests
    Demo(demo::Options),
    /// Set up, lint, and run every test, the privileged ones included
    Test,
    /// Measure what observers cost per operation, interleaved in one run
    Bench(bench::Options),
    /// Run the privileged tests on other kernels, in virtual machines
    Vm(vm::Options),
    /// Write the generated pages of docs/ anew
    Docs(docs::Options),
    /// Check the rules of the house that a program can check
    Check,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Setup { with_tests, with_bench } => toolchain::setup(with_tests, with_bench),
        Command::Demo(options) => demo::run(&options),
        Command::Test => test::run(),
        Command::Bench(options) => bench::run(&options),
        Command::Vm(options) => vm::run(&options),
        Command::Docs(options) => docs::run(&options),
        Command::Check => rules::run(),
    };
    match result {
        Ok(code) => code,
        Err(message) => {
            eprintln!("xtask: error: {message}");
            ExitCode::FAILURE
        }
    }
}
