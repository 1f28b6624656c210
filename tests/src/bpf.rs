//! The kernel's own list of BPF objects, and who holds them.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use crate::Result;

/// A BPF object, by the kernel's id. Ids are not reused soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A program.
    Program(u32),
    /// A map.
    Map(u32),
    /// A link.
    Link(u32),
}

/// `union bpf_attr` of the commands that go through all objects (include/uapi/linux/bpf.h).
#[repr(C)]
struct NextId {
    start_id: u32,
    next_id: u32,
    open_flags: u32,
}

/// `BPF_PROG_GET_NEXT_ID`, `BPF_MAP_GET_NEXT_ID`, `BPF_LINK_GET_NEXT_ID`.
const COMMANDS: [(libc::c_int, Made); 3] =
    [(11, Object::Program), (12, Object::Map), (31, Object::Link)];

/// The type of object that a command lists.
type Made = fn(u32) -> Object;

/// All existing objects.
///
/// # Errors
/// When the kernel does not report them.
pub fn all() -> Result<BTreeSet<Object>> {
    let mut objects = BTreeSet::new();
    for (command, object) in COMMANDS {
        let mut attribute = NextId { start_id: 0, next_id: 0, open_flags: 0 };
        loop {
            // SAFETY: the attribute has the layout of these commands and lives through the call.
            let result = unsafe {
                libc::syscall(libc::SYS_bpf, command, &raw mut attribute, size_of::<NextId>())
            };
            if result < 0 {
                let error = std::io::Error::last_os_error();
                if error.raw_os_error() == Some(libc::ENOENT) {
                    break;
                }
                return Err(format!("cannot list BPF objects: {error}"));
            }
            objects.insert(object(attribute.next_id));
            attribute.start_id = attribute.next_id;
        }
    }
    Ok(objects)
}

/// The objects a process holds descriptors of.
#[must_use]
pub fn held_by(pid: u32) -> BTreeSet<Object> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return BTreeSet::new() };
    let texts = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let mut objects = BTreeSet::new();
    for text in texts {
        // A link's descriptor names its program as well.
        for line in text.lines() {
            let Some((name, id)) = line.split_once(':') else { continue };
            let Ok(id) = id.trim().parse() else { continue };
            match name {
                "prog_id" => objects.insert(Object::Program(id)),
                "map_id" => objects.insert(Object::Map(id)),
                "link_id" => objects.insert(Object::Link(id)),
                _ => continue,
            };
        }
    }
    objects
}

/// Waits until none of the objects is there any more: the kernel frees them with a delay.
///
/// # Panics
/// When one of them stays.
pub fn assert_gone(objects: &BTreeSet<Object>) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let all = all().unwrap_or_else(|error| panic!("{error}"));
        let left: Vec<&Object> = all.intersection(objects).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {left:?} of {objects:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
