//! The first root directory of a guest. Everything lies where it lies on this host, because test
//! programs hold the paths they were built with.

use std::{
    env,
    fs::File,
    io::{self, BufWriter},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use super::{cpio::Archive, package::Image, programs::Programs};
use crate::project::root;

/// Programs of this host that the tests start.
const HOST_PROGRAMS: &[&str] =
    &["sh", "sleep", "strace", "unshare", "ip", "setpriv", "true", "cat", "printf", "mount"];

/// Where they are put.
const BIN: &str = "/usr/bin";

/// What the guest is told besides what is in it.
pub(crate) struct Plan<'a> {
    pub(crate) swap_bytes: u64,
    /// Run instead of the tests: words, split at spaces.
    pub(crate) exec: Option<&'a str>,
    /// Given to every test program.
    pub(crate) arguments: &'a [String],
    /// Percentage of the usual work that the tests do.
    pub(crate) scale: u32,
    /// After so long a test program is killed.
    pub(crate) timeout_seconds: u64,
}

/// Writes the archive of one guest.
pub(crate) fn write(
    path: &Path,
    image: &Image,
    programs: &Programs,
    plan: &Plan<'_>,
) -> Result<(), String> {
    let told = |error: io::Error| format!("cannot write {}: {error}", path.display());
    let file = File::create(path).map_err(told)?;
    let mut archive = Archive::new(BufWriter::with_capacity(1 << 20, file));
    fill(&mut archive, image, programs, plan)?;
    archive.finish().map_err(told)?;
    Ok(())
}

type Output = Archive<BufWriter<File>>;

fn fill(
    archive: &mut Output,
    image: &Image,
    programs: &Programs,
    plan: &Plan<'_>,
) -> Result<(), String> {
    let put = |error: io::Error| format!("cannot fill the initramfs: {error}");
    // Without it the first process would have no standard output to complain on.
    archive.device(Path::new("/dev/console"), 5, 1).map_err(put)?;
    copy(archive, Path::new("/init"), &programs.guest)?;
    for program in programs.tools.iter().chain(programs.tests.iter().map(|test| &test.path)) {
        copy(archive, program, program)?;
    }
    for tool in &programs.tools {
        let name = Path::new(BIN).join(tool.file_name().unwrap_or_default());
        archive.link(&name, tool).map_err(put)?;
    }
    archive.directory(&working_directory()).map_err(put)?;
    for name in HOST_PROGRAMS {
        host_program(archive, name)?;
    }
    archive.link(Path::new("/bin"), Path::new(BIN)).map_err(put)?;
    let mut modules = Vec::new();
    for module in &image.modules {
        let place = Path::new("/lib/modules").join(module.file_name().unwrap_or_default());
        copy(archive, &place, module)?;
        modules.push(place);
    }
    let plan = plan_json(&modules, programs, plan);
    archive.file(Path::new("/observer-guest.json"), plan.to_string().as_bytes()).map_err(put)
}

/// As read by tests/src/bin/observer-guest/plan.rs.
fn plan_json(modules: &[PathBuf], programs: &Programs, plan: &Plan<'_>) -> Value {
    let mut arguments = vec!["--test-threads=1".to_owned()];
    arguments.extend_from_slice(plan.arguments);
    let variables = json!({
        "PATH": BIN,
        "HOME": "/tmp",
        "RUST_BACKTRACE": "1",
        "OBSERVER_TEST_PRIVILEGED": "1",
        // Harm to the whole system is welcome here.
        "OBSERVER_TEST_GUEST": "1",
        "OBSERVER_TEST_DIR": programs.scratch,
        "OBSERVER_TEST_SCALE": plan.scale.to_string(),
        "CARGO_MANIFEST_DIR": working_directory(),
    });
    let command = |name: &str, program: &Path, arguments: &[String]| {
        json!({
            "name": name,
            "program": program,
            "arguments": arguments,
            "directory": working_directory(),
            "variables": variables,
            "timeout_seconds": plan.timeout_seconds,
        })
    };
    let commands: Vec<Value> = match plan.exec {
        None => {
            programs.tests.iter().map(|test| command(&test.name, &test.path, &arguments)).collect()
        }
        Some(line) => {
            let arguments = ["-c".to_owned(), line.to_owned()];
            vec![command(line, &Path::new(BIN).join("sh"), &arguments)]
        }
    };
    json!({
        "modules": modules,
        "swap_bytes": plan.swap_bytes,
        "disk": programs.scratch,
        "commands": commands,
    })
}

fn working_directory() -> PathBuf {
    root().join("tests")
}

fn copy(archive: &mut Output, to: &Path, from: &Path) -> Result<(), String> {
    archive
        .copy(to, from)
        .map_err(|error| format!("cannot put {} into the initramfs: {error}", from.display()))
}

/// A program of this host with its libraries and its loader.
fn host_program(archive: &mut Output, name: &str) -> Result<(), String> {
    let path = find(name).ok_or_else(|| {
        format!(
            "{name} is not in PATH; the tests in the guest need it (cargo xtask setup --with-tests)"
        )
    })?;
    copy(archive, &Path::new(BIN).join(name), &path)?;
    let output = Command::new("ldd")
        .arg(&path)
        .output()
        .map_err(|error| format!("could not start ldd: {error}"))?;
    // A static program has none, and ldd says so with a failure.
    for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
        copy(archive, library, library)?;
    }
    Ok(())
}

fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    places.map(|place| place.join(name)).find(|path| path.is_file())
}

/// Paths in what ldd prints.
fn libraries(text: &str) -> Vec<&Path> {
    text.lines()
        .filter_map(|line| line.split_ascii_whitespace().find(|word| word.starts_with('/')))
        .map(Path::new)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_programs::TestProgram;

    #[test]
    fn a_guest_runs_the_tests_or_the_command_that_was_asked_for() {
        let programs = Programs {
            guest: "/t/observer-guest".into(),
            tools: Vec::new(),
            tests: vec![TestProgram {
                name: "run".into(),
                path: "/t/run-1".into(),
                package: "/t".into(),
            }],
            scratch: "/t/tmp".into(),
        };
        let filter = ["reclaim".to_owned()];
        let mut plan =
            Plan { swap_bytes: 0, exec: None, arguments: &filter, scale: 50, timeout_seconds: 60 };
        let command = plan_json(&[], &programs, &plan)["commands"][0].clone();
        assert_eq!((&command["name"], &command["program"]), (&json!("run"), &json!("/t/run-1")));
        assert_eq!(command["arguments"], json!(["--test-threads=1", "reclaim"]));
        assert_eq!(command["variables"]["OBSERVER_TEST_SCALE"], "50");
        plan.exec = Some("observer doctor --json");
        let commands = plan_json(&[], &programs, &plan)["commands"].clone();
        assert_eq!(commands.as_array().map(Vec::len), Some(1));
        assert_eq!(commands[0]["program"], "/usr/bin/sh");
        assert_eq!(commands[0]["arguments"], json!(["-c", "observer doctor --json"]));
    }

    #[test]
    fn libraries_and_loader_are_found_in_the_output_of_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f7e)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f7e)\n";
        let expected =
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(Path::new);
        assert_eq!(libraries(text), expected);
        assert!(libraries("\tnot a dynamic executable\n").is_empty());
    }
}
