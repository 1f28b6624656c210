//! Names and files that come from others: whatever is in them, nothing that observer prints can steer
//! the terminal.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A style that observer uses itself, clearing the screen by C1, DEL, and two ways to change the
/// direction of the text.
const HOSTILE: &str = "x\u{1b}[1;31m\u{9b}2J\u{7f}\u{202e}\u{2066}\u{61c}\r\u{7}";

fn observer<S: AsRef<OsStr>>(arguments: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_observer")).args(arguments).output().expect("observer starts")
}

/// Neither output has what could rewrite a terminal; both together.
#[track_caller]
fn assert_harmless(output: &Output, what: &str) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    let text = String::from_utf8(both).expect("UTF-8");
    let harmful = |c: &char| {
        c.is_control() && *c != '\n'
            || matches!(c, '\u{61c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let found: Vec<char> = text.chars().filter(harmful).collect();
    assert!(found.is_empty(), "{what}: {found:?} in {text:?}");
    text
}

/// A copy of a real run.
fn copied_run(to: &Path) -> PathBuf {
    let from = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/runs/0.1.0-nginx");
    let run = to.join("run");
    fs::create_dir(&run).expect("a directory");
    for entry in fs::read_dir(from).expect("the run").map(|entry| entry.expect("a file")) {
        fs::copy(entry.path(), run.join(entry.file_name())).expect("a copy");
    }
    run
}

/// Every version of a document in which one string or the names of one object are hostile.
fn hostile_versions(document: &Value) -> Vec<(String, Value)> {
    fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                found.push(at.to_owned());
                members.iter().for_each(|(name, member)| {
                    pointers(member, &format!("{at}/{}", name.replace('/', "~1")), found);
                });
            }
            Value::Array(items) => {
                let numbered = items.iter().enumerate();
                numbered.for_each(|(index, item)| pointers(item, &format!("{at}/{index}"), found));
            }
            Value::String(_) => found.push(at.to_owned()),
            Value::Null => found.push(at.to_owned()),
            Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let mut found = Vec::new();
    pointers(document, "", &mut found);
    found
        .into_iter()
        .map(|pointer| {
            let mut version = document.clone();
            match version.pointer_mut(&pointer) {
                Some(Value::Object(members)) => {
                    let first = members.values().next().cloned().unwrap_or(Value::Null);
                    members.insert(HOSTILE.to_owned(), first);
                }
                Some(other) => *other = HOSTILE.into(),
                None => panic!("{pointer} is there"),
            }
            (pointer, version)
        })
        .collect()
}

#[test]
fn a_run_directory_of_another_cannot_steer_the_terminal() {
    let root = tempfile::tempdir().expect("a directory");
    let run = copied_run(root.path());
    let directory = run.to_str().expect("UTF-8");
    let mut shown = 0;
    for name in ["run.json", "summary.json"] {
        let file = run.join(name);
        let good = fs::read_to_string(&file).expect("a file");
        let document = serde_json::from_str(&good).expect("JSON");
        for (pointer, version) in hostile_versions(&document) {
            fs::write(&file, version.to_string()).expect("a file");
            for arguments in [&["report", directory][..], &["report", directory, "--json"]] {
                let said = assert_harmless(&observer(arguments), &format!("{name}{pointer}"));
                shown += usize::from(said.contains("x?[1;31m") || said.contains("x\\u001b[1;31m"));
            }
        }
        fs::write(&file, good).expect("a file");
    }
    assert!(shown > 10, "what is hostile is shown: {shown} times");
}

#[test]
fn names_of_files_and_words_of_the_command_line_are_cleaned() {
    let root = tempfile::tempdir().expect("a directory");
    let run = copied_run(root.path());
    for name in [format!("{HOSTILE}.arrows"), format!("runqueue.{HOSTILE}.arrows")] {
        fs::write(run.join(name), "not a stream").expect("a file");
    }
    fs::write(run.join(OsStr::from_bytes(b"\x9b2J\xff.arrows")), "no").expect("a file");
    let named = run.with_file_name(HOSTILE);
    fs::rename(&run, &named).expect("another name");
    let named = named.to_str().expect("UTF-8");
    let said = assert_harmless(&observer(&["report", named]), "names of files");
    assert!(said.contains("x?[1;31m"), "{said}");
    let html = root.path().join("html").join(HOSTILE);
    let html = html.to_str().expect("UTF-8");
    for arguments in [
        &["report", named, "--json"][..],
        &["report", named, "--html", html],
        &["report", html],
        &["report", html, "--log-format", "json"],
        &["report", named, HOSTILE],
        &[HOSTILE],
        &["load", HOSTILE],
        &["load", "http://127.0.0.1:1/", "--out", html],
        &["run", "--pid", "1", "--samples", HOSTILE],
        &["run", "--comm", HOSTILE, "--samples", &format!("hey:{HOSTILE}"), "--duration", "1s"],
        &["run", "--exe", HOSTILE, "--", HOSTILE],
        &["daemon", "--cgroup", HOSTILE, "--listen", "127.0.0.1:0"],
        &["daemon", "--listen", HOSTILE],
        &["doctor", "--btf", HOSTILE],
        &["doctor", "--btf", HOSTILE, "--json"],
    ] {
        let _ = assert_harmless(&observer(arguments), &format!("{arguments:?}"));
    }
}
