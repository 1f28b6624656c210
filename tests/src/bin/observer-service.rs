//! The service under test: a small HTTP/1.1 server with one endpoint per kind of trouble.
//!
//! - `/` answers at once.
//! - `/read` reads the next slice of a file into fresh pages and looks at some pages of a mapped
//!   index. As long as memory is plenty this is a copy of a few hundred microseconds; once the
//!   memory cgroup is squeezed, the fresh pages have to be reclaimed from the page cache first, by
//!   the thread that serves the request.
//! - `/sleep?ms=60&every=50` sleeps in every 50th request, with nothing for the kernel to show.
//!   With `&wake=10` it wakes the background threads as well, which burn CPU that long each, and
//!   which nobody waits for.
//! - `/cpu?us=500` burns CPU.
//!
//! The index is mapped more than once because reclaim, before it frees a mapped page, visits each
//! of its mappings to see whether the page was used lately. A clean page without a mapping is freed
//! in less time than it takes to fill it again (16 to 64 us for a batch of 64), and no request
//! would be slow by much. A data base whose processes share an index pays as this service does.
//!
//! Why the fresh pages come from an arena that a worker fills and empties: that makes the service
//! need more memory at one time than at another, as garbage collection and caches do. And workers
//! that map and unmap would wait for each other's reclaims at the lock of the address space: what
//! is slow then is mmap(2) as much as reclaim.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use clap::Parser;
use observer_tests::mapping::{Mapping, PAGE_BYTES};
use observer_tests::poll::{Poller, Ready};
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, gettid, sched_setaffinity};

/// HTTP service with one endpoint per kind of trouble.
#[derive(Parser)]
struct Arguments {
    /// Port on 127.0.0.1; 0 takes a free one (the line printed on start names it).
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Worker threads, named svc-worker-N.
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// Background threads, named svc-back-N, all on one CPU, that give way to the workers.
    #[arg(long, default_value_t = 0)]
    background: usize,
    /// File that /read uses; made, and made sparse, when missing. Without it /read answers 500.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Length of the part of the file that /read wanders through.
    #[arg(long, default_value_t = 16)]
    data_mib: u64,
    /// Bytes that one /read takes.
    #[arg(long, default_value_t = 512)]
    slice_kib: usize,
    /// Length of the part of the file that is mapped.
    #[arg(long, default_value_t = 128)]
    index_mib: usize,
    /// How often it is mapped.
    #[arg(long, default_value_t = 48)]
    index_mappings: usize,
    /// Pages of the index that one /read looks at.
    #[arg(long, default_value_t = 512)]
    index_pages: usize,
}

/// Longest request head; a longer one ends its connection.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// One `read(2)` of /read, as file servers do it.
const CHUNK_BYTES: usize = 128 * 1024;

/// What /read works on.
struct Data {
    file: File,
    /// The slices follow the index in the file.
    first_byte: u64,
    slices: u64,
    slice_bytes: usize,
    next_slice: AtomicU64,
    /// All touched once; requests look at the last one. Reclaim visits a page's mappings in the
    /// order in which they were made, so that it meets all of them.
    index: Vec<Mapping>,
    index_pages: usize,
    next_index_page: AtomicUsize,
}

impl Data {
    fn open(path: &Path, arguments: &Arguments) -> io::Result<Self> {
        let (index_bytes, data_bytes) = (arguments.index_mib << 20, arguments.data_mib << 20);
        let slice_bytes = arguments.slice_kib << 10;
        if slice_bytes == 0 || data_bytes < slice_bytes as u64 || index_bytes == 0 {
            return Err(io::Error::other("--slice-kib, --data-mib and --index-mib do not fit"));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)?;
        let file_bytes = index_bytes as u64 + data_bytes;
        if file.metadata()?.len() < file_bytes {
            file.set_len(file_bytes)?;
        }
        let index: Vec<Mapping> = (0..arguments.index_mappings.max(1))
            .map(|_| Mapping::of_file(&file, index_bytes))
            .collect::<io::Result<_>>()?;
        for mapping in &index {
            // Single pages: read-ahead makes large ones, which are freed, and filled again, many
            // at a time.
            mapping.advise_random()?;
            mapping.read_every_page();
        }
        Ok(Self {
            file,
            first_byte: index_bytes as u64,
            slices: data_bytes / slice_bytes as u64,
            slice_bytes,
            next_slice: AtomicU64::new(0),
            index,
            index_pages: arguments.index_pages,
            next_index_page: AtomicUsize::new(0),
        })
    }

