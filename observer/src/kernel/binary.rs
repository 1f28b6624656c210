//! User-space binaries. A binary is identified by its file, and never by a path: the owner of a path
//! can put another file there at any time.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use object::Endianness;
use object::elf::{FileHeader64, NT_GNU_BUILD_ID, PF_X, PT_LOAD, PT_NOTE};
use object::read::elf::{FileHeader, NoteIterator, ProgramHeader};
use rustix::io::Errno;

use super::overlay;
use crate::host::Process;

/// The program headers lie at the beginning of a binary; no more than this is read to find them.
const HEAD_BYTES: usize = 64 << 10;
/// No more than this is read of the notes in one segment.
const NOTES_BYTES: usize = 64 << 10;
/// Segments that are looked at. A linker makes about a dozen.
const SEGMENTS_MAX: usize = 256;
/// A build id is a hash of 16 to 32 bytes.
const BUILD_ID_BYTES: usize = 64;

/// Which file a binary is. The kernel attaches to a file, so files with the same id share their
/// places.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileId {
    /// A file of an ordinary file system.
    Inode {
        /// The device of the file system.
        device: u64,
        /// The inode number.
        inode: u64,
    },
    /// A file of an overlay file system: containers of the same image share the file below, under a
    /// device number for each container.
    Layer {
        /// The kernel's handle of the file below.
        handle: Vec<u8>,
        /// Time of the last change (ctime), in seconds and nanoseconds. A copy that a container
        /// made of the file has the same handle and another time.
        changed: (i64, i64),
    },
}

/// The identity of a binary.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BinaryId {
    /// Which file it is.
    pub file: FileId,
    /// The GNU build id, which copies of the file share; `None` when it was linked without one.
    pub build_id: Option<Vec<u8>>,
}

/// Why a binary cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// The process exited, or never had a program.
    #[error("process {process} has exited or runs no program")]
    Gone {
        /// The process.
        process: u32,
    },
    /// The file cannot be opened or read.
    #[error("cannot read the program of process {process}: {reason}")]
    Unreadable {
        /// The process.
        process: u32,
        /// What the kernel said.
        reason: String,
    },
    /// The file is something else, or damaged.
    #[error("the program of process {process} is not a valid 64-bit ELF file: {reason}")]
    NotElf {
        /// The process.
        process: u32,
        /// What is wrong with it.
        reason: String,
    },
}

/// An open binary. As long as it is open, no other file gets its inode number.
#[derive(Debug)]
pub struct Binary {
    file: File,
    id: BinaryId,
    /// File offsets of the executable segments.
    executable: Vec<Range<u64>>,
}

impl Binary {
    /// Opens the program that a process runs. It is found in other mount namespaces as well, and if
    /// it was deleted or replaced after the process started it.
    ///
    /// # Errors
    /// When the process is gone, or its program cannot be read.
    pub fn of_process(process: &Process) -> Result<Self, BinaryError> {
        let id = process.tgid.0;
        let binary = Self::open(id)?;
        // Checked after the file was opened: otherwise it may be that of a later process with the
        // same id.
        if process.is_alive() { Ok(binary) } else { Err(BinaryError::Gone { process: id }) }
    }

    fn open(process: u32) -> Result<Self, BinaryError> {
        let failed = |error: io::Error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::SRCH) => BinaryError::Gone { process },
            _ => BinaryError::Unreadable { process, reason: error.to_string() },
        };
        let file = File::open(format!("/proc/{process}/exe")).map_err(failed)?;
        let (file_id, head) = file_id(&file)
            .and_then(|id| Ok((id, read_at(&file, 0, HEAD_BYTES)?)))
            .map_err(failed)?;
        let (executable, build_id) =
            parse(&file, &head).map_err(|reason| BinaryError::NotElf { process, reason })?;
        Ok(Self { file, id: BinaryId { file: file_id, build_id }, executable })
    }

    /// Which binary it is.
    #[must_use]
    pub const fn id(&self) -> &BinaryId {
        &self.id
    }

    /// The open file, for whoever looks for places in it.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// Whether the file is mapped as instructions at this offset.
    #[must_use]
    pub fn is_executable_at(&self, offset: u64) -> bool {
        self.executable.iter().any(|segment| segment.contains(&offset))
    }

    /// A path that leads to the open file, whatever happened to its name.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.file.as_raw_fd())
    }
}

fn file_id(file: &File) -> io::Result<FileId> {
    if overlay::is_overlay(file)? {
        return overlay::file_id(file);
    }
    let metadata = file.metadata()?;
    Ok(FileId::Inode { device: metadata.dev(), inode: metadata.ino() })
}

/// At most this many bytes; fewer at the end of the file.
fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], offset.saturating_add(filled as u64)) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// The executable segments, and the build id.
type Parsed = (Vec<Range<u64>>, Option<Vec<u8>>);

