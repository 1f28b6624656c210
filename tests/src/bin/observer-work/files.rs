//! Sockets, descriptors and files.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Read, Seek, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use observer_tests::clone::{clone_with_pid, wait_for};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::stage::{report, wait_for_end, wait_for_go};

pub(crate) fn sockets(pairs: usize) -> io::Result<()> {
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

pub(crate) fn listen(port: u16) -> io::Result<()> {
    let listener = match wait_for_go()? {
        true => Some(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?),
        false => None,
    };
    report(&json!({ "listeners": listener.iter().count() }))?;
    wait_for_end()
}

pub(crate) fn datagrams(count: usize) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(socket.local_addr()?)?;
    if wait_for_go()? {
        let mut bytes = [0; 64];
        for _ in 0..count {
            socket.send(&bytes)?;
            socket.recv(&mut bytes)?;
        }
        report(&json!({ "datagrams": count }))?;
    }
    wait_for_end()
}

pub(crate) fn descriptors(rounds: usize) -> io::Result<()> {
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

/// More sockets than most tables have room for, all open at once, then all closed. As many
/// processes as it takes where one may not have that many descriptors.
pub(crate) fn many_sockets(count: usize) -> io::Result<()> {
    const OTHER_DESCRIPTORS: usize = 32;
    // A limit above the kernel's maximum (or no limit) can be kept, but not set.
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open")?;
    let most = most.trim().parse::<u64>().map_err(io::Error::other)?;
    let maximum = getrlimit(Resource::Nofile).maximum.unwrap_or(most).min(most);
    setrlimit(Resource::Nofile, Rlimit { current: Some(maximum), maximum: Some(maximum) })?;
    let share = count.min(maximum as usize - OTHER_DESCRIPTORS);
    if wait_for_go()? {
        let (mut opened, done) = io::pipe()?;
        let (mut released, release) = io::pipe()?;
        let mut children = Vec::new();
        let mut left = count;
        while left > 0 {
            let mine = share.min(left);
            left -= mine;
            children.push(clone_with_pid(None, || {
                // SAFETY: the child's copy of a descriptor that only its parent is to hold.
                unsafe { libc::close(release.as_raw_fd()) };
                let (family, kind) =
                    (rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM);
                let open = |_| rustix::net::socket(family, kind, None);
                let open: Vec<_> = (0..mine).map_while(|index| open(index).ok()).collect();
                let _ = (&done).write_all(&[u8::from(open.len() == mine)]);
                let _ = released.read(&mut [0]);
            })?);
        }
        let mut whole = vec![0; children.len()];
        opened.read_exact(&mut whole)?;
        drop(release);
        for child in children {
            wait_for(child)?;
        }
        if whole.contains(&0) {
            return Err(io::Error::other("a process could not open its sockets"));
        }
        report(&json!({ "created": count }))?;
    }
    wait_for_end()
}

/// Says how many it has after each line: fewer where it has come to its limit. It ends with its input.
pub(crate) fn hold_descriptors() -> io::Result<()> {
    let mut held = Vec::new();
    println!("ready");
    for line in io::stdin().lock().lines() {
        let wanted: usize = line?.trim().parse().map_err(io::Error::other)?;
        held.truncate(wanted);
        while held.len() < wanted {
            match UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)) {
                Ok(socket) => held.push(socket),
                Err(error) if error.raw_os_error() == Some(libc::EMFILE) => break,
                Err(error) => return Err(error),
            }
        }
        println!("{}", held.len());
    }
    Ok(())
}

/// Writes 4 MiB to a file and reads them again, past the page cache, and ends.
pub(crate) fn direct(path: &Path) -> io::Result<()> {
    const FILE_BYTES: usize = 4 << 20;
    const WRITE_BYTES: usize = 64 << 10;
    const READ_BYTES: usize = 16 << 10;
    // What the strictest devices want.
    const ALIGNMENT: usize = 4096;
    let mut memory = vec![1; WRITE_BYTES + ALIGNMENT];
    let start = memory.as_ptr().align_offset(ALIGNMENT);
    let block = &mut memory[start..][..WRITE_BYTES];
    let mut options = OpenOptions::new();
    options.custom_flags(libc::O_DIRECT).read(true).write(true).create(true).truncate(true);
    let mut file = options.open(path)?;
    for _ in 0..FILE_BYTES / WRITE_BYTES {
        file.write_all(block)?;
    }
    file.rewind()?;
    for _ in 0..FILE_BYTES / READ_BYTES {
        file.read_exact(&mut block[..READ_BYTES])?;
    }
    Ok(())
}
