//! Small workloads whose effect on the kernel's books is known to the last count.
//!
//! Each prints `ready`, waits for a line (so that an observer can be attached), works, prints its
//! own counts as one line of JSON, and waits for the end of its input before it exits (so that
//! `/proc` can still be read). Nothing is going on while it waits.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, Barrier};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use observer_tests::mapping::{Mapping, PAGE_BYTES};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::{Value, json};

/// Workloads whose counts are known.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    work: Work,
}

#[derive(Subcommand)]
enum Work {
    /// Minor faults: touches every page of a fresh mapping.
    MinorFaults {
        #[arg(long, default_value_t = 20_000)]
        pages: usize,
    },
    /// Major faults: maps a file whose pages were dropped from the cache.
    MajorFaults {
        /// Made, of this many pages, on a disk.
        #[arg(long)]
        file: PathBuf,
        #[arg(long, default_value_t = 500)]
        pages: usize,
    },
    /// mmap, mprotect, madvise, mremap, brk and munmap.
    MemoryCalls {
        #[arg(long, default_value_t = 1000)]
        rounds: usize,
    },
    /// TCP and UDP sockets, opened, connected, accepted; half of them closed again.
    Sockets {
        #[arg(long, default_value_t = 50)]
        pairs: usize,
    },
    /// Two threads that wake each other through pipes.
    PingPong {
        #[arg(long, default_value_t = 20_000)]
        rounds: usize,
    },
    /// More threads than CPUs: all on one.
    Contend {
        #[arg(long, default_value_t = 4)]
        threads: usize,
        #[arg(long, default_value_t = 2000)]
        ms: u64,
        #[arg(long, default_value_t = 0)]
        cpu: usize,
    },
    /// open, socket and accept with no descriptor left.
    Descriptors {
        #[arg(long, default_value_t = 10)]
        rounds: usize,
    },
    /// Threads and processes that are born, touch memory and die.
    Churn {
        #[arg(long, default_value_t = 50)]
        threads: usize,
        #[arg(long, default_value_t = 20)]
        processes: usize,
        #[arg(long, default_value_t = 100)]
        pages: usize,
    },
    /// Reads a sparse file again and again, and maps part of it: reclaims when its memory cgroup
    /// is smaller than the file.
    Reclaim {
        /// Made sparse.
        #[arg(long)]
        file: PathBuf,
        #[arg(long, default_value_t = 64)]
        mib: usize,
        #[arg(long, default_value_t = 16)]
        rounds: usize,
    },
}

/// Waits for a line; `false` at the end of the input.
fn wait_for_go() -> io::Result<bool> {
    println!("ready");
    io::stdout().flush()?;
    let mut line = String::new();
    Ok(io::stdin().lock().read_line(&mut line)? > 0)
}

fn wait_for_end() -> io::Result<()> {
    let mut rest = Vec::new();
    io::stdin().lock().read_to_end(&mut rest).map(|_| ())
}

/// Threads that do their part between two barriers and stay until the process ends, so that
/// their books can be read.
struct Crew {
    go: Arc<Barrier>,
    done: Arc<Barrier>,
    stay: Arc<Barrier>,
    threads: Vec<JoinHandle<()>>,
}

impl Crew {
    fn hire(parts: Vec<Box<dyn FnOnce() + Send>>) -> io::Result<Self> {
        let barrier = || Arc::new(Barrier::new(parts.len() + 1));
        let (go, done, stay) = (barrier(), barrier(), barrier());
        let mut threads = Vec::new();
        for (index, part) in parts.into_iter().enumerate() {
            let (go, done, stay) = (Arc::clone(&go), Arc::clone(&done), Arc::clone(&stay));
            let work = move || {
                go.wait();
                part();
                done.wait();
                stay.wait();
            };
            threads.push(thread::Builder::new().name(format!("work-{index}")).spawn(work)?);
        }
        Ok(Self { go, done, stay, threads })
    }

    fn work(&self) {
        self.go.wait();
        self.done.wait();
    }

    fn leave(self) {
        self.stay.wait();
        for thread in self.threads {
            // A panic in a part has been printed, and the counts tell.
            let _ = thread.join();
        }
    }
}

fn minor_faults(pages: usize) -> io::Result<()> {
    let mut mapping = Mapping::anonymous(pages * PAGE_BYTES)?;
    no_huge_pages(&mapping)?;
    if wait_for_go()? {
        mapping.write_every_page();
        report(&json!({ "minor_faults": pages }))?;
    }
    wait_for_end()
}

