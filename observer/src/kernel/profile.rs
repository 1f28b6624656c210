//! The programs as the kernel sees them: size, verification, runs.

use super::statistics::ProgramStatistics;
use super::{Kernel, ProgramState};

/// One attached program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramProfile {
    /// Its name in the object.
    pub name: String,
    /// Runs while the kernel's BPF statistics were on ([`super::RunTimeStatistics`]).
    pub runs: u64,
    /// Time in those runs, including the cost of measuring it.
    pub run_time_ns: u64,
    /// Instructions the verifier went through, on all paths (since Linux 5.16).
    pub verified_instructions: u32,
    /// Bytes of BPF instructions as loaded.
    pub translated_bytes: u32,
    /// Bytes of machine code.
    pub jited_bytes: u32,
}

impl Kernel {
    /// All attached programs, by name. A figure that the kernel does not report is 0.
    #[must_use]
    pub fn profile(&self) -> Vec<ProgramProfile> {
        let attached = |name: &str| self.states.get(name) == Some(&ProgramState::Attached);
        let mut profiles: Vec<_> = self
            .ebpf
            .programs()
            .filter(|(name, _)| attached(name))
            .filter_map(|(name, program)| {
                let info = program.info().ok()?;
                let ProgramStatistics { runs, run_time_ns, .. } = ProgramStatistics::of(program);
                Some(ProgramProfile {
                    name: name.to_owned(),
                    runs,
                    run_time_ns,
                    verified_instructions: info.verified_instruction_count().unwrap_or(0),
                    translated_bytes: info.size_translated().unwrap_or(0),
                    jited_bytes: info.size_jitted(),
                })
            })
            .collect();
        profiles.sort_by(|one, other| one.name.cmp(&other.name));
        profiles
    }
}
