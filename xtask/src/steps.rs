//! Steps of a longer command: a heading, the output as it comes, the time taken, and a count of the
//! tests at the end.

use std::{
    io::{self, BufRead, BufReader, Write},
    process::{Command, Stdio},
    time::Instant,
};

use crate::project::shown;

/// What the steps so far came to.
#[derive(Default)]
pub(crate) struct Steps {
    passed: u64,
    failed: u64,
    /// Titles of the steps that failed.
    broken: Vec<String>,
}

/// Sum of the `test result:` lines of one command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Steps {
    /// Runs `work` under a heading; it returns whether it went well.
    pub(crate) fn step(&mut self, title: &str, work: impl FnOnce() -> Result<(), String>) -> bool {
        let result = timed(title, work);
        self.note(title, result, &Counts::default())
    }

    /// Runs `command` under a heading.
    pub(crate) fn command(&mut self, title: &str, command: &mut Command) -> bool {
        self.step(title, || crate::project::must(command))
    }

    /// Runs `command`, which prints cargo's or libtest's lines, and counts its tests.
    pub(crate) fn tests(&mut self, title: &str, command: &mut Command) -> bool {
        self.counting(title, |counts| counted(command, counts))
    }

    /// Runs `work` under a heading; it counts its tests itself.
    pub(crate) fn counting(
        &mut self,
        title: &str,
        work: impl FnOnce(&mut Counts) -> Result<(), String>,
    ) -> bool {
        let mut counts = Counts::default();
        let result = timed(title, || work(&mut counts));
        self.note(title, result, &counts)
    }

    fn note(&mut self, title: &str, result: Result<(), String>, counts: &Counts) -> bool {
        self.passed += counts.passed;
        self.failed += counts.failed;
        let Err(message) = result else { return true };
        println!("    FAILED: {message}");
        // A step that failed without a failed test (a lint, a crash of the test program) counts as
        // one, so that the last line never says "0 failed" of a run that failed.
        if counts.failed == 0 {
            self.failed += 1;
        }
        self.broken.push(title.to_owned());
        false
    }

    /// The last lines; true when nothing failed.
    pub(crate) fn finish(self, started: Instant) -> bool {
        println!("\n==> summary ({:.0} s)", started.elapsed().as_secs_f64());
        for title in &self.broken {
            println!("    failed step: {title}");
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        self.failed == 0
    }
}

fn timed(title: &str, work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    println!("\n==> {title}");
    // Children write to the same descriptor by themselves: the heading must come first.
    let _ = io::stdout().flush();
    let started = Instant::now();
    let result = work();
    println!("    {:.1} s", started.elapsed().as_secs_f64());
    result
}

pub(crate) fn counted(command: &mut Command, counts: &mut Counts) -> Result<(), String> {
    let name = shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("could not start {name}: {error}"))?;
    let Some(output) = child.stdout.take() else {
        return Err(format!("{name} has no output to read"));
    };
    for line in BufReader::new(output).split(b'\n') {
        let line = line.map_err(|error| format!("output of {name}: {error}"))?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        counts.add_line(&line);
    }
    let status = child.wait().map_err(|error| format!("{name}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name} ended with {status}")) }
}

impl Counts {
    /// `test result: ok. 3 passed; 0 failed; 0 ignored; ...`; other lines are left alone.
    pub(crate) fn add_line(&mut self, line: &str) {
        let Some(rest) = line.trim_start().strip_prefix("test result: ") else { return };
        let Some((_, numbers)) = rest.split_once(". ") else { return };
        for part in numbers.split(';') {
            match part.trim().split_once(' ') {
                Some((count, "passed")) => self.passed += count.parse().unwrap_or(0),
                Some((count, "failed")) => self.failed += count.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_sum_result_lines_only() {
        let mut counts = Counts::default();
        for line in [
            "test wire::sizes ... ok",
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s",
            "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out",
            "99 passed; nothing of ours",
        ] {
            counts.add_line(line);
        }
        assert_eq!(counts, Counts { passed: 16, failed: 2 });
    }

    #[test]
    fn crash_of_a_test_program_is_a_failure() {
        let mut steps = Steps::default();
        let mut crash = Command::new("sh");
        crash.args(["-c", "echo 'test result: ok. 1 passed; 0 failed'; kill -SEGV $$"]);
        assert!(!steps.tests("crash", &mut crash));
        assert!(!steps.step("lint", || Err("bad".to_owned())));
        assert!(steps.step("fine", || Ok(())));
        assert_eq!((steps.passed, steps.failed), (1, 2));
        assert_eq!(steps.broken, ["crash", "lint"]);
        assert!(!steps.finish(Instant::now()));
    }
}
