//! What each probe would do on this kernel: by attaching it.

use super::report::{NotBetter, ProbeReport};
use crate::kernel::support::{KernelSupport, Support};
use crate::kernel::{Kernel, LoadOptions, RING_BYTES};
use crate::model::{Coverage, ProbeState};
use crate::probe::{Attach, PROBES, Probe};

/// The best tier there could be for a hook, where it is not the hook itself. At a tracepoint that
/// sits where the stall begins or ends nothing is cheaper than a BTF-typed program; system calls
/// by number, perf events and cgroup hooks are detours around kernel functions.
const fn better_tier(attach: Attach) -> Option<&'static str> {
    match attach {
        Attach::TpBtf(name, _) if is_system_call(name) => Some("fentry"),
        Attach::TpBtf(..) => None,
        Attach::PerfMinorFaults
        | Attach::PerfMajorFaults
        | Attach::CgroupSockCreate
        | Attach::CgroupSockRelease
        | Attach::Syscalls(..) => Some("fentry"),
    }
}

const fn is_system_call(tracepoint: &str) -> bool {
    matches!(tracepoint.as_bytes(), b"sys_enter" | b"sys_exit")
}

fn not_better(probe: &Probe, support: &KernelSupport) -> Vec<NotBetter> {
    let mut tiers: Vec<&str> = probe
        .tiers
        .iter()
        .take(1)
        .flat_map(|tier| tier.programs)
        .filter_map(|program| better_tier(program.attach))
        .collect();
    tiers.sort_unstable();
    tiers.dedup();
    let why = match &support.fentry {
        Support::Yes => "offered by this kernel, not used by this version of observer".to_owned(),
        Support::No(why) | Support::Unknown(why) => why.clone(),
    };
    tiers.into_iter().map(|tier| NotBetter { tier: tier.into(), why: why.clone() }).collect()
}

fn report(probe: &Probe, coverage: Coverage, support: &KernelSupport) -> ProbeReport {
    let Coverage { state, tier, reason } = coverage;
    let not_better = not_better(probe, support);
    ProbeReport { probe: probe.name.into(), tier, state, reason, not_better }
}

/// Attaches every probe and detaches it again.
pub(super) fn try_all(support: &KernelSupport) -> Vec<ProbeReport> {
    match Kernel::attach(LoadOptions { has_target: true, ring_bytes: RING_BYTES }) {
        Ok(kernel) => {
            let mut coverage = kernel.coverage();
            PROBES
                .into_iter()
                .filter_map(|probe| Some(report(probe, coverage.remove(probe.name)?, support)))
                .collect()
        }
        Err(error) => {
            let coverage =
                Coverage { state: ProbeState::Failed, tier: None, reason: Some(error.to_string()) };
            PROBES.into_iter().map(|probe| report(probe, coverage.clone(), support)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_detours_have_a_better_tier() {
        let refused = KernelSupport {
            ring_buffer: Support::Yes,
            tp_btf: Support::Yes,
            fentry: Support::No("refused".into()),
            kprobe: Support::Yes,
            perf_event: Support::Yes,
            cgroup_sock: Support::Yes,
        };
        let tiers = |name: &str| {
            let probe = PROBES.into_iter().find(|probe| probe.name == name).unwrap();
            not_better(probe, &refused)
        };
        assert_eq!(tiers("runqueue"), []);
        assert_eq!(tiers("reclaim"), []);
        let fentry = NotBetter { tier: "fentry".into(), why: "refused".into() };
        for probe in ["fault", "mm_syscall", "socket"] {
            assert_eq!(tiers(probe), std::slice::from_ref(&fentry), "{probe}");
        }
        let offered = KernelSupport { fentry: Support::Yes, ..refused };
        assert!(not_better(PROBES[2], &offered)[0].why.contains("not used"));
    }
}
