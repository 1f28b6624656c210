//! What a distribution would have done before the tests begin: file systems, control groups, the
//! loopback interface, modules, swap.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use observer_tests::mapping::PAGE_BYTES;
use rustix::mount::{MountFlags, mount};
use serde_json::{Value, json};

use crate::Result;
use crate::plan::Plan;

const CONTROLLERS: &[&str] = &["memory", "cpu", "io", "pids"];
const SUBTREE_CONTROL: &str = "/sys/fs/cgroup/cgroup.subtree_control";
const DISK: &str = "/dev/vda";
const SWAP: &str = "/dev/zram0";
const SWAP_SIZE: &str = "/sys/block/zram0/disksize";

/// `(what, where)`, in this order.
const BASICS: &[(&CStr, &str)] = &[
    (c"proc", "/proc"),
    (c"sysfs", "/sys"),
    (c"devtmpfs", "/dev"),
    (c"tmpfs", "/tmp"),
    (c"tmpfs", "/run"),
    (c"cgroup2", "/sys/fs/cgroup"),
    (c"tracefs", "/sys/kernel/tracing"),
];

/// Mounts the kernel's own file systems.
pub(crate) fn mount_basics() -> Result<()> {
    for (kind, place) in BASICS {
        // Those below /sys are there already, and cannot be made.
        let _ = fs::create_dir_all(place);
        // The programs lie where they were built, which may be below /tmp.
        let holds_programs = fs::read_dir(place).is_ok_and(|mut held| held.next().is_some());
        if *kind == c"tmpfs" && holds_programs {
            continue;
        }
        mount(*kind, *place, *kind, MountFlags::empty(), None).map_err(|error| {
            format!("cannot mount {} at {place}: {error}", kind.to_string_lossy())
        })?;
    }
    Ok(())
}

/// Makes the rest; returns what this system has, for the host's records.
pub(crate) fn prepare(plan: &Plan) -> Result<Value> {
    // A kernel that stumbled is no kernel to measure on: it ends, and the host sees it.
    write("/proc/sys/kernel/panic_on_oops", "1")?;
    for module in &plan.modules {
        load(module)?;
    }
    for controller in CONTROLLERS {
        write(SUBTREE_CONTROL, &format!("+{controller}"))?;
    }
    loopback_up().map_err(|error| format!("cannot set the interface lo up: {error}"))?;
    mount_disk(&plan.disk)?;
    if plan.swap_bytes > 0 {
        swap_on(plan.swap_bytes)?;
    }
    let first_line = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().next().unwrap_or_default().trim().to_owned()
    };
    let kernel = first_line("/proc/sys/kernel/osrelease");
    Ok(json!({
        "kernel": kernel,
        "memory": first_line("/proc/meminfo"),
        "swap_bytes": plan.swap_bytes,
        "modules": plan.modules.len(),
        "thp": first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
    }))
}

fn write(path: &str, text: &str) -> Result<()> {
    // Opened without O_CREAT: files of the kernel are there, or the guest is not what it should be.
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| format!("cannot write {text} to {path}: {error}"))
}

fn load(module: &Path) -> Result<()> {
    let told = |error: io::Error| format!("cannot load {}: {error}", module.display());
    let file = File::open(module).map_err(told)?;
    match rustix::system::finit_module(&file, c"", 0) {
        // Another module may have asked for it already.
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(told(error.into())),
    }
}

fn mount_disk(place: &Path) -> Result<()> {
    let told = |error: io::Error| format!("cannot mount {DISK} at {}: {error}", place.display());
    fs::create_dir_all(place).map_err(told)?;
    mount(DISK, place, c"ext4", MountFlags::NOATIME, None).map_err(|error| told(error.into()))
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: takes no pointer.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: zeroed is a value of this plain struct: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: an open socket, and a request that lives through the call.
    let set = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Compressed memory as swap.
fn swap_on(bytes: u64) -> Result<()> {
    write(SWAP_SIZE, &bytes.to_string())?;
    let told = |error: io::Error| format!("cannot swap to {SWAP}: {error}");
    let mut device = OpenOptions::new().write(true).open(SWAP).map_err(told)?;
    device.write_all(&swap_header(bytes)).map_err(told)?;
    device.sync_all().map_err(told)?;
    let path = CString::new(SWAP).map_err(|error| told(error.into()))?;
    // SAFETY: a string that lives through the call.
    if unsafe { libc::swapon(path.as_ptr(), 0) } == 0 {
        return Ok(());
    }
    Err(told(io::Error::last_os_error()))
}

/// The first page of a swap device (include/linux/swap.h, `union swap_header`).
fn swap_header(bytes: u64) -> Vec<u8> {
    const VERSION_AT: usize = 1024;
    const LAST_PAGE_AT: usize = VERSION_AT + 4;
    const MAGIC: &[u8] = b"SWAPSPACE2";
    let last_page = u32::try_from(bytes / PAGE_BYTES as u64 - 1).unwrap_or(u32::MAX);
    let mut page = vec![0; PAGE_BYTES];
    page[VERSION_AT..LAST_PAGE_AT].copy_from_slice(&1u32.to_ne_bytes());
    page[LAST_PAGE_AT..LAST_PAGE_AT + 4].copy_from_slice(&last_page.to_ne_bytes());
    page[PAGE_BYTES - MAGIC.len()..].copy_from_slice(MAGIC);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_swap_header_is_the_one_the_kernel_looks_for() {
        let page = swap_header(64 << 20);
        assert_eq!(page.len(), PAGE_BYTES);
        assert_eq!(&page[PAGE_BYTES - 10..], b"SWAPSPACE2");
        let last_page = u32::from_ne_bytes(page[1028..1032].try_into().expect("four bytes"));
        assert_eq!(last_page, (64 << 8) - 1, "the last page, counted from 0");
    }
}
