//! Small workloads of which each operation takes the path of one probe. Prints nanoseconds per
//! operation. `cargo xtask bench` runs them with and without observers.
//!
//! A burst is cut into slices of about a millisecond, and the results are quantiles over the
//! slices: other work on the machine makes a slice slower, never faster, so a low quantile is the
//! cost of the operation itself. With `--serve` one process makes all bursts of a comparison,
//! because two processes differ by where their memory lies.

use std::{
    env,
    fs::File,
    io::{self, BufRead, Error, ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio},
    ptr,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};

#[derive(Parser)]
#[command(about = "Measures operations of the kernel, in nanoseconds each")]
struct Arguments {
    /// What to measure; nothing with --serve
    #[arg(required_unless_present = "serve", conflicts_with = "serve")]
    operation: Option<Operation>,
    /// How long, milliseconds
    #[arg(default_value_t = 300)]
    milliseconds: u64,
    /// Make a burst for every line "OPERATION MILLISECONDS" read, until the end of the input
    #[arg(long)]
    serve: bool,
    /// Run on this CPU only
    #[arg(long, default_value_t = 0)]
    cpu: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Operation {
    /// Two processes on one CPU pass a byte back and forth: a wake-up and a switch each
    Switch,
    /// The first touch of an anonymous page
    Fault,
    /// mmap or munmap of one page that is never touched
    Mmap,
    /// madvise of one page that is not there
    Madvise,
    /// socket and close, together one operation
    Socket,
    /// A write or read of a TCP connection to itself, half of them at the end that was accepted
    Exchange,
    /// A system call that does nothing and that no probe watches
    Getppid,
    /// The other side of `switch`: sends every byte back
    Echo,
}

const PAGE: usize = 4096;
/// Pages touched in a slice: 4 MiB, so that the page tables are part of it as in real life.
const FAULT_PAGES: usize = 1024;

impl Operation {
    /// How many make a slice.
    const fn per_slice(self) -> usize {
        match self {
            Self::Switch => 600,
            Self::Fault => FAULT_PAGES,
            Self::Mmap => 1000,
            Self::Madvise => 3000,
            Self::Socket => 300,
            Self::Exchange => 400,
            Self::Getppid => 8000,
            Self::Echo => 0,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-work: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    pin(arguments.cpu)?;
    if arguments.operation == Some(Operation::Echo) {
        return echo();
    }
    go_first()?;
    let mut work = Work { cpu: arguments.cpu, other: None };
    if let Some(operation) = arguments.operation {
        let duration = Duration::from_millis(arguments.milliseconds);
        return work.burst(operation, duration).map(|line| println!("{line}"));
    }
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (operation, duration) = parse(&line)
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, format!("not a burst: {line}")))?;
        println!("{}", work.burst(operation, duration)?);
        io::stdout().flush()?;
    }
    Ok(())
}

fn parse(line: &str) -> Option<(Operation, Duration)> {
    let (operation, milliseconds) = line.trim().split_once(' ')?;
    let operation = Operation::from_str(operation, false).ok()?;
    Some((operation, Duration::from_millis(milliseconds.parse().ok()?)))
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

/// The highest weight of the fair class: others on this CPU get next to nothing, while the path
/// through the scheduler stays the one that services take.
fn go_first() -> io::Result<()> {
    // SAFETY: takes plain numbers; 0 names this process.
    checked(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) })
}

fn checked(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

struct Work {
    cpu: usize,
    other: Option<Other>,
}

impl Work {
    /// Runs slices of `operation` for this long; returns one line of JSON.
    fn burst(&mut self, operation: Operation, duration: Duration) -> io::Result<String> {
        let mut slice: Box<dyn FnMut() -> io::Result<f64> + '_> = match operation {
            Operation::Switch => {
                if self.other.is_none() {
                    self.other = Some(Other::start(self.cpu)?);
                }
                let other = self.other.as_mut();
                let other = other.ok_or_else(|| Error::other("no other process"))?;
                Box::new(|| switch(other))
            }
            Operation::Fault => {
                let mapping = Mapping::new(FAULT_PAGES * PAGE)?;
                mapping.advise(libc::MADV_NOHUGEPAGE)?;
                Box::new(move || fault(&mapping))
            }
            Operation::Mmap => Box::new(mmap),
            Operation::Madvise => {
                let mapping = Mapping::new(PAGE)?;
                Box::new(move || madvise(&mapping))
            }
            Operation::Socket => Box::new(socket),
            Operation::Exchange => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                let client = TcpStream::connect(listener.local_addr()?)?;
                let (server, _) = listener.accept()?;
                client.set_nodelay(true)?;
                Box::new(move || exchange(&client, &server))
            }
            Operation::Getppid => Box::new(getppid),
            Operation::Echo => return Err(Error::other("echo is no burst")),
        };
        let mut slices = Vec::new();
        // The first one finds cold caches.
        slice()?;
        let started = Instant::now();
        while slices.is_empty() || started.elapsed() < duration {
            slices.push(slice()?);
        }
        slices.sort_by(f64::total_cmp);
        let at = |share: f64| slices[((slices.len() - 1) as f64 * share).round() as usize];
        Ok(format!(
            "{{\"operations\": {}, \"min_ns\": {:.2}, \"p10_ns\": {:.2}, \"p25_ns\": {:.2}, \
             \"p50_ns\": {:.2}}}",
            slices.len() * operation.per_slice(),
            slices[0],
            at(0.1),
            at(0.25),
            at(0.5),
        ))
    }
}

