//! Pressure stall information (Documentation/accounting/psi.rst).

use std::path::Path;

use crate::Result;

/// Total stall times of one resource, microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Time in which at least one task of the group stalled.
    pub some_us: u64,
    /// Time in which every task of the group that had work stalled.
    pub full_us: u64,
}

impl Pressure {
    /// Reads `cpu.pressure`, `memory.pressure` or one of /proc/pressure.
    ///
    /// # Errors
    /// When the kernel has none, or was started without `psi=1`.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let total = |kind: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(kind)?.rsplit_once("total=")?.1.parse().ok())
        };
        let some_us = total("some ").ok_or_else(|| format!("{} has no total", path.display()))?;
        // Before Linux 5.13 there is no "full" for the CPU.
        Ok(Self { some_us, full_us: total("full ").unwrap_or_default() })
    }

    /// What came since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            some_us: self.some_us.saturating_sub(earlier.some_us),
            full_us: self.full_us.saturating_sub(earlier.full_us),
        }
    }
}
