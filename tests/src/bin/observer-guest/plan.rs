//! The tasks of this guest: a file that `cargo xtask vm` puts into the initramfs.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use crate::Result;

const PLAN: &str = "/observer-guest.json";

/// The whole plan.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// Kernel modules, each behind those it needs.
    pub(crate) modules: Vec<PathBuf>,
    /// Size of the compressed swap device; 0 for no swap.
    pub(crate) swap_bytes: u64,
    /// Where the disk is mounted. The root directory is memory, whose pages can neither be
    /// dropped nor read back.
    pub(crate) disk: PathBuf,
    /// One after the other.
    pub(crate) commands: Vec<Planned>,
}

/// A program to run.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Planned {
    /// Its name in the results.
    pub(crate) name: String,
    /// Where it lies.
    pub(crate) program: PathBuf,
    /// What it is given.
    pub(crate) arguments: Vec<String>,
    /// Where it is started.
    pub(crate) directory: PathBuf,
    /// Its environment, all of it.
    pub(crate) variables: BTreeMap<String, String>,
    /// It is killed after this many seconds.
    pub(crate) timeout_seconds: u64,
}

/// Reads the plan of this guest.
pub(crate) fn read() -> Result<Plan> {
    let text = fs::read(PLAN).map_err(|error| format!("cannot read {PLAN}: {error}"))?;
    serde_json::from_slice(&text).map_err(|error| format!("{PLAN} is no plan: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_and_a_misspelt_one_refused() {
        let text = r#"{"modules": ["/m/zram.ko"], "swap_bytes": 0, "disk": "/d", "commands": [
            {"name": "run", "program": "/t/run", "arguments": ["--test-threads=1"],
             "directory": "/t", "variables": {"PATH": "/bin"}, "timeout_seconds": 60}]}"#;
        let plan: Plan = serde_json::from_str(text).expect("a plan");
        assert_eq!(plan.commands[0].variables["PATH"], "/bin");
        assert_eq!(plan.modules, [PathBuf::from("/m/zram.ko")]);
        assert!(serde_json::from_str::<Plan>(&text.replace("swap_bytes", "swap")).is_err());
    }
}