fn per_operation(started: Instant, operation: Operation) -> f64 {
    started.elapsed().as_nanos() as f64 / operation.per_slice() as f64
}

/// The process at the other end of the pipes; ends when they are closed.
struct Other {
    child: Child,
    pipes: Option<(ChildStdin, ChildStdout)>,
}

impl Other {
    fn start(cpu: usize) -> io::Result<Self> {
        let mut child = Command::new(env::current_exe()?)
            .args(["echo", "--cpu", &cpu.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let mut other = Self { child, pipes };
        // The first answer tells that the other side is up.
        other.round_trip()?;
        Ok(other)
    }

    fn round_trip(&mut self) -> io::Result<()> {
        let Some((to, from)) = &mut self.pipes else {
            return Err(Error::other("no pipes to the other process"));
        };
        let mut byte = [0];
        to.write_all(&byte)?;
        from.read_exact(&mut byte)
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.pipes.take());
        // It ends by itself at the end of its input; a failure leaves a zombie until then.
        let _ = self.child.wait();
    }
}

/// Each round trip is two wake-ups and two switches, and counts as two operations.
fn switch(other: &mut Other) -> io::Result<f64> {
    let started = Instant::now();
    for _ in 0..Operation::Switch.per_slice() / 2 {
        other.round_trip()?;
    }
    Ok(per_operation(started, Operation::Switch))
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

fn fault(mapping: &Mapping) -> io::Result<f64> {
    let started = Instant::now();
    mapping.touch_every_page();
    let ns = per_operation(started, Operation::Fault);
    mapping.advise(libc::MADV_DONTNEED)?;
    Ok(ns)
}

fn mmap() -> io::Result<f64> {
    let started = Instant::now();
    for _ in 0..Operation::Mmap.per_slice() / 2 {
        drop(Mapping::new(PAGE)?);
    }
    Ok(per_operation(started, Operation::Mmap))
}

fn madvise(mapping: &Mapping) -> io::Result<f64> {
    let started = Instant::now();
    for _ in 0..Operation::Madvise.per_slice() {
        mapping.advise(libc::MADV_DONTNEED)?;
    }
    Ok(per_operation(started, Operation::Madvise))
}

fn socket() -> io::Result<f64> {
    let started = Instant::now();
    for _ in 0..Operation::Socket.per_slice() {
        // SAFETY: socket takes plain numbers and returns a descriptor or an error.
        let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0) };
        checked(raw)?;
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        assert!(socket.as_raw_fd() >= 0);
    }
    Ok(per_operation(started, Operation::Socket))
}

/// Requests and replies, two calls each.
fn exchange(mut client: &TcpStream, mut server: &TcpStream) -> io::Result<f64> {
    const BYTES: usize = 128;
    let mut room = [0; BYTES];
    let started = Instant::now();
    for _ in 0..Operation::Exchange.per_slice() / 4 {
        client.write_all(&[0; BYTES])?;
        server.read_exact(&mut room)?;
        server.write_all(&[0; BYTES])?;
        client.read_exact(&mut room)?;
    }
    Ok(per_operation(started, Operation::Exchange))
}

fn getppid() -> io::Result<f64> {
    let started = Instant::now();
    for _ in 0..Operation::Getppid.per_slice() {
        // SAFETY: takes nothing and cannot fail.
        unsafe { libc::getppid() };
    }
    Ok(per_operation(started, Operation::Getppid))
}
