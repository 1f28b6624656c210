//! Which probes are selected, and how they are attached.

use std::path::PathBuf;
use std::str::FromStr;

use super::{Attach, PROBES, Tier};

/// The reason shown for a probe that is not selected.
pub const NOT_ASKED_FOR: &str = "not asked for";

/// A choice among [`PROBES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Bit n stands for `PROBES[n]`.
    bits: u32,
    /// The usual probes are among them.
    is_usual: bool,
}

impl Selection {
    /// Every probe.
    pub const ALL: Self = Self { bits: u32::MAX, is_usual: false };

    const NONE: Self = Self { bits: 0, is_usual: false };

    /// Whether the probe of this name is selected.
    #[must_use]
    pub fn contains(self, name: &str) -> bool {
        position(name).is_some_and(|bit| self.bits >> bit & 1 != 0)
    }

    /// Whether a selected probe has a tier with hooks of cgroups, whose programs take a right of their
    /// own to load.
    #[must_use]
    pub fn uses_cgroup_hooks(self) -> bool {
        let chosen = PROBES.into_iter().filter(|probe| self.contains(probe.name));
        let mut programs = chosen.flat_map(|probe| probe.tiers).flat_map(|tier| tier.programs);
        programs.any(|program| {
            matches!(program.attach, Attach::CgroupSockCreate | Attach::CgroupSockRelease)
        })
    }

    /// This selection with one more probe.
    #[must_use]
    pub fn with(self, name: &str) -> Self {
        Self { bits: self.bits | position(name).map_or(0, |bit| 1 << bit), ..self }
    }

    /// This selection with one probe less.
    #[must_use]
    pub fn without(self, name: &str) -> Self {
        Self { bits: self.bits & !position(name).map_or(0, |bit| 1 << bit), ..self }
    }

    /// What a run that reads samples, or records stacks, needs besides, if the usual probes are among the selected ones: requests
    /// of the target, and what its threads do in them.
    #[must_use]
    pub fn beside_samples(self) -> Self {
        if self.is_usual { self.with("request").with("sleep") } else { self }
    }
}

impl Default for Selection {
    /// Every probe but those that have to be asked for.
    fn default() -> Self {
        let usual = PROBES.into_iter().filter(|probe| probe.off_by_default.is_none());
        let none = Self { is_usual: true, ..Self::NONE };
        usual.fold(none, |chosen, probe| chosen.with(probe.name))
    }
}

fn position(name: &str) -> Option<usize> {
    PROBES.iter().position(|probe| probe.name == name)
}

impl FromStr for Selection {
    type Err = String;

    /// From names with commas between them; `all` and `default` stand for several.
    fn from_str(names: &str) -> Result<Self, String> {
        let mut chosen = Self::NONE;
        for name in names.split(',').map(str::trim) {
            let several = match name {
                "all" => Some(Self::ALL),
                "default" => Some(Self::default()),
                _ => None,
            };
            if let Some(Self { bits, is_usual }) = several {
                chosen.bits |= bits;
                chosen.is_usual |= is_usual;
                continue;
            }
            if position(name).is_none() {
                let known: Vec<_> = PROBES.iter().map(|probe| probe.name).collect();
                let known = known.join(", ");
                return Err(format!("there is no probe '{name}'; known: {known}, all, default"));
            }
            chosen = chosen.with(name);
        }
        Ok(chosen)
    }
}

/// One tier forced on a probe: `PROBE=NAME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForcedTier {
    probe: usize,
    tier: &'static Tier,
}

impl FromStr for ForcedTier {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, tier_name) = text
            .split_once('=')
            .ok_or_else(|| format!("'{text}' is not PROBE=TIER, like runqueue=tp_btf"))?;
        let probe = position(name).ok_or_else(|| {
            let known: Vec<_> = PROBES.iter().map(|probe| probe.name).collect();
            format!("there is no probe '{name}'; known: {}", known.join(", "))
        })?;
        let tiers = PROBES[probe].tiers;
        let tier = tiers.iter().find(|tier| tier.name == tier_name).ok_or_else(|| {
            let known: Vec<_> = tiers.iter().map(|tier| tier.name).collect();
            format!("{name} has no tier '{tier_name}'; it has: {}", known.join(", "))
        })?;
        Ok(Self { probe, tier })
    }
}

