//! Delay accounting through the kernel's TASKSTATS netlink interface
//! (Documentation/accounting/taskstats.rst).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use crate::Result;

const DELAY_ACCOUNTING: &str = "/proc/sys/kernel/task_delayacct";

/// Delay accounting switched on; restored when the last value of this type, in any process, is
/// dropped. Only tasks born while it is on have counters.
#[derive(Debug)]
pub struct DelayAccounting {
    /// Locked shared while a process wants accounting; contains the setting from before the first
    /// one.
    users: File,
}

impl DelayAccounting {
    /// Switches it on.
    ///
    /// # Errors
    /// When the kernel has none.
    pub fn on() -> Result<Self> {
        let path = std::env::temp_dir().join("observer-test-delay-accounting");
        let failed = |error: io::Error| format!("cannot lock {}: {error}", path.display());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let users = options.custom_flags(libc::O_NOFOLLOW).open(&path).map_err(failed)?;
        if users.try_lock().is_ok() {
            let before = fs::read_to_string(DELAY_ACCOUNTING)
                .map_err(|error| format!("cannot read {DELAY_ACCOUNTING}: {error}"))?;
            users
                .set_len(0)
                .and_then(|()| users.write_all_at(before.as_bytes(), 0))
                .map_err(failed)?;
        }
        users.lock_shared().map_err(failed)?;
        fs::write(DELAY_ACCOUNTING, "1")
            .map_err(|error| format!("cannot write {DELAY_ACCOUNTING}: {error}"))?;
        Ok(Self { users })
    }
}

impl Drop for DelayAccounting {
    fn drop(&mut self) {
        if self.users.try_lock().is_err() {
            return;
        }
        let mut before = [0u8; 8];
        let length = self.users.read_at(&mut before, 0).unwrap_or_default();
        let before = String::from_utf8_lossy(&before[..length]).trim().to_owned();
        if let Err(error) = fs::write(DELAY_ACCOUNTING, &before) {
            eprintln!("cannot put {DELAY_ACCOUNTING} back to {before}: {error}");
        }
    }
}

/// Number of delays, and their total length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delay {
    /// Times.
    pub count: u64,
    /// Their sum.
    pub total_ns: u64,
}

impl Delay {
    /// What came since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self { count: self.count - earlier.count, total_ns: self.total_ns - earlier.total_ns }
    }

    /// The sum of two threads' delays.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { count: self.count + other.count, total_ns: self.total_ns + other.total_ns }
    }
}

/// The delays of one thread since its birth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delays {
    /// Waits for a CPU.
    pub cpu: Delay,
    /// Waits for a block device.
    pub block: Delay,
    /// Pages read back from swap.
    pub swapin: Delay,
    /// Reclaims of memory, direct or for its memory cgroup.
    pub reclaim: Delay,
    /// Waits for pages that were reclaimed too early.
    pub thrashing: Delay,
    /// Direct compactions; `None` before version 11 (Linux 5.17).
    pub compact: Option<Delay>,
    /// Copies of pages that were written to; `None` before version 13 (Linux 6.0).
    pub wpcopy: Option<Delay>,
    /// Minor faults.
    pub minor_faults: u64,
    /// Major faults.
    pub major_faults: u64,
}

/// From linux/taskstats.h, `struct taskstats`: the same since version 7 (2.6.27). Version 15
/// moved them by mistake; version 16 put them back.
const VERSION_MIN: u16 = 7;
const VERSION_MOVED: u16 = 15;
const CPU: usize = 16;
const BLOCK: usize = 32;
const SWAPIN: usize = 48;
const MINOR_FAULTS: usize = 168;
const MAJOR_FAULTS: usize = 176;
const FREEPAGES: usize = 312;
const THRASHING: usize = 328;
const COMPACT: (u16, usize) = (11, 352);
const WPCOPY: (u16, usize) = (13, 400);

impl Delays {
    fn parse(stats: &[u8], tid: u32) -> Result<Self> {
        let version = stats.first_chunk::<2>().map_or(0, |bytes| u16::from_ne_bytes(*bytes));
        if version < VERSION_MIN || version == VERSION_MOVED {
            return Err(format!("taskstats version {version} cannot be read"));
        }
        let number = |offset: usize| {
            stats
                .get(offset..)
                .and_then(|rest| rest.first_chunk::<8>())
                .map(|bytes| u64::from_ne_bytes(*bytes))
                .ok_or_else(|| format!("taskstats of thread {tid} end after {}", stats.len()))
        };
        let delay = |offset: usize| {
            Ok::<_, String>(Delay { count: number(offset)?, total_ns: number(offset + 8)? })
        };
        let newer = |(since, offset): (u16, usize)| {
            if version >= since { delay(offset).map(Some) } else { Ok(None) }
        };
        Ok(Self {
            cpu: delay(CPU)?,
            block: delay(BLOCK)?,
            swapin: delay(SWAPIN)?,
            reclaim: delay(FREEPAGES)?,
            thrashing: delay(THRASHING)?,
            compact: newer(COMPACT)?,
            wpcopy: newer(WPCOPY)?,
            minor_faults: number(MINOR_FAULTS)?,
            major_faults: number(MAJOR_FAULTS)?,
        })
    }
}

