//! Programs in Go that tests compile.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiles a program of one file with these arguments of `go build`, in a directory for it alone. Nothing is read
/// from the network, and nothing is written elsewhere.
///
/// # Panics
/// When the program cannot be compiled.
#[must_use]
pub fn compiled(directory: &Path, source: &str, arguments: &[&str]) -> PathBuf {
    fs::create_dir_all(directory).expect("a directory");
    let (file, program) = (directory.join("program.go"), directory.join("program"));
    fs::write(&file, source).expect("the source is written");
    let mut command = Command::new("go");
    for (name, value) in [
        ("GO111MODULE", "off"),
        ("GOPROXY", "off"),
        ("GOTOOLCHAIN", "local"),
        ("GOENV", "off"),
        ("GOFLAGS", ""),
        ("CGO_ENABLED", "1"),
    ] {
        command.env(name, value);
    }
    for (name, place) in [("GOCACHE", "cache"), ("GOPATH", "path"), ("HOME", ".")] {
        command.env(name, directory.join(place));
    }
    command.args(["build", "-o"]).arg(&program).args(arguments).arg(&file);
    let output = command.current_dir(directory).output().expect("Go is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}