fn no_huge_pages(mapping: &Mapping) -> io::Result<()> {
    // SAFETY: advises on the caller's own mapping; no page of it changes.
    unsafe {
        rustix::mm::madvise(
            mapping.base(),
            mapping.length_bytes(),
            rustix::mm::Advice::LinuxNoHugepage,
        )
    }?;
    Ok(())
}

fn major_faults(path: &Path, pages: usize) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let page = [7u8; PAGE_BYTES];
    for index in 0..pages {
        file.write_all_at(&page, (index * PAGE_BYTES) as u64)?;
    }
    file.sync_all()?;
    let mapping = Mapping::of_file(&file, pages * PAGE_BYTES)?;
    mapping.advise_random()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    if wait_for_go()? {
        mapping.read_every_page();
        report(&json!({ "major_faults": pages }))?;
    }
    wait_for_end()
}

fn brk(address: usize) -> usize {
    // SAFETY: moves the program break; whoever calls it moves it back before anything that was
    // beyond it is used.
    unsafe { libc::syscall(libc::SYS_brk, address) as usize }
}

fn memory_calls(rounds: usize) -> io::Result<()> {
    use rustix::mm::{
        Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags, madvise, mmap_anonymous, mprotect,
        mremap, munmap,
    };
    const LENGTH: usize = 16 * PAGE_BYTES;
    if wait_for_go()? {
        for _ in 0..rounds {
            let null = std::ptr::null_mut();
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: all of it happens to a mapping made here, which nobody else knows.
            unsafe {
                let base = mmap_anonymous(null, LENGTH, protection, MapFlags::PRIVATE)?;
                mprotect(base, LENGTH, MprotectFlags::READ)?;
                madvise(base, LENGTH, Advice::LinuxDontNeed)?;
                let base = mremap(base, LENGTH, 2 * LENGTH, MremapFlags::MAYMOVE)?;
                munmap(base, 2 * LENGTH)?;
                // Fails, and is a call all the same.
                let _ = madvise(base, LENGTH, Advice::LinuxDontNeed);
            }
        }
        let end = brk(0);
        for _ in 0..rounds {
            brk(end + PAGE_BYTES);
            brk(end);
        }
        report(&json!({
            "mmap": rounds, "mprotect": rounds, "madvise": 2 * rounds, "mremap": rounds,
            "munmap": rounds, "brk": 2 * rounds + 1, "madvise_failed": rounds,
        }))?;
    }
    wait_for_end()
}

fn sockets(pairs: usize) -> io::Result<()> {
    let mut kept: Vec<(TcpStream, TcpStream, UdpSocket)> = Vec::new();
    // Existed before the observer did, and is still there when it counts.
    let old = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    if wait_for_go()? {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        for index in 0..2 * pairs {
            let client = TcpStream::connect(listener.local_addr()?)?;
            let (server, _) = listener.accept()?;
            let datagram = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            if index % 2 == 0 {
                kept.push((client, server, datagram));
            }
        }
        report(&json!({
            "created": 1 + 4 * pairs, "accepted": 2 * pairs, "live": 2 + 3 * pairs,
            "released": 3 * pairs,
        }))?;
        wait_for_end()?;
        drop(listener);
    }
    drop(old);
    Ok(())
}

fn pin(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    if let Err(error) = sched_setaffinity(None, &cpus) {
        eprintln!("observer-work: cannot use CPU {cpu} only: {error}");
    }
}

fn ping_pong(rounds: usize) -> io::Result<()> {
    let (mut ping_out, mut ping_in) = io::pipe()?;
    let (mut pong_out, mut pong_in) = io::pipe()?;
    let ping = move || {
        let mut byte = [0u8];
        for _ in 0..rounds {
            if ping_in.write_all(&byte).and_then(|()| pong_out.read_exact(&mut byte)).is_err() {
                return;
            }
        }
    };
    let pong = move || {
        let mut byte = [0u8];
        for _ in 0..rounds {
            if ping_out.read_exact(&mut byte).and_then(|()| pong_in.write_all(&byte)).is_err() {
                return;
            }
        }
    };
    crew(vec![Box::new(ping), Box::new(pong)], &json!({ "wakeups_at_least": 2 * rounds }))
}

