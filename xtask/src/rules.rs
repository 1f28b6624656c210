//! Rules of the house that a program can check: a rule that is only written down is soon broken.

use std::{
    env, fs,
    path::{Component, Path},
    process::{Command, ExitCode},
};

use xtask_common::project::{Outcome, root};

/// A longer file must be split.
const LINES_MAX: usize = 550;

/// Marks of unfinished work. Written in two parts, so that this file passes itself.
const MARKS: &[&str] = &[
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("#[ig", "nore"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("dbg", "!("),
];

/// Home directories.
const PERSONAL: &[&str] = &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/")];

/// Top directories that every Linux host has. If this clone is in another one, its name must not
/// occur in any file.
const EVERYWHERE: &[&str] = &[
    "bin", "boot", "dev", "etc", "lib", "media", "mnt", "opt", "proc", "run", "srv", "sys", "tmp",
    "usr", "var",
];

/// Phrases that a reader has to decode, and what to write instead.
const UNPLAIN: &[(&str, &str)] = &[
    ("books", "counters, or ground truth"),
    ("to be had", "available"),
    ("held against", "compared with"),
    ("line of coverage", "reported as unsupported"),
    ("had better", "must, or should"),
    ("the want of", "the lack of"),
    ("for want of", "because ... is missing"),
    ("as far as anybody", "as far as known"),
    ("asked of", "requested from"),
    ("tells of", "reports, or describes"),
    ("goes on from there", "continues"),
    ("for people", "for users"),
    ("nobody listens", "no process listens"),
    ("nobody asks", "not used, or not requested"),
];

/// Files that are not checked for plain English: this list of phrases, and the page that contains
/// what tests reported on each kernel.
const NOT_PLAIN: &[&str] = &["xtask/src/rules.rs", "docs/EXACTNESS.md"];

pub(crate) fn run() -> Outcome {
    let findings = check(&root())?;
    for finding in &findings {
        println!("{finding}");
    }
    verdict(&findings)?;
    println!("the rules of the house hold");
    Ok(ExitCode::SUCCESS)
}

/// Checks every file that git knows or would add; returns one line for each finding.
pub(crate) fn check(root: &Path) -> Result<Vec<String>, String> {
    let forbidden = forbidden_paths(root);
    let mut findings = Vec::new();
    for file in &files(root)? {
        // Files that are not text, or were deleted and are not yet committed, have no lines to check.
        let Ok(text) = fs::read_to_string(root.join(file)) else { continue };
        findings.extend(judge(file, &text, &forbidden));
        if is(file, &["md"]) {
            findings.extend(dead_links(root, file, &text));
        }
    }
    Ok(findings)
}

/// The error that findings are.
pub(crate) fn verdict(findings: &[String]) -> Result<(), String> {
    match findings.len() {
        0 => Ok(()),
        1 => Err("1 finding".to_owned()),
        count => Err(format!("{count} findings")),
    }
}

fn files(root: &Path) -> Result<Vec<String>, String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .map_err(|error| format!("could not start git: {error}"))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr);
        return Err(format!("git cannot list the files of {}: {}", root.display(), reason.trim()));
    }
    let names = String::from_utf8_lossy(&output.stdout);
    Ok(names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn is(file: &str, extensions: &[&str]) -> bool {
    let extension = Path::new(file).extension().unwrap_or_default();
    extensions.iter().any(|one| extension == *one)
}

fn forbidden_paths(root: &Path) -> Vec<String> {
    let mut paths: Vec<String> = PERSONAL.iter().map(|path| (*path).to_owned()).collect();
    if let Some(Component::Normal(first)) = root.components().nth(1) {
        let first = first.to_string_lossy();
        if !EVERYWHERE.contains(&&*first) {
            paths.push(format!("/{first}/"));
        }
    }
    if let Some(home) = env::var_os("HOME").filter(|home| home.len() > 1) {
        paths.push(format!("{}/", home.to_string_lossy().trim_end_matches('/')));
    }
    paths
}

fn judge(file: &str, text: &str, forbidden: &[String]) -> Vec<String> {
    let mut findings = Vec::new();
    let code = is(file, &["rs", "sh"]);
    let lines = text.lines().count();
    if code && lines > LINES_MAX {
        findings.push(format!("{file}: {lines} lines, more than {LINES_MAX}; split it"));
    }
    let plain = is(file, &["md", "rs", "sh"]) && !NOT_PLAIN.contains(&file);
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let unplain = UNPLAIN.iter().filter(|(phrase, _)| plain && line.contains(phrase));
        findings.extend(unplain.map(|(phrase, better)| {
            format!("{file}:{number}: \"{phrase}\" is not plain English: write {better}")
        }));
        if code && let Some(mark) = MARKS.iter().find(|mark| line.contains(**mark)) {
            findings.push(format!("{file}:{number}: left-over mark {mark}"));
        }
        if let Some(path) = forbidden.iter().find(|path| has_path(line, path)) {
            findings.push(format!("{file}:{number}: a path of one machine ({path})"));
        }
    }
    findings
}

