//! The initramfs of a guest: the root directory that its kernel unpacks. Every file has the same path
//! as on this host, because test programs contain the paths they were built with.

use std::{
    collections::{BTreeMap, btree_map::Entry as Place},
    env,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use cpio::newc;
use serde_json::{Value, json};
use xtask_common::project::root;

use crate::{package::Image, programs::Programs};

/// Programs of this host that the tests start.
const HOST_PROGRAMS: &[&str] = &[
    "sh", "sleep", "strace", "unshare", "ip", "setpriv", "true", "cat", "printf", "mount", "cp",
    "hey",
];

/// Their directory in the guest.
const BIN: &str = "/usr/bin";

/// Instructions to the guest.
pub(crate) struct Plan<'a> {
    pub(crate) swap_bytes: u64,
    /// More programs of this host.
    pub(crate) programs: &'a [String],
    /// A command to run instead of the tests.
    pub(crate) exec: Option<&'a str>,
    /// Arguments of every test program.
    pub(crate) arguments: &'a [String],
    /// Percentage of the usual work that the tests do.
    pub(crate) scale: u32,
    /// A test program is killed after this time.
    pub(crate) timeout_seconds: u64,
}

/// Writes the archive of one guest.
pub(crate) fn write(
    path: &Path,
    image: &Image,
    programs: &Programs,
    plan: &Plan<'_>,
) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write {}: {error}", path.display());
    let tree = tree(image, programs, plan)?;
    let file = File::create(path).map_err(failed)?;
    tree.write(BufWriter::with_capacity(1 << 20, file)).map_err(failed)
}

/// A file, directory or link of the guest.
enum Entry {
    Directory,
    /// A copy of a file of this host, readable and executable by all.
    Copy(PathBuf),
    Text(String),
    /// A symbolic link to this path.
    Link(PathBuf),
    /// A character device with major and minor number.
    Device(u32, u32),
}

/// All entries by path, so that each directory comes before what is in it.
#[derive(Default)]
struct Tree(BTreeMap<PathBuf, Entry>);

impl Tree {
    /// Adds an entry with the directories above it; an entry that exists already stays as it is.
    fn add(&mut self, path: &Path, entry: Entry) {
        for above in path.ancestors().skip(1).filter(|above| above.parent().is_some()) {
            self.0.entry(above.to_owned()).or_insert(Entry::Directory);
        }
        if let Place::Vacant(place) = self.0.entry(path.to_owned()) {
            place.insert(entry);
        }
    }

    fn copy(&mut self, path: &Path, from: &Path) {
        self.add(path, Entry::Copy(from.to_owned()));
    }

    fn write<W: Write>(&self, mut output: W) -> io::Result<()> {
        for (inode, (path, entry)) in (1..).zip(&self.0) {
            let named = |error: io::Error| io::Error::other(format!("{}: {error}", path.display()));
            // Paths in an archive are relative to the root directory.
            let name = path.to_string_lossy();
            let header = newc::Builder::new(name.trim_start_matches('/')).ino(inode).nlink(1);
            output = match entry {
                Entry::Directory => header.mode(0o040_755).write(output, 0).finish()?,
                Entry::Device(major, minor) => {
                    let header = header.mode(0o020_600).rdev_major(*major).rdev_minor(*minor);
                    header.write(output, 0).finish()?
                }
                Entry::Link(to) => {
                    contents(header.mode(0o120_777), output, to.to_string_lossy().as_bytes())?
                }
                Entry::Text(text) => contents(header.mode(0o100_644), output, text.as_bytes())?,
                Entry::Copy(from) => {
                    let mut file = File::open(from).map_err(named)?;
                    let length = length(file.metadata()?.len()).map_err(named)?;
                    let mut writer = header.mode(0o100_755).write(output, length);
                    io::copy(&mut file, &mut writer).map_err(named)?;
                    writer.finish().map_err(named)?
                }
            };
        }
        newc::trailer(output)?.flush()
    }
}

fn contents<W: Write>(header: newc::Builder, output: W, bytes: &[u8]) -> io::Result<W> {
    let mut writer = header.write(output, length(bytes.len() as u64)?);
    writer.write_all(bytes)?;
    writer.finish()
}

fn length(bytes: u64) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| io::Error::other("larger than 4 GiB"))
}

