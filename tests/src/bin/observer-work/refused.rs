//! Sockets that the kernel makes, and sockets that it refuses.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use clap::ValueEnum;
use observer_tests::mapping::Mapping;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, SocketType, accept, bind, connect, getsockname, ipproto, listen,
    socket,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Map, Value, json};

use crate::memory::no_huge_pages;
use crate::stage::{report, wait_for_end, wait_for_go};

/// What is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum UsedUp {
    /// Nothing: sockets are made, and then cannot be used as they are.
    Nothing,
    /// The descriptors of this process.
    Descriptors,
    /// The open files of the host, for others than root.
    Files,
    /// The memory of the cgroup that this process is in.
    Memory,
    /// The kernel's memory for sockets.
    Sockets,
}

/// Somebody without privileges.
const NOBODY: u32 = 65_534;
/// Most descriptors that are held, which are more than the memory that is left holds.
const DESCRIPTORS_MAX: usize = 4_000;
/// Above all errnos.
const ERRNOS: usize = 134;
/// Memory that is given back at the end, so that what was counted can be reported.
const RESERVE_BYTES: usize = 4 << 20;

#[derive(Clone, Copy)]
enum Call {
    Socket,
    Accept,
    Connect,
    Bind,
    Open,
}

const CALLS: [(Call, &str); 5] = [
    (Call::Socket, "socket"),
    (Call::Accept, "accept"),
    (Call::Connect, "connect"),
    (Call::Bind, "bind"),
    (Call::Open, "open"),
];

/// What the calls returned: how often each errno, and 0. Counting takes no memory.
struct Results(Box<[[u64; ERRNOS]; CALLS.len()]>);

impl Results {
    fn count<T>(&mut self, call: Call, result: Result<T, Errno>) -> Option<T> {
        let errno = result.as_ref().err().map_or(0, |errno| errno.raw_os_error());
        self.0[call as usize][usize::try_from(errno).unwrap_or_default()] += 1;
        result.ok()
    }

    /// Failures of all calls.
    fn failed(&self) -> u64 {
        self.0.iter().flat_map(|errnos| &errnos[1..]).sum()
    }

    /// By call and errno.
    fn counted(&self) -> Map<String, Value> {
        let of_call = |(call, name): (Call, &str)| {
            let errnos = self.0[call as usize].iter().enumerate();
            let counted = errnos.filter(|(_, count)| **count > 0);
            let counted: Map<String, Value> =
                counted.map(|(errno, count)| (errno.to_string(), json!(count))).collect();
            (name.to_owned(), Value::Object(counted))
        };
        CALLS.map(of_call).into_iter().collect()
    }
}

fn internet(kind: SocketType, protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    socket(AddressFamily::INET, kind, protocol)
}

