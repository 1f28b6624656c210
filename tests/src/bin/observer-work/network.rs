//! Services that accept slowly.

use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde_json::json;

use crate::stage::{report, wait_for_end, wait_for_go};

const PORT: u16 = 8080;

/// Turns on the loopback device of this network namespace.
fn loopback_up() -> io::Result<()> {
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: a plain structure; zero is a name of no characters and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(*b"lo") {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads the request, which lives through the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Listens, and accepts in the end.
pub(crate) fn listen_slowly(backlog: u16) -> io::Result<()> {
    // SAFETY: nothing here shares anything with another thread, for there is none.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    loopback_up()?;
    let listener =
        socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&listener, &SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)))?;
    listen(&listener, i32::from(backlog))?;
    let listener = TcpListener::from(listener);
    if wait_for_go()? {
        let accepted = (0..=backlog).map(|_| listener.accept()).collect::<io::Result<Vec<_>>>()?;
        report(&json!({ "accepted": accepted.len() }))?;
        wait_for_end()?;
    }
    Ok(())
}

/// Waits until the kernel has what was sent at the other end, where the connection is established by then.
fn wait_for_acknowledgement(client: &TcpStream) -> io::Result<()> {
    loop {
        let mut unacknowledged: libc::c_int = 0;
        // SAFETY: the kernel writes a number, which lives through the call.
        let done =
            unsafe { libc::ioctl(client.as_raw_fd(), libc::TIOCOUTQ, &raw mut unacknowledged) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        if unacknowledged == 0 {
            return Ok(());
        }
        thread::yield_now();
    }
}

/// Accepts connections of its own that have waited for it: up to five at a time, for up to 3 ms. Reports between
/// which bounds all waits lie, and the longest one.
pub(crate) fn queued(rounds: usize) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let (mut accepted, mut at_least, mut at_most) = (0u64, Duration::ZERO, Duration::ZERO);
    let (mut longest_at_least, mut longest_at_most) = (Duration::ZERO, Duration::ZERO);
    if wait_for_go()? {
        for round in 0..rounds {
            // The kernel hands out connections in the order in which they were established.
            let connect = |_| {
                let begin = Instant::now();
                let mut client = TcpStream::connect(address)?;
                client.write_all(b"?")?;
                wait_for_acknowledgement(&client)?;
                Ok((client, begin, Instant::now()))
            };
            let waiting = (0..1 + round % 5).map(connect).collect::<io::Result<Vec<_>>>()?;
            thread::sleep(Duration::from_micros(1_000 * (round % 4) as u64));
            for (_client, connecting, connected) in waiting {
                let accepting = Instant::now();
                let (_server, _) = listener.accept()?;
                let (least, most) = (accepting - connected, connecting.elapsed());
                accepted += 1;
                at_least += least;
                at_most += most;
                longest_at_least = longest_at_least.max(least);
                longest_at_most = longest_at_most.max(most);
            }
        }
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        report(&json!({
            "accepted": accepted,
            "at_least_ns": ns(at_least), "at_most_ns": ns(at_most),
            "longest_at_least_ns": ns(longest_at_least), "longest_at_most_ns": ns(longest_at_most),
        }))?;
    }
    wait_for_end()
}
