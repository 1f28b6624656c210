//! Places in user-space binaries. The cookie of the link says which place was reached.

use aya_ebpf::{
    EbpfContext, helpers::bpf_get_attach_cookie, macros::uprobe, programs::ProbeContext,
};

use crate::{atomic, emit, maps::UPROBE_CALLS};

/// Counts the calls of the target by place. It runs in every process that executes the binary.
#[uprobe]
fn uprobe_call(ctx: ProbeContext) {
    if !emit::is_target(ctx.tgid()) {
        return;
    }
    // SAFETY: the context is the one that the kernel called this program with.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    let Ok(index) = u32::try_from(cookie) else { return };
    if let Some(calls) = UPROBE_CALLS.get_ptr_mut(index) {
        atomic::add(calls, 1);
    }
}
