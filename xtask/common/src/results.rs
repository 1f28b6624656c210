//! Files in which the tests of each kernel record what they compared, one JSON object a line.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::project::root;

/// Name of this host's own kernel among the files, tables and options.
pub const HOST: &str = "host";

/// Where `cargo xtask vm` and `cargo xtask test` keep everything about kernels.
#[must_use]
pub fn vm_directory() -> PathBuf {
    root().join("target/vm")
}

/// Directory of the files.
#[must_use]
pub fn directory() -> PathBuf {
    vm_directory().join("results")
}

/// The file of one kernel.
#[must_use]
pub fn file(kernel: &str) -> PathBuf {
    directory().join(format!("{kernel}.jsonl"))
}

/// Writes the results of a kernel, each on a line.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, results: &[Value]) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let lines: String = results.iter().map(|result| format!("{result}\n")).collect();
    fs::write(path, lines).map_err(failed)
}

/// Reads such a file.
///
/// # Errors
/// When it is missing or a line is not JSON.
pub fn read(path: &Path) -> Result<Vec<Value>, String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let line = |(index, line)| {
        serde_json::from_str(line)
            .map_err(|error| format!("{}:{}: {error}", path.display(), index + 1))
    };
    text.lines().enumerate().map(line).collect()
}

/// Removes the results of earlier runs, so that all later results are of this run.
///
/// # Errors
/// When they cannot be removed.
pub fn clear() -> Result<(), String> {
    let directory = directory();
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove {}: {error}", directory.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_kept_as_they_came() {
        let path = std::env::temp_dir().join(format!("xtask-results-{}", std::process::id()));
        let path = path.join("6.1.jsonl");
        assert!(read(&path).expect_err("missing").contains("cannot read"));
        let results = vec![serde_json::json!({"probe": "fault", "error": 0.5})];
        write(&path, &results).expect("written");
        assert_eq!(read(&path), Ok(results));
        fs::write(&path, "{}\n{").expect("written");
        assert!(read(&path).expect_err("damaged").contains("6.1.jsonl:2: "));
        fs::remove_dir_all(path.parent().expect("a directory")).expect("removed");
    }
}
