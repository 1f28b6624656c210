//! Small workloads whose effect on the kernel's counters is known exactly.
//!
//! Each prints `ready`, waits for a line (so that an observer can be attached), works, prints its
//! own counts as one line of JSON, and waits for the end of its input before it exits (so that
//! `/proc` can still be read). Nothing is going on while it waits.

mod calls;
mod counted;
mod cpu;
mod deep;
mod faults;
mod files;
mod locks;
mod mappers;
mod memory;
mod network;
mod refused;
mod requests;
mod short;
mod sleeps;
mod stage;
mod tasks;
mod told;
mod waits;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

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
    /// Requests over TCP to itself, in every way in which they can be read and answered.
    Requests {
        #[arg(long, default_value_t = 4)]
        rounds: usize,
    },
    /// Datagrams to itself over loopback.
    Datagrams {
        #[arg(long, default_value_t = 20_000)]
        count: usize,
    },
    /// Threads that sleep in several ways; what the kernel counted of it is reported.
    Sleeps {
        #[arg(long, default_value_t = 4)]
        threads: usize,
        #[arg(long, default_value_t = 300)]
        rounds: usize,
    },
    /// A thread that spends its time in all the ways there are; how much passed, and how much of it on a CPU, is
    /// reported.
    AllTime {
        #[arg(long, default_value_t = 240)]
        rounds: usize,
        #[arg(long)]
        file: PathBuf,
    },
    /// A thread that sleeps in a function that another one calls, both with frame pointers.
    DeepSleeps {
        #[arg(long, default_value_t = 100)]
        rounds: usize,
        /// How long, milliseconds.
        #[arg(long, default_value_t = 2)]
        ms: u64,
        /// How long it works after each, microseconds.
        #[arg(long, default_value_t = 200)]
        work_us: u64,
    },
    /// A thread that waits for locks and otherwise; what the kernel counted of it is reported.
    Locks {
        #[arg(long, default_value_t = 300)]
        rounds: usize,
    },
    /// Threads that map memory at the same time; how long that took is reported.
    Mappers {
        #[arg(long, default_value_t = 1000)]
        rounds: usize,
    },
    /// A thread takes rights from memory again and again, while another one runs on another CPU.
    Shootdowns {
        #[arg(long, default_value_t = 20_000)]
        count: usize,
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
        /// On any CPU.
        #[arg(long)]
        anywhere: bool,
    },
    /// Everything at once: two threads that wake each other, and two that map pages and give them
    /// back.
    Storm {
        #[arg(long, default_value_t = 20_000)]
        rounds: usize,
    },
    /// open, socket and accept with no descriptor left.
    Descriptors {
        #[arg(long, default_value_t = 10)]
        rounds: usize,
    },
    /// Threads and processes that switch, move and fault.
    Counted {
        /// That are there before it is ready; as many come later.
        #[arg(long, default_value_t = 3)]
        threads: usize,
        #[arg(long, default_value_t = 200)]
        rounds: usize,
        #[arg(long, default_value_t = 500)]
        pages: usize,
    },
    /// A process of it.
    CountedChild {
        #[arg(long)]
        rounds: usize,
        #[arg(long)]
        pages: usize,
    },
    /// As many more descriptors than at the beginning as each line of its input says.
    HoldDescriptors,
    /// socket, accept, connect, bind and open, each result counted, until so many have failed.
    Refused {
        /// What is used up then.
        #[arg(long)]
        used_up: refused::UsedUp,
        #[arg(long, default_value_t = 20)]
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
    /// Writes to every page that a child shares.
    CopyOnWrite {
        #[arg(long, default_value_t = 5000)]
        pages: usize,
    },
    /// mmap, madvise and munmap of much memory, timed here.
    LongCalls {
        #[arg(long, default_value_t = 200)]
        rounds: usize,
    },
    /// Writes to huge pages, one fault each, timed here.
    HugeFaults {
        #[arg(long, default_value_t = 200)]
        rounds: usize,
    },
    /// Wakes a thread of another process through a fifo, and keeps the CPU.
    Waker {
        #[arg(long)]
        fifo: PathBuf,
        #[arg(long, default_value_t = 500)]
        rounds: usize,
        #[arg(long, default_value_t = 300)]
        hold_us: u64,
    },
    /// The thread that is woken through a fifo.
    Woken {
        #[arg(long)]
        fifo: PathBuf,
        #[arg(long, default_value_t = 500)]
        rounds: usize,
    },
    /// A thread that is moved between CPUs 0 and 1 while it waits.
    Migrate {
        #[arg(long, default_value_t = 1000)]
        ms: u64,
    },
    /// A thread that is moved from CPU 0 to 1 as it goes to sleep.
    MovedAsleep {
        #[arg(long, default_value_t = 20)]
        rounds: usize,
        /// Sleeps that the kernel counted as waits, after which it ends.
        #[arg(long, default_value_t = u64::MAX)]
        enough: u64,
        #[arg(long, default_value_t = 50)]
        ms: u64,
    },
    /// A thread that is woken while it runs.
    WakeRunning {
        #[arg(long, default_value_t = 100_000)]
        rounds: u64,
    },
    /// Threads woken by timers.
    Sleepers {
        #[arg(long, default_value_t = 4)]
        threads: usize,
        #[arg(long, default_value_t = 500)]
        rounds: usize,
    },
    /// Threads and processes that end while others, or they themselves, wait for a CPU.
    Dying {
        #[arg(long, default_value_t = 20)]
        rounds: usize,
    },
    /// A thread of several executes another program.
    ExecThreads {
        #[arg(long, default_value_t = 300)]
        ms: u64,
        /// A copy of this program, which is executed in its place, and read from the disk.
        #[arg(long)]
        copy: Option<PathBuf>,
    },
    /// Processes that get the id of the one before.
    Reborn {
        /// Id of the first.
        #[arg(long)]
        pid: Option<i32>,
        #[arg(long, default_value_t = 20)]
        rounds: usize,
        #[arg(long, default_value_t = 100)]
        pages: usize,
    },
    /// Processes in namespaces of their own.
    Inside {
        #[arg(long, default_value_t = 2000)]
        pages: usize,
        #[arg(long, default_value_t = 200)]
        ms: u64,
    },
    /// Faults that are tried twice, and children killed in one.
    Userfault {
        #[arg(long, default_value_t = 500)]
        pages: usize,
        #[arg(long, default_value_t = 10)]
        killed: usize,
    },
    /// The same faults in the kernel, in memory that it reports: the kernel tries each of them again.
    KernelUserfault {
        #[arg(long, default_value_t = 200)]
        pages: usize,
    },
    /// Is stopped in the middle of a fault, which it begins anew after that.
    StoppedFault {
        #[arg(long, default_value_t = 300)]
        ms: u64,
    },
    /// Faults that end in a signal.
    BadFaults {
        /// Made.
        #[arg(long)]
        file: PathBuf,
        #[arg(long, default_value_t = 500)]
        rounds: usize,
        #[arg(long, default_value_t = 20)]
        killed: usize,
    },
    /// Reclaims inside faults inside system calls, in a tight cgroup.
    Nested {
        /// Made sparse.
        #[arg(long)]
        file: PathBuf,
        #[arg(long, default_value_t = 64)]
        mib: usize,
        #[arg(long, default_value_t = 1000)]
        rounds: usize,
    },
    /// Two processes whose ids are 131,072 apart.
    Collide {
        #[arg(long, default_value_t = 2000)]
        rounds: usize,
    },
    /// Many sockets at once.
    ManySockets {
        #[arg(long, default_value_t = 70_000)]
        count: usize,
    },
    /// Nothing, and then a listener on this port.
    Listen {
        #[arg(long)]
        port: u16,
    },
    /// More memory than there is.
    Fill {
        #[arg(long)]
        mib: usize,
        #[arg(long, default_value_t = 2)]
        rounds: usize,
    },
    /// Huge pages in memory that is in pieces.
    Fragment {
        #[arg(long)]
        mib: usize,
    },
    /// Faults of this process and of the kernel, in memory that it reports.
    ToldFaults {
        #[arg(long, default_value_t = 200)]
        pages: usize,
    },
    /// Memory-management calls, successful and failing, each reported with its arguments and its
    /// result.
    ToldCalls {
        #[arg(long, default_value_t = 50)]
        rounds: usize,
    },
    /// Sockets, each reported with the times when it was created and closed.
    ToldSockets {
        #[arg(long, default_value_t = 100)]
        ms: u64,
    },
    /// Calls two functions that nothing else calls: one so many times, the other twice as often.
    Calls {
        #[arg(long)]
        times: u64,
        /// Without waiting for anything, before or after.
        #[arg(long)]
        at_once: bool,
        /// Then executes this program, with these arguments.
        #[arg(last = true)]
        then: Vec<OsString>,
    },
    /// Short-lived processes, one after the other.
    Workers {
        #[arg(long, default_value_t = 50)]
        count: usize,
        #[arg(long, default_value_t = 50)]
        pages: usize,
        /// What each of them executes.
        #[arg(long)]
        program: PathBuf,
        /// The name that it then takes; without one it keeps that of the program.
        #[arg(long)]
        name: Option<String>,
        /// After each of them one comes that executes this instead, and keeps its name.
        #[arg(long)]
        stranger: PathBuf,
    },
    /// One of them.
    Worker {
        #[arg(long)]
        pages: usize,
        #[arg(long)]
        name: Option<String>,
    },
    /// A process whose first thread has exited, and another one listens on this port.
    Leaderless {
        #[arg(long)]
        port: u16,
    },
    /// Listens on all addresses, as oneself or as somebody else.
    ListenAs {
        #[arg(long)]
        port: u16,
        /// Another user to become, in a network namespace of its own.
        #[arg(long)]
        stranger: Option<u32>,
    },
    /// Listens on port 8080 in a network namespace of its own; accepts only in the end as many connections
    /// as fit into its queue, and never closes one.
    ListenSlowly {
        /// The limit of its queue, which holds one more.
        #[arg(long)]
        backlog: u16,
    },
    /// Accepts connections that have waited for it.
    Queued {
        #[arg(long, default_value_t = 100)]
        rounds: usize,
    },
    /// Sockets from another process, and sockets to it.
    Passed {
        #[arg(long)]
        socket: PathBuf,
    },
    /// Writes a file and reads it, past the page cache, and ends.
    Direct {
        #[arg(long)]
        file: PathBuf,
    },
    /// A stand-in for a load generator: reports that it was started, and ends on request.
    Hold {
        /// Made at once.
        started: PathBuf,
        /// Waited for.
        stop: PathBuf,
    },
}

