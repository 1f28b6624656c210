//! Kernel modules that a guest needs, out of a kernel package: found by name, with those they
//! depend on, unpacked, and put into the order in which they can be loaded.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// What guests use, and whether they can do without.
const WANTED: &[(&str, Need)] = &[
    // The disk, whose pages can be dropped from the cache and read back: major faults.
    ("virtio_pci", Need::Always),
    ("virtio_blk", Need::Always),
    ("crc32c_generic", Need::IfThere),
    ("libcrc32c", Need::IfThere),
    ("ext4", Need::Always),
    // Swap. The compressor of 6.1 is asked for by name, which takes a modprobe elsewhere.
    ("lzo_rle", Need::IfThere),
    ("lz4", Need::IfThere),
    ("zram", Need::Always),
    ("veth", Need::Always),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Always,
    IfThere,
}

/// The list of what was kept, and of what was wanted then.
const LIST: &str = "modules.list";

/// The modules kept in `directory`, in order; `None` when they are not those that this program
/// wants.
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
    let told = |error: io::Error| format!("cannot unpack its modules: {error}");
    let top = fs::read_dir(tree.join("lib/modules"))
        .map_err(told)?
        .flatten()
        .map(|entry| entry.path())
        .next()
        .ok_or("it has no modules")?;
    let built_in = fs::read_to_string(top.join("modules.builtin")).map_err(told)?;
    let mut set = Set {
        files: BTreeMap::new(),
        built_in: built_in.lines().map(|line| module_name(Path::new(line))).collect(),
        order: Vec::new(),
        unpacked: BTreeMap::new(),
    };
    set.find(&top).map_err(told)?;
    for (name, need) in WANTED {
        if *need == Need::Always || set.files.contains_key(*name) {
            set.add(name)?;
        }
    }
    let mut list = wanted_line();
    for name in &set.order {
        let file = format!("{name}.ko");
        fs::write(directory.join(&file), &set.unpacked[name]).map_err(told)?;
        list = format!("{list}\n{file}");
    }
    fs::write(directory.join(LIST), list).map_err(told)
}

struct Set {
    /// Where the package has each module.
    files: BTreeMap<String, PathBuf>,
    /// Those that are part of the kernel.
    built_in: BTreeSet<String>,
    /// Those to load, each behind those it needs.
    order: Vec<String>,
    unpacked: BTreeMap<String, Vec<u8>>,
}

impl Set {
    fn find(&mut self, directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                self.find(&path)?;
            } else if kind.is_file() && path.to_string_lossy().contains(".ko") {
                self.files.insert(module_name(&path), path);
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str) -> Result<(), String> {
        if self.unpacked.contains_key(name) || self.built_in.contains(name) {
            return Ok(());
        }
        let path = self.files.get(name).ok_or_else(|| format!("it has no module {name}"))?;
        let bytes = unpacked(path)?;
        let needed = depends(&bytes);
        // Entered before those it needs: a circle would otherwise never end.
        self.unpacked.insert(name.to_owned(), bytes);
        for other in needed {
            self.add(&other)?;
        }
        self.order.push(name.to_owned());
        Ok(())
    }
}

/// `virtio_pci` of `kernel/drivers/virtio/virtio_pci.ko.xz`; the kernel takes a dash in the name of
/// a file for an underscore.
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

/// Modules that a module says it needs: `depends=a,b` among the strings of its `.modinfo` section.
fn depends(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let rest = &module[at + KEY.len()..];
    let end = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
    String::from_utf8_lossy(&rest[..end])
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

/// A `modules.builtin` with all that is wanted, for the tests.
#[cfg(test)]
pub(crate) fn all_built_in() -> String {
    WANTED.iter().map(|(name, _)| format!("kernel/{name}.ko\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_follow_those_they_need() {
        let tree = tempfile::tempdir().expect("a directory");
        let top = tree.path().join("lib/modules/6.1.0");
        let drivers = top.join("kernel/drivers");
        fs::create_dir_all(&drivers).expect("made");
        fs::write(
            top.join("modules.builtin"),
            "kernel/fs/ext4.ko\nkernel/drivers/virtio_pci.ko\nkernel/drivers/veth.ko\n",
        )
        .expect("written");
        let module = |name: &str, depends: &str| {
            let bytes = format!("\x7fELF\0license=GPL\0depends={depends}\0name={name}\0");
            fs::write(drivers.join(name), bytes).expect("written");
        };
        module("virtio_blk.ko", "virtio-ring,virtio");
        module("virtio-ring.ko", "virtio");
        module("virtio.ko", "");
        module("zram.ko", "zsmalloc");
        module("zsmalloc.ko", "");
        module("unused.ko", "");
        keep(tree.path(), tree.path()).expect("all are there");
        let kept = kept(tree.path()).expect("kept");
        let names: Vec<_> = kept.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["virtio", "virtio_ring", "virtio_blk", "zsmalloc", "zram"]);
        assert!(kept.iter().all(|path| path.is_file()));

        fs::remove_file(drivers.join("zsmalloc.ko")).expect("removed");
        let error = keep(tree.path(), tree.path()).expect_err("one is missing");
        assert!(error.contains("zsmalloc"), "{error}");
    }

    #[test]
    fn a_list_of_other_modules_is_not_taken() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(kept(directory.path()).is_none());
        fs::write(directory.path().join(LIST), "wanted: floppy\nfloppy.ko").expect("written");
        assert!(kept(directory.path()).is_none());
    }
}
