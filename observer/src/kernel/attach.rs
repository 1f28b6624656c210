//! Attaching the programs, each by itself: one that this kernel refuses is a line of coverage.

use std::collections::BTreeMap;
use std::fs::File;

use aya::programs::perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent};
use aya::programs::{
    BtfTracePoint, CgroupAttachMode, CgroupSock, PerfEvent, Program as AyaProgram, ProgramError,
    TracePoint,
};

use super::btf::Btf;
use super::load::Loaded;
use rustix::mount::MountFlags;

use crate::host::system;
use crate::model::{Coverage, ProbeState};
use crate::probe::{Attach, Need, PROBES, Program, Tier};

/// What became of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramState {
    /// Loaded and attached.
    Attached,
    /// This kernel does not offer the hook; why.
    Unsupported(String),
    /// The kernel offers it and refused; why.
    Failed {
        /// One line.
        reason: String,
        /// What the verifier said, if it was the verifier.
        verifier_log: Option<String>,
    },
}

/// States of all programs, by program name.
pub type ProgramStates = BTreeMap<&'static str, ProgramState>;

/// The tier of each probe this kernel gets, by probe name.
pub(super) type ChosenTiers = BTreeMap<&'static str, &'static Tier>;

/// Whether tracefs is there; mounts it where it belongs if it is not.
fn tracefs() -> bool {
    const MOUNT_POINT: &str = "/sys/kernel/tracing";
    if system::tracefs().is_none() {
        // A failure shows right below.
        let _ = rustix::mount::mount(
            "tracefs",
            MOUNT_POINT,
            "tracefs",
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            None,
        );
    }
    system::tracefs().is_some()
}

/// The first tier of each probe whose needs this kernel meets.
pub(super) fn choose_tiers(btf: &Btf) -> ChosenTiers {
    let tracefs = tracefs();
    let meets = |need: &Need| match need {
        Need::Tracefs => tracefs,
        Need::Tracepoint(name) => btf.tracepoint_arguments(name).is_some(),
        Need::Member(structure, path) => btf.offset_of(structure, path).is_ok(),
    };
    PROBES
        .iter()
        .filter_map(|probe| {
            let tier = probe.tiers.iter().find(|tier| tier.needs.iter().all(meets))?;
            Some((probe.name, tier))
        })
        .collect()
}

/// Loads and attaches every program of the chosen tiers once, in table order.
pub(super) fn attach_all(loaded: &mut Loaded, tiers: &ChosenTiers) -> ProgramStates {
    let mut states = ProgramStates::new();
    let chosen = PROBES.iter().filter_map(|probe| tiers.get(probe.name));
    for program in chosen.flat_map(|tier| tier.programs) {
        if !states.contains_key(program.name) {
            let state = attach(loaded, program);
            states.insert(program.name, state);
        }
    }
    states
}

fn attach(loaded: &mut Loaded, program: &Program) -> ProgramState {
    if let Attach::TpBtf(name, arguments) = program.attach {
        match loaded.btf.tracepoint_arguments(name) {
            None => return ProgramState::Unsupported(format!("no tracepoint {name}")),
            Some(offered) if offered < arguments => {
                return ProgramState::Unsupported(format!(
                    "tracepoint {name} has {offered} arguments here, {arguments} are needed"
                ));
            }
            Some(_) => {}
        }
    }
    match try_attach(loaded, program) {
        Ok(()) => ProgramState::Attached,
        Err(AttachError::Unsupported(reason)) => ProgramState::Unsupported(reason),
        Err(AttachError::Missing) => {
            let reason = format!("{}: not in the BPF object", program.name);
            ProgramState::Failed { reason, verifier_log: None }
        }
        Err(AttachError::Program(error)) => failed(program, &error),
    }
}

enum AttachError {
    Unsupported(String),
    Missing,
    Program(Box<ProgramError>),
}

impl From<ProgramError> for AttachError {
    fn from(error: ProgramError) -> Self {
        Self::Program(Box::new(error))
    }
}

