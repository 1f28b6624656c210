//! Files with one `name number` a line: /proc/vmstat, memory.stat, cpu.stat.

use std::collections::BTreeMap;
use std::path::Path;

use crate::Result;

/// All lines of such a file at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flat(BTreeMap<String, u64>);

impl Flat {
    /// Reads a file.
    ///
    /// # Errors
    /// When it is unreadable.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        Ok(Self::parse(&text))
    }

    /// `/proc/vmstat`: the whole host.
    ///
    /// # Errors
    /// When it is unreadable.
    pub fn vmstat() -> Result<Self> {
        Self::read(Path::new("/proc/vmstat"))
    }

    fn parse(text: &str) -> Self {
        let line = |line: &str| {
            let (name, number) = line.split_once(' ')?;
            Some((name.to_owned(), number.trim().parse().ok()?))
        };
        Self(text.lines().filter_map(line).collect())
    }

    /// One line; `None` where this kernel has none of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }

    /// Sum of the lines whose names begin so; `None` where there is none.
    #[must_use]
    pub fn sum(&self, prefix: &str) -> Option<u64> {
        let mut found = self.0.iter().filter(|(name, _)| name.starts_with(prefix)).peekable();
        found.peek()?;
        Some(found.map(|(_, number)| number).sum())
    }

    /// What came since `earlier`, line by line. Counters only.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let difference = |(name, number): (&String, &u64)| {
            (name.clone(), number.saturating_sub(earlier.get(name).unwrap_or_default()))
        };
        Self(self.0.iter().map(difference).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_summed_and_subtracted() {
        let earlier = Flat::parse("pgfault 10\nallocstall_dma 1\nallocstall_normal 2\n");
        let later = Flat::parse("pgfault 25\nallocstall_dma 1\nallocstall_normal 7\nother x\n");
        let since = later.since(&earlier);
        assert_eq!(since.get("pgfault"), Some(15));
        assert_eq!(since.sum("allocstall_"), Some(5));
        assert_eq!((since.get("other"), since.sum("compact_")), (None, None));
    }
}
