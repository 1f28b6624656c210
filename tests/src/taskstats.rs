//! Delay accounting through the kernel's TASKSTATS netlink interface
//! (Documentation/accounting/taskstats.rst).

use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::Result;

const DELAY_ACCOUNTING: &str = "/proc/sys/kernel/task_delayacct";

/// Delay accounting switched on; put back as it was when dropped. Only tasks born while it is on
/// have books.
#[derive(Debug)]
pub struct DelayAccounting {
    before: String,
}

impl DelayAccounting {
    /// Switches it on.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn on() -> Result<Self> {
        let before = fs::read_to_string(DELAY_ACCOUNTING)
            .map_err(|error| format!("cannot read {DELAY_ACCOUNTING}: {error}"))?;
        fs::write(DELAY_ACCOUNTING, "1")
            .map_err(|error| format!("cannot write {DELAY_ACCOUNTING}: {error}"))?;
        Ok(Self { before })
    }
}

impl Drop for DelayAccounting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(DELAY_ACCOUNTING, self.before.trim()) {
            eprintln!("cannot put {DELAY_ACCOUNTING} back to {}: {error}", self.before.trim());
        }
    }
}

/// Delays of one thread since its birth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delays {
    /// Times it had to reclaim memory, directly or for its memory cgroup.
    pub reclaim_count: u64,
    /// How long that took.
    pub reclaim_ns: u64,
    /// How long it waited for a CPU.
    pub cpu_ns: u64,
}

/// From linux/taskstats.h, `struct taskstats`: the same since version 7 (2.6.27).
const VERSION_MIN: u16 = 7;
const CPU_DELAY_TOTAL: usize = 24;
const FREEPAGES_COUNT: usize = 312;
const FREEPAGES_DELAY_TOTAL: usize = 320;

/// linux/genetlink.h and linux/taskstats.h.
const GENL_ID_CTRL: u16 = 16;
const TASKSTATS_CMD_GET: u8 = 1;
const TASKSTATS_CMD_ATTR_PID: u16 = 1;
const TASKSTATS_TYPE_STATS: u16 = 3;
const TASKSTATS_TYPE_AGGR_PID: u16 = 4;

const HEADERS_BYTES: usize = size_of::<libc::nlmsghdr>() + size_of::<libc::genlmsghdr>();

/// A connection to the kernel's TASKSTATS family.
#[derive(Debug)]
pub struct Taskstats {
    socket: OwnedFd,
    family: u16,
}

