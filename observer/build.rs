//! Builds the BPF programs and places the object in `OUT_DIR/observer-bpf`.
//!
//! The BPF target has no prebuilt `core` in rustup. Two toolchains can build it, and set-up
//! (`scripts/setup.sh`) makes sure that one is there: Debian's `rustc-web` with
//! `libstd-rust-web-dev-bpf`, linked into rustup under the name `bpf`, or rustup's nightly with
//! `rust-src`.

use std::{path::PathBuf, process::Command};

/// Reports a missing part, in one line.
const SET_UP: &str = "run `cargo xtask setup` (or scripts/setup.sh), which installs it";

/// Set to 1, there are no BPF programs. (The variable is aya-build's, which then leaves no file.)
const SKIP: &str = "AYA_BUILD_SKIP";

/// Directory of rustup's toolchain `name`, when it is there.
fn sysroot(name: &str) -> Option<PathBuf> {
    let output =
        Command::new("rustup").args(["run", name, "rustc", "--print", "sysroot"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().into())
}

fn has_prebuilt_core(toolchain: &str) -> bool {
    sysroot(toolchain).is_some_and(|root| root.join("lib/rustlib/bpfel-unknown-none").is_dir())
}

fn has_core_source(toolchain: &str) -> bool {
    sysroot(toolchain).is_some_and(|root| root.join("lib/rustlib/src/rust/library/core").is_dir())
}

fn main() -> aya_build::Result<()> {
    println!("cargo:rerun-if-env-changed=OBSERVER_BPF_TOOLCHAIN");
    println!("cargo:rerun-if-changed=../observer-ebpf/src");
    println!("cargo:rerun-if-env-changed={SKIP}");
    if std::env::var_os(SKIP).is_some_and(|value| value == "1") {
        println!("cargo:warning={SKIP}=1: observer is built without BPF programs, for lints only");
        let out = std::env::var_os("OUT_DIR").map(PathBuf::from).unwrap_or_default();
        std::fs::write(out.join("observer-bpf"), [])?;
        return Ok(());
    }
    let forced = std::env::var("OBSERVER_BPF_TOOLCHAIN").ok();
    let name = match forced.as_deref() {
        Some(name) => name,
        None if has_prebuilt_core("bpf") => "bpf",
        None if has_core_source("nightly") => "nightly",
        None => {
            println!("cargo::error=no compiler for the BPF target; {SET_UP}");
            return Ok(());
        }
    };
    if !Command::new("bpf-linker").arg("--version").output().is_ok_and(|it| it.status.success()) {
        println!("cargo::error=bpf-linker is not in PATH or does not start; {SET_UP}");
        return Ok(());
    }
    if has_prebuilt_core(name) {
        // BPF inline assembly is an unstable feature, and this is a stable compiler. Naming the two
        // crates that use it allows it there; "1" would also make aya-build rebuild `core`.
        // SAFETY: a build script's main thread is the only one at this point.
        unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf,observer_bpf") };
    }
    let package = aya_build::Package {
        name: "observer-ebpf",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../observer-ebpf"),
        no_default_features: false,
        features: &["programs"],
    };
    aya_build::build_ebpf([package], aya_build::Toolchain::Custom(name))
}
