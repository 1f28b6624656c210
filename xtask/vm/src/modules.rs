//! Kernel modules that a guest needs: chosen from a kernel package, with the modules they depend on, in
//! the order in which they must be loaded.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use xtask_common::project::shown;

/// Modules that guests use, and whether they are optional.
const WANTED: &[(&str, Need)] = &[
    // The disk, whose pages can be dropped from the cache and read back: major faults.
    ("virtio_pci", Need::Always),
    ("virtio_blk", Need::Always),
    ("crc32c_generic", Need::IfThere),
    ("libcrc32c", Need::IfThere),
    ("ext4", Need::Always),
    // Swap. 6.1 asks modprobe for the compressor by name, and guests have no modprobe.
    ("lzo_rle", Need::IfThere),
    ("lz4", Need::IfThere),
    ("zram", Need::Always),
    ("veth", Need::Always),
    ("overlay", Need::IfThere),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    IfThere,
}

/// The list of the modules that were kept, after a line with those that were wanted.
const LIST: &str = "modules.list";

/// The modules kept in `directory`, in order; `None` when other modules were wanted then.
pub(crate) fn kept(directory: &Path) -> Option<Vec<PathBuf>> {
    let text = fs::read_to_string(directory.join(LIST)).ok()?;
    let mut lines = text.lines();
    (lines.next()? == wanted_line()).then(|| lines.map(|name| directory.join(name)).collect())
}

fn wanted_line() -> String {
    let names: Vec<&str> = WANTED.iter().map(|(name, _)| *name).collect();
    format!("wanted: {}", names.join(" "))
}

/// Unpacks the wanted modules of the package in `tree` into `directory`.
pub(crate) fn keep(tree: &Path, directory: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot unpack its modules: {error}");
    let version = fs::read_dir(tree.join("lib/modules"))
        .map_err(failed)?
        .flatten()
        .map(|entry| entry.file_name())
        .next()
        .ok_or("it has no modules")?;
    // Debian's packages do this when they are installed.
    printed(program("depmod").arg("--basedir").arg(tree).arg(&version))?;
    let mut order: Vec<PathBuf> = Vec::new();
    for (name, need) in WANTED {
        let mut command = program("modprobe");
        command.args(["--show-depends", "--config", "/dev/null", "--dirname"]).arg(tree);
        command.arg("--set-version").arg(&version).arg(name);
        match printed(&mut command) {
            Ok(text) => {
                for path in to_load(&text) {
                    if !order.contains(&path) {
                        order.push(path);
                    }
                }
            }
            Err(_) if *need == Need::IfThere => {}
            Err(error) => return Err(error),
        }
    }
    let mut list = wanted_line();
    for path in order {
        let file = format!("{}.ko", module_name(&path));
        fs::write(directory.join(&file), unpacked(&path)?).map_err(failed)?;
        list = format!("{list}\n{file}");
    }
    fs::write(directory.join(LIST), list).map_err(failed)
}

/// A program of kmod; some users have no /sbin in PATH.
fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

fn printed(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| {
        let name = shown(command);
        format!("could not start {name}: {error}; `cargo xtask setup --with-tests` installs kmod")
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} failed: {}", shown(command), reason.trim()))
}

/// The files in the output of `modprobe --show-depends`; modules that are part of the kernel have
/// none.
fn to_load(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.strip_prefix("insmod "))
        .filter_map(|rest| rest.split_ascii_whitespace().next())
        .map(PathBuf::from)
        .collect()
}

/// `virtio_pci` of `kernel/drivers/virtio/virtio_pci.ko.xz`; the kernel reads a dash in the name of a
/// file as an underscore.
fn module_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    file.split('.').next().unwrap_or_default().replace('-', "_")
}

fn unpacked(path: &Path) -> Result<Vec<u8>, String> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).map_err(|error| format!("{}: {error}", path.display())),
    };
    let output = Command::new(program)
        .arg("-dc")
        .arg(path)
        .output()
        .map_err(|error| format!("could not start {program}: {error}"))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(format!("{program} cannot unpack {}", path.display()))
}

/// Writes a list of no modules, for the tests.
#[cfg(test)]
pub(crate) fn keep_none(directory: &Path) {
    fs::write(directory.join(LIST), wanted_line()).expect("written");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_loaded_in_the_order_of_modprobe_and_built_in_modules_are_not() {
        let text = "insmod /t/lib/modules/6.1.0/kernel/lib/crc16.ko \n\
            builtin mbcache\n\
            insmod /t/lib/modules/6.1.0/kernel/fs/jbd2/jbd2.ko.xz \n\
            insmod /t/lib/modules/6.1.0/kernel/drivers/virtio-blk.ko queue_depth=4\n";
        let names: Vec<_> = to_load(text).iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["crc16", "jbd2", "virtio_blk"]);
    }

    #[test]
    fn a_package_without_modules_is_refused() {
        let tree = tempfile::tempdir().expect("a directory");
        assert!(keep(tree.path(), tree.path()).expect_err("no directory").contains("modules"));
        fs::create_dir_all(tree.path().join("lib/modules")).expect("made");
        assert_eq!(keep(tree.path(), tree.path()), Err("it has no modules".to_owned()));
    }

    #[test]
    fn a_list_of_other_modules_is_not_taken() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(kept(directory.path()).is_none());
        fs::write(directory.path().join(LIST), "wanted: floppy\nfloppy.ko").expect("written");
        assert!(kept(directory.path()).is_none());
    }
}
