//! Work that is reported call by call, so that tests can compare single records with it.

use std::fs::File;
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use observer::clock::MonoNanos;
use observer_tests::mapping::{Mapping, PAGE_BYTES};
use observer_tests::told::{Area, Call, Calls, Faults, MmCall, Socket};
use serde::Serialize;

use crate::memory::{no_huge_pages, timed};
use crate::stage::{report, wait_for_end, wait_for_go};

fn tell(told: impl Serialize) -> io::Result<()> {
    report(&serde_json::to_value(told)?)
}

fn area(mapping: &Mapping) -> Area {
    Area { base: mapping.base() as u64, length_bytes: mapping.length_bytes() as u64 }
}

/// Pages that are written here, and pages that the kernel writes in a read(2).
pub(crate) fn faults(pages: usize) -> io::Result<()> {
    let mut touched = Mapping::anonymous(pages * PAGE_BYTES)?;
    let mut read_into = Mapping::anonymous(pages * PAGE_BYTES)?;
    no_huge_pages(&touched)?;
    no_huge_pages(&read_into)?;
    let mut zeroes = File::open("/dev/zero")?;
    if wait_for_go()? {
        touched.write_every_page();
        zeroes.read_exact(read_into.as_mut_slice())?;
        tell(Faults { touched: area(&touched), read_into: area(&read_into) })?;
    }
    wait_for_end()
}

/// Calls whose arguments and results are noted. There is room for all of them from the start,
/// because allocating more room would be calls that are not reported.
struct Teller(Vec<Call>);

impl Teller {
    /// Makes a call with these arguments and returns the kernel's result.
    fn call(&mut self, call: MmCall, arguments: [u64; 4], length_bytes: u64, argument: u32) -> i64 {
        const ANYWHERE: [i64; 2] = [-1, 0];
        let number = match call {
            MmCall::Mmap => libc::SYS_mmap,
            MmCall::Munmap => libc::SYS_munmap,
            MmCall::Mremap => libc::SYS_mremap,
            MmCall::Brk => libc::SYS_brk,
            MmCall::Mprotect => libc::SYS_mprotect,
            MmCall::Madvise => libc::SYS_madvise,
        };
        let [address, second, third, fourth] = arguments;
        let [fd, offset] = ANYWHERE;
        // SAFETY: all of it happens to mappings made by these calls, which nobody else knows, and
        // to the part of the heap beyond what is in use.
        let result = unsafe { libc::syscall(number, address, second, third, fourth, fd, offset) };
        let error = io::Error::last_os_error().raw_os_error().unwrap_or_default();
        let result = if result == -1 { -i64::from(error) } else { result };
        let call = call.name().into();
        self.0.push(Call { call, address, length_bytes, argument, result });
        result
    }
}

/// Every watched call, with lengths that differ from round to round, and calls that fail.
pub(crate) fn calls(rounds: usize) -> io::Result<()> {
    const CALLS_A_ROUND: usize = 13;
    const PAGE: u64 = PAGE_BYTES as u64;
    const PRIVATE: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    const NO_ADVICE: u32 = 12_345;
    let (reads, writes) = (libc::PROT_READ as u32, (libc::PROT_READ | libc::PROT_WRITE) as u32);
    let discard = libc::MADV_DONTNEED as u32;
    let mut teller = Teller(Vec::with_capacity(rounds * CALLS_A_ROUND));
    if wait_for_go()? {
        let begin_ns = MonoNanos::now().0;
        for round in 0..rounds {
            let length = (1 + round as u64 % 7) * PAGE;
            let map = [0, length, writes.into(), PRIVATE];
            let base = teller.call(MmCall::Mmap, map, length, writes) as u64;
            for protection in [reads, writes] {
                let protect = [base, length, protection.into(), 0];
                teller.call(MmCall::Mprotect, protect, length, protection);
            }
            for advice in [discard, NO_ADVICE] {
                teller.call(MmCall::Madvise, [base, length, advice.into(), 0], length, advice);
            }
            let longer = 2 * length;
            let remap = [base, length, longer, libc::MREMAP_MAYMOVE as u64];
            let base = teller.call(MmCall::Mremap, remap, longer, 0) as u64;
            // Not from the border of a page.
            teller.call(MmCall::Munmap, [base + 1, longer, 0, 0], longer, 0);
            teller.call(MmCall::Munmap, [base, longer, 0, 0], longer, 0);
            // Nothing is there any more.
            teller.call(MmCall::Madvise, [base, length, discard.into(), 0], length, discard);
            // Nothing is asked for.
            teller.call(MmCall::Mmap, [0, 0, writes.into(), PRIVATE], 0, writes);
            let end = teller.call(MmCall::Brk, [0; 4], 0, 0) as u64;
            for end in [end + length, end] {
                teller.call(MmCall::Brk, [end, 0, 0, 0], 0, 0);
            }
        }
        let end_ns = MonoNanos::now().0;
        tell(Calls { begin_ns, end_ns, calls: teller.0 })?;
    }
    wait_for_end()
}

/// An open socket, and what to report about it.
struct Open {
    socket: Box<dyn std::any::Any>,
    told: Socket,
}

impl Open {
    fn new(socket: impl std::any::Any, socket_type: i32, made_ns: [u64; 2]) -> Self {
        let told = Socket {
            family: libc::AF_INET as u32,
            socket_type: socket_type as u32,
            accepted: false,
            preexisting: false,
            made_ns,
            closed_ns: [0; 2],
        };
        Self { socket: Box::new(socket), told }
    }
}

/// Sockets of every kind, open for this long.
pub(crate) fn sockets(length: Duration) -> io::Result<()> {
    let old = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    if wait_for_go()? {
        let mut old = Open::new(old, libc::SOCK_DGRAM, [0; 2]);
        old.told.preexisting = true;
        let (listener, listener_ns) = timed(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
        let listener = listener?;
        let address = listener.local_addr()?;
        let (client, client_ns) = timed(|| TcpStream::connect(address));
        let (server, server_ns) = timed(|| listener.accept());
        let (datagram, datagram_ns) = timed(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)));
        let mut server = Open::new(server?.0, libc::SOCK_STREAM, server_ns);
        server.told.accepted = true;
        let mut open = vec![
            old,
            Open::new(listener, libc::SOCK_STREAM, listener_ns),
            Open::new(client?, libc::SOCK_STREAM, client_ns),
            server,
            Open::new(datagram?, libc::SOCK_DGRAM, datagram_ns),
        ];
        let (family, kind) = (rustix::net::AddressFamily::INET6, rustix::net::SocketType::DGRAM);
        let (newer, newer_ns) = timed(|| rustix::net::socket(family, kind, None));
        // Not every host has version 6.
        if let Ok(newer) = newer {
            let mut newer = Open::new(newer, libc::SOCK_DGRAM, newer_ns);
            newer.told.family = libc::AF_INET6 as u32;
            open.push(newer);
        }
        std::thread::sleep(length);
        let close = |Open { socket, mut told }| {
            ((), told.closed_ns) = timed(|| drop(socket));
            told
        };
        let told: Vec<Socket> = open.into_iter().map(close).collect();
        tell(told)?;
    }
    wait_for_end()
}
