//! One `epoll` shared by all workers of the service: each connection is armed once at a time, so
//! that a request is served by one worker and any worker may serve the next.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

/// Data word that stands for the listener; that of a connection is its descriptor.
const LISTENER: u64 = u64::MAX;

/// What has something to do.
pub enum Ready {
    /// The listener: a connection waits to be accepted.
    Listener,
    /// A connection with a request. Give it back with [`Poller::rearm`], or drop it:
    /// a closed descriptor leaves the `epoll` by itself.
    Connection(TcpStream),
}

/// The shared `epoll` instance. It owns the connections that are armed.
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// An instance with the listener armed.
    ///
    /// # Errors
    /// When the kernel refuses the `epoll`.
    pub fn new(listener: RawFd) -> io::Result<Self> {
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just created and belongs to nobody else.
        let poller = Self { epoll: unsafe { OwnedFd::from_raw_fd(fd) } };
        poller.control(libc::EPOLL_CTL_ADD, listener, LISTENER)?;
        Ok(poller)
    }

    fn control(&self, operation: libc::c_int, fd: RawFd, data: u64) -> io::Result<()> {
        let mut event =
            libc::epoll_event { events: (libc::EPOLLIN | libc::EPOLLONESHOT) as u32, u64: data };
        // SAFETY: `event` lives through the call.
        let result =
            unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), operation, fd, &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Waits until the listener or a connection is ready, and disarms it.
    ///
    /// # Errors
    /// When the wait fails other than by a signal.
    pub fn next(&self) -> io::Result<Ready> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        loop {
            // SAFETY: room for the one event asked for.
            let ready = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), &raw mut event, 1, -1) };
            if ready == 1 {
                break;
            }
            let error = io::Error::last_os_error();
            if ready < 0 && error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        let data = event.u64;
        if data == LISTENER {
            return Ok(Ready::Listener);
        }
        // SAFETY: `add` and `rearm` gave the descriptor up to this instance, and EPOLLONESHOT
        // hands it to one waiter only.
        Ok(Ready::Connection(unsafe { TcpStream::from_raw_fd(data as RawFd) }))
    }

    /// Arms the listener again.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rearm_listener(&self, listener: RawFd) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, listener, LISTENER)
    }

    /// Takes a new connection.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&self, stream: TcpStream) -> io::Result<()> {
        let fd = stream.as_raw_fd();
        self.control(libc::EPOLL_CTL_ADD, fd, fd as u64)?;
        let _ = stream.into_raw_fd();
        Ok(())
    }

    /// Takes a connection back.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn rearm(&self, stream: TcpStream) -> io::Result<()> {
        let fd = stream.as_raw_fd();
        self.control(libc::EPOLL_CTL_MOD, fd, fd as u64)?;
        let _ = stream.into_raw_fd();
        Ok(())
    }
}
