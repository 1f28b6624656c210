//! The way to a path that the user named, on which no other user can lead observer astray.
//!
//! observer runs as root, and writes where others have directories too. A path is followed component
//! by component, each through the descriptor of the one before. A directory in which another user
//! could put something else in the place of the output is refused, and so is a symbolic link that
//! another user made. (openat2(2) could refuse all symbolic links, but not only those of others, and
//! it does not look at owners.)

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;

/// As many symbolic links as the kernel follows in one path.
const MAX_LINKS: usize = 40;

const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// What the end of the path is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Directories of other users are accepted: they may own what is read.
    Read,
    Write,
}

/// Root, this process's user, and whoever became root by sudo(8) to start it.
#[derive(Clone, Copy, Debug)]
struct Trusted {
    user: u32,
    sudo_user: Option<u32>,
}

impl Trusted {
    fn here() -> Self {
        let user = geteuid();
        let sudo_user = std::env::var("SUDO_UID").ok().filter(|_| user.is_root());
        Self { user: user.as_raw(), sudo_user: sudo_user.and_then(|text| text.parse().ok()) }
    }

    fn is(self, user: u32) -> bool {
        user == 0 || user == self.user || Some(user) == self.sudo_user
    }

    /// Whether another user may write to it. A group with the number of a user is, by convention, that
    /// user's alone. With an access control list, the group's bits are those of all in it.
    fn others_write(self, stat: &Stat) -> bool {
        let mode = Mode::from_raw_mode(stat.st_mode);
        mode.contains(Mode::WOTH) || mode.contains(Mode::WGRP) && !self.is(stat.st_gid)
    }

    /// Why another user could replace something in this directory, if that is so.
    fn objection(self, stat: &Stat) -> Option<String> {
        let mode = Mode::from_raw_mode(stat.st_mode);
        if !self.is(stat.st_uid) {
            Some(format!("it belongs to user {}, who could replace the output", stat.st_uid))
        } else if mode.contains(Mode::SVTX) || !self.others_write(stat) {
            None
        } else if mode.contains(Mode::WOTH) {
            Some(
                "all users may write to it, and it is not sticky: they could replace the output"
                    .into(),
            )
        } else {
            Some(format!("group {} may write to it and could replace the output", stat.st_gid))
        }
    }
}

fn refuse(path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::PermissionDenied,
        format!("{} is not safe to use: {why}; choose another directory", path.display()),
    )
}

fn is_on_proc(directory: &OwnedFd) -> bool {
    fs::fstatfs(directory).is_ok_and(|file_system| file_system.f_type == fs::PROC_SUPER_MAGIC)
}

/// Puts the components of a path on a stack, the first one on top.
fn push_components(rest: &mut Vec<OsString>, path: &Path) {
    let named = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    };
    rest.extend(path.components().rev().filter_map(named));
}

/// Follows a path to its end.
fn walk(path: &Path, purpose: Purpose) -> Result<OwnedFd> {
    let trusted = Trusted::here();
    let start = |path: &Path| if path.is_absolute() { Path::new("/") } else { Path::new(".") };
    let check = |stat: &Stat, shown: &Path| {
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        match trusted.objection(stat).filter(|_| directory && purpose == Purpose::Write) {
            Some(why) => Err(refuse(shown, why)),
            None => Ok(()),
        }
    };
    let mut shown = PathBuf::from(start(path));
    let mut at = fs::open(&shown, PATH, Mode::empty())?;
    check(&fs::fstat(&at)?, &shown)?;
    let (mut rest, mut links) = (Vec::new(), 0);
    push_components(&mut rest, path);
    while let Some(name) = rest.pop() {
        let mut next = fs::openat(&at, &name, PATH | OFlags::NOFOLLOW, Mode::empty())?;
        let mut stat = fs::fstat(&next)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::LOOP.into());
            }
            if !trusted.is(stat.st_uid) {
                let why = format!("it is a symbolic link that user {} made", stat.st_uid);
                return Err(refuse(&shown.join(name), why));
            }
            // A link in /proc/PID/fd leads to what is open, whatever its text says.
            if !is_on_proc(&at) {
                let target = fs::readlinkat(&next, "", Vec::new())?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    shown = PathBuf::from(start(&target));
                    at = fs::open(&shown, PATH, Mode::empty())?;
                }
                push_components(&mut rest, &target);
                continue;
            }
            next = fs::openat(&at, &name, PATH, Mode::empty())?;
            stat = fs::fstat(&next)?;
        }
        shown.push(name);
        check(&stat, &shown)?;
        at = next;
    }
    Ok(at)
}

