//! Builds the BPF programs and places the object in `OUT_DIR/observer-bpf`.
//!
//! The BPF target has no prebuilt `core` in rustup. Two toolchains can build it, and set-up
//! (`scripts/setup.sh`) makes sure that one is there: Debian's `rustc-web` with
//! `libstd-rust-web-dev-bpf`, linked into rustup under the name `bpf`, or rustup's nightly with
//! `rust-src`.

use std::process::Command;

fn has_toolchain(name: &str) -> bool {
    Command::new("rustup")
        .args(["run", name, "rustc", "--version"])
        .output()
        .is_ok_and(|output| output.status.success())
}

fn main() -> aya_build::Result<()> {
    println!("cargo:rerun-if-env-changed=OBSERVER_BPF_TOOLCHAIN");
    println!("cargo:rerun-if-changed=../observer-ebpf/src");
    let package = aya_build::Package {
        name: "observer-ebpf",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../observer-ebpf"),
        no_default_features: false,
        features: &["programs"],
    };
    let forced = std::env::var("OBSERVER_BPF_TOOLCHAIN").ok();
    let debian = match forced.as_deref() {
        Some(name) => name == "bpf",
        None => has_toolchain("bpf"),
    };
    let toolchain = if debian {
        // aya-ebpf needs one unstable feature (BPF inline assembly) on this stable compiler; the
        // value names the crate, since "1" would also make aya-build rebuild `core`.
        // SAFETY: a build script's main thread is the only one at this point.
        unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "aya_ebpf") };
        aya_build::Toolchain::Custom("bpf")
    } else {
        aya_build::Toolchain::default()
    };
    aya_build::build_ebpf([package], toolchain)
}
