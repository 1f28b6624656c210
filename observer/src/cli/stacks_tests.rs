use std::path::Path;

use clap::Parser;

use super::*;
use crate::output::stacks::example;

#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    stacks: Args,
}

fn parse(arguments: &[&str]) -> std::result::Result<Args, clap::Error> {
    let all = ["stacks"].iter().chain(arguments);
    Command::try_parse_from(all).map(|command| command.stacks)
}

/// Runs the command with the options, and returns what it writes to a file.
fn written(run: &Path, options: &[&str]) -> Result<String> {
    let out = run.with_extension("out");
    let _ = std::fs::remove_file(&out);
    let mut arguments: Vec<&str> = options.to_vec();
    arguments.extend([run.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    super::run(&parse(&arguments).unwrap())?;
    Ok(std::fs::read_to_string(&out).unwrap())
}

fn refused(run: &Path, options: &[&str], exit: Exit) -> String {
    let error = written(run, options).expect_err("refused");
    assert_eq!(error.exit, exit, "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    error.to_string()
}

#[test]
fn each_format_has_the_stacks_that_were_selected() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("run");
    example::directory(&path);
    let text = written(&path, &[]).unwrap();
    assert!(text.contains("lock_wait: waiting for a lock, 5.00 ms (42 %)"), "{text}");
    assert!(text.contains("unexplained") && !text.contains('\u{1b}'), "{text}");
    let text = written(&path, &["--cause", "runqueue", "--cause", "lock_wait"]).unwrap();
    assert!(text.contains("lock_wait: ") && !text.contains("unexplained: "), "{text}");
    let folded = written(&path, &["--format", "folded", "--cause", "unexplained"]).unwrap();
    assert_eq!(folded.lines().count(), 1);
    assert!(folded.ends_with(" 5000\n"), "{folded}");
    for format in ["json", "firefox"] {
        let json = written(&path, &["--format", format]).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(value.is_object() && json.contains("futex_wait_queue"), "{format}");
    }
}

#[test]
fn slow_requests_have_the_time_of_the_threads_that_served_them() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("run");
    example::directory(&path);
    let list = written(&path, &["--slow", "--format", "json"]).unwrap();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    // Of the worker's two absences, one was in the one slow request.
    let rows: Vec<(&str, u64)> = list["rows"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["cause"].as_str().unwrap(), row["time_ns"].as_u64().unwrap()))
        .collect();
    assert_eq!(rows, [("lock_wait", 3_000_000), ("runqueue_other", 1_000_000)], "{list:#}");
    assert_eq!(list["selected"], "within slow requests");
    std::fs::remove_file(path.join("summary.json")).unwrap();
    let text = refused(&path, &["--slow"], Exit::Usage);
    assert!(text.contains("it has no answer"), "{text}");
}

#[test]
fn what_cannot_be_done_is_said_in_one_line() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("run");
    example::directory(&path);
    let text = refused(&path, &["--top", "3", "--format", "folded"], Exit::Usage);
    assert!(text.contains("--top is for --format text"), "{text}");
    std::fs::remove_file(path.join("stacks.json")).unwrap();
    let text = refused(&path, &[], Exit::RunUnreadable);
    assert!(text.contains("record them with `observer run --stacks 1ms ...`"), "{text}");
    refused(&root.path().join("nothing"), &[], Exit::RunUnreadable);
    for (arguments, wanted) in [
        (["--cause", "waiting", "run"], "use cpu_throttle, "),
        (["--top", "0", "run"], "write a number from 1 on"),
        (["--format", "svg", "run"], "[possible values: text, folded, firefox, json]"),
    ] {
        let error = parse(&arguments).expect_err("wrong");
        assert_eq!(error.exit_code(), Exit::Usage as i32);
        assert!(error.to_string().contains(wanted), "{error}");
    }
}