/// Finds the executable segments and the build id. The file may contain anything: no number in it decides
/// how much is read.
fn parse(file: &File, head: &[u8]) -> Result<Parsed, String> {
    let wrong = |error: object::Error| error.to_string();
    let header = FileHeader64::<Endianness>::parse(head).map_err(wrong)?;
    let endian = header.endian().map_err(wrong)?;
    let segments = header.program_headers(endian, head).map_err(wrong)?;
    let mut executable = Vec::new();
    let mut build_id = None;
    for segment in segments.iter().take(SEGMENTS_MAX) {
        let (offset, length) = (segment.p_offset(endian), segment.p_filesz(endian));
        match segment.p_type(endian) {
            PT_LOAD if segment.p_flags(endian).0 & PF_X.0 != 0 => {
                executable.push(offset..offset.saturating_add(length));
            }
            PT_NOTE if build_id.is_none() => {
                let length = usize::try_from(length).unwrap_or(usize::MAX).min(NOTES_BYTES);
                // A segment that lies outside of the file has no notes.
                let notes = read_at(file, offset, length).unwrap_or_default();
                build_id = build_id_in(&notes, endian, segment.p_align(endian));
            }
            _ => {}
        }
    }
    if executable.is_empty() {
        return Err("it has no executable segment".to_owned());
    }
    Ok((executable, build_id))
}

fn build_id_in(notes: &[u8], endian: Endianness, align: u64) -> Option<Vec<u8>> {
    let notes = NoteIterator::<FileHeader64<Endianness>>::new(endian, align, notes).ok()?;
    let build_id = |note: &object::read::elf::Note<'_, FileHeader64<Endianness>>| {
        note.name() == b"GNU"
            && note.n_type(endian) == NT_GNU_BUILD_ID
            && (1..=BUILD_ID_BYTES).contains(&note.desc().len())
    };
    notes.map_while(Result::ok).find(build_id).map(|note| note.desc().to_vec())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::model::Tgid;

    fn parsed(bytes: &[u8]) -> Result<Parsed, String> {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("it takes bytes");
        parse(&file, &read_at(&file, 0, HEAD_BYTES).expect("it can be read"))
    }

    fn this_process() -> Process {
        Process::read(Tgid(std::process::id())).expect("it lives")
    }

    #[test]
    fn this_program_is_a_binary() {
        let own = Binary::of_process(&this_process()).expect("a program");
        let again = Binary::of_process(&this_process()).expect("a program");
        assert_eq!(own.id(), again.id());
        let start = own.executable[0].start;
        assert!(own.is_executable_at(start) && !own.is_executable_at(u64::MAX));
    }

    #[test]
    fn processes_that_are_gone_have_none() {
        let of = |process: Process| match Binary::of_process(&process) {
            Err(BinaryError::Gone { .. }) => {}
            other => panic!("{other:?}"),
        };
        of(Process { start_ticks: this_process().start_ticks + 1, ..this_process() });
        of(Process { tgid: Tgid(u32::MAX), ..this_process() });
    }

    #[test]
    fn damaged_files_give_an_error_of_one_line_or_a_result() {
        let own = File::open("/proc/self/exe").expect("it is there");
        let head = read_at(&own, 0, 4096).expect("it can be read");
        assert!(parsed(&head).is_ok());
        for length in 0..64 {
            let error = parsed(&head[..length]).expect_err("too short");
            assert!(!error.is_empty() && !error.contains('\n'), "{error}");
        }
        for index in 0..1024.min(head.len()) {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut damaged = head.clone();
                damaged[index] = value;
                if let Err(error) = parsed(&damaged) {
                    assert!(!error.contains('\n'), "{error}");
                }
            }
        }
        assert!(parsed(b"#!/bin/sh\n").is_err());
        assert!(parsed(&[]).is_err());
    }

    /// A program header of 56 bytes at 64 and its notes at 128.
    fn with_notes(count: u16, length: u64, notes: &[u8]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
        bytes.resize(16, 0);
        bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend(64_u64.to_le_bytes());
        // Section headers far outside of the file.
        bytes.extend(u64::MAX.to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        for field in [64_u16, 56, count, 64, u16::MAX, 1] {
            bytes.extend(field.to_le_bytes());
        }
        let segment = |kind: u32, flags: u32, offset: u64, length: u64| {
            let mut bytes = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
            bytes.extend([offset, 0, 0, length, length, 4].map(u64::to_le_bytes).concat());
            bytes
        };
        bytes.extend(segment(1, 1, 0, u64::MAX));
        bytes.extend(segment(4, 4, 176, length));
        assert_eq!(bytes.len(), 176);
        bytes.extend(notes);
        bytes
    }

    #[test]
    fn a_build_id_is_found_behind_other_notes_and_bounded() {
        let note = |name: &[u8; 4], kind: u32, desc: &[u8]| {
            let sizes = [4, desc.len() as u32, kind].map(u32::to_le_bytes).concat();
            [&sizes, name.as_slice(), desc].concat()
        };
        let id: Vec<u8> = (0..20).collect();
        let notes = [note(b"Go\0\0", 4, b"abcd"), note(b"GNU\0", 3, &id)].concat();
        let found = |bytes: &[u8]| parsed(bytes).expect("an ELF file").1;
        assert_eq!(found(&with_notes(2, notes.len() as u64, &notes)), Some(id));
        // Lengths that the file does not have.
        assert!(found(&with_notes(2, u64::MAX, &notes)).is_some());
        assert_eq!(found(&with_notes(2, 12, &notes)), None);
        assert_eq!(found(&with_notes(2, 80, &note(b"GNU\0", 3, &[7; 65]))), None);
        let endless = [4, u32::MAX, 3].map(u32::to_le_bytes).concat();
        assert_eq!(found(&with_notes(2, 1 << 40, &endless)), None);
        // More program headers than the file has bytes.
        assert!(parsed(&with_notes(u16::MAX - 1, 0, &[])).is_err());
        assert!(parsed(&with_notes(u16::MAX, 0, &[])).is_err());
    }
}
