//! Attaching the programs one by one: a program that this kernel refuses is reported as
//! unsupported.

use std::collections::BTreeMap;

use aya::programs::perf_event::SoftwareEvent;
use aya::programs::{
    BtfTracePoint, CgroupSock, FEntry, FExit, KProbe, PerfEvent, Program as AyaProgram,
    ProgramError, RawTracePoint, TracePoint,
};

use observer_ebpf::wire::CallExit;

use super::links::Site;
use super::load::{LoadError, LoadOptions, Loaded};
use super::offers::{Offered, function, tracepoint};
use crate::host::system;
use crate::model::{Coverage, ProbeState};
use crate::probe::{Attach, PROBES, Program, Tier};

/// The state of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramState {
    /// Loaded and attached.
    Attached,
    /// This kernel does not need it.
    NotNeeded,
    /// This kernel does not offer the hook, for this reason.
    Unsupported(String),
    /// The kernel offers the hook but refused the program, for this reason.
    Failed {
        /// One line.
        reason: String,
        /// What the verifier said, if it was the verifier.
        verifier_log: Option<String>,
    },
}

/// States of all programs, by program name.
pub type ProgramStates = BTreeMap<&'static str, ProgramState>;

/// How one probe was attached.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The tier taken.
    pub tier: Option<&'static Tier>,
    /// All its tiers, the best first; `Err` says why a tier cannot be used.
    pub offers: Vec<(&'static Tier, Result<(), String>)>,
    /// Better tiers whose programs the kernel refused, and why.
    pub refused: Vec<(&'static Tier, String)>,
}

/// Choices by probe name.
pub(super) type Choices = BTreeMap<&'static str, Choice>;

/// Attaches each selected probe by the best tier that the kernel offers and whose programs it
/// accepts. If the kernel accepts no tier completely, uses what it accepts of the best one.
///
/// # Errors
/// When a forced tier is not available.
pub(super) fn attach_probes(
    loaded: &mut Loaded,
    options: &LoadOptions,
) -> Result<(Choices, ProgramStates), LoadError> {
    let offered = Offered::by(loaded);
    let mut states = ProgramStates::new();
    let mut choices = Choices::new();
    let selection = options.selection();
    for probe in PROBES.iter().filter(|probe| selection.contains(probe.name)) {
        let offers = offered.tiers(&loaded.btf, &loaded.offsets, probe);
        let mut choice = Choice { tier: None, offers, refused: Vec::new() };
        if let Some(forced) = options.probes.tiers.of(probe.name) {
            let offer = choice.offers.iter().find(|(tier, _)| *tier == forced);
            if let Some((_, Err(reason))) = offer {
                let reason = reason.clone();
                return Err(LoadError::Tier { probe: probe.name, tier: forced.name, reason });
            }
            attach_tier(loaded, forced, &mut states);
            choice.tier = Some(forced);
        } else {
            choose(loaded, &mut choice, &mut states);
        }
        choices.insert(probe.name, choice);
    }
    Ok((choices, states))
}

/// Attaches each probe by the tier that was taken before.
pub(super) fn attach_choices(loaded: &mut Loaded, choices: &Choices) -> ProgramStates {
    let mut states = ProgramStates::new();
    for tier in choices.values().filter_map(|choice| choice.tier) {
        attach_tier(loaded, tier, &mut states);
    }
    states
}

/// The first tier of which the kernel accepts all programs.
fn choose(loaded: &mut Loaded, choice: &mut Choice, states: &mut ProgramStates) {
    let Choice { offers, refused, tier: taken } = choice;
    for (tier, offer) in offers {
        if offer.is_err() {
            continue;
        }
        let tier: &'static Tier = tier;
        let attached = attach_tier(loaded, tier, states);
        let refusal = tier.programs.iter().find_map(|program| match states.get(program.name) {
            Some(ProgramState::Failed { reason, .. }) => Some(reason.clone()),
            _ => None,
        });
        let Some(refusal) = refusal else {
            *taken = Some(tier);
            return;
        };
        refused.push((tier, refusal.clone()));
        *offer = Err(refusal);
        // No program of an unused tier may run beside the tier in use.
        for program in attached {
            detach(loaded, program);
            states.remove(program);
        }
    }
    // No tier is complete; the states of the best one's programs show what the kernel refused.
    if let Some((tier, _)) = refused.drain(..).next() {
        attach_tier(loaded, tier, states);
        *taken = Some(tier);
    }
}

/// Attaches the programs that are not attached yet, one by one, and returns the names of those that
/// are attached now.
fn attach_tier(loaded: &mut Loaded, tier: &Tier, states: &mut ProgramStates) -> Vec<&'static str> {
    let mut attached = Vec::new();
    for program in tier.programs {
        if states.contains_key(program.name) {
            continue;
        }
        let state = attach(loaded, program);
        if state == ProgramState::Attached {
            attached.push(program.name);
        } else {
            // Removes the links made before the failure (for some of several calls).
            detach(loaded, program.name);
        }
        states.insert(program.name, state);
    }
    attached
}

