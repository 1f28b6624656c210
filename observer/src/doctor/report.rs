//! The findings of the doctor, as text and JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::error::Exit;
use crate::model::ProbeState;

/// Version of the JSON form. Keys may be added within a version, never renamed.
const DOCTOR_SCHEMA: u32 = 1;

/// State of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Good, or not important.
    Ok,
    /// Works with less detail or at a higher cost.
    Limited,
    /// Not available.
    Missing,
    /// Cannot be determined.
    Unknown,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        }
    }
}

/// Why `observer run` does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocks {
    /// A privilege is missing.
    Permission,
    /// The kernel lacks a required feature.
    Kernel,
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Stable name.
    pub id: &'static str,
    /// Its state.
    pub state: State,
    /// What was found.
    pub value: String,
    /// What that means for observer.
    pub means: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub todo: Option<String>,
    /// Why this prevents `observer run`, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Blocks>,
}

/// State of one tier of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TierState {
    /// The probe uses it.
    Taken,
    /// Available (`--tier` forces it), but worse than the one in use.
    Offered,
    /// Not available.
    NotOffered,
}

/// One tier of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TierReport {
    /// Its name.
    pub tier: String,
    /// Whether it is available.
    pub state: TierState,
    /// Its class of cost: `low`, `medium` or `high`.
    pub cost: &'static str,
    /// The event at which it costs something.
    pub runs_at: &'static str,
    /// How it works, or why it is not available.
    pub why: String,
}

/// How one probe works on this kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProbeReport {
    /// Name.
    pub probe: String,
    /// Tier it uses.
    pub tier: Option<String>,
    /// Whether it works.
    pub state: ProbeState,
    /// Why it does not work, or only partly.
    pub reason: Option<String>,
    /// All its tiers, the best first.
    pub tiers: Vec<TierReport>,
}

/// Everything the doctor found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    schema: u32,
    /// Whether `observer run` works.
    pub run_would_work: bool,
    /// Exit code of `observer doctor` (and of `observer run`, if it does not work).
    pub exit_code: u8,
    /// Why it does not work; empty if it does.
    pub blocked_by: Vec<String>,
    /// Host and kernel.
    pub checks: Vec<Check>,
    /// Probes.
    pub probes: Vec<ProbeReport>,
    /// Messages of the kernel's verifier about rejected programs, by program.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub verifier_logs: BTreeMap<String, String>,
    /// Instructions of each attached program after verification, which removes the parts of shared
    /// programs that no probe asked for.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub programs: BTreeMap<String, u32>,
}

impl Report {
    /// Draws the conclusion. Missing privileges come before missing kernel features, which cannot be
    /// determined without privileges.
    #[must_use]
    pub fn new(checks: Vec<Check>, probes: Vec<ProbeReport>) -> Self {
        let mut blocks: Vec<(Blocks, String)> = checks
            .iter()
            .filter_map(|check| Some((check.blocks?, format!("{}: {}", check.id, check.value))))
            .collect();
        let works =
            |probe: &ProbeReport| matches!(probe.state, ProbeState::Attached | ProbeState::Partial);
        if blocks.is_empty() && !probes.is_empty() && !probes.iter().any(works) {
            let why = probes[0].reason.as_deref().unwrap_or("no probe can be attached");
            blocks.push((Blocks::Kernel, format!("probes: {why}")));
        }
        blocks.sort();
        let exit_code = match blocks.first() {
            None => 0,
            Some((Blocks::Permission, _)) => Exit::Permission as u8,
            Some((Blocks::Kernel, _)) => Exit::Kernel as u8,
        };
        Self {
            schema: DOCTOR_SCHEMA,
            run_would_work: blocks.is_empty(),
            exit_code,
            blocked_by: blocks.into_iter().map(|(_, why)| why).collect(),
            checks,
            probes,
            verifier_logs: BTreeMap::new(),
            programs: BTreeMap::new(),
        }
    }

    /// The exit code, if `observer run` does not work.
    #[must_use]
    pub const fn exit(&self) -> Option<Exit> {
        match self.exit_code {
            0 => None,
            code if code == Exit::Permission as u8 => Some(Exit::Permission),
            _ => Some(Exit::Kernel),
        }
    }

    /// Human-readable text. It explains the lines that are not ok, and all lines when `verbose`.
    #[must_use]
    pub fn text(&self, verbose: bool) -> String {
        let mut out = String::new();
        let width = self.checks.iter().map(|check| check.id.len()).max().unwrap_or(0);
        for check in &self.checks {
            let _ =
                writeln!(out, "{:<8} {:<width$}  {}", check.state.name(), check.id, check.value);
            if verbose || check.state != State::Ok {
                let _ = writeln!(out, "{:<8} {:<width$}  {}", "", "", check.means);
            }
            if let Some(todo) = &check.todo {
                let _ = writeln!(out, "{:<8} {:<width$}  -> {todo}", "", "");
            }
        }
        self.write_probes(&mut out, verbose);
        for (program, log) in self.verifier_logs.iter().filter(|_| verbose) {
            let _ = write!(out, "\nverifier log of {program}\n");
            for line in log.lines() {
                let _ = writeln!(out, "{:<8} {line}", "");
            }
        }
        out.push('\n');
        if self.run_would_work {
            out.push_str("`observer run` works on this host.\n");
        } else {
            out.push_str("`observer run` does not work on this host:\n");
            for why in &self.blocked_by {
                let _ = writeln!(out, "  {why}");
            }
        }
        out
    }