fn tree(image: &Image, programs: &Programs, plan: &Plan<'_>) -> Result<Tree, String> {
    let mut tree = Tree::default();
    // The first process opens it as its standard output.
    tree.add(Path::new("/dev/console"), Entry::Device(5, 1));
    tree.copy(Path::new("/init"), &programs.guest);
    for program in programs.tools.iter().chain(programs.tests.iter().map(|test| &test.path)) {
        tree.copy(program, program);
    }
    for tool in &programs.tools {
        let name = Path::new(BIN).join(tool.file_name().unwrap_or_default());
        tree.add(&name, Entry::Link(tool.clone()));
    }
    tree.add(&working_directory(), Entry::Directory);
    for name in HOST_PROGRAMS.iter().copied().chain(plan.programs.iter().map(String::as_str)) {
        host_program(&mut tree, name)?;
    }
    tree.add(Path::new("/bin"), Entry::Link(BIN.into()));
    let mut modules = Vec::new();
    for module in &image.modules {
        let place = Path::new("/lib/modules").join(module.file_name().unwrap_or_default());
        tree.copy(&place, module);
        modules.push(place);
    }
    let plan = plan_json(&modules, programs, plan).to_string();
    tree.add(Path::new("/observer-guest.json"), Entry::Text(plan));
    Ok(tree)
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
        // Tests may harm the whole system here.
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

/// A program of this host with its libraries and its loader.
fn host_program(tree: &mut Tree, name: &str) -> Result<(), String> {
    let path = find(name).ok_or_else(|| {
        format!(
            "{name} is not in PATH; `cargo xtask setup --with-tests` installs what the tests in guests need"
        )
    })?;
    tree.copy(&Path::new(BIN).join(name), &path);
    let output = Command::new("ldd")
        .arg(&path)
        .output()
        .map_err(|error| format!("could not start ldd: {error}"))?;
    // ldd fails for a static program, which has no libraries.
    for library in libraries(&String::from_utf8_lossy(&output.stdout)) {
        tree.copy(library, library);
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
    use xtask_common::test_programs::TestProgram;

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
        let mut plan = Plan {
            swap_bytes: 0,
            programs: &[],
            exec: None,
            arguments: &filter,
            scale: 50,
            timeout_seconds: 60,
        };
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
    fn an_archive_has_each_path_once_and_directories_first() {
        let host = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(host.path(), b"12345").expect("written");
        let mut tree = Tree::default();
        tree.copy(Path::new("/a/b/copy"), host.path());
        tree.add(Path::new("/a/b/copy"), Entry::Text("second".into()));
        tree.add(Path::new("/a/link"), Entry::Link("b".into()));
        tree.add(Path::new("/dev/console"), Entry::Device(5, 1));
        tree.add(Path::new("/a"), Entry::Directory);
        let mut archive = Vec::new();
        tree.write(&mut archive).expect("written");
        let mut rest = archive.as_slice();
        let mut found = Vec::new();
        loop {
            let mut reader = newc::Reader::new(rest).expect("an entry");
            let entry = reader.entry();
            if entry.is_trailer() {
                break;
            }
            let (name, mode) = (entry.name().to_owned(), entry.mode());
            let device = (entry.rdev_major(), entry.rdev_minor());
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut reader, &mut bytes).expect("contents");
            found.push((name, mode, String::from_utf8(bytes).expect("UTF-8"), device));
            rest = reader.finish().expect("the next entry");
        }
        let entry = |name: &str, mode, contents: &str, device| {
            (name.to_owned(), mode, contents.to_owned(), device)
        };
        assert_eq!(
            found,
            [
                entry("a", 0o040_755, "", (0, 0)),
                entry("a/b", 0o040_755, "", (0, 0)),
                entry("a/b/copy", 0o100_755, "12345", (0, 0)),
                entry("a/link", 0o120_777, "b", (0, 0)),
                entry("dev", 0o040_755, "", (0, 0)),
                entry("dev/console", 0o020_600, "", (5, 1)),
            ]
        );
    }

    #[test]
    fn a_file_that_is_missing_is_named() {
        let mut tree = Tree::default();
        tree.copy(Path::new("/bin/tool"), Path::new("/nonexistent/tool"));
        let error = tree.write(Vec::new()).expect_err("missing").to_string();
        assert!(error.contains("/bin/tool"), "{error}");
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
