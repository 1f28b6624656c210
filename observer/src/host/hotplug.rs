//! CPUs that come online while observer runs.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::system;
use crate::text::until_nul;

/// The multicast group of the kernel's own messages (lib/kobject_uevent.c).
const KERNEL_GROUP: u32 = 1;

/// Length of the longest message (`UEVENT_BUFFER_SIZE`, and its header).
const MESSAGE_BYTES: usize = 4096;

/// The kernel's messages about devices. A CPU that went and came back between two looks would look as
/// if nothing had happened, but the kernel has removed the perf events of that CPU.
#[derive(Debug)]
pub struct CpuEvents {
    /// `None` where the kernel sends no messages: then only CPUs that are new are noticed.
    messages: Option<OwnedFd>,
    online: BTreeSet<u32>,
}

/// `online@/devices/system/cpu/cpu1`, and more after a NUL.
fn came_online(message: &[u8]) -> Option<u32> {
    let head = until_nul(message);
    head.strip_prefix("online@/devices/system/cpu/cpu")?.parse().ok()
}

fn online() -> BTreeSet<u32> {
    system::online_cpus().into_iter().collect()
}

fn subscribe() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::DGRAM;
    let socket = socket_with(AddressFamily::NETLINK, kind, flags, Some(KOBJECT_UEVENT))?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
    Ok(socket)
}

impl CpuEvents {
    /// From now on.
    #[must_use]
    pub fn start() -> Self {
        let messages = subscribe().ok();
        Self { messages, online: online() }
    }

    /// The CPUs that have come online since the last call, and still are.
    pub fn arrived(&mut self) -> BTreeSet<u32> {
        let mut arrived = BTreeSet::new();
        let mut missed = self.messages.is_none();
        let mut buffer = [0u8; MESSAGE_BYTES];
        while let Some(socket) = &self.messages {
            match recv(socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => arrived.extend(came_online(&buffer[..length])),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                // Too many messages (ENOBUFS): any CPU may have gone and come back.
                Err(_) => {
                    missed = true;
                    arrived.clone_from(&self.online);
                    break;
                }
            }
        }
        if !missed && arrived.is_empty() {
            return arrived;
        }
        let now = online();
        arrived.extend(now.difference(&self.online));
        arrived.retain(|cpu| now.contains(cpu));
        self.online = now;
        arrived
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cpus_that_come_online_are_taken_from_the_messages() {
        let message = b"online@/devices/system/cpu/cpu12\0ACTION=online\0SUBSYSTEM=cpu\0";
        assert_eq!(came_online(message), Some(12));
        for other in [
            &b"offline@/devices/system/cpu/cpu1\0"[..],
            b"add@/devices/system/cpu/cpu1/cache\0",
            b"online@/devices/system/cpu/cpu1/x\0",
            b"online@/devices/system/memory/memory1\0",
            b"",
            b"\xff",
        ] {
            assert_eq!(came_online(other), None);
        }
    }

    #[test]
    fn nothing_arrives_where_nothing_happens() {
        let mut events = CpuEvents::start();
        assert!(!events.online.is_empty());
        let mut blind = CpuEvents { messages: None, online: BTreeSet::new() };
        assert_eq!(blind.arrived(), events.online, "new ones are noticed without messages too");
        events.online.clear();
        assert!(events.arrived().is_subset(&blind.online));
    }
}
