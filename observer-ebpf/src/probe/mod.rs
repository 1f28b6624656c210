//! The programs, one file for each family. A program is one or two lines: the work is done in a
//! function that the programs of all tiers share.

/// Declares a tracepoint's two programs: the one whose arguments the verifier types (tp_btf), and
/// the one for a kernel without BTF of its own (raw_tp). Both call the function of the same
/// [`Arguments`](crate::kernel::Arguments).
macro_rules! tracepoint_programs {
    ($($(#[$doc:meta])* $typed:ident, $raw:ident => $body:path;)*) => {$(
        $(#[$doc])*
        #[aya_ebpf::macros::btf_tracepoint]
        fn $typed(ctx: aya_ebpf::programs::BtfTracePointContext) {
            $body(crate::kernel::Arguments::typed(&ctx));
        }

        $(#[$doc])*
        #[aya_ebpf::macros::raw_tracepoint]
        fn $raw(ctx: aya_ebpf::programs::RawTracePointContext) {
            $body(crate::kernel::Arguments::raw(&ctx));
        }
    )*};
}

mod connections;
mod fault;
mod generator;
mod irq;
mod kernel_lock;
mod ran_instead;
mod reclaim;
mod request;
mod runqueue;
mod sleep;
mod socket;
mod softirq;
mod stack;
mod syscall;
mod task;
mod throttle;
mod turns;
mod uprobe;