/// The forced tiers. If there are several for one probe, the last one applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForcedTiers(Vec<ForcedTier>);

impl ForcedTiers {
    /// A probe that has a forced tier but is not selected.
    #[must_use]
    pub fn beside(&self, selection: Selection) -> Option<&'static str> {
        let names = self.0.iter().map(|forced| PROBES[forced.probe].name);
        names.into_iter().find(|name| !selection.contains(name))
    }

    /// The tier forced on the probe of this name.
    #[must_use]
    pub fn of(&self, name: &str) -> Option<&'static Tier> {
        let forced = self.0.iter().rfind(|forced| PROBES[forced.probe].name == name)?;
        Some(forced.tier)
    }
}

impl FromIterator<ForcedTier> for ForcedTiers {
    fn from_iter<I: IntoIterator<Item = ForcedTier>>(forced: I) -> Self {
        Self(forced.into_iter().collect())
    }
}

/// The user's choices about the probes.
#[derive(Clone, Debug, Default)]
pub struct ProbeOptions {
    /// The probes to attach.
    pub selection: Selection,
    /// Tiers to use instead of the best one.
    pub tiers: ForcedTiers,
    /// BTF of the running kernel from a file, instead of the kernel's own.
    pub btf: Option<PathBuf>,
    /// Where the programs keep what they know about each thread.
    pub thread_state: ThreadState,
}

/// Where the programs keep what they know about each thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ThreadState {
    /// In tables where no two threads can share an entry or where the path is hot; otherwise in
    /// task-local storage, if the kernel has it.
    #[default]
    Auto,
    /// In tables indexed by thread id.
    Tables,
    /// In task-local storage, if the kernel has it.
    Storage,
}

impl FromStr for ThreadState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "tables" => Ok(Self::Tables),
            "storage" => Ok(Self::Storage),
            _ => Err(format!("'{text}' is not auto, tables or storage")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_select_probes_and_unknown_names_list_them() {
        let chosen: Selection = "runqueue, fault".parse().unwrap();
        assert!(chosen.contains("runqueue") && chosen.contains("fault"));
        assert!(!chosen.contains("socket") && chosen.with("socket").contains("socket"));
        assert!(PROBES.iter().all(|probe| Selection::ALL.contains(probe.name)));
        assert_eq!("all".parse(), Ok(Selection::ALL));
        assert_eq!("default".parse(), Ok(Selection::default()));
        for probe in PROBES {
            let usual = Selection::default().contains(probe.name);
            assert_eq!(usual, probe.off_by_default.is_none(), "{}", probe.name);
            let more: Selection = format!("default,{}", probe.name).parse().unwrap();
            assert_eq!(more, Selection::default().with(probe.name));
        }
        for wrong in ["", "runqueue,", "faults"] {
            let error = wrong.parse::<Selection>().unwrap_err();
            assert!(PROBES.iter().all(|probe| error.contains(probe.name)), "{error}");
        }
    }

    #[test]
    fn tiers_are_forced_by_name_and_unknown_names_list_them() {
        let parse = |text: &str| text.parse::<ForcedTier>();
        let forced: ForcedTiers = ["fault=perf_event", "fault=kprobe", "task=raw_tracepoint"]
            .map(|one| parse(one).unwrap())
            .into_iter()
            .collect();
        assert_eq!(forced.of("fault").unwrap().name, "kprobe");
        assert_eq!(forced.of("task").unwrap().name, "raw_tracepoint");
        assert_eq!(forced.of("socket"), None);
        assert!(parse("fault").unwrap_err().contains("PROBE=TIER"));
        assert!(parse("faults=fentry").unwrap_err().contains("runqueue"));
        assert!(parse("fault=uprobe").unwrap_err().contains("perf_event"));
    }
}