fn local(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

/// Where a socket is bound to.
fn address(socket: impl AsFd) -> Result<SocketAddrV4, Errno> {
    SocketAddrV4::try_from(getsockname(socket)?)
}

fn null() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Calls that fail for other reasons than that something is used up.
fn fail_otherwise(results: &mut Results, listener: &OwnedFd, rounds: usize) -> Result<(), Errno> {
    let (stream, datagram) = (SocketType::STREAM, SocketType::DGRAM);
    let taken = address(listener)?;
    // It is bound and does not listen.
    let silent = results.count(Call::Socket, internet(stream, None)).ok_or(Errno::INVAL)?;
    results.count(Call::Bind, bind(&silent, &local(0)));
    let silent_address = address(&silent)?;
    for _ in 0..rounds {
        // There is no such protocol.
        results.count(Call::Socket, internet(stream, Some(ipproto::UDP)));
        results.count(Call::Socket, socket(AddressFamily::INET6, datagram, Some(ipproto::TCP)));
        if let Some(client) = results.count(Call::Socket, internet(stream, None)) {
            results.count(Call::Connect, connect(&client, &silent_address));
        }
        if let Some(second) = results.count(Call::Socket, internet(stream, None)) {
            results.count(Call::Bind, bind(&second, &taken));
        }
        if let Some(client) = results.count(Call::Socket, internet(datagram, None)) {
            // Only a socket that may broadcast can be connected to this address.
            let everybody = SocketAddrV4::new(Ipv4Addr::BROADCAST, 9);
            results.count(Call::Connect, connect(&client, &everybody));
            // It does not listen either.
            results.count(Call::Accept, accept(&client));
        }
    }
    Ok(())
}

/// Calls that need memory for sockets.
fn fail_without_memory(results: &mut Results, rounds: usize) {
    for _ in 0..rounds {
        for kind in [SocketType::STREAM, SocketType::DGRAM] {
            results.count(Call::Socket, internet(kind, None));
            results.count(Call::Socket, socket(AddressFamily::INET6, kind, None));
            results.count(Call::Socket, socket(AddressFamily::UNIX, kind, None));
        }
    }
}

/// Calls until so many have failed. What they make is kept, and closed at the end.
fn use_up(results: &mut Results, kept: &mut [Option<OwnedFd>], listener: &OwnedFd, failures: u64) {
    let mut places = kept.iter_mut();
    let mut keep = |made: Option<OwnedFd>| {
        if made.is_some()
            && let Some(place) = places.next()
        {
            *place = made;
        }
    };
    for round in 0..DESCRIPTORS_MAX / 4 {
        if round > 0 && results.failed() >= failures {
            break;
        }
        for kind in [SocketType::STREAM, SocketType::DGRAM] {
            keep(results.count(Call::Socket, internet(kind, None)));
        }
        keep(results.count(Call::Open, null()));
        if results.failed() > 0 {
            keep(results.count(Call::Accept, accept(listener)));
        }
    }
}

pub(crate) fn refused(used_up: UsedUp, rounds: usize) -> io::Result<()> {
    let mut results = Results(Box::new([[0; ERRNOS]; CALLS.len()]));
    let mut kept: Vec<Option<OwnedFd>> = (0..DESCRIPTORS_MAX).map(|_| None).collect();
    let mut reserve = Mapping::anonymous(RESERVE_BYTES)?;
    no_huge_pages(&reserve)?;
    reserve.write_every_page();
    let listener = internet(SocketType::STREAM, None)?;
    bind(&listener, &local(0))?;
    listen(&listener, 1)?;
    rustix::io::ioctl_fionbio(&listener, true)?;
    if used_up == UsedUp::Memory {
        // Its own faults would wait for memory, so it has all its pages before there is none left.
        use_up(&mut results, &mut kept[..30], &listener, 0);
        results.count(Call::Accept, accept(&listener));
        results.0.fill([0; ERRNOS]);
        kept.fill_with(|| None);
        rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT)?;
    }
    let waiting = internet(SocketType::STREAM, None)?;
    connect(&waiting, &address(&listener)?)?;
    let limit = getrlimit(Resource::Nofile);
    if wait_for_go()? {
        match used_up {
            UsedUp::Nothing => fail_otherwise(&mut results, &listener, rounds)?,
            UsedUp::Sockets => fail_without_memory(&mut results, rounds),
            UsedUp::Descriptors => {
                // Descriptors are given out from the lowest: the next one is how many there may be.
                let next = rustix::fd::AsRawFd::as_raw_fd(&listener.try_clone()?);
                let few = Rlimit { current: u64::try_from(next).ok(), ..limit };
                setrlimit(Resource::Nofile, few)?;
            }
            UsedUp::Files => {
                let nobody = rustix::thread::Uid::from_raw(NOBODY);
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody)?;
            }
            UsedUp::Memory => {
                let maximum = limit.maximum.unwrap_or(u64::MAX).min(DESCRIPTORS_MAX as u64);
                setrlimit(Resource::Nofile, Rlimit { current: Some(maximum), ..limit })?;
            }
        }
        if !matches!(used_up, UsedUp::Nothing | UsedUp::Sockets) {
            use_up(&mut results, &mut kept, &listener, rounds as u64);
        }
        drop(kept);
        drop(reserve);
        report(&Value::Object(results.counted()))?;
    }
    wait_for_end()?;
    drop((listener, waiting));
    Ok(())
}
