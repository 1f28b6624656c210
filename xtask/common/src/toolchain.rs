//! Set-up of the host, and the compiler of the BPF programs.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

use crate::project::{Outcome, must, passed_on, root};

/// Runs `scripts/setup.sh` with this terminal, and passes its exit code on.
///
/// # Errors
/// When it cannot be started.
pub fn setup(with_tests: bool, with_bench: bool) -> Outcome {
    passed_on(&mut setup_command(with_tests, with_bench))
}

/// As [`setup`], for commands that need what it installs.
///
/// # Errors
/// When set-up fails.
pub fn require(with_tests: bool, with_bench: bool) -> Result<(), String> {
    must(&mut setup_command(with_tests, with_bench))
}

/// The command that sets this host up.
#[must_use]
pub fn setup_command(with_tests: bool, with_bench: bool) -> Command {
    let mut command = Command::new("bash");
    command.arg("scripts/setup.sh").current_dir(root()).stdin(Stdio::null());
    if with_tests {
        command.arg("--with-tests");
    }
    if with_bench {
        command.arg("--with-bench");
    }
    command
}

/// Cargo of the toolchain that builds the BPF programs, for `subcommand`, with the cfg and flags that
/// the build sets (aya-build 0.2.0), so that lints see the programs that run. In the target directory
/// of that build ([`bpf_target`](crate::test_programs::bpf_target)), procedural macros are there
/// already.
#[must_use]
pub fn bpf_cargo(subcommand: &str, target: &Path) -> Command {
    let forced = env::var("OBSERVER_BPF_TOOLCHAIN").ok();
    let name = if has_prebuilt_core("bpf") { "bpf" } else { "nightly" };
    let toolchain = forced.as_deref().unwrap_or(name);
    let mut command = Command::new("rustup");
    command.args(["run", toolchain, "cargo", subcommand]).current_dir(root());
    command.args(["--package", "observer-ebpf", "--features", "programs", "--bins", "--release"]);
    command.args(["--target", "bpfel-unknown-none", "--target-dir"]).arg(target);
    if has_prebuilt_core(toolchain) {
        command.env("RUSTC_BOOTSTRAP", "aya_ebpf,observer_bpf");
    } else {
        command.args(["-Z", "build-std=core"]);
    }
    let flags = [r#"--cfg=bpf_target_arch="x86_64""#, "-Cdebuginfo=2", "-Clink-arg=--btf"];
    command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    command.env_remove("RUSTC").env_remove("RUSTC_WORKSPACE_WRAPPER");
    command
}

/// The same choice as observer/build.rs makes.
fn has_prebuilt_core(toolchain: &str) -> bool {
    Command::new("rustup")
        .args(["run", toolchain, "rustc", "--print", "sysroot"])
        .output()
        .ok()
        .filter(|output| output.status.success())
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .is_some_and(|root| Path::new(&root).join("lib/rustlib/bpfel-unknown-none").is_dir())
}
