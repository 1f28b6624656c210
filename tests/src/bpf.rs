//! The kernel's own list of BPF objects and who holds them, and BPF programs of the tests.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use aya_obj::btf::{Btf, BtfKind};

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

/// `BPF_PROG_LOAD`.
const PROG_LOAD: libc::c_int = 5;
/// `BPF_RAW_TRACEPOINT_OPEN`.
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;

/// `union bpf_attr` of a load, up to what programs at functions of the kernel need.
#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    kernel_version: u32,
    flags: u32,
    name: [u64; 2],
    interface: u32,
    attach_type: u32,
    btf: u32,
    function_size: u32,
    functions: u64,
    function_count: u32,
    line_size: u32,
    lines: u64,
    line_count: u32,
    attach_type_id: u32,
}

/// `union bpf_attr` for attaching a program to a tracepoint, or where it was loaded for.
#[repr(C)]
struct Open {
    name: u64,
    program: u32,
    padding: u32,
}

/// bpf(2) for commands that return a descriptor.
fn descriptor<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let size = size_of::<T>();
    // SAFETY: the kernel reads `size` bytes of the attributes, which have the layout of `command`, and takes what
    // lies beyond for zero.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = i32::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn load(program: &[u64], mut attributes: Load) -> io::Result<OwnedFd> {
    attributes.instruction_count = u32::try_from(program.len()).map_err(io::Error::other)?;
    attributes.instructions = program.as_ptr() as u64;
    attributes.license = c"Dual MIT/GPL".as_ptr() as u64;
    descriptor(PROG_LOAD, &attributes)
}

fn attach(program: &OwnedFd, tracepoint: Option<&std::ffi::CStr>) -> io::Result<OwnedFd> {
    let name = tracepoint.map_or(0, |name| name.as_ptr() as u64);
    let program = program.as_raw_fd().cast_unsigned();
    descriptor(RAW_TRACEPOINT_OPEN, &Open { name, program, padding: 0 })
}

/// A program of two instructions on a raw tracepoint, which does nothing.
#[derive(Debug)]
pub struct Empty {
    /// The program.
    pub program: OwnedFd,
    _link: OwnedFd,
}

impl Empty {
    /// `r0 = 0` and `exit`.
    pub const INSTRUCTIONS: [u64; 2] = [0xb7, 0x95];

    /// Loads and attaches it.
    ///
    /// # Errors
    /// When the kernel refuses it, or has no such tracepoint.
    pub fn attach(tracepoint: &str) -> io::Result<Self> {
        const RAW_TRACEPOINT: u32 = 17;
        let attributes = Load { program_type: RAW_TRACEPOINT, ..Load::default() };
        let program = load(&Self::INSTRUCTIONS, attributes)?;
        let name = std::ffi::CString::new(tracepoint)?;
        let link = attach(&program, Some(&name))
            .map_err(|error| io::Error::other(format!("raw tracepoint {tracepoint}: {error}")))?;
        Ok(Self { program, _link: link })
    }
}

/// As long as it lives, the kernel has no memory for the socket of a process: `sk_alloc` (net/core/sock.c) fails where
/// it asks whether it may make one.
#[derive(Debug)]
pub struct NoSocketMemory {
    _link: OwnedFd,
    _program: OwnedFd,
}

impl NoSocketMemory {
    /// For this process.
    ///
    /// # Errors
    /// When the kernel refuses the program, or has no such function.
    pub fn of(pid: u32) -> Result<Self> {
        // `BPF_PROG_TYPE_TRACING` and `BPF_MODIFY_RETURN`.
        const TRACING: u32 = 26;
        const MODIFY_RETURN: u32 = 26;
        const FUNCTION: &str = "security_sk_alloc";
        let instruction =
            |code: u64, immediate: i32| code | u64::from(immediate.cast_unsigned()) << 32;
        let program = [
            // `r0 = bpf_get_current_pid_tgid() >> 32`
            instruction(0x85, 14),
            instruction(0x77, 32),
            // `if r0 != pid goto +2`
            instruction(0x55 | 2 << 16, pid.cast_signed()),
            // `return -ENOMEM`, or `return 0`
            instruction(0xb7, -libc::ENOMEM),
            instruction(0x95, 0),
            instruction(0xb7, 0),
            instruction(0x95, 0),
        ];
        let failed =
            |error: &dyn std::fmt::Display| format!("cannot make {FUNCTION} fail: {error}");
        let id = Btf::from_sys_fs()
            .and_then(|btf| btf.id_by_type_name_kind(FUNCTION, BtfKind::Func))
            .map_err(|error| failed(&error))?;
        let attributes = Load {
            program_type: TRACING,
            attach_type: MODIFY_RETURN,
            attach_type_id: id,
            ..Load::default()
        };
        let program = load(&program, attributes).map_err(|error| failed(&error))?;
        let link = attach(&program, None).map_err(|error| failed(&error))?;
        Ok(Self { _link: link, _program: program })
    }
}

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
