//! Files of overlay file systems, which containers are usually made of. The kernel attaches to the
//! file below, which several containers may share; each sees it under a device number of its own.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::binary::FileId;
use crate::host::read_small;

/// `OVERLAYFS_SUPER_MAGIC` (include/uapi/linux/magic.h).
const OVERLAYFS: u32 = 0x794c_7630;
/// `AT_HANDLE_FID` (include/uapi/linux/fcntl.h): a handle that identifies and cannot be opened.
const HANDLE_FID: libc::c_int = 0x200;
/// `MAX_HANDLE_SZ` (include/linux/exportfs.h).
const HANDLE_BYTES: usize = 128;

/// Whether the file lies on an overlay file system.
pub(super) fn is_overlay(file: &File) -> io::Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type as u32 == OVERLAYFS)
}

/// The id of the file below: by its handle (since Linux 6.6), or by the inode that a mapping of the
/// file shows (before Linux 6.8).
pub(super) fn file_id(file: &File) -> io::Result<FileId> {
    let metadata = file.metadata()?;
    match handle(file) {
        Some(handle) => {
            Ok(FileId::Layer { handle, changed: (metadata.ctime(), metadata.ctime_nsec()) })
        }
        None => mapped_inode(file),
    }
}

fn handle(file: &File) -> Option<Vec<u8>> {
    #[repr(C)]
    struct Handle {
        header: libc::file_handle,
        bytes: [u8; HANDLE_BYTES],
    }
    let header = libc::file_handle {
        handle_bytes: HANDLE_BYTES as libc::c_uint,
        handle_type: 0,
        f_handle: [],
    };
    let mut handle = Handle { header, bytes: [0; HANDLE_BYTES] };
    let mut mount = 0;
    // SAFETY: the path is a C string, and the handle has room for as many bytes as it says.
    let result = unsafe {
        libc::name_to_handle_at(
            file.as_raw_fd(),
            c"".as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH | HANDLE_FID,
        )
    };
    let length = handle.header.handle_bytes as usize;
    (result == 0).then(|| handle.bytes.get(..length).map(<[u8]>::to_vec)).flatten()
}

/// The device and the inode of a mapping, as `/proc/self/maps` shows them.
fn mapped_inode(file: &File) -> io::Result<FileId> {
    let page = rustix::param::page_size();
    let flags = MapFlags::PRIVATE;
    // SAFETY: a fresh mapping at an address of the kernel's choice, which is never accessed.
    let address = unsafe { mmap(std::ptr::null_mut(), page, ProtFlags::READ, flags, file, 0) }?;
    let maps = read_small("/proc/self/maps");
    // SAFETY: mapped above with this size.
    let _ = unsafe { munmap(address, page) };
    let start = format!("{:x}-", address as usize);
    let line = String::from_utf8_lossy(&maps?)
        .lines()
        .find(|line| line.starts_with(&start))
        .and_then(inode_of);
    line.ok_or_else(|| io::Error::other("the mapping of its program is not in /proc/self/maps"))
}

/// The file of a line of `/proc/PID/maps`: address, rights, offset, device, inode, path.
fn inode_of(line: &str) -> Option<FileId> {
    let mut fields = line.split_ascii_whitespace().skip(3);
    let (major, minor) = fields.next()?.split_once(':')?;
    let number = |text| u32::from_str_radix(text, 16).ok();
    let device = rustix::fs::makedev(number(major)?, number(minor)?);
    Some(FileId::Inode { device, inode: fields.next()?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_shows_the_inode() {
        let file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile());
        let file = file.expect("a file");
        file.set_len(1).expect("it takes a byte");
        let metadata = file.metadata().expect("it is there");
        let expected = FileId::Inode { device: metadata.dev(), inode: metadata.ino() };
        assert_eq!(mapped_inode(&file).expect("a mapping"), expected);
        is_overlay(&file).expect("it is known");
    }

    #[test]
    fn lines_of_maps_give_device_and_inode() {
        let line = "7fc4a9800000-7fc4a98ad000 r--p 00000000 fd:1a 18147308   /a b (deleted)";
        let device = rustix::fs::makedev(0xfd, 0x1a);
        assert_eq!(inode_of(line), Some(FileId::Inode { device, inode: 18_147_308 }));
        for damaged in ["", "7f-7f r--p 0 fd 1", "7f-7f r--p 0 x:y 1", "7f-7f r--p 0 fd:1 z"] {
            assert_eq!(inode_of(damaged), None, "{damaged:?}");
        }
    }
}