fn try_attach(loaded: &mut Loaded, program: &Program) -> Result<(), AttachError> {
    let handle = loaded.ebpf.program_mut(program.name).ok_or(AttachError::Missing)?;
    match program.attach {
        Attach::TpBtf(tracepoint, _) => {
            let handle: &mut BtfTracePoint = handle.try_into()?;
            handle.load(tracepoint, &loaded.aya_btf)?;
            handle.attach()?;
        }
        Attach::Syscalls(_, prefix, calls) => {
            let handle: &mut TracePoint = handle.try_into()?;
            handle.load()?;
            for call in calls {
                let name = format!("{prefix}_{call}");
                // A kernel without the system call has no tracepoint of it either.
                if system::tracefs()
                    .is_some_and(|at| at.join("events/syscalls").join(&name).exists())
                {
                    handle.attach("syscalls", &name)?;
                }
            }
        }
        Attach::PerfMinorFaults => every_cpu(handle, SoftwareEvent::PageFaultsMin)?,
        Attach::PerfMajorFaults => every_cpu(handle, SoftwareEvent::PageFaultsMaj)?,
        Attach::CgroupSockCreate | Attach::CgroupSockRelease => {
            let root = loaded
                .cgroups
                .unified_mount_point()
                .ok_or_else(|| AttachError::Unsupported("cgroup v2 is not mounted".into()))?;
            let root = File::open(root).map_err(|error| {
                AttachError::Unsupported(format!("cannot open {}: {error}", root.display()))
            })?;
            let handle: &mut CgroupSock = handle.try_into()?;
            handle.load()?;
            // A link always lets others attach too; asking for it by flag is an error.
            handle.attach(root, CgroupAttachMode::Single)?;
        }
    }
    Ok(())
}

/// One event per online CPU, sampling every single fault.
fn every_cpu(handle: &mut AyaProgram, event: SoftwareEvent) -> Result<(), AttachError> {
    let handle: &mut PerfEvent = handle.try_into()?;
    handle.load()?;
    for cpu in system::online_cpus() {
        handle.attach(
            PerfEventConfig::Software(event),
            PerfEventScope::AllProcessesOneCpu { cpu },
            SamplePolicy::Period(1),
            false,
        )?;
    }
    Ok(())
}

fn failed(program: &Program, error: &ProgramError) -> ProgramState {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        let reason = format!("{} at {}: {error}", program.name, program.attach.hook());
        return ProgramState::Failed { reason, verifier_log: None };
    };
    let log = verifier_log.to_string();
    // The last line is statistics; the one before says what was wrong.
    let said = log
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| {
            !line.is_empty()
                && !line.starts_with("processed ")
                && !line.contains("verification time")
        })
        .unwrap_or("no verifier output");
    let reason = format!("{}: {io_error} ({said})", program.name);
    ProgramState::Failed { reason, verifier_log: Some(log) }
}

/// Coverage of a probe from the states of its tier's programs.
#[must_use]
pub fn coverage(tier: &Tier, states: &ProgramStates) -> Coverage {
    let mut tiers: Vec<&str> = Vec::new();
    let mut reasons: Vec<String> = Vec::new();
    let mut failed = false;
    for program in tier.programs {
        match states.get(program.name) {
            Some(ProgramState::Attached) => {
                if !tiers.contains(&program.attach.tier()) {
                    tiers.push(program.attach.tier());
                }
            }
            Some(ProgramState::Unsupported(reason)) => {
                reasons.push(format!("no {}: {reason}", program.gives));
            }
            Some(ProgramState::Failed { reason, .. }) => {
                failed = true;
                reasons.push(format!("no {}: {reason}", program.gives));
            }
            None => reasons.push(format!("no {}: not tried", program.gives)),
        }
    }
    let state = match (reasons.is_empty(), tiers.is_empty(), failed) {
        (true, ..) => ProbeState::Attached,
        (false, false, _) => ProbeState::Partial,
        (false, true, true) => ProbeState::Failed,
        (false, true, false) => ProbeState::Unsupported,
    };
    Coverage {
        state,
        tier: (!tiers.is_empty()).then(|| tiers.join("+")),
        reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(of: &Tier, state: impl Fn(usize) -> ProgramState) -> ProgramStates {
        of.programs.iter().enumerate().map(|(index, one)| (one.name, state(index))).collect()
    }

    #[test]
    fn coverage_tells_whole_part_none_and_refused_apart() {
        let probe = &PROBES[2].tiers[1];
        let missing = || ProgramState::Unsupported("no tracepoint x".into());
        let refused =
            || ProgramState::Failed { reason: "EPERM".into(), verifier_log: Some("log".into()) };

        let whole = coverage(probe, &states(probe, |_| ProgramState::Attached));
        assert_eq!(whole.state, ProbeState::Attached);
        assert_eq!(whole.tier.as_deref(), Some("tp_btf+perf_event"));
        assert_eq!(whole.reason, None);

        let part = coverage(
            probe,
            &states(probe, |index| if index == 0 { refused() } else { ProgramState::Attached }),
        );
        assert_eq!(part.state, ProbeState::Partial);
        assert!(part.reason.unwrap().contains("EPERM"));

        assert_eq!(coverage(probe, &states(probe, |_| missing())).state, ProbeState::Unsupported);
        assert_eq!(coverage(probe, &states(probe, |_| refused())).state, ProbeState::Failed);
    }
}