/// Which program at the exit of all system calls counts for the socket probe: the one of its own
/// tier, because a program of another probe's tier may be attached as well.
pub(super) fn descriptor_calls_at(socket: Option<&Choice>, states: &ProgramStates) -> CallExit {
    let programs = socket.and_then(|choice| choice.tier).map_or(&[][..], |tier| tier.programs);
    let serves = |name: &str| {
        states.get(name) == Some(&ProgramState::Attached)
            && programs.iter().any(|program| program.name == name)
    };
    if serves("sys_exit") {
        CallExit::Typed
    } else if serves("sys_exit_raw") {
        CallExit::Raw
    } else {
        CallExit::None
    }
}

/// Unloads a program with its links.
fn detach(loaded: &mut Loaded, name: &str) {
    loaded.links.forget(name);
    // It fails only where nothing is loaded.
    let _ = match loaded.ebpf.program_mut(name) {
        Some(AyaProgram::FEntry(program)) => program.unload(),
        Some(AyaProgram::FExit(program)) => program.unload(),
        Some(AyaProgram::BtfTracePoint(program)) => program.unload(),
        Some(AyaProgram::RawTracePoint(program)) => program.unload(),
        Some(AyaProgram::KProbe(program)) => program.unload(),
        Some(AyaProgram::TracePoint(program)) => program.unload(),
        Some(AyaProgram::PerfEvent(program)) => program.unload(),
        Some(AyaProgram::CgroupSock(program)) => program.unload(),
        _ => Ok(()),
    };
}

fn attach(loaded: &mut Loaded, program: &Program) -> ProgramState {
    if let Some((structure, path)) = program.only_with
        && loaded.btf.offset_of(structure, path).is_err()
    {
        return ProgramState::NotNeeded;
    }
    let available = match program.attach {
        Attach::TpBtf(name, arguments) | Attach::RawTracepoint(name, arguments) => {
            tracepoint(&loaded.btf, name, arguments)
        }
        Attach::Fentry(name) | Attach::Fexit(name) => function(&loaded.btf, name),
        _ => Ok(()),
    };
    if let Err(reason) = available {
        return ProgramState::Unsupported(reason);
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
    let sites = match program.attach {
        Attach::Fentry(function) => {
            let own_btf = own_btf(loaded.own_btf.as_ref())?;
            <&mut FEntry>::try_from(&mut *handle)?.load(function, own_btf)?;
            vec![Site::Own]
        }
        Attach::Fexit(function) => {
            let own_btf = own_btf(loaded.own_btf.as_ref())?;
            <&mut FExit>::try_from(&mut *handle)?.load(function, own_btf)?;
            vec![Site::Own]
        }
        Attach::TpBtf(tracepoint, _) => {
            let own_btf = own_btf(loaded.own_btf.as_ref())?;
            <&mut BtfTracePoint>::try_from(&mut *handle)?.load(tracepoint, own_btf)?;
            vec![Site::Own]
        }
        Attach::RawTracepoint(tracepoint, _) => {
            <&mut RawTracePoint>::try_from(&mut *handle)?.load()?;
            vec![Site::RawTracepoint(tracepoint)]
        }
        Attach::Kprobe(functions) | Attach::Kretprobe(functions) => {
            <&mut KProbe>::try_from(&mut *handle)?.load()?;
            // If the kernel lacks one of several system calls, it has no function for it either.
            let there = functions.iter().filter(|name| function(&loaded.btf, name).is_ok());
            there.map(|name| Site::Function(name)).collect()
        }
        Attach::Syscalls(_, prefix, calls) => {
            <&mut TracePoint>::try_from(&mut *handle)?.load()?;
            // If the kernel lacks the system call, it has no tracepoint for it either.
            let is_there = |name: &String| {
                system::tracefs().is_some_and(|at| at.join("events/syscalls").join(name).exists())
            };
            let names = calls.iter().map(|call| format!("{prefix}_{call}"));
            names.filter(is_there).map(Site::Syscall).collect()
        }
        Attach::PerfMinorFaults => {
            <&mut PerfEvent>::try_from(&mut *handle)?.load()?;
            vec![Site::EveryCpu(SoftwareEvent::PageFaultsMin)]
        }
        Attach::PerfMajorFaults => {
            <&mut PerfEvent>::try_from(&mut *handle)?.load()?;
            vec![Site::EveryCpu(SoftwareEvent::PageFaultsMaj)]
        }
        Attach::CgroupSockCreate | Attach::CgroupSockRelease => {
            let root = loaded
                .cgroups
                .unified_mount_point()
                .ok_or_else(|| AttachError::Unsupported("cgroup v2 is not mounted".into()))?;
            <&mut CgroupSock>::try_from(&mut *handle)?.load()?;
            vec![Site::Cgroup(root.to_owned())]
        }
    };
    Ok(loaded.links.add(handle, program.name, sites)?)
}

fn own_btf<'a>(own: Result<&'a aya::Btf, &String>) -> Result<&'a aya::Btf, AttachError> {
    own.map_err(|reason| AttachError::Unsupported(reason.clone()))
}

