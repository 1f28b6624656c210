//! Attaching to places in user-space binaries, and detaching, while everything runs.
//!
//! A link belongs to a file and not to a process: the kernel sets the breakpoint in every process
//! that maps the file, also in those that start later, before their first instruction runs. The
//! programs return at once in processes that are not of the target, but these processes pay for the
//! breakpoint as well.

use std::collections::BTreeMap;

use aya::Ebpf;
use aya::programs::uprobe::{UProbeAttachLocation, UProbeAttachPoint, UProbeLink, UProbeScope};
use aya::programs::{ProgramError, UProbe};
use observer_ebpf::wire::UPROBE_COUNTERS;

use super::Kernel;
use super::binary::{Binary, BinaryError, BinaryId, FileId};
use super::mapped::MappedWords;

/// Places in all binaries together. Each takes a file descriptor, of which a process usually has
/// 1024.
pub(super) const PLACES_MAX: usize = 256;

/// Why a place cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UprobeError {
    /// The binary cannot be used.
    #[error(transparent)]
    Binary(#[from] BinaryError),
    /// No instruction is there.
    #[error("offset {0:#x} is not in an executable segment of the binary")]
    NoInstruction(u64),
    /// The limit of places is reached.
    #[error("{PLACES_MAX} places in binaries have a probe already, which is the limit")]
    TooManyPlaces,
    /// The limit of binaries is reached.
    #[error("{0} binaries are followed already, which is the limit")]
    TooManyBinaries(usize),
    /// The kernel refused the program or the link.
    #[error("cannot attach program {program} at offset {offset:#x}: {reason}")]
    Refused {
        /// The program.
        program: &'static str,
        /// The offset.
        offset: u64,
        /// What the kernel said.
        reason: String,
    },
}

impl UprobeError {
    /// The kind of failure, by which failures are counted.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Binary(BinaryError::Gone { .. }) => "process_gone",
            Self::Binary(BinaryError::Unreadable { .. }) => "unreadable",
            Self::Binary(BinaryError::NotElf { .. }) => "not_elf",
            Self::NoInstruction(_) => "no_instruction",
            Self::TooManyPlaces => "too_many_places",
            Self::TooManyBinaries(_) => "too_many_binaries",
            Self::Refused { .. } => "refused",
        }
    }
}

/// A place in a binary, and what runs there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Offset in the file.
    pub offset: u64,
    /// What the program gets as `bpf_get_attach_cookie`.
    pub cookie: u64,
    /// The BPF program, of kind `uprobe`.
    pub program: &'static str,
}

impl Place {
    /// A place whose calls are counted by its cookie, which must be below [`UPROBE_COUNTERS`]
    /// ([`Kernel::uprobe_calls`]).
    #[must_use]
    pub const fn counted(offset: u64, cookie: u64) -> Self {
        Self { offset, cookie, program: "uprobe_call" }
    }
}

/// All links into binaries.
pub(super) struct Uprobes {
    /// The kernel keeps the inode of a linked file, so that its number is not given to another one.
    links: BTreeMap<FileId, BTreeMap<Place, UProbeLink>>,
    calls: MappedWords,
}

impl Uprobes {
    pub(super) const fn new(calls: MappedWords) -> Self {
        Self { links: BTreeMap::new(), calls }
    }

    /// Links a program to a place, unless it is linked there. The program is loaded when it is first
    /// needed.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        binary: &Binary,
        place: Place,
    ) -> Result<(), UprobeError> {
        let Place { offset, program, .. } = place;
        if !binary.is_executable_at(offset) {
            return Err(UprobeError::NoInstruction(offset));
        }
        let known = self.links.get(&binary.id().file);
        if known.is_some_and(|links| links.contains_key(&place)) {
            return Ok(());
        }
        if self.links.values().map(BTreeMap::len).sum::<usize>() >= PLACES_MAX {
            return Err(UprobeError::TooManyPlaces);
        }
        let link = link(ebpf, binary, place).map_err(|error| {
            let reason = match error {
                ProgramError::SyscallError(error) => format!("{}: {}", error.call, error.io_error),
                ProgramError::LoadError { io_error, .. } => format!("load: {io_error}"),
                error => error.to_string(),
            };
            UprobeError::Refused { program, offset, reason }
        })?;
        self.links.entry(binary.id().file.clone()).or_default().insert(place, link);
        Ok(())
    }

    /// Takes the link at a place out; dropping it detaches.
    pub(super) fn take(&mut self, file: &FileId, place: Place) -> Option<UProbeLink> {
        let links = self.links.get_mut(file)?;
        let link = links.remove(&place);
        if links.is_empty() {
            self.links.remove(file);
        }
        link
    }
}

fn link(ebpf: &mut Ebpf, binary: &Binary, place: Place) -> Result<UProbeLink, ProgramError> {
    let Place { offset, cookie, program } = place;
    let program = ebpf.program_mut(program).ok_or(ProgramError::UnexpectedProgramType)?;
    let program: &mut UProbe = program.try_into()?;
    if program.fd().is_err() {
        program.load()?;
    }
    let location = UProbeAttachLocation::AbsoluteOffset(offset);
    let point = UProbeAttachPoint { location, cookie: Some(cookie) };
    // The open file is what was examined, whatever its path leads to by now.
    let link = program.attach(point, binary.path(), UProbeScope::AllProcesses)?;
    program.take_link(link)
}

impl Kernel {
    /// Attaches to a place in a binary, in all processes that execute it now or later. Does nothing
    /// if it is attached there.
    ///
    /// # Errors
    /// When no instruction is there, the limit is reached, or the kernel refuses (the cookies of
    /// uprobes exist since Linux 5.15).
    pub fn attach_uprobe(&mut self, binary: &Binary, place: Place) -> Result<(), UprobeError> {
        self.uprobes.attach(&mut self.ebpf, binary, place)
    }

    /// Detaches from a place and waits until its program does not run any more (about 0.1 s). Returns
    /// whether it was attached. The counted calls stay as they are.
    pub fn detach_uprobe(&mut self, binary: &BinaryId, place: Place) -> bool {
        self.uprobes.take(&binary.file, place).is_some()
    }

    /// How often the target reached the counted places with this cookie so far; `None` for a cookie
    /// that is not below [`UPROBE_COUNTERS`].
    #[must_use]
    pub fn uprobe_calls(&self, cookie: u64) -> Option<u64> {
        let index = u32::try_from(cookie).ok().filter(|index| *index < UPROBE_COUNTERS)?;
        Some(self.uprobes.calls.get(index as usize))
    }

    /// Number of places that are attached now.
    #[must_use]
    pub fn uprobes(&self) -> usize {
        self.uprobes.links.values().map(BTreeMap::len).sum()
    }
}