impl Taskstats {
    /// Connects.
    ///
    /// # Errors
    /// When the kernel has no taskstats.
    pub fn connect() -> Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_GENERIC) };
        if fd < 0 {
            return Err(format!("cannot open a netlink socket: {}", io::Error::last_os_error()));
        }
        // SAFETY: just opened, and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut connection = Self { socket, family: GENL_ID_CTRL };
        let command = u8::try_from(libc::CTRL_CMD_GETFAMILY).unwrap_or_default();
        let name = u16::try_from(libc::CTRL_ATTR_FAMILY_NAME).unwrap_or_default();
        let answer = connection.ask(command, name, b"TASKSTATS\0")?;
        let id = u16::try_from(libc::CTRL_ATTR_FAMILY_ID).unwrap_or_default();
        connection.family = attribute(&answer, id)
            .and_then(|value| value.first_chunk::<2>())
            .map(|bytes| u16::from_ne_bytes(*bytes))
            .ok_or("the kernel has no taskstats (CONFIG_TASKSTATS)")?;
        Ok(connection)
    }

    /// Reads the delays of a thread.
    ///
    /// # Errors
    /// When there is no such thread.
    pub fn delays(&self, tid: u32) -> Result<Delays> {
        let answer = self.ask(TASKSTATS_CMD_GET, TASKSTATS_CMD_ATTR_PID, &tid.to_ne_bytes())?;
        let stats = attribute(&answer, TASKSTATS_TYPE_AGGR_PID)
            .and_then(|aggregate| attribute(aggregate, TASKSTATS_TYPE_STATS))
            .ok_or_else(|| format!("taskstats of thread {tid} hold no statistics"))?;
        let version = stats.first_chunk::<2>().map_or(0, |bytes| u16::from_ne_bytes(*bytes));
        if version < VERSION_MIN {
            return Err(format!("taskstats version {version} is older than {VERSION_MIN}"));
        }
        let number = |offset: usize| {
            stats
                .get(offset..)
                .and_then(|rest| rest.first_chunk::<8>())
                .map(|bytes| u64::from_ne_bytes(*bytes))
                .ok_or_else(|| format!("taskstats of thread {tid} end after {}", stats.len()))
        };
        Ok(Delays {
            reclaim_count: number(FREEPAGES_COUNT)?,
            reclaim_ns: number(FREEPAGES_DELAY_TOTAL)?,
            cpu_ns: number(CPU_DELAY_TOTAL)?,
        })
    }

    /// Sends one command with one attribute; returns the attributes of the answer.
    fn ask(&self, command: u8, name: u16, value: &[u8]) -> Result<Vec<u8>> {
        let attribute_bytes = 4 + value.len();
        let length = HEADERS_BYTES + attribute_bytes.next_multiple_of(4);
        let mut message = Vec::with_capacity(length);
        // struct nlmsghdr: length, type, flags, sequence number, port.
        message.extend((length as u32).to_ne_bytes());
        message.extend(self.family.to_ne_bytes());
        message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
        message.extend([0u8; 8]);
        // struct genlmsghdr: command, version, reserved.
        message.extend([command, 1, 0, 0]);
        // struct nlattr: length without padding, type.
        message.extend((attribute_bytes as u16).to_ne_bytes());
        message.extend(name.to_ne_bytes());
        message.extend(value);
        message.resize(length, 0);
        // SAFETY: the buffer is as long as said. An unbound netlink socket sends to the kernel.
        let sent = unsafe {
            libc::send(self.socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0)
        };
        if sent < 0 {
            return Err(format!("cannot ask the kernel for taskstats: {}", last_error()));
        }
        let mut answer = vec![0u8; 8192];
        // SAFETY: as above.
        let received = unsafe {
            libc::recv(self.socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0)
        };
        let Ok(received) = usize::try_from(received) else {
            return Err(format!("the kernel does not answer for taskstats: {}", last_error()));
        };
        answer.truncate(received);
        let kind = answer.get(4..6).and_then(|bytes| bytes.first_chunk::<2>());
        if kind.map(|bytes| i32::from(u16::from_ne_bytes(*bytes))) == Some(libc::NLMSG_ERROR) {
            let code = answer.get(16..).and_then(|rest| rest.first_chunk::<4>());
            let errno = code.map_or(0, |bytes| i32::from_ne_bytes(*bytes).wrapping_neg());
            let error = io::Error::from_raw_os_error(errno);
            return Err(format!("the kernel refuses taskstats: {error}"));
        }
        answer.get(HEADERS_BYTES..).map(<[u8]>::to_vec).ok_or_else(|| "a short answer".to_owned())
    }
}

fn last_error() -> io::Error {
    io::Error::last_os_error()
}

/// The value of the first attribute of this type.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let header = attributes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_padding_and_never_beyond_the_end() {
        let mut bytes = Vec::new();
        for (kind, value) in [(7u16, b"abc".as_slice()), (9, b"wxyz")] {
            bytes.extend((4 + value.len() as u16).to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        assert_eq!(attribute(&bytes, 9), Some(b"wxyz".as_slice()));
        assert_eq!(attribute(&bytes, 7), Some(b"abc".as_slice()));
        assert_eq!(attribute(&bytes, 8), None);
        assert_eq!(attribute(&bytes[..bytes.len() - 1], 9), None);
        assert_eq!(attribute(&[0; 8], 9), None, "a length of zero does not loop");
    }
}
