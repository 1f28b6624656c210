//! Small workloads of which each operation takes the path of one probe. Prints nanoseconds per
//! operation. `cargo xtask bench` runs them with and without observers.

use std::{
    env,
    fs::File,
    io::{self, Error, ErrorKind, Read, Write},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    process::{Command, ExitCode, Stdio},
    ptr,
    time::Instant,
};

use clap::{Parser, ValueEnum};

#[derive(Parser)]
#[command(about = "Measures one operation of the kernel, in nanoseconds each")]
struct Arguments {
    operation: Operation,
    /// How many operations
    count: u32,
    /// Run on this CPU only
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Operation {
    /// Two processes on one CPU hand a byte to and fro: a wake-up and a switch each
    Switch,
    /// The first touch of an anonymous page
    Fault,
    /// mmap or munmap of one page that is never touched
    Mmap,
    /// madvise of one page that is not there
    Madvise,
    /// socket and close, together one operation
    Socket,
    /// The other side of `switch`: sends every byte back
    Echo,
}

const PAGE: usize = 4096;
/// Pages touched in one go: 16 MiB, so that the page tables are part of it as in real life.
const FAULT_PAGES: usize = 4096;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = pin(arguments.cpu).and_then(|()| match arguments.operation {
        Operation::Switch => switch(arguments.count, arguments.cpu),
        Operation::Fault => fault(arguments.count),
        Operation::Mmap => mmap(arguments.count),
        Operation::Madvise => madvise(arguments.count),
        Operation::Socket => socket(arguments.count),
        Operation::Echo => echo().map(|()| 0.0),
    });
    match result {
        Ok(ns) => {
            if !matches!(arguments.operation, Operation::Echo) {
                println!("{ns:.1}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bench-work: {error}");
            ExitCode::FAILURE
        }
    }
}

fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(Error::new(ErrorKind::InvalidInput, format!("no CPU {cpu}")));
    }
    // SAFETY: a cpu_set_t is plain bits, and all zero is its empty value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` was checked against the size of the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is valid for its size, and 0 names this thread.
    checked(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

fn per_operation(started: Instant, operations: f64) -> f64 {
    started.elapsed().as_nanos() as f64 / operations
}

/// Each round trip is two wake-ups and two switches, and counts as two operations.
fn switch(count: u32, cpu: usize) -> io::Result<f64> {
    let mut other = Command::new(env::current_exe()?)
        .args(["echo", "0", "--cpu", &cpu.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let (Some(mut to), Some(mut from)) = (other.stdin.take(), other.stdout.take()) else {
        return Err(Error::other("no pipes to the other process"));
    };
    let mut byte = [0];
    // The first answer tells that the other side is up.
    to.write_all(&byte)?;
    from.read_exact(&mut byte)?;
    let started = Instant::now();
    for _ in 0..count {
        to.write_all(&byte)?;
        from.read_exact(&mut byte)?;
    }
    let ns = per_operation(started, f64::from(count) * 2.0);
    drop(to);
    other.wait()?;
    Ok(ns)
}

/// Unbuffered, so that one byte is one read and one write.
fn echo() -> io::Result<()> {
    let mut from = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut to = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let mut byte = [0];
    while from.read(&mut byte)? == 1 {
        to.write_all(&byte)?;
    }
    Ok(())
}

/// A private anonymous mapping, unmapped when dropped.
struct Mapping {
    start: *mut u8,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at an address the kernel chooses overlaps nothing.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Error::last_os_error());
        }
        Ok(Self { start: start.cast(), bytes })
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is this mapping, to which no reference exists.
        checked(unsafe { libc::madvise(self.start.cast(), self.bytes, advice) })
    }

    fn touch_every_page(&self) {
        for offset in (0..self.bytes).step_by(PAGE) {
            // SAFETY: the offset lies within this mapping, which is writable.
            unsafe { self.start.add(offset).write_volatile(1) };
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's alone and is not used again. It can only fail for a
        // range that is no mapping, which this is not.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

fn fault(count: u32) -> io::Result<f64> {
    let mapping = Mapping::new(FAULT_PAGES * PAGE)?;
    mapping.advise(libc::MADV_NOHUGEPAGE)?;
    let mut ns = 0.0;
    let mut done = 0;
    while done < count as usize {
        let started = Instant::now();
        mapping.touch_every_page();
        ns += per_operation(started, 1.0);
        done += FAULT_PAGES;
        mapping.advise(libc::MADV_DONTNEED)?;
    }
    Ok(ns / done as f64)
}

fn mmap(count: u32) -> io::Result<f64> {
    let started = Instant::now();
    for _ in 0..count {
        drop(Mapping::new(PAGE)?);
    }
    Ok(per_operation(started, f64::from(count) * 2.0))
}

fn madvise(count: u32) -> io::Result<f64> {
    let mapping = Mapping::new(PAGE)?;
    let started = Instant::now();
    for _ in 0..count {
        mapping.advise(libc::MADV_DONTNEED)?;
    }
    Ok(per_operation(started, f64::from(count)))
}

fn socket(count: u32) -> io::Result<f64> {
    let started = Instant::now();
    for _ in 0..count {
        // SAFETY: socket takes plain numbers and returns a descriptor or an error.
        let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
        checked(raw)?;
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        debug_assert!(socket.as_raw_fd() >= 0);
    }
    Ok(per_operation(started, f64::from(count)))
}
