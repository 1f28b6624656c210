//! Handlers of hard interrupts.

use observer_ebpf::wire::COMM_LEN;

use super::{Pointer, name_at};
use crate::config;

/// Name of the handler of a device's interrupt (`struct irqaction` at this address), as in /proc/interrupts, cut
/// and NUL padded; empty where the kernel does not tell.
#[inline(always)]
pub(crate) fn interrupt_name(action: u64) -> [u8; COMM_LEN] {
    if config::off_irqaction_name() == 0 {
        return [0; COMM_LEN];
    }
    let action = Pointer { address: action as *const u8, typed: false };
    name_at(action.load(config::off_irqaction_name()))
}
