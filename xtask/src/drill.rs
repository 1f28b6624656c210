//! `cargo xtask drill`: plays all drills, and writes docs/DRILLS.md.

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use clap::Args;

use xtask_common::{
    project::{Outcome, as_root, must, root, test_cargo, tests_built},
    toolchain,
};

/// The first seed of what is reported. Whoever changes a method tries it with smaller ones, so that
/// nothing is fitted to the seeds that are reported.
const SEED: u64 = 1001;

#[derive(Args)]
pub(crate) struct Options {
    /// How often each drill is played, each time with the next seed
    #[arg(long, default_value_t = 3)]
    runs: u64,
    /// The first seed; seeds below 1000 are for changes of the method
    #[arg(long, default_value_t = SEED)]
    seed: u64,
    /// Plays only these, as `observer drill --only`; the page says so
    #[arg(long, value_name = "SERVICE/INJECTION")]
    only: Vec<String>,
    /// Where the page is written
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Outcome {
    toolchain::require(false, false)?;
    must(&mut test_cargo(["build", "--package", "observer", "--bins"]))?;
    let mut drill = as_root(&tests_built().join("observer"), &[])?;
    drill.arg("drill");
    drill.args(["--runs", &options.runs.to_string(), "--seed", &options.seed.to_string()]);
    drill.args(options.only.iter().flat_map(|only| ["--only", only]));
    println!("drill: {} runs of each drill, about half a minute each", options.runs);
    // The tables go to standard output, the progress to standard error.
    let output = drill.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("cannot run observer drill: {error}"))?;
    let tables = String::from_utf8_lossy(&output.stdout);
    if tables.trim().is_empty() {
        return Err(format!("observer drill ended with {} and no result", output.status));
    }
    let path = options.out.clone().unwrap_or_else(|| root().join("docs/DRILLS.md"));
    let text = page(options, &kernel(), &tables);
    fs::write(&path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    println!("drill: wrote {}", path.display());
    // A drill that was missed is a result, and on the page.
    Ok(ExitCode::SUCCESS)
}

fn kernel() -> String {
    let output = Command::new("uname").arg("-r").output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}

fn page(options: &Options, kernel: &str, tables: &str) -> String {
    let last = options.seed + options.runs.saturating_sub(1);
    let mut page = String::from("# Drills\n\n<!-- Written by `cargo xtask drill`. -->\n\n");
    page += "`observer drill` injects known faults into small services and into programs of the host \
             (nginx, Java, Node.js, Go, redis), and\ncompares what observer says with the truth, which comes from \
             the service's log, from the schedule, and for waits of\nnginx, Go and redis from the scheduler's \
             counters. Drills that were missed are shown as missed; what this host does not have is\n\
             shown as skipped.\n\n";
    page += &format!("Seeds {} to {last}, kernel {kernel}.", options.seed);
    if !options.only.is_empty() {
        page += &format!(" Only these were played: {}.", options.only.join(", "));
    }
    page += "\n\n```text\n";
    page += &tables.lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>();
    page + "```\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_names_the_seeds_and_has_the_tables() {
        let mut options = Options { runs: 3, seed: SEED, only: Vec::new(), out: None };
        let whole = page(&options, "6.12", "1 right  \n");
        assert!(whole.contains("Seeds 1001 to 1003, kernel 6.12.\n"), "{whole}");
        assert!(whole.ends_with("```text\n1 right\n```\n"), "{whole}");
        options.only = vec!["pool".into(), "redis/burn".into()];
        let part = page(&options, "6.12", "1 right\n");
        assert!(part.contains("6.12. Only these were played: pool, redis/burn.\n"), "{part}");
    }
}