    fn write_probes(&self, out: &mut String, verbose: bool) {
        let width = self.probes.iter().map(|probe| probe.probe.len()).max().unwrap_or(0);
        if !self.probes.is_empty() {
            out.push_str("\nprobes\n");
        }
        // A reason that applies to all probes is printed once.
        let mut said = None;
        for probe in &self.probes {
            let state = match probe.state {
                ProbeState::Attached => "ok",
                ProbeState::Partial => "limited",
                ProbeState::Unsupported => "missing",
                ProbeState::Failed => "failed",
                ProbeState::NotAsked => "off",
                ProbeState::Unknown => "unknown",
            };
            let tier = probe.tier.as_deref().unwrap_or("-");
            let taken = probe.tiers.iter().find(|tier| tier.state == TierState::Taken);
            let cost = taken.map_or_else(String::new, |taken| {
                format!("; {} cost, at every {}", taken.cost, taken.runs_at)
            });
            let _ = writeln!(out, "{state:<8} {:<width$}  {tier}{cost}", probe.probe);
            if let Some(reason) = probe.reason.as_ref().filter(|reason| said != Some(*reason)) {
                let _ = writeln!(out, "{:<8} {:<width$}  {reason}", "", "");
                said = Some(reason);
            }
            // Without -v only the better tiers, which explain the choice.
            for tier in &probe.tiers {
                if tier.state == TierState::Taken && !verbose {
                    break;
                }
                let (name, why, cost) = (&tier.tier, &tier.why, tier.cost);
                let how = match tier.state {
                    TierState::Taken => "uses",
                    TierState::Offered => "could use",
                    TierState::NotOffered => "cannot use",
                };
                let _ =
                    writeln!(out, "{:<8} {:<width$}  {how} {name} ({cost} cost): {why}", "", "");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(id: &'static str, blocks: Option<Blocks>) -> Check {
        let state = if blocks.is_some() { State::Missing } else { State::Ok };
        let todo = blocks.map(|_| "do this".to_owned());
        Check { id, state, value: "v".into(), means: "m".into(), todo, blocks }
    }

    fn tier(name: &str, state: TierState, why: &str) -> TierReport {
        let (cost, runs_at) = ("medium", "context switch");
        TierReport { tier: name.into(), state, cost, runs_at, why: why.into() }
    }

    fn probe(state: ProbeState) -> ProbeReport {
        ProbeReport {
            probe: "runqueue".into(),
            tier: (state == ProbeState::Attached).then(|| "tp_btf".to_owned()),
            state,
            reason: None,
            tiers: vec![
                tier("fentry", TierState::NotOffered, "refused"),
                tier("tp_btf", TierState::Taken, "typed"),
                tier("raw", TierState::Offered, "untyped"),
            ],
        }
    }

    #[test]
    fn the_exit_code_is_that_of_the_first_thing_to_be_fixed() {
        let exit = |checks, probes| Report::new(checks, probes).exit_code;
        let (permission, kernel) = (Some(Blocks::Permission), Some(Blocks::Kernel));
        assert_eq!(exit(vec![check("a", None)], vec![]), 0);
        assert_eq!(exit(vec![check("a", kernel)], vec![]), 4);
        assert_eq!(exit(vec![check("a", kernel), check("b", permission)], vec![]), 3);
        assert_eq!(exit(vec![], vec![probe(ProbeState::Failed)]), 4);
        let one_of_two = vec![probe(ProbeState::Unsupported), probe(ProbeState::Attached)];
        assert_eq!(exit(vec![], one_of_two), 0);
    }

    #[test]
    fn the_text_says_what_to_do_and_the_json_keeps_its_keys() {
        let report = Report::new(
            vec![check("fine", None), check("broken", Some(Blocks::Kernel))],
            vec![probe(ProbeState::Attached)],
        );
        assert_eq!(
            report.text(false),
            "\
ok       fine    v
missing  broken  v
                 m
                 -> do this

probes
ok       runqueue  tp_btf; medium cost, at every context switch
                   cannot use fentry (medium cost): refused

`observer run` does not work on this host:
  broken: v
"
        );
        let verbose = report.text(true);
        assert!(verbose.starts_with("ok       fine    v\n                 m\n"));
        assert!(verbose.contains("uses tp_btf (medium cost): typed\n"), "{verbose}");
        assert!(verbose.contains("could use raw (medium cost): untyped\n"), "{verbose}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "schema": 1, "run_would_work": false, "exit_code": 4, "blocked_by": ["broken: v"],
                "checks": [
                    {"id": "fine", "state": "ok", "value": "v", "means": "m"},
                    {"id": "broken", "state": "missing", "value": "v", "means": "m",
                     "todo": "do this", "blocks": "kernel"},
                ],
                "probes": [{"probe": "runqueue", "tier": "tp_btf", "state": "attached",
                            "reason": null, "tiers": [
                    {"tier": "fentry", "state": "not_offered", "cost": "medium",
                     "runs_at": "context switch", "why": "refused"},
                    {"tier": "tp_btf", "state": "taken", "cost": "medium",
                     "runs_at": "context switch", "why": "typed"},
                    {"tier": "raw", "state": "offered", "cost": "medium",
                     "runs_at": "context switch", "why": "untyped"},
                ]}],
            })
        );
    }
}
