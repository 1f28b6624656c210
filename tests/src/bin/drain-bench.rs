//! How fast records reach user space: made at ever higher rates by all CPUs, drained meanwhile,
//! until some are lost. The result is measured directly: it is the highest rate that was sustained
//! for a whole step without loss.
//!
//! Every madvise(2) of this process becomes a record (floor 0). The drain decodes each of them, as
//! `observer run` does; nothing is written.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use observer::kernel::{Kernel, LoadOptions, RING_BYTES};
use observer::probe;
use observer_ebpf::wire::RecordKind;

/// Makes records at ever higher rates and drains them.
#[derive(Parser)]
struct Args {
    /// How long each rate is kept up, seconds
    #[arg(long, default_value_t = 1.0)]
    step_seconds: f64,
    /// First rate, records a second
    #[arg(long, default_value_t = 100_000.0)]
    first_hz: f64,
    /// Each rate is this much of the last
    #[arg(long, default_value_t = 1.25)]
    factor: f64,
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

/// The task of the producers.
#[derive(Default)]
struct Orders {
    /// Records a second, each.
    rate_hz: AtomicU64,
    stop: AtomicBool,
}

/// madvise(2) on one page, at the rate asked for, evenly in bursts of a few.
fn produce(orders: &Orders) {
    const BURST: u64 = 64;
    const CATCH_UP: Duration = Duration::from_millis(100);
    // SAFETY: a private mapping of this thread's own, used nowhere else; advice that changes
    // nothing.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let page = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0);
        let mut due = Instant::now();
        while !orders.stop.load(Ordering::Relaxed) {
            let rate_hz = orders.rate_hz.load(Ordering::Relaxed);
            let now = Instant::now();
            if rate_hz == 0 || now < due {
                std::hint::spin_loop();
                continue;
            }
            for _ in 0..BURST {
                libc::madvise(page, 4096, libc::MADV_NORMAL);
            }
            due += Duration::from_secs_f64(BURST as f64 / rate_hz as f64);
            // Short times without a CPU are compensated for, long ones are not: the result is the
            // rate that was measured.
            due = due.max(now.checked_sub(CATCH_UP).unwrap_or(now));
        }
    }
}

/// What the drain did so far.
#[derive(Default)]
struct Drained {
    records: AtomicU64,
    undecoded: AtomicU64,
    wakeups: AtomicU64,
    cpu_ns: AtomicU64,
}

fn drain(mut ring: observer::kernel::Ring, stop: &AtomicBool, drained: &Drained) {
    loop {
        let last = stop.load(Ordering::Relaxed);
        let (mut count, mut undecoded) = (0, 0);
        // In pieces, so that the count is fresh even when the ring never runs empty.
        ring.drain(8_192, |record| match probe::decode(record) {
            Ok(event) => {
                std::hint::black_box(&event);
                count += 1;
            }
            Err(_) => undecoded += 1,
        });
        drained.records.fetch_add(count, Ordering::Relaxed);
        drained.undecoded.fetch_add(undecoded, Ordering::Relaxed);
        drained.cpu_ns.store(thread_cpu().as_nanos() as u64, Ordering::Relaxed);
        if count + undecoded == 8_192 {
            continue;
        }
        if last {
            return;
        }
        ring.wait(Duration::from_millis(10));
        drained.wakeups.fetch_add(1, Ordering::Relaxed);
    }
}

/// Rates, one after the other, until one loses records or no more can be made.
struct Ramp {
    sustained_hz: f64,
    until_loss: bool,
}

fn ramp(args: &Args, kernel: &Kernel, orders: &Orders, producers: usize) -> Result<Ramp, String> {
    let kinds = observer_ebpf::wire::KIND_SLOTS;
    let read = || {
        let counts = kernel.counts();
        let sum = |words: &[u64]| words[..kinds].iter().sum::<u64>();
        (sum(&counts.emitted), sum(&counts.lost))
    };
    let mut found = Ramp { sustained_hz: 0.0, until_loss: false };
    let mut wanted_hz = args.first_hz;
    let mut short = 0;
    loop {
        orders.rate_hz.store((wanted_hz / producers as f64) as u64, Ordering::Relaxed);
        let (before, lost_before) = read();
        let begun = Instant::now();
        std::thread::sleep(Duration::from_secs_f64(args.step_seconds));
        let (after, lost_after) = read();
        let made_hz =
            (after - before + lost_after - lost_before) as f64 / begun.elapsed().as_secs_f64();
        eprintln!("asked {wanted_hz:.0}/s, made {made_hz:.0}/s, lost {}", lost_after - lost_before);
        if lost_after > lost_before {
            found.until_loss = true;
            return Ok(found);
        }
        found.sustained_hz = found.sustained_hz.max(made_hz);
        // Another process may have had the CPUs for a step.
        short = if made_hz < 0.7 * wanted_hz { short + 1 } else { 0 };
        if short == 5 {
            return Ok(found);
        }
        wanted_hz *= args.factor;
    }
}

fn measure(args: &Args) -> Result<String, String> {
    let options = LoadOptions {
        has_target: true,
        ring_bytes: RING_BYTES,
        probes: probe::ProbeOptions::default(),
        by_cgroup: false,
    };
    let mut kernel = Kernel::attach(&options).map_err(|error| error.to_string())?;
    kernel.set_floor_ns(RecordKind::MmSyscall, 0);
    let ring = kernel.take_ring().ok_or("the ring is taken")?;
    kernel.targets().set(std::process::id(), true);
    let (orders, stop, drained) =
        (Arc::new(Orders::default()), Arc::new(AtomicBool::new(false)), Arc::<Drained>::default());
    let drainer = {
        let (stop, drained) = (Arc::clone(&stop), Arc::clone(&drained));
        std::thread::spawn(move || drain(ring, &stop, &drained))
    };
    // All CPUs make records: the drain has to find its time between them, as it has to on a host
    // that is busy.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let producers: Vec<_> = (0..cpus)
        .map(|cpu| {
            let orders = Arc::clone(&orders);
            std::thread::spawn(move || {
                pin(cpu);
                produce(&orders);
            })
        })
        .collect();
    let found = ramp(args, &kernel, &orders, cpus);
    orders.stop.store(true, Ordering::Relaxed);
    for producer in producers {
        producer.join().map_err(|_| "a producer failed")?;
    }
    kernel.forget_targets();
    stop.store(true, Ordering::Relaxed);
    drainer.join().map_err(|_| "the drain failed")?;
    let Ramp { sustained_hz, until_loss } = found?;
    let counts = kernel.counts();
    let emitted: u64 = counts.emitted.iter().sum();
    let lost: u64 = counts.lost[..observer_ebpf::wire::KIND_SLOTS].iter().sum();
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let (delivered, undecoded) = (of(&drained.records), of(&drained.undecoded));
    let cpu_seconds = of(&drained.cpu_ns) as f64 / 1e9;
    Ok(format!(
        "{{\"sustained_hz\": {sustained_hz:.0}, \"until_loss\": {until_loss}, \
         \"cpu_seconds_per_million\": {:.4}, \"emitted\": {emitted}, \
         \"delivered\": {delivered}, \"undecoded\": {undecoded}, \"lost\": {lost}, \
         \"wakeups\": {}}}",
        cpu_seconds * 1e6 / delivered.max(1) as f64,
        of(&drained.wakeups),
    ))
}

fn main() -> ExitCode {
    match measure(&Args::parse()) {
        Ok(figures) => {
            println!("{figures}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("drain-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