    fn read_slice(&self, arena: &mut Arena) -> io::Result<usize> {
        let slice = self.next_slice.fetch_add(1, Ordering::Relaxed) % self.slices;
        let mut offset = self.first_byte + slice * self.slice_bytes as u64;
        for chunk in arena.take(self.slice_bytes)?.chunks_mut(CHUNK_BYTES) {
            self.file.read_exact_at(chunk, offset)?;
            offset += chunk.len() as u64;
        }
        if let Some(index) = self.index.last() {
            let first = self.next_index_page.fetch_add(self.index_pages, Ordering::Relaxed);
            for page in 0..self.index_pages {
                index.read_page(first.wrapping_add(page));
            }
        }
        Ok(self.slice_bytes)
    }
}

/// Slices that a worker reads before it gives their memory back.
const SLICES: usize = 32;

/// Memory of a worker.
struct Arena {
    pages: Mapping,
    used_bytes: usize,
}

impl Arena {
    /// The next bytes; their pages are not present.
    fn take(&mut self, bytes: usize) -> io::Result<&mut [u8]> {
        if self.used_bytes + bytes > self.pages.length_bytes() {
            self.pages.discard()?;
            self.used_bytes = 0;
        }
        let first = self.used_bytes;
        self.used_bytes += bytes;
        Ok(&mut self.pages.as_mut_slice()[first..first + bytes])
    }
}

/// Burns CPU for this long, whatever else has the CPU meanwhile.
fn burn(length: Duration) -> u64 {
    let begin = Instant::now();
    let mut rounds = 0u64;
    while begin.elapsed() < length {
        rounds = std::hint::black_box(rounds + 1);
    }
    rounds
}

/// Threads that work when they are woken.
struct Background(Vec<Sender<Duration>>);

impl Background {
    fn start(threads: usize) -> io::Result<Self> {
        let start = |index| {
            let (wake, woken) = channel();
            std::thread::Builder::new()
                .name(format!("svc-back-{index}"))
                .spawn(move || -> io::Result<()> {
                    let mut cpu = CpuSet::new();
                    cpu.set(0);
                    sched_setaffinity(None, &cpu)?;
                    // Of this thread alone.
                    setpriority_process(Some(gettid()), LAST)?;
                    woken.iter().for_each(|length| {
                        burn(length);
                    });
                    Ok(())
                })
                .map(|_| wake)
        };
        (0..threads).map(start).collect::<io::Result<_>>().map(Self)
    }

    fn wake(&self, length: Duration) {
        for thread in &self.0 {
            // One that could not begin works as little as one that nobody wakes.
            let _ = thread.send(length);
        }
    }
}

/// The lowest priority of the fair class.
const LAST: i32 = 19;

struct Service {
    data: Option<Data>,
    sleep_requests: AtomicU64,
    background: Background,
}

