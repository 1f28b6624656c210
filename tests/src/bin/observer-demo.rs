//! The demo: a service under load is harmed, observer watches and has to name the harm.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use observer_tests::process::{Programs, interrupted, note_interrupts};
use observer_tests::scenario::{Scenario, play};

/// Harms a service under load and asks observer why requests are slow.
#[derive(Parser)]
struct Arguments {
    /// The observer program.
    #[arg(long, value_name = "PATH")]
    observer: Option<PathBuf>,
    /// The service.
    #[arg(long, value_name = "PATH")]
    service: Option<PathBuf>,
    /// What is done to the service.
    #[arg(long, value_enum, default_value_t = Choice::Reclaim)]
    scenario: Choice,
    /// Where the run directories go (must not exist).
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Choice {
    /// Its memory cgroup is squeezed.
    Reclaim,
    /// CPU hogs share its CPU.
    Hog,
    /// It sleeps in its handler.
    Sleep,
    /// One after the other.
    All,
}

impl Choice {
    const fn scenarios(self) -> &'static [Scenario] {
        match self {
            Self::Reclaim => &[Scenario::Reclaim],
            Self::Hog => &[Scenario::Hog],
            Self::Sleep => &[Scenario::Sleep],
            Self::All => &Scenario::ALL,
        }
    }
}

fn run(arguments: Arguments) -> observer_tests::Result<bool> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root: it makes a cgroup and loads BPF programs; use sudo".into());
    }
    let own = std::env::current_exe()
        .map_err(|error| format!("does not know where its own program is: {error}"))?;
    let mut programs = Programs::beside(&own);
    programs.observer = arguments.observer.unwrap_or(programs.observer);
    programs.service = arguments.service.unwrap_or(programs.service);
    let out = arguments.out.unwrap_or_else(|| {
        std::env::temp_dir().join(format!("observer-demo-{}", std::process::id()))
    });
    DirBuilder::new()
        .mode(0o700)
        .create(&out)
        .map_err(|error| format!("cannot make {}: {error}", out.display()))?;

    let mut good = true;
    for scenario in arguments.scenario.scenarios() {
        let started = Instant::now();
        println!("demo {}: a service under load; {}", scenario.name(), scenario.explanation());
        let finding = play(&programs, *scenario, &out.join(scenario.name()), None)?;
        println!();
        for line in finding.lines() {
            println!("  {line}");
        }
        let seconds = started.elapsed().as_secs();
        match finding.judge() {
            Ok(()) => println!("demo {}: as expected, after {seconds} s\n", scenario.name()),
            Err(wrong) => {
                good = false;
                println!("demo {}: WRONG, {wrong} (after {seconds} s)\n", scenario.name());
            }
        }
    }
    Ok(good)
}

fn main() -> ExitCode {
    note_interrupts();
    match run(Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("observer-demo: {error}");
            // 130: ended by ^C, as shells have it.
            if interrupted() { ExitCode::from(130) } else { ExitCode::FAILURE }
        }
    }
}