/// Opens the directory in which something is to be made or written; with the last part of the path.
///
/// # Errors
/// When it is missing, or when another user could lead the output elsewhere.
pub fn parent(path: &Path) -> Result<(OwnedFd, &OsStr)> {
    let name = path.file_name();
    let name =
        name.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the path has no last part"))?;
    let parent = path.parent().unwrap_or(Path::new(""));
    let directory = walk(parent, Purpose::Write).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            Error::new(ErrorKind::NotFound, format!("{} does not exist", parent.display()))
        }
        _ => error,
    })?;
    if FileType::from_raw_mode(fs::fstat(&directory)?.st_mode) != FileType::Directory {
        return Err(Errno::NOTDIR.into());
    }
    Ok((directory, name))
}

/// A path by which the kernel reaches the same file again, whatever has happened to its name.
fn again(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Opens a file to read it. No symbolic link of another user is followed.
///
/// # Errors
/// When it is missing or unreadable, or when a symbolic link of another user is on the way.
pub fn open_to_read(path: &Path, flags: OFlags) -> Result<File> {
    let found = walk(path, Purpose::Read)?;
    Ok(File::from(fs::open(
        again(&found),
        OFlags::RDONLY | OFlags::CLOEXEC | flags,
        Mode::empty(),
    )?))
}

/// Something that exists and is to be written to: a FIFO or a socket, which must not be another
/// user's.
#[derive(Debug)]
pub struct Existing {
    file: OwnedFd,
    kind: FileType,
}

impl Existing {
    /// Finds it by its name in a directory; `None` when there is nothing.
    ///
    /// # Errors
    /// When it cannot be reached, or belongs to another user.
    pub fn find(directory: &OwnedFd, name: &OsStr) -> Result<Option<Self>> {
        let file = match fs::openat(directory, name, PATH | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        let stat = fs::fstat(&file)?;
        if !Trusted::here().is(stat.st_uid) {
            return Err(refuse(Path::new(name), format!("it belongs to user {}", stat.st_uid)));
        }
        Ok(Some(Self { file, kind: FileType::from_raw_mode(stat.st_mode) }))
    }

    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> FileType {
        self.kind
    }

    /// A path that leads to it for as long as this value lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        again(&self.file)
    }
}

/// Who could have changed what is in a directory, other than root and this process's user; for the
/// directory itself and the files in it.
///
/// # Errors
/// When it cannot be listed.
pub fn doubts(directory: &OwnedFd) -> rustix::io::Result<Vec<String>> {
    /// Looked at, at most.
    const MAX_FILES: usize = 10_000;
    let trusted = Trusted::here();
    let stat = fs::fstat(directory)?;
    let mut doubts = Vec::new();
    if !trusted.is(stat.st_uid) {
        let owner = stat.st_uid;
        doubts.push(format!(
            "the run directory belongs to user {owner}, who can change everything in it"
        ));
    } else if trusted.others_write(&stat) {
        doubts.push("other users may write to the run directory and replace its files".to_owned());
    }
    let mut others = Vec::new();
    for entry in fs::Dir::read_from(directory)?.take(MAX_FILES) {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let file = match fs::statat(directory, name, fs::AtFlags::SYMLINK_NOFOLLOW) {
            Ok(file) => file,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno),
        };
        let link = FileType::from_raw_mode(file.st_mode) == FileType::Symlink;
        if file.st_uid != stat.st_uid || trusted.others_write(&file) && !link {
            others.push(name.to_string_lossy().into_owned());
        }
    }
    others.sort_unstable();
    if let Some(first) = others.first() {
        let more = match others.len() {
            1 => String::new(),
            number => format!(" and {} more", number - 1),
        };
        doubts.push(format!(
            "{first}{more} in the run directory: not of the directory's owner alone, so another \
             user may have changed what this report shows"
        ));
    }
    Ok(doubts)
}

#[cfg(test)]
#[path = "place_tests.rs"]
mod tests;
