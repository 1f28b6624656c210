//! Settings of the kernel that a test changes for a while.

use std::fs;

use crate::Result;

/// A number below `/proc/sys`, which gets its value back when this is dropped.
pub struct Sysctl {
    path: String,
    before: String,
}

impl Sysctl {
    /// Sets it; `name` is its path below `/proc/sys`.
    ///
    /// # Errors
    /// When it cannot be read or set.
    pub fn set(name: &str, number: u64) -> Result<Self> {
        Self::change(name, |_| Some(number))
    }

    /// Raises it to `number`, if it is lower.
    ///
    /// # Errors
    /// When it cannot be read or set.
    pub fn at_least(name: &str, number: u64) -> Result<Self> {
        Self::change(name, |before| before.filter(|now| *now < number).map(|_| number))
    }

    fn change(name: &str, to: impl FnOnce(Option<u64>) -> Option<u64>) -> Result<Self> {
        let path = format!("/proc/sys/{name}");
        let failed = |error: std::io::Error| format!("{path}: {error}");
        let before = fs::read_to_string(&path).map_err(failed)?.trim().to_owned();
        if let Some(number) = to(before.parse().ok()) {
            fs::write(&path, number.to_string()).map_err(failed)?;
        }
        Ok(Self { path, before })
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        if let Err(error) = fs::write(&self.path, &self.before) {
            eprintln!("cannot put {} back to {}: {error}", self.path, self.before);
        }
    }
}
