//! Commands that run tests: their output, and how many tests passed and failed.

use std::{
    io::{self, BufRead, BufReader, Read},
    process::{Command, Stdio},
};

use crate::project::shown;

/// Sum of the `test result:` lines of one or more commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
}

impl Counts {
    /// `test result: ok. 3 passed; 0 failed; 0 ignored; ...`; other lines are left alone.
    pub fn add_line(&mut self, line: &str) {
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

    /// The line that [`Self::add_line`] reads.
    #[must_use]
    pub fn line(&self) -> String {
        let word = if self.failed == 0 { "ok" } else { "FAILED" };
        format!("test result: {word}. {} passed; {} failed", self.passed, self.failed)
    }

    /// Adds the tests of another command.
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

/// Runs `command`, prints its standard output as it comes, and counts its tests.
///
/// # Errors
/// When it cannot be started or fails.
pub fn counted(command: &mut Command, counts: &mut Counts) -> Result<(), String> {
    let name = shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("could not start {name}: {error}"))?;
    let output = child.stdout.take().ok_or_else(|| format!("{name} has no output to read"))?;
    let read = each_line(output, |line| {
        println!("{line}");
        counts.add_line(line);
    });
    ended(&name, child, read)
}

/// Runs `command`, appends all that it prints to `text`, and counts its tests. For commands that
/// run beside others, whose lines would mix.
///
/// # Errors
/// When it cannot be started or fails.
pub fn captured(
    command: &mut Command,
    counts: &mut Counts,
    text: &mut String,
) -> Result<(), String> {
    let name = shown(command);
    let failed = |error: io::Error| format!("could not start {name}: {error}");
    // One pipe for both, so that messages stay where they belong between the other lines.
    let (reader, writer) = io::pipe().map_err(failed)?;
    let second = writer.try_clone().map_err(failed)?;
    command.stdin(Stdio::null()).stdout(writer).stderr(second);
    let child = command.spawn();
    // The command owns the writing ends: the reader would wait for them for ever.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = child.map_err(failed)?;
    let read = each_line(reader, |line| {
        text.push_str(line);
        text.push('\n');
        counts.add_line(line);
    });
    ended(&name, child, read)
}

fn each_line(output: impl Read, mut each: impl FnMut(&str)) -> io::Result<()> {
    for line in BufReader::new(output).split(b'\n') {
        each(&String::from_utf8_lossy(&line?));
    }
    Ok(())
}

fn ended(name: &str, mut child: std::process::Child, read: io::Result<()>) -> Result<(), String> {
    let status = child.wait().map_err(|error| format!("{name}: {error}"))?;
    read.map_err(|error| format!("output of {name}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{name} ended with {status}")) }
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
            "99 passed; not a result line",
        ] {
            counts.add_line(line);
        }
        assert_eq!(counts, Counts { passed: 16, failed: 2 });
        let mut again = Counts::default();
        again.add_line(&counts.line());
        assert_eq!(again, counts);
    }

    #[test]
    fn a_captured_command_keeps_both_outputs_in_their_order_and_its_failure() {
        let (mut counts, mut text) = (Counts::default(), String::new());
        let mut shell = Command::new("sh");
        shell.args([
            "-c",
            "echo one; echo two >&2; echo 'test result: ok. 1 passed; 0 failed'; exit 3",
        ]);
        let error = captured(&mut shell, &mut counts, &mut text).expect_err("code 3");
        assert!(error.contains("exit status: 3"), "{error}");
        assert_eq!(text, "one\ntwo\ntest result: ok. 1 passed; 0 failed\n");
        assert_eq!(counts, Counts { passed: 1, failed: 0 });
    }

    #[test]
    fn a_command_that_does_not_exist_is_an_error_of_one_line() {
        let mut counts = Counts::default();
        let mut missing = Command::new("/nonexistent/program");
        let error = captured(&mut missing, &mut counts, &mut String::new()).expect_err("missing");
        assert!(error.starts_with("could not start program: "), "{error}");
        assert!(counted(&mut missing, &mut counts).is_err());
    }
}
