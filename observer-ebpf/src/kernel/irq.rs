//! Handlers of hard interrupts.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use observer_ebpf::wire::COMM_LEN;

use super::Pointer;
use crate::config;

/// Name of the handler of a device's interrupt (`struct irqaction` at this address), as in /proc/interrupts, cut
/// and NUL padded; empty where the kernel does not tell.
#[inline(always)]
pub(crate) fn interrupt_name(action: u64) -> [u8; COMM_LEN] {
    let mut name = [0; COMM_LEN];
    if config::off_irqaction_name() == 0 {
        return name;
    }
    let action = Pointer { address: action as *const u8, typed: false };
    let text: u64 = action.load(config::off_irqaction_name());
    // SAFETY: the helper checks the address, and writes at most as many bytes as there are. What lies behind the end
    // of the text stays 0, and a text that cannot be read is empty.
    unsafe {
        bpf_probe_read_kernel_str(name.as_mut_ptr().cast(), COMM_LEN as u32, text as *const _);
    }
    name
}
