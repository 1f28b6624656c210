//! `scripts/setup.sh` refuses with one clear line and an exit code of its own, on made-up hosts:
//! its view of /sys, /proc and /etc comes from a directory, its programs from another.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

/// All programs that the script may use here; what is not in this list is not on the made-up host.
const PROGRAMS: &[&str] = &[
    "bash", "cat", "chmod", "dirname", "env", "grep", "head", "id", "mktemp", "rm", "sed", "tail",
    "tee", "uname",
];

struct Host {
    directory: TempDir,
}

impl Host {
    /// A host with nothing to refuse: Debian, a recent kernel with BTF, no lockdown; no rustup yet.
    fn new() -> Self {
        let host = Self { directory: TempDir::new().expect("a directory") };
        host.file("etc/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n");
        host.file("sys/kernel/btf/vmlinux", "btf");
        host.file("sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
        fs::create_dir(host.path("bin")).expect("a directory for programs");
        for program in PROGRAMS {
            symlink(real(program), host.path("bin").join(program)).expect("a link to a program");
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(path, text).expect("a file");
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        // Never through the link to the real one.
        let _ = fs::remove_file(&path);
        fs::write(&path, format!("#!/bin/bash\n{script}\n")).expect("a program");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("an executable");
    }

    fn setup(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("bash starts")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/setup.sh");
        let mut command = Command::new(self.path("bin/bash"));
        command
            .arg(script)
            .args(arguments)
            .env_clear()
            .env("PATH", self.path("bin"))
            .env("HOME", self.path("home"))
            .env("OBSERVER_SETUP_HOST_ROOT", self.directory.path())
            .env("OBSERVER_SETUP_MACHINE", "x86_64")
            .env("OBSERVER_SETUP_KERNEL", "6.1.0-51-cloud-amd64");
        command
    }
}

fn real(program: &str) -> PathBuf {
    env::split_paths(&env::var_os("PATH").expect("PATH"))
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{program} is not in PATH"))
}

/// One line on stderr, with `words` in it, and `code`.
#[track_caller]
fn assert_refused(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("setup: error: "), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in {stderr}");
    }
}

#[test]
fn good_host_passes_the_check_in_silence() {
    let output = Host::new().setup(&["--check"]);
    assert!(output.status.success());
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
}

#[test]
fn unknown_argument() {
    assert_refused(&Host::new().setup(&["--chekc"]), 2, &["--chekc"]);
}

#[test]
fn no_btf() {
    let host = Host::new();
    fs::remove_file(host.path("sys/kernel/btf/vmlinux")).expect("it was there");
    assert_refused(&host.setup(&["--check"]), 12, &["BTF", "CONFIG_DEBUG_INFO_BTF"]);
}

#[test]
fn lockdown_confidentiality() {
    let host = Host::new();
    host.file("sys/kernel/security/lockdown", "none integrity [confidentiality]\n");
    assert_refused(&host.setup(&[]), 13, &["lockdown"]);
    // Without securityfs, the command line of the kernel tells.
    fs::remove_file(host.path("sys/kernel/security/lockdown")).expect("it was there");
    host.file("proc/cmdline", "quiet lockdown=confidentiality panic=-1\n");
    assert_refused(&host.setup(&[]), 13, &["lockdown"]);
    host.file("proc/cmdline", "quiet panic=-1\n");
    assert!(host.setup(&["--check"]).status.success());
}

#[test]
fn old_kernel_and_other_machine() {
    let host = Host::new();
    let mut old = host.command(&["--check"]);
    old.env("OBSERVER_SETUP_KERNEL", "5.4.0-200-generic");
    assert_refused(&old.output().expect("bash starts"), 18, &["5.4.0-200-generic", "5.12"]);
    let mut edge = host.command(&["--check"]);
    edge.env("OBSERVER_SETUP_KERNEL", "5.12-rc1");
    assert!(edge.output().expect("bash starts").status.success());
    let mut arm = host.command(&["--check"]);
    arm.env("OBSERVER_SETUP_MACHINE", "aarch64");
    assert_refused(&arm.output().expect("bash starts"), 18, &["aarch64"]);
}

#[test]
fn no_rustup() {
    assert_refused(&Host::new().setup(&[]), 14, &["rustup", "https://rustup.rs"]);
}

/// A host whose rustup has every compiler, but which has no C linker: a package must be installed.
fn host_that_needs_a_package() -> Host {
    let host = Host::new();
    host.program("rustup", "exit 0");
    host.program("dpkg-query", "exit 1");
    host.program("apt-get", "echo apt-get must not run >&2; exit 99");
    host
}

#[test]
fn unsupported_distribution() {
    let host = host_that_needs_a_package();
    host.file("etc/os-release", "ID=fedora\nPRETTY_NAME=\"Fedora Linux 44\"\n");
    assert_refused(&host.setup(&[]), 11, &["gcc", "Fedora Linux 44", "Debian and Ubuntu"]);
    fs::remove_file(host.path("etc/os-release")).expect("it was there");
    assert_refused(&host.setup(&[]), 11, &["this distribution"]);
}

#[test]
fn neither_root_nor_sudo() {
    let host = host_that_needs_a_package();
    host.program("id", "echo 1000");
    assert_refused(&host.setup(&[]), 10, &["gcc", "run this as root"]);
    host.program("sudo", "exit 1");
    assert_refused(&host.setup(&[]), 10, &["gcc", "sudo -v"]);
}

#[test]
fn package_that_cannot_be_installed() {
    let host = host_that_needs_a_package();
    host.program("id", "echo 0");
    let output = host.setup(&[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(16), "{stderr}");
    // The output of apt-get is shown, and the last line says what it means.
    assert!(stderr.contains("apt-get must not run"), "{stderr}");
    assert!(stderr.lines().last().is_some_and(|line| line.contains("could not install gcc")));
    // What was about to be installed, and why, was said before.
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("installing gcc libc6-dev (the linker that Rust programs need)"));
}

/// A host that has everything, except the packages that dpkg-query must not know.
fn host_that_lacks(package: &str) -> Host {
    let host = Host::new();
    host.program("id", "echo 0");
    host.program("cc", "exit 0");
    host.program("bpf-linker", "exit 0");
    host.program("ldd", "echo 'libLLVM.so.22.1 => libLLVM.so.22.1 (0x00007f)'");
    fs::create_dir_all(host.path("rust/lib/rustlib/bpfel-unknown-none")).expect("a sysroot");
    let sysroot = host.path("rust");
    host.program(
        "rustup",
        &format!(
            "case \"$*\" in\n*sysroot) echo {};;\n*-vV) echo 'LLVM version: 22.1.8';;\nesac",
            sysroot.display()
        ),
    );
    host.program(
        "dpkg-query",
        &format!("case $3 in {package}) exit 1;; *) printf installed;; esac"),
    );
    host.program("cargo-deny", "exit 0");
    // Tells whether a policy is in force while packages are installed.
    let policy = host.path("usr/sbin/policy-rc.d");
    host.program(
        "apt-get",
        &format!("[ -x {} ] && echo \"$*\" >>{}", policy.display(), host.path("log").display()),
    );
    fs::create_dir_all(policy.parent().expect("a parent")).expect("directories");
    host
}

#[test]
fn what_is_there_is_left_alone() {
    let host = host_that_lacks("nothing-of-ours");
    let output = host.setup(&["--with-tests"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    assert!(stdout.starts_with("setup: ready"), "{stdout}");
    assert!(!host.path("log").exists());
}

#[test]
fn services_are_installed_idle_and_the_policy_of_the_host_stays() {
    let host = host_that_lacks("nginx-light");
    let policy = host.path("usr/sbin/policy-rc.d");
    let output = host.setup(&["--with-tests"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = fs::read_to_string(host.path("log")).expect("installed with a policy in force");
    assert!(log.lines().any(|line| line.ends_with("install nginx-light")), "{log}");
    assert!(!policy.exists(), "the policy made for the installation is left behind");

    host.file("usr/sbin/policy-rc.d", "of this host");
    fs::set_permissions(&policy, fs::Permissions::from_mode(0o755)).expect("an executable");
    assert!(host.setup(&["--with-tests"]).status.success());
    assert_eq!(fs::read_to_string(&policy).expect("it stays"), "of this host");
}

#[test]
fn linker_older_than_the_compiler() {
    let host = host_that_lacks("nothing-of-ours");
    host.program("ldd", "echo 'libLLVM-21.so.1 => libLLVM-21.so.1 (0x00007f)'");
    host.program("apt-cache", "printf '%s:\\n  Candidate: 1:22.1.8\\n' \"$2\"");
    host.program("cargo", "exit 0");
    let output = host.setup(&[]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(17), "{stderr}");
    assert!(stderr.contains("LLVM 22"), "{stderr}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("building bpf-linker 0.13.0 with LLVM 22"), "{stdout}");
}

#[test]
fn a_linker_is_fetched_only_with_the_sum_that_the_user_trusts() {
    const SUM: &str = "a3f5bd6d1c4a5cb94b0ab5d5b2e6a8e5b8e6c4e8d5f1c7c8f4dd8f8a2e3a6f11";
    let host = host_that_lacks("nothing-of-ours");
    for program in ["find", "install", "sha256sum"] {
        symlink(real(program), host.path("bin").join(program)).expect("a link to a program");
    }
    // Only what is fetched is new enough.
    host.program(
        "ldd",
        "case $1 in */.cargo/*) n=22;; *) n=21;; esac; echo \"libLLVM-$n.so.1 => x (0x7f)\"",
    );
    host.program("apt-cache", "exit 0");
    host.program("zstd", "exit 0");
    let log = host.path("fetched");
    host.program(
        "curl",
        &format!(
            "echo curl >>{}; while [ \"$1\" != -o ]; do shift; done; echo release >\"$2\"",
            log.display()
        ),
    );
    host.program(
        "tar",
        "while [ \"$1\" != -C ]; do shift; done; printf '#!/bin/bash\\n' >\"$2/bpf-linker\"",
    );
    let installed = host.path("home/.cargo/bin/bpf-linker");
    let output = host.setup(&[]);
    assert_eq!(output.status.code(), Some(17));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("OBSERVER_BPF_LINKER_SHA256"), "{stderr}");
    assert!(!log.exists() && !installed.exists(), "nothing is fetched");
    let with = |sum: &str| {
        host.command(&[]).env("OBSERVER_BPF_LINKER_SHA256", sum).output().expect("bash starts")
    };
    for wrong in [SUM, "no sum"] {
        let output = with(wrong);
        assert_eq!(output.status.code(), Some(17));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("check of the sum of bpf-linker failed"), "{stderr}");
        assert!(log.exists() && !installed.exists(), "it is not unpacked");
    }
    // Of `release` and a line end.
    let output = with("3933e3274b63dc01fd286d6d939a626867c83a4603fc4347e0f8b8856f1b98fd");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(installed.exists());
}
