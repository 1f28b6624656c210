//! Processes that are hard to find: they live for an instant, or their first thread has exited.

use std::ffi::CString;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use observer_tests::mapping::{Mapping, PAGE_BYTES};
use observer_tests::passing;
use serde_json::json;

use crate::memory::no_huge_pages;
use crate::stage::{report, wait_for_end, wait_for_go};

fn usage() -> libc::rusage {
    // SAFETY: a plain structure.
    unsafe { std::mem::zeroed() }
}

fn own_minor_faults() -> u64 {
    let mut usage = usage();
    // SAFETY: the structure lives through the call.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
    usage.ru_minflt.unsigned_abs()
}

/// Takes a name, touches pages, and prints the faults since it has the name.
pub(crate) fn worker(pages: usize, name: Option<&str>) -> io::Result<()> {
    match name {
        None => {}
        // Both ways to change a name, in turn.
        Some(name) if (std::process::id() / 2).is_multiple_of(2) => {
            std::fs::write("/proc/self/comm", name)?;
        }
        Some(name) => rustix::thread::set_name(&CString::new(name)?)?,
    }
    let before = own_minor_faults();
    let mut mapping = Mapping::anonymous(pages * PAGE_BYTES)?;
    no_huge_pages(&mapping)?;
    mapping.write_every_page();
    report(&json!(own_minor_faults() - before))
}

/// Runs one worker to its end: its id, the faults that it counted itself, and those that the kernel
/// charged it with.
fn run_worker(program: &Path, pages: usize, name: Option<&str>) -> io::Result<(u32, u64, u64)> {
    let mut command = Command::new(program);
    command.args(["worker", "--pages", &pages.to_string()]).stdout(Stdio::piped());
    command.args(name.iter().flat_map(|name| ["--name", name]));
    let mut child = command.stdin(Stdio::null()).spawn()?;
    let out = child.stdout.take().ok_or_else(|| io::Error::other("no pipe"))?;
    let mut line = String::new();
    BufReader::new(out).read_line(&mut line)?;
    let own = line.trim().parse().map_err(io::Error::other)?;
    let (mut status, mut usage) = (0, usage());
    let pid = child.id().cast_signed();
    // SAFETY: both live through the call; nobody else waits for the child.
    if unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) } != pid || status != 0 {
        return Err(io::Error::other(format!("a worker ended with {status}")));
    }
    Ok((child.id(), own, usage.ru_minflt.unsigned_abs()))
}

pub(crate) fn workers(
    (count, pages): (usize, usize),
    program: &Path,
    name: Option<&str>,
    stranger: &Path,
) -> io::Result<()> {
    if wait_for_go()? {
        let (mut own, mut charged, mut first) = (0, 0, None);
        for _ in 0..count {
            let (pid, counted, all) = run_worker(program, pages, name)?;
            first = first.or(Some(pid));
            own += counted;
            charged += all;
            run_worker(stranger, 10 * pages, None)?;
        }
        report(&json!({ "first": first, "own": own, "charged": charged }))?;
    }
    wait_for_end()
}

pub(crate) fn leaderless(port: u16) -> io::Result<()> {
    let work = move || -> io::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        let before = TcpStream::connect(listener.local_addr()?)?;
        if wait_for_go()? {
            let (accepted, _) = listener.accept()?;
            let datagram = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            drop(before);
            report(&json!({ "live": 3 }))?;
            wait_for_end()?;
            drop((accepted, datagram));
        }
        drop(listener);
        Ok(())
    };
    std::thread::Builder::new().spawn(work)?;
    // SAFETY: ends this thread alone; nothing of it is used by the other one.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    Ok(())
}

/// Listens until the end, as somebody else where one is named.
pub(crate) fn listen_as(port: u16, stranger: Option<u32>) -> io::Result<()> {
    if let Some(uid) = stranger {
        // SAFETY: nothing here shares anything with another thread, for there is none.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }?;
        let uid = rustix::thread::Uid::from_raw(uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    if wait_for_go()? {
        report(&json!({ "listeners": 1 }))?;
        wait_for_end()?;
    }
    drop(listener);
    Ok(())
}

/// Gets sockets from another process, and passes its own on.
pub(crate) fn passed(path: &Path) -> io::Result<()> {
    let stream = UnixStream::connect(path)?;
    let bind = |_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    let own = (0..30).map(bind).collect::<io::Result<Vec<_>>>()?;
    if wait_for_go()? {
        let got = passing::receive(&stream)?;
        let passed: Vec<_> = own.iter().map(AsFd::as_fd).collect();
        passing::send(&stream, &passed)?;
        drop(own);
        report(&json!({ "live": got.len() }))?;
        wait_for_end()?;
    }
    Ok(())
}