/// linux/genetlink.h and linux/taskstats.h.
const GENL_ID_CTRL: u16 = 16;
const TASKSTATS_CMD_GET: u8 = 1;
const TASKSTATS_CMD_ATTR_PID: u16 = 1;
const TASKSTATS_CMD_ATTR_REGISTER_CPUMASK: u16 = 3;
const TASKSTATS_TYPE_PID: u16 = 1;
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
        Delays::parse(stats, tid)
    }

    /// From now on, the kernel sends the delays of every thread that ends to this connection.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn of_ended_tasks() -> Result<Exits> {
        let connection = Self::connect()?;
        let bytes: libc::c_int = 32 << 20;
        // SAFETY: the value is as long as said.
        unsafe {
            libc::setsockopt(
                connection.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const bytes).cast(),
                size_of_val(&bytes) as libc::socklen_t,
            );
        }
        let path = "/sys/devices/system/cpu/possible";
        let cpus =
            fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?;
        let mut mask = cpus.trim().as_bytes().to_vec();
        mask.push(0);
        let acknowledge = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        connection.send(
            TASKSTATS_CMD_GET,
            TASKSTATS_CMD_ATTR_REGISTER_CPUMASK,
            &mask,
            acknowledge,
        )?;
        connection.receive(0)?;
        Ok(Exits { connection, seen: RefCell::default() })
    }

    /// Sends one command with one attribute; returns the attributes of the answer.
    fn ask(&self, command: u8, name: u16, value: &[u8]) -> Result<Vec<u8>> {
        self.send(command, name, value, libc::NLM_F_REQUEST as u16)?;
        self.receive(0)?.ok_or_else(|| "the kernel does not answer for taskstats".to_owned())
    }

    fn send(&self, command: u8, name: u16, value: &[u8], flags: u16) -> Result<()> {
        let attribute_bytes = 4 + value.len();
        let length = HEADERS_BYTES + attribute_bytes.next_multiple_of(4);
        let mut message = Vec::with_capacity(length);
        // struct nlmsghdr: length, type, flags, sequence number, port.
        message.extend((length as u32).to_ne_bytes());
        message.extend(self.family.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
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
        Ok(())
    }

    /// The attributes of one message; `None` when there is none to come (with `MSG_DONTWAIT`), or
    /// none in it (an acknowledgement).
    fn receive(&self, flags: libc::c_int) -> Result<Option<Vec<u8>>> {
        let mut answer = vec![0u8; 8192];
        // SAFETY: the buffer is as long as said.
        let received = unsafe {
            let buffer = answer.as_mut_ptr().cast();
            libc::recv(self.socket.as_raw_fd(), buffer, answer.len(), flags)
        };
        let Ok(received) = usize::try_from(received) else {
            let error = last_error();
            if error.kind() == io::ErrorKind::WouldBlock {
                return Ok(None);
            }
            return Err(format!("the kernel does not answer for taskstats: {error}"));
        };
        answer.truncate(received);
        let kind = answer.get(4..6).and_then(|bytes| bytes.first_chunk::<2>());
        if kind.map(|bytes| i32::from(u16::from_ne_bytes(*bytes))) == Some(libc::NLMSG_ERROR) {
            let code = answer.get(16..).and_then(|rest| rest.first_chunk::<4>());
            let errno = code.map_or(0, |bytes| i32::from_ne_bytes(*bytes).wrapping_neg());
            if errno == 0 {
                return Ok(None);
            }
            let error = io::Error::from_raw_os_error(errno);
            return Err(format!("the kernel refuses taskstats: {error}"));
        }
        let attributes = answer.get(HEADERS_BYTES..).map(<[u8]>::to_vec);
        attributes.map(Some).ok_or_else(|| "a short answer".to_owned())
    }
}

/// The final delays of threads that ended, as the kernel sends them.
#[derive(Debug)]
pub struct Exits {
    connection: Taskstats,
    seen: RefCell<BTreeMap<u32, Vec<Delays>>>,
}

impl Exits {
    /// The delays of all threads with this id that ended so far, in the order they ended.
    ///
    /// # Errors
    /// When the kernel's buffer overflowed (it was not read for too long).
    pub fn of(&self, tid: u32) -> Result<Vec<Delays>> {
        while let Some(message) = self.connection.receive(libc::MSG_DONTWAIT)? {
            let Some(aggregate) = attribute(&message, TASKSTATS_TYPE_AGGR_PID) else { continue };
            let id = attribute(aggregate, TASKSTATS_TYPE_PID)
                .and_then(|value| value.first_chunk::<4>())
                .map(|bytes| u32::from_ne_bytes(*bytes));
            let (Some(id), Some(stats)) = (id, attribute(aggregate, TASKSTATS_TYPE_STATS)) else {
                continue;
            };
            self.seen.borrow_mut().entry(id).or_default().push(Delays::parse(stats, id)?);
        }
        Ok(self.seen.borrow().get(&tid).cloned().unwrap_or_default())
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
