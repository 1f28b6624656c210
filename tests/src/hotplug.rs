//! CPUs that are taken offline.

use std::fs;
use std::path::PathBuf;

use crate::trial;

/// A CPU that a test switches. It is online again when this is dropped.
#[derive(Debug)]
pub struct Cpu {
    switch: PathBuf,
}

impl Cpu {
    /// Takes a CPU offline.
    ///
    /// # Errors
    /// Outside guests, and when the kernel does not let it go; the reason is a sentence.
    pub fn offline(cpu: u32) -> Result<Self, String> {
        if !trial::in_guest() {
            return Err(
                "takes a CPU from everybody: done in guests only (OBSERVER_TEST_GUEST=1)".into()
            );
        }
        let switch = PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}/online"));
        match fs::write(&switch, "0") {
            Ok(()) => Ok(Self { switch }),
            Err(error) => Err(format!("cannot switch {}: {error}", switch.display())),
        }
    }

    /// Switches it on or off.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn switch(&self, on: bool) {
        fs::write(&self.switch, if on { "1" } else { "0" })
            .expect("the CPU could be switched before");
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        let _ = fs::write(&self.switch, "1");
    }
}
