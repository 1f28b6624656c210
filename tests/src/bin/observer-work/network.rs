//! A service that accepts slowly, alone in its network.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd;

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