fn failed(program: &Program, error: &ProgramError) -> ProgramState {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        let reason = format!("{} at {}: {error}", program.name, program.attach.hook());
        return ProgramState::Failed { reason, verifier_log: None };
    };
    let log = verifier_log.to_string();
    // The error is the last line before the statistics (`print_verification_stats`,
    // kernel/bpf/verifier.c).
    let statistics = |line: &str| {
        ["verification time ", "stack depth ", "processed "]
            .iter()
            .any(|head| line.starts_with(head))
    };
    let said = log.lines().map(str::trim).rfind(|line| !line.is_empty() && !statistics(line));
    let said = said.unwrap_or("no verifier output");
    let reason = format!("{}: {io_error} ({said})", program.name);
    ProgramState::Failed { reason, verifier_log: Some(log) }
}

/// Coverage of a probe from its choice of a tier and the states of that tier's programs.
#[must_use]
pub fn coverage(choice: &Choice, states: &ProgramStates) -> Coverage {
    let Some(tier) = choice.tier else {
        let reasons: Vec<String> = choice
            .offers
            .iter()
            .filter_map(|(tier, offer)| {
                Some(format!("not {}: {}", tier.name, offer.as_ref().err()?))
            })
            .collect();
        let reason = Some(reasons.join("; "));
        return Coverage { state: ProbeState::Unsupported, tier: None, reason, detached: None };
    };
    let mut attached = false;
    let mut reasons: Vec<String> = Vec::new();
    let mut failed = false;
    for program in tier.programs {
        match states.get(program.name) {
            Some(ProgramState::Attached) => attached = true,
            Some(ProgramState::NotNeeded) => {}
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
    let whole = reasons.is_empty();
    let better = choice.refused.iter().map(|(tier, reason)| format!("not {}: {reason}", tier.name));
    reasons.extend(better);
    let state = match (whole, attached, failed) {
        (true, ..) => ProbeState::Attached,
        (false, true, _) => ProbeState::Partial,
        (false, false, true) => ProbeState::Failed,
        (false, false, false) => ProbeState::Unsupported,
    };
    Coverage {
        state,
        tier: attached.then(|| tier.name.to_owned()),
        reason: (!reasons.is_empty()).then(|| reasons.join("; ")),
        detached: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn states(of: &Tier, state: impl Fn(usize) -> ProgramState) -> ProgramStates {
        of.programs.iter().enumerate().map(|(index, one)| (one.name, state(index))).collect()
    }

    #[test]
    fn descriptor_calls_are_counted_once() {
        let socket = PROBES.iter().find(|probe| probe.name == "socket").expect("it is there");
        let by = |name: &str| Choice {
            tier: socket.tiers.iter().find(|tier| tier.name == name),
            offers: Vec::new(),
            refused: Vec::new(),
        };
        let both: ProgramStates =
            [("sys_exit", ProgramState::Attached), ("sys_exit_raw", ProgramState::Attached)].into();
        for (tier, here) in [
            ("tp_btf", CallExit::Typed),
            ("raw_tracepoint", CallExit::Raw),
            ("fentry", CallExit::None),
            ("kprobe", CallExit::None),
        ] {
            assert_eq!(descriptor_calls_at(Some(&by(tier)), &both), here, "{tier}");
        }
        let raw = [("sys_exit_raw", ProgramState::Attached)].into();
        assert_eq!(descriptor_calls_at(None, &raw), CallExit::None);
    }

    #[test]
    fn coverage_distinguishes_complete_partial_none_and_refused() {
        let tier = &PROBES[2].tiers[1];
        let choice = Choice { tier: Some(tier), offers: vec![(tier, Ok(()))], refused: Vec::new() };
        let missing = || ProgramState::Unsupported("no tracepoint x".into());
        let refused =
            || ProgramState::Failed { reason: "EPERM".into(), verifier_log: Some("log".into()) };

        let whole = coverage(&choice, &states(tier, |_| ProgramState::Attached));
        assert_eq!(whole.state, ProbeState::Attached);
        assert_eq!(whole.tier.as_deref(), Some("tp_btf"));
        assert_eq!(whole.reason, None);

        let first_refused = |index| if index == 0 { refused() } else { ProgramState::Attached };
        let part = coverage(&choice, &states(tier, first_refused));
        assert_eq!(part.state, ProbeState::Partial);
        assert!(part.reason.unwrap().contains("EPERM"));

        let of = |state: &dyn Fn() -> ProgramState| coverage(&choice, &states(tier, |_| state()));
        assert_eq!(of(&missing).state, ProbeState::Unsupported);
        assert_eq!(of(&refused).state, ProbeState::Failed);

        let offers = vec![(tier, Err("no BTF".into()))];
        let none = Choice { tier: None, offers, refused: Vec::new() };
        let none = coverage(&none, &ProgramStates::new());
        assert_eq!(none.state, ProbeState::Unsupported);
        assert_eq!(none.reason.as_deref(), Some("not tp_btf: no BTF"));
    }
}