fn crew(parts: Vec<Box<dyn FnOnce() + Send>>, counts: &Value) -> io::Result<()> {
    let crew = Crew::hire(parts)?;
    // Each has reached its barrier and sleeps there before the observer is attached.
    thread::sleep(Duration::from_millis(50));
    if wait_for_go()? {
        crew.work();
        // The same at the end: the last thread to arrive wakes the others.
        thread::sleep(Duration::from_millis(50));
        report(counts)?;
        wait_for_end()?;
        crew.leave();
    }
    Ok(())
}

fn contend(threads: usize, length: Duration, cpu: usize) -> io::Result<()> {
    let part = move || {
        pin(cpu);
        let begin = Instant::now();
        let mut rounds = 0u64;
        while begin.elapsed() < length {
            rounds = std::hint::black_box(rounds + 1);
        }
    };
    let parts = (0..threads).map(|_| Box::new(part) as Box<dyn FnOnce() + Send>).collect();
    crew(parts, &json!({ "threads": threads }))
}

fn descriptors(rounds: usize) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let waiting = TcpStream::connect(listener.local_addr()?)?;
    let limit = getrlimit(Resource::Nofile);
    if wait_for_go()? {
        // Descriptors are given out from the lowest: the next one is how many there may be.
        let next = rustix::fd::AsRawFd::as_raw_fd(&listener.as_fd().try_clone_to_owned()?);
        setrlimit(
            Resource::Nofile,
            Rlimit { current: u64::try_from(next).ok(), maximum: limit.maximum },
        )?;
        let mut failed = [0usize; 3];
        for _ in 0..rounds {
            failed[0] += usize::from(is_emfile(File::open("/dev/null")));
            failed[1] += usize::from(is_emfile(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))));
            failed[2] += usize::from(is_emfile(listener.accept()));
        }
        setrlimit(Resource::Nofile, limit)?;
        report(&json!({ "open": failed[0], "socket": failed[1], "accept": failed[2] }))?;
    }
    wait_for_end()?;
    drop(waiting);
    Ok(())
}

fn is_emfile<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(libc::EMFILE))
}

fn churn(threads: usize, processes: usize, pages: usize) -> io::Result<()> {
    if wait_for_go()? {
        for _ in 0..threads {
            let touch = move || {
                let mut mapping = Mapping::anonymous(pages * PAGE_BYTES)?;
                no_huge_pages(&mapping)?;
                mapping.write_every_page();
                Ok::<_, io::Error>(())
            };
            thread::Builder::new()
                .name("churn".into())
                .spawn(touch)?
                .join()
                .map_err(|_| io::Error::other("a thread panicked"))??;
        }
        for _ in 0..processes {
            // Its own minor-faults workload: forked, executed, and told to go at once.
            let own = std::env::current_exe()?;
            let mut child = Command::new(own)
                .args(["minor-faults", "--pages", &pages.to_string()])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::null())
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(b"\n")?;
            }
            child.wait()?;
        }
        report(&json!({
            "threads": threads, "processes": processes,
            "minor_faults_at_least": (threads + processes) * pages,
        }))?;
    }
    wait_for_end()
}

fn reclaim(path: &Path, mib: usize, rounds: usize) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    let bytes = mib << 20;
    file.set_len(bytes as u64)?;
    let mut buffer = vec![0u8; 128 << 10];
    let mapping = Mapping::of_file(&file, bytes / 4)?;
    if wait_for_go()? {
        for _ in 0..rounds {
            mapping.read_every_page();
            let mut offset = 0;
            while offset < bytes {
                let want = buffer.len().min(bytes - offset);
                file.read_exact_at(&mut buffer[..want], offset as u64)?;
                offset += want;
            }
        }
        report(&json!({ "bytes": bytes * rounds }))?;
    }
    wait_for_end()
}

fn report(counts: &Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{counts}")?;
    out.flush()
}

fn main() -> ExitCode {
    let result = match Arguments::parse().work {
        Work::MinorFaults { pages } => minor_faults(pages),
        Work::MajorFaults { file, pages } => major_faults(&file, pages),
        Work::MemoryCalls { rounds } => memory_calls(rounds),
        Work::Sockets { pairs } => sockets(pairs),
        Work::PingPong { rounds } => ping_pong(rounds),
        Work::Contend { threads, ms, cpu } => contend(threads, Duration::from_millis(ms), cpu),
        Work::Descriptors { rounds } => descriptors(rounds),
        Work::Churn { threads, processes, pages } => churn(threads, processes, pages),
        Work::Reclaim { file, mib, rounds } => reclaim(&file, mib, rounds),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("observer-work: {error}");
            ExitCode::FAILURE
        }
    }
}
