//! Options about the probes, which several subcommands share.

use std::path::PathBuf;

use crate::error::{Error, Exit, Result};
use crate::probe::{ForcedTier, PROBES, Probe, ProbeOptions, Selection, ThreadState};

/// Options about the probes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ProbeArgs {
    #[arg(long, value_name = "NAME,...", help = probes_help())]
    /// The probes to attach.
    pub probes: Option<Selection>,
    /// Attach a probe by this tier instead of the best one (fault=perf_event); `observer doctor -v`
    /// lists the tiers
    #[arg(long, value_name = "PROBE=TIER")]
    pub tier: Vec<ForcedTier>,
    /// BTF file for a kernel without BTF of its own: raw BTF, or vmlinux with debug information.
    /// Tiers that need the kernel's own BTF are then not available
    #[arg(long, value_name = "FILE")]
    pub btf: Option<PathBuf>,
    /// Where to keep the state of threads, for tests and the benchmark: auto, tables or storage
    #[arg(long, value_name = "PLACE", hide = true)]
    pub thread_state: Option<ThreadState>,
}

impl ProbeArgs {
    /// Checks what clap cannot check.
    ///
    /// # Errors
    /// When there is a tier for a probe that is not selected.
    pub fn check(&self) -> Result<()> {
        let options = self.options();
        match options.tiers.beside(options.selection) {
            None => Ok(()),
            Some(probe) => Err(Error::new(
                Exit::Usage,
                format!(
                    "--tier names the probe {probe}, which --probes does not select: add it to --probes"
                ),
            )),
        }
    }

    /// The chosen probes and tiers; by default the usual probes, each by its best tier.
    #[must_use]
    pub fn options(&self) -> ProbeOptions {
        ProbeOptions {
            selection: self.probes.unwrap_or_default(),
            tiers: self.tier.iter().copied().collect(),
            btf: self.btf.clone(),
            thread_state: self.thread_state.unwrap_or_default(),
        }
    }
}

fn probes_help() -> String {
    let names = |probes: &mut dyn Iterator<Item = &Probe>| {
        probes.map(|probe| probe.name).collect::<Vec<_>>().join(", ")
    };
    let off = names(&mut PROBES.into_iter().filter(|probe| probe.off_by_default.is_some()));
    let usual = if off.is_empty() { "all".to_owned() } else { format!("all but {off}") };
    format!(
        "Attach only these probes ({}); `all` stands for all of them, `default` for the usual ones, with \
         request and sleep in a run that reads samples. \
         The probe that follows the target is always attached [default: {usual}]",
        names(&mut PROBES.into_iter())
    )
}
