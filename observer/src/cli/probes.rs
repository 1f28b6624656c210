//! Which probes are attached: options that several subcommands share.

use std::path::PathBuf;

use crate::error::{Error, Exit, Result};
use crate::probe::{ForcedTier, PROBES, ProbeOptions, Selection};

/// Options about the probes.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ProbeArgs {
    #[arg(long, value_name = "NAME,...", help = probes_help())]
    /// The probes to attach.
    pub probes: Option<Selection>,
    /// Attach a probe by this tier instead of the best one (fault=perf_event); `observer doctor`
    /// lists them
    #[arg(long, value_name = "PROBE=TIER")]
    pub tier: Vec<ForcedTier>,
    /// BTF of the running kernel, for one that was built without: raw, or vmlinux with debug
    /// information. Tiers that need the kernel's own are then not taken
    #[arg(long, value_name = "FILE")]
    pub btf: Option<PathBuf>,
}

impl ProbeArgs {
    /// What clap cannot see: a tier of a probe that is left out.
    ///
    /// # Errors
    /// When there is one.
    pub fn check(&self) -> Result<()> {
        let options = self.options();
        match options.tiers.beside(options.selection) {
            None => Ok(()),
            Some(probe) => Err(Error::new(
                Exit::Usage,
                format!("--tier is for {probe}, which --probes leaves out: name it there as well"),
            )),
        }
    }

    /// What was chosen; everything, in the best way, when nothing was.
    #[must_use]
    pub fn options(&self) -> ProbeOptions {
        ProbeOptions {
            selection: self.probes.unwrap_or_default(),
            tiers: self.tier.iter().copied().collect(),
            btf: self.btf.clone(),
        }
    }
}

fn probes_help() -> String {
    let names: Vec<_> = PROBES.iter().map(|probe| probe.name).collect();
    format!(
        "Attach these probes only ({}); what follows a target is attached with any [default: all]",
        names.join(", ")
    )
}