/// Whether `path` begins a path in `line`; the same letters within a URL or behind a variable are
/// no path of this machine.
fn has_path(line: &str, path: &str) -> bool {
    line.match_indices(path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|before| !before.is_alphanumeric() && !"_.-~}/".contains(before))
    })
}

/// Links of a page to files of the project that are not there.
fn dead_links(root: &Path, file: &str, text: &str) -> Vec<String> {
    let directory = root.join(file).parent().map(Path::to_path_buf).unwrap_or_default();
    let links = text.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    links
        .map(|(link, _)| link.split('#').next().unwrap_or_default())
        .filter(|link| {
            !link.is_empty() && !link.contains(':') && !link.contains(char::is_whitespace)
        })
        .filter(|link| !directory.join(link).exists())
        .map(|link| format!("{file}: link to {link}, which is not there"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(file: &str, text: &str) -> Vec<String> {
        judge(file, text, &["/elsewhere/".to_owned()])
    }

    #[test]
    fn each_rule_finds_its_fault() {
        let long = "\n".repeat(LINES_MAX + 1);
        assert_eq!(judged("a.rs", &long).len(), 1);
        assert!(judged("a.rs", &long[1..]).is_empty());
        assert!(judged("a.json", &long).is_empty());
        for mark in MARKS {
            assert_eq!(judged("a.rs", &format!("let a = 1;\n {mark}\n")).len(), 1, "{mark}");
        }
        assert_eq!(
            judged("a.md", "see /elsewhere/me/file"),
            ["a.md:1: a path of one machine (/elsewhere/)"]
        );
        assert!(
            judged("a.md", "see https://example.org/elsewhere/ and $HOME/elsewhere/").is_empty()
        );
    }

    #[test]
    fn phrases_to_decode_are_found_in_text_and_comments() {
        for (phrase, better) in UNPLAIN {
            for file in ["README.md", "observer/src/model/mod.rs"] {
                let found = judged(file, &format!("This is\n{phrase} here.\n"));
                assert_eq!(found.len(), 1, "{phrase}");
                assert!(found[0].starts_with(&format!("{file}:2: ")) && found[0].ends_with(better));
            }
            for file in ["xtask/src/rules.rs", "docs/EXACTNESS.md", "docs/exactness.jsonl"] {
                assert!(judged(file, phrase).is_empty(), "{file}");
            }
        }
    }

    #[test]
    fn dead_links_are_found() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("docs")).expect("docs");
        fs::write(directory.path().join("docs/HERE.md"), "x").expect("a page");
        let page =
            "[a](HERE.md#part) [b](https://example.org) [c](GONE.md) [d](#part) [e](../GONE.md)";
        let found = dead_links(directory.path(), "docs/INDEX.md", page);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().all(|line| line.contains("GONE.md")));
    }

    #[test]
    fn clone_in_an_own_directory_forbids_it() {
        let paths = forbidden_paths(Path::new("/data7/observer"));
        assert!(paths.contains(&"/data7/".to_owned()));
        assert!(!forbidden_paths(Path::new("/tmp/observer")).contains(&"/tmp/".to_owned()));
    }
}
