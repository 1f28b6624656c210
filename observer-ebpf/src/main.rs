//! The BPF object: licence and panic handler. Programs live in `probe`, one file a family.
#![no_std]
#![no_main]
// Entry points take their context by value: that is what the macros of aya-ebpf expect.
#![allow(clippy::needless_pass_by_value)]
// Inline assembly for BPF is not stable yet; see `atomic`.
#![feature(asm_experimental_arch)]

mod atomic;
mod burst;
mod config;
mod emit;
mod histogram;
mod kernel;
mod log;
mod maps;
mod probe;
mod task;

/// Never reached: nothing here panics, and the verifier would refuse an endless loop.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Dual, because most helpers used here are GPL-only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
