//! How fast records reach user space: one CPU makes as many as it can, another drains them.
//!
//! Every madvise(2) of this process becomes a record (floor 0). What the drain could sustain is
//! the records it decoded per second of its own CPU time; nothing may be lost meanwhile.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use observer::kernel::{Kernel, LoadOptions, RING_BYTES};
use observer::probe;
use observer_ebpf::wire::RecordKind;

/// Makes records at full speed and drains them.
#[derive(Parser)]
struct Args {
    /// How long, seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// CPU that makes the records
    #[arg(long, default_value_t = 0)]
    producer_cpu: usize,
    /// CPU that drains them
    #[arg(long, default_value_t = 1)]
    drain_cpu: usize,
}

fn pin(cpu: usize) {
    // SAFETY: an all-zero set is a valid empty one; the call reads it only.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
    }
}

fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the struct it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// madvise(2) on one page until told to stop.
fn produce(stop: &AtomicBool) {
    // SAFETY: a private mapping of this thread's own, used nowhere else; advice that changes
    // nothing.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0);
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..256 {
                libc::madvise(page, 4096, libc::MADV_NORMAL);
            }
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let options = LoadOptions { has_target: true, ring_bytes: RING_BYTES };
    let mut kernel = match Kernel::attach(options) {
        Ok(kernel) => kernel,
        Err(error) => {
            eprintln!("drain-bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    kernel.set_floor_ns(RecordKind::MmSyscall, 0);
    let Some(mut ring) = kernel.take_ring() else { return ExitCode::FAILURE };
    kernel.targets().set(std::process::id(), true);
    let enough = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(AtomicBool::new(false));
    let delivered = Arc::new(AtomicU64::new(0));
    let drain = {
        let (stop, delivered) = (Arc::clone(&stop), Arc::clone(&delivered));
        std::thread::spawn(move || {
            pin(args.drain_cpu);
            let mut undecoded = 0u64;
            loop {
                let last = stop.load(Ordering::Relaxed);
                let mut count = 0;
                ring.drain(usize::MAX, |record| match probe::decode(record) {
                    Ok(event) => {
                        std::hint::black_box(&event);
                        count += 1;
                    }
                    Err(_) => undecoded += 1,
                });
                delivered.fetch_add(count, Ordering::Relaxed);
                if last {
                    return (thread_cpu(), undecoded);
                }
                ring.wait(Duration::from_millis(10));
            }
        })
    };
    let start = Instant::now();
    let producer = {
        let enough = Arc::clone(&enough);
        std::thread::spawn(move || {
            pin(args.producer_cpu);
            produce(&enough);
        })
    };
    std::thread::sleep(Duration::from_secs(args.seconds));
    enough.store(true, Ordering::Relaxed);
    let _ = producer.join();
    let elapsed = start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    let Ok((cpu, undecoded)) = drain.join() else { return ExitCode::FAILURE };
    let Ok(counts) = kernel.counts() else { return ExitCode::FAILURE };
    let lost: u64 = counts.lost[..observer_ebpf::wire::KIND_SLOTS].iter().sum();
    let emitted: u64 = counts.emitted.iter().sum();
    let delivered = delivered.load(Ordering::Relaxed);
    println!(
        "{{\"emitted\": {emitted}, \"delivered\": {delivered}, \"undecoded\": {undecoded}, \
         \"lost\": {lost}, \"seconds\": {elapsed:.3}, \"rate_hz\": {:.0}, \
         \"drain_cpu_seconds\": {:.3}, \"capacity_hz\": {:.0}}}",
        delivered as f64 / elapsed,
        cpu.as_secs_f64(),
        delivered as f64 / cpu.as_secs_f64().max(1e-9),
    );
    ExitCode::SUCCESS
}
