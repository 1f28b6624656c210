//! The kernel's statistics about programs: runs, run time and skipped runs.

use std::collections::BTreeMap;
use std::mem::zeroed;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::ptr::from_mut;

use aya::programs::Program;
use aya_obj::generated::{bpf_cmd, bpf_prog_info};
use bytemuck::{NoUninit, bytes_of};

use super::Kernel;
use crate::pace::rest;

/// What the kernel counts for one program, or for several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ProgramStatistics {
    /// Time in them, while [`RunTimeStatistics`] are on.
    pub(super) run_time_ns: u64,
    /// Runs, while [`RunTimeStatistics`] are on.
    pub(super) runs: u64,
    /// Runs that the kernel skipped; counted always (since Linux 5.12).
    pub(super) missed: u64,
}

/// The part of `union bpf_attr` that `BPF_OBJ_GET_INFO_BY_FD` reads (include/uapi/linux/bpf.h).
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct InfoByFd {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

impl ProgramStatistics {
    /// The statistics of one program; all 0 where it is not loaded, and 0 what the kernel does not
    /// count.
    ///
    /// `/proc/self/fdinfo` shows the same numbers, but takes four system calls and ten times as long,
    /// and observer reads them for each of its programs many times a minute.
    pub(super) fn of(program: &Program) -> Self {
        program.fd().map(|fd| Self::of_fd(fd.as_fd().as_raw_fd())).unwrap_or_default()
    }

    fn of_fd(fd: RawFd) -> Self {
        // SAFETY: the struct holds numbers only, of which 0 is a value. All lengths that are 0 make the
        // kernel write to no other memory.
        let mut info: bpf_prog_info = unsafe { zeroed() };
        let request = InfoByFd {
            bpf_fd: fd.cast_unsigned(),
            info_len: size_of::<bpf_prog_info>() as u32,
            info: from_mut(&mut info) as u64,
        };
        // SAFETY: the kernel reads `request` and writes at most `info_len` bytes to `info`; both live
        // until the call returns.
        let failed = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                bpf_cmd::BPF_OBJ_GET_INFO_BY_FD,
                bytes_of(&request).as_ptr(),
                size_of::<InfoByFd>(),
            )
        };
        if failed != 0 {
            return Self::default();
        }
        Self { run_time_ns: info.run_time_ns, runs: info.run_cnt, missed: info.recursion_misses }
    }
}

impl std::ops::AddAssign for ProgramStatistics {
    fn add_assign(&mut self, other: Self) {
        self.run_time_ns += other.run_time_ns;
        self.runs += other.runs;
        self.missed += other.missed;
    }
}

impl Kernel {
    /// The kernel's statistics by program.
    fn statistics_by_program(&self) -> impl Iterator<Item = (&str, ProgramStatistics)> {
        self.ebpf.programs().map(|(name, program)| {
            rest();
            (name, ProgramStatistics::of(program))
        })
    }

    /// The kernel's statistics of all programs together.
    pub(super) fn program_statistics(&self) -> ProgramStatistics {
        let mut total = ProgramStatistics::default();
        self.statistics_by_program().for_each(|(_, statistics)| total += statistics);
        total
    }

    /// The programs of which the kernel skipped runs, and how many of each.
    #[must_use]
    pub fn skipped_runs(&self) -> BTreeMap<String, u64> {
        let skipped = self.statistics_by_program().filter(|(_, statistics)| statistics.missed > 0);
        skipped.map(|(name, statistics)| (name.to_owned(), statistics.missed)).collect()
    }
}

/// Turns the kernel's BPF run-time statistics on for as long as the value lives.
///
/// They cost two clock reads per program run, which is why they are on for short windows only.
pub struct RunTimeStatistics(#[expect(dead_code, reason = "closing it ends them")] OwnedFd);

impl RunTimeStatistics {
    /// Starts them; `None` when the kernel refuses (before 5.8).
    #[must_use]
    pub fn start() -> Option<Self> {
        aya::sys::enable_stats(aya::sys::Stats::RunTime).ok().map(Self)
    }
}