fn hold(started: &Path, stop: &Path) -> io::Result<()> {
    std::fs::File::create_new(started)?;
    while !stop.exists() {
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

extern "C" fn on_nudge(_signal: libc::c_int) {
    let now_ns = sleeps::clock_ns(rustix::time::ClockId::Monotonic);
    sleeps::NUDGED_NS.store(now_ns, std::sync::atomic::Ordering::Relaxed);
}

/// A signal that makes a thread run, and changes nothing but the time of the last one (`trial::nudge`).
fn take_nudges() {
    // SAFETY: the handler reads a clock and stores a number; interrupted calls are taken up again.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_nudge as extern "C" fn(libc::c_int) as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
    }
}

fn main() -> ExitCode {
    take_nudges();
    let result = match Arguments::parse().work {
        Work::MinorFaults { pages } => memory::minor_faults(pages),
        Work::MajorFaults { file, pages } => memory::major_faults(&file, pages),
        Work::MemoryCalls { rounds } => memory::memory_calls(rounds),
        Work::Sockets { pairs } => files::sockets(pairs),
        Work::Requests { rounds } => requests::requests(rounds),
        Work::Sleeps { threads, rounds } => sleeps::sleeps(threads, rounds),
        Work::AllTime { rounds, file } => sleeps::all_time(rounds, &file),
        Work::DeepSleeps { rounds, ms, work_us } => {
            deep::deep_sleeps(rounds, Duration::from_millis(ms), Duration::from_micros(work_us))
        }
        Work::Locks { rounds } => locks::locks(rounds),
        Work::Mappers { rounds } => mappers::mappers(rounds),
        Work::Shootdowns { count } => mappers::shootdowns(count),
        Work::Datagrams { count } => files::datagrams(count),
        Work::PingPong { rounds } => cpu::ping_pong(rounds),
        Work::Contend { threads, ms, cpu, anywhere } => {
            cpu::contend(threads, Duration::from_millis(ms), (!anywhere).then_some(cpu))
        }
        Work::Waker { fifo, rounds, hold_us } => {
            waits::waker(&fifo, rounds, Duration::from_micros(hold_us))
        }
        Work::Woken { fifo, rounds } => waits::woken(&fifo, rounds),
        Work::Migrate { ms } => waits::migrate(Duration::from_millis(ms)),
        Work::MovedAsleep { rounds, enough, ms } => {
            waits::moved_asleep(rounds, enough, Duration::from_millis(ms))
        }
        Work::WakeRunning { rounds } => waits::wake_running(rounds),
        Work::Sleepers { threads, rounds } => waits::sleepers(threads, rounds),
        Work::Dying { rounds } => waits::dying(rounds),
        Work::ExecThreads { ms, copy } => {
            tasks::exec_threads(Duration::from_millis(ms), copy.as_deref())
        }
        Work::Reborn { pid, rounds, pages } => tasks::reborn(pid, rounds, pages),
        Work::Inside { pages, ms } => tasks::inside(pages, Duration::from_millis(ms)),
        Work::Storm { rounds } => cpu::storm(rounds),
        Work::Descriptors { rounds } => files::descriptors(rounds),
        Work::Counted { threads, rounds, pages } => counted::counted(threads, rounds, pages),
        Work::CountedChild { rounds, pages } => counted::counted_child(rounds, pages),
        Work::HoldDescriptors => files::hold_descriptors(),
        Work::Refused { used_up, rounds } => refused::refused(used_up, rounds),
        Work::Churn { threads, processes, pages } => tasks::churn(threads, processes, pages),
        Work::CopyOnWrite { pages } => memory::copy_on_write(pages),
        Work::LongCalls { rounds } => memory::long_calls(rounds),
        Work::HugeFaults { rounds } => faults::huge_faults(rounds),
        Work::Userfault { pages, killed } => faults::userfault(pages, killed),
        Work::KernelUserfault { pages } => faults::kernel_userfault(pages),
        Work::StoppedFault { ms } => faults::stopped_fault(Duration::from_millis(ms)),
        Work::BadFaults { file, rounds, killed } => faults::bad_faults(&file, rounds, killed),
        Work::Nested { file, mib, rounds } => faults::nested(&file, mib, rounds),
        Work::Collide { rounds } => faults::collide(rounds),
        Work::ManySockets { count } => files::many_sockets(count),
        Work::Listen { port } => files::listen(port),
        Work::Fill { mib, rounds } => memory::fill(mib, rounds),
        Work::Fragment { mib } => memory::fragment(mib),
        Work::ToldFaults { pages } => told::faults(pages),
        Work::ToldCalls { rounds } => told::calls(rounds),
        Work::ToldSockets { ms } => told::sockets(Duration::from_millis(ms)),
        Work::Calls { times, at_once, then } => calls::calls(times, at_once, &then),
        Work::Workers { count, pages, program, name, stranger } => {
            short::workers((count, pages), &program, name.as_deref(), &stranger)
        }
        Work::Worker { pages, name } => short::worker(pages, name.as_deref()),
        Work::Leaderless { port } => short::leaderless(port),
        Work::ListenAs { port, stranger } => short::listen_as(port, stranger),
        Work::ListenSlowly { backlog } => network::listen_slowly(backlog),
        Work::Queued { rounds } => network::queued(rounds),
        Work::Passed { socket } => short::passed(&socket),
        Work::Direct { file } => files::direct(&file),
        Work::Hold { started, stop } => hold(&started, &stop),
        Work::Reclaim { file, mib, rounds } => memory::reclaim(&file, mib, rounds),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("observer-work: {error}");
            ExitCode::FAILURE
        }
    }
}
