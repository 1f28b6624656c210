//! How much CPU time an answer takes, and how much memory: of a run with so many requests, of which all are matched
//! and have an account, and whose threads were stalled, so that their queues are replayed.
//!
//! The run is made up: threads of a pool answer a request every 50 µs. Prints one line of JSON.

use std::fs;
use std::process::ExitCode;

use clap::Parser;
use observer::clock::MonoNanos;
use observer::correlate::{Evidence, Quality, analyse, choose};
use observer::model::{
    Cause, Extra, REQUESTS_LISTED_MAX, RequestSelection, Sample, ServerRequest, SlowSpec, Stall,
    Tgid, Tid,
};
use rustix::time::{ClockId, clock_gettime};

const US: u64 = 1_000;
const MS: u64 = 1_000 * US;
/// A request comes so often, nanoseconds.
const GAP: u64 = 50 * US;

/// Measures one answer.
#[derive(Parser)]
struct Args {
    /// Requests of the run
    #[arg(long, default_value_t = 100_000)]
    requests: u64,
    /// Threads that answer them
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..))]
    threads: u64,
}

/// A run.
#[derive(Default)]
struct Made {
    samples: Vec<Sample>,
    requests: Vec<ServerRequest>,
    stalls: Vec<Stall>,
}

impl Made {
    fn stall(&mut self, tid: u32, cause: Cause, start: u64, end: u64) {
        self.stalls.push(Stall {
            start: MonoNanos(start),
            end: MonoNanos(end),
            tid: Tid(tid),
            tgid: Tgid(1),
            cpu: 0,
            holder: None,
            extra: Extra::Object(tid % 4),
            row: None,
            cause,
        });
    }

    /// Each thread sleeps until a request comes, and may have to wait for a CPU. Few requests are slow: their
    /// threads wait longer.
    fn new(requests: u64, threads: u64) -> Self {
        let mut made = Self::default();
        let mut free = vec![0u64; threads as usize];
        for number in 0..requests {
            let begin = number * GAP;
            let arrival = begin + 20 * US;
            if number % 20 == 1 {
                made.wake_in_vain(number, begin, &mut free);
            }
            let place = (number * 7_919 % threads) as usize;
            let tid = place as u32 + 1;
            if free[place] < arrival {
                made.stall(tid, Cause::SERVICE_WAIT, free[place], arrival);
            }
            let mut now = arrival.max(free[place]);
            let mut passes = |made: &mut Self, cause: Cause, ns: u64| {
                made.stall(tid, cause, now, now + ns);
                now += ns;
            };
            match number % 10 {
                0 => passes(&mut made, Cause::RUNQUEUE_OTHER, 40 * US),
                5 => passes(&mut made, Cause::RUNQUEUE_SELF, 30 * US),
                _ => {}
            }
            if number % 777 == 0 {
                passes(&mut made, Cause::RUNQUEUE_OTHER, 20 * MS);
            }
            let (read, answer) = (now + 5 * US, now + 200 * US);
            free[place] = answer;
            made.add(number, (begin, arrival, read, answer), tid);
        }
        made
    }

    /// A thread that has time is woken, waits for a CPU, and finds nothing to do.
    fn wake_in_vain(&mut self, number: u64, now: u64, free: &mut [u64]) {
        let place = (number * 31 + 5) as usize % free.len();
        let (tid, since) = (place as u32 + 1, free[place]);
        if since + MS < now {
            self.stall(tid, Cause::SERVICE_WAIT, since, now);
            self.stall(tid, Cause::RUNQUEUE_OTHER, now, now + 100 * US);
            free[place] = now + 100 * US;
        }
    }

    fn add(&mut self, number: u64, (begin, arrival, read, answer): (u64, u64, u64, u64), tid: u32) {
        let port = 10_000 + (number % 50_000) as u16;
        self.samples.push(Sample {
            intended_start: Some(MonoNanos(begin)),
            start: MonoNanos(begin),
            end: MonoNanos(answer + 20 * US),
            precision_ns: 1,
            status: Some(200),
            ok: true,
            error: None,
            seq: Some(number),
            local_port: Some(port),
        });
        self.requests.push(ServerRequest {
            arrival: Some(MonoNanos(arrival)),
            read: MonoNanos(read),
            first_send: Some(MonoNanos(answer)),
            last_send: Some(MonoNanos(answer)),
            tgid: Tgid(1),
            reader: Tid(tid),
            sender: Tid(tid),
            is_unix: false,
            local_port: 80,
            remote_port: port,
            bytes_in: 100,
            bytes_out: 1_000,
        });
    }
}

/// Most memory that this process has had since [`forget_peak`], in bytes.
fn peak_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

fn forget_peak() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// CPU time of this process so far, seconds.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Seconds of CPU time that something took, and bytes beyond what there was before.
fn measured<T>(run: impl FnOnce() -> T) -> Option<(T, f64, u64)> {
    let before = forget_peak().then(peak_bytes)??;
    let started = cpu_seconds();
    let result = run();
    let seconds = cpu_seconds() - started;
    Some((result, seconds, peak_bytes()?.saturating_sub(before)))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let made = Made::new(args.requests, args.threads);
    let evidence = Evidence {
        window: (MonoNanos(0), MonoNanos(args.requests * GAP + 100 * MS)),
        outgoing: &[],
        samples: &made.samples,
        requests: &made.requests,
        stalls: &made.stalls,
        slow: SlowSpec::default(),
        quality: Quality { sleeps_watched: true, ..Quality::default() },
    };
    let selection =
        RequestSelection { requests: REQUESTS_LISTED_MAX, slower_than_ns: None, at_ns: None };
    let answered = measured(|| analyse(&evidence));
    let listed = measured(|| choose(&evidence, &selection));
    let (Some((answer, answer_seconds, answer_bytes)), Some((list, list_seconds, list_bytes))) =
        (answered, listed)
    else {
        eprintln!("the memory of this process cannot be read");
        return ExitCode::FAILURE;
    };
    let figures = serde_json::json!({
        "requests": args.requests,
        "stalls": made.stalls.len(),
        "matched": answer.requests.matched,
        "has_account": answer.account_ns.is_some(),
        "is_replayed": answer.without_named.is_some(),
        "listed": list.requests.len(),
        "answer_seconds": answer_seconds,
        "answer_bytes": answer_bytes,
        "list_seconds": list_seconds,
        "list_bytes": list_bytes,
    });
    println!("{figures}");
    ExitCode::SUCCESS
}
