//! Finds out how each probe works on this kernel, by attaching it.

use std::collections::BTreeMap;

use super::report::{ProbeReport, TierReport, TierState};
use crate::kernel::{Choice, Kernel, LoadOptions, RING_BYTES, ThreadPlaces};
use crate::model::{Coverage, ProbeState};
use crate::probe::{PROBES, Probe, ProbeOptions};

fn tiers(probe: &Probe, choice: &Choice) -> Vec<TierReport> {
    let report = |(tier, offer): &(&crate::probe::Tier, Result<(), String>)| {
        let (state, why) = match offer {
            _ if choice.tier == Some(tier) => (TierState::Taken, tier.about.to_owned()),
            Ok(()) => (TierState::Offered, tier.about.to_owned()),
            Err(why) => (TierState::NotOffered, why.clone()),
        };
        let (cost, runs_at) = (probe.cost_class(tier).name(), probe.runs_at(tier));
        TierReport { tier: tier.name.into(), state, cost, runs_at, why }
    };
    choice.offers.iter().map(report).collect()
}

fn report(probe: &Probe, coverage: Coverage, tiers: Vec<TierReport>) -> ProbeReport {
    let Coverage { state, tier, reason, .. } = coverage;
    ProbeReport { probe: probe.name.into(), tier, state, reason, tiers }
}

/// `struct bpf_insn` (include/uapi/linux/bpf.h).
const INSTRUCTION_BYTES: u32 = 8;

/// The results of trying.
#[derive(Debug, Default)]
pub(super) struct Tried {
    pub(super) probes: Vec<ProbeReport>,
    /// Messages of the verifier, by program.
    pub(super) verifier_logs: BTreeMap<String, String>,
    /// Instructions of each attached program after verification.
    pub(super) programs: BTreeMap<String, u32>,
    /// Where the programs kept what they know about each thread, and the member that they lacked on
    /// the way to its cgroup.
    pub(super) loaded: Option<(ThreadPlaces, Option<String>)>,
    /// Why the kernel refused everything, if a privilege was missing.
    pub(super) refused: Option<String>,
}

/// Attaches every selected probe and detaches it again.
pub(super) fn try_all(probes: &ProbeOptions) -> Tried {
    let options = LoadOptions {
        has_target: true,
        ring_bytes: RING_BYTES,
        probes: probes.clone(),
        by_cgroup: true,
    };
    match Kernel::attach(&options) {
        Ok(kernel) => {
            let mut coverage = kernel.coverage();
            let probes = PROBES
                .into_iter()
                .filter_map(|probe| {
                    let choice = kernel.choice(probe.name);
                    let tiers = choice.map(|choice| tiers(probe, choice)).unwrap_or_default();
                    Some(report(probe, coverage.remove(probe.name)?, tiers))
                })
                .collect();
            let verifier_logs = kernel
                .verifier_logs()
                .map(|(program, log)| (program.to_owned(), log.to_owned()))
                .collect();
            let programs = kernel
                .profile()
                .into_iter()
                .map(|program| (program.name, program.translated_bytes / INSTRUCTION_BYTES))
                .collect();
            let missing = kernel.cgroup_member_missing().map(str::to_owned);
            let loaded = Some((kernel.thread_places().clone(), missing));
            Tried { probes, verifier_logs, programs, loaded, refused: None }
        }
        Err(error) => {
            let coverage = Coverage {
                state: ProbeState::Failed,
                tier: None,
                reason: Some(error.to_string()),
                detached: None,
            };
            let report = |probe| report(probe, coverage.clone(), Vec::new());
            let refused = error.is_permission().then(|| error.to_string());
            let probes = PROBES.into_iter().map(report).collect();
            Tried { probes, refused, ..Tried::default() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tier_is_taken_offered_or_says_why_not() {
        let probe = PROBES[1];
        let refused = Err("no BTF".to_owned());
        let offers = probe.tiers.iter().enumerate();
        let offers = offers
            .map(|(index, tier)| (tier, if index == 0 { refused.clone() } else { Ok(()) }))
            .collect();
        let choice = Choice { tier: Some(&probe.tiers[1]), offers, refused: Vec::new() };
        let tiers = tiers(probe, &choice);
        let states: Vec<TierState> = tiers.iter().map(|tier| tier.state).collect();
        assert_eq!(states[..3], [TierState::NotOffered, TierState::Taken, TierState::Offered]);
        assert_eq!(tiers[0].why, "no BTF");
        assert_eq!(tiers[1].why, probe.tiers[1].about);
    }
}