impl Service {
    fn answer(&self, target: &str, arena: &mut Arena) -> (u16, String) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let number = |key: &str, default: u64| {
            query
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .find(|(name, _)| *name == key)
                .map_or(Some(default), |(_, value)| value.parse().ok())
        };
        match path {
            "/" => (200, "ok\n".into()),
            "/read" => match self.data.as_ref().map(|data| data.read_slice(arena)) {
                Some(Ok(bytes)) => (200, format!("read {bytes}\n")),
                Some(Err(error)) => (500, format!("{error}\n")),
                None => (500, "started without --file\n".into()),
            },
            "/sleep" => {
                let (Some(ms), Some(every), Some(wake)) =
                    (number("ms", 60), number("every", 50), number("wake", 0))
                else {
                    return (400, "ms, every and wake are numbers\n".into());
                };
                let request = self.sleep_requests.fetch_add(1, Ordering::Relaxed) + 1;
                let sleeps = request.is_multiple_of(every.max(1));
                if sleeps {
                    self.background.wake(Duration::from_millis(wake));
                    std::thread::sleep(Duration::from_millis(ms));
                }
                (200, format!("slept {}\n", if sleeps { ms } else { 0 }))
            }
            "/cpu" => {
                let Some(us) = number("us", 500) else {
                    return (400, "us is a number\n".into());
                };
                (200, format!("burnt {}\n", burn(Duration::from_micros(us))))
            }
            _ => (404, "no such path\n".into()),
        }
    }

    /// Reads one request and answers it. `false`: the connection is over.
    fn serve(&self, stream: &mut TcpStream, arena: &mut Arena) -> bool {
        let mut head = [0u8; HEAD_BYTES_MAX];
        let mut length = 0;
        while !head[..length].windows(4).any(|window| window == b"\r\n\r\n") {
            match stream.read(&mut head[length..]) {
                // Also when the head is full: there is no room to read into.
                Ok(0) | Err(_) => return false,
                Ok(read) => length += read,
            }
        }
        let text = String::from_utf8_lossy(&head[..length]);
        let Some(target) = text.split(' ').nth(1) else { return false };
        let keep_alive = !text.to_ascii_lowercase().contains("connection: close");
        let (status, body) = self.answer(target, arena);
        let reason = match status {
            200 => "OK",
            400 => "Bad Request",
            404 => "Not Found",
            _ => "Internal Server Error",
        };
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(answer.as_bytes()).is_ok() && keep_alive
    }

    /// A worker: serves whichever connection has a request next.
    fn work(&self, listener: &TcpListener, poller: &Poller) -> io::Result<()> {
        let slice_bytes = self.data.as_ref().map_or(PAGE_BYTES, |data| data.slice_bytes);
        let mut arena = Arena { pages: Mapping::anonymous(SLICES * slice_bytes)?, used_bytes: 0 };
        loop {
            match poller.next()? {
                Ready::Listener => {
                    let accepted = listener.accept();
                    poller.rearm_listener(listener.as_raw_fd())?;
                    // Out of descriptors, or the client gave up: the next one may do better.
                    let Ok((stream, _)) = accepted else { continue };
                    stream.set_nodelay(true)?;
                    // A client that stops in the middle of a request must not keep a worker.
                    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                    poller.add(stream)?;
                }
                Ready::Connection(mut stream) => {
                    if self.serve(&mut stream, &mut arena) {
                        poller.rearm(stream)?;
                    }
                }
            }
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let data = arguments.file.as_deref().map(|path| Data::open(path, arguments)).transpose()?;
    let background = Background::start(arguments.background)?;
    let service = Arc::new(Service { data, sleep_requests: AtomicU64::new(0), background });
    let listener = Arc::new(TcpListener::bind((Ipv4Addr::LOCALHOST, arguments.port))?);
    // A client that connects and is gone before accept(2) must not block a worker there.
    listener.set_nonblocking(true)?;
    let poller = Arc::new(Poller::new(listener.as_raw_fd())?);
    let workers: Vec<_> = (0..arguments.workers.max(1))
        .map(|index| {
            let (service, listener, poller) =
                (Arc::clone(&service), Arc::clone(&listener), Arc::clone(&poller));
            std::thread::Builder::new()
                .name(format!("svc-worker-{index}"))
                .spawn(move || service.work(&listener, &poller))
        })
        .collect::<io::Result<_>>()?;
    println!("listening on http://{}", listener.local_addr()?);
    for worker in workers {
        worker.join().map_err(|_| io::Error::other("a worker panicked"))??;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("observer-service: {error}");
            ExitCode::FAILURE
        }
    }
}
