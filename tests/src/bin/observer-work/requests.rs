//! A service over TCP and Unix sockets, and its clients, in one process: every way in which a request
//! can be read and answered, each reported as the service did it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{self as unix, UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use observer::clock::MonoNanos;
use observer_tests::told::{Outgoing, Request, Requests};
use rustix::net::{RecvFlags, recv};
use rustix::thread::gettid;

use crate::stage::{report, wait_for_end, wait_for_go};

/// How a client asks and the service answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// One write, one read, one write; several times on one connection.
    Plain,
    /// The service looks at the data before it takes it.
    Peeked,
    /// A body in several writes, with pauses, and a reply in three.
    Long,
    /// Two requests in one write, answered one after the other.
    Pipelined,
    /// Another thread answers.
    HandedOver,
    /// The service speaks first.
    Greeting,
    /// The service sends a file.
    File,
    /// The service closes the connection and says nothing.
    Unanswered,
}

const SHAPES: [Shape; 8] = [
    Shape::Plain,
    Shape::Peeked,
    Shape::Long,
    Shape::Pipelined,
    Shape::HandedOver,
    Shape::Greeting,
    Shape::File,
    Shape::Unanswered,
];

const REQUEST_BYTES: usize = 100;
const REPLY_BYTES: usize = 3_000;
const GREETING_BYTES: usize = 10;
const LONG_BYTES: usize = 300_000;
/// Requests of one connection.
const REPEATS: usize = 5;

/// Either end of a connection.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Port at the other end; 0 with a Unix socket.
    fn remote_port(&self) -> io::Result<u16> {
        match self {
            Self::Tcp(stream) => Ok(stream.peer_addr()?.port()),
            Self::Unix(_) => Ok(0),
        }
    }

    fn shutdown(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Self::Unix(stream) => stream.shutdown(Shutdown::Both),
        }
    }

    fn send_at_once(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.set_nodelay(true),
            Self::Unix(_) => Ok(()),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for &Stream {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).read(room),
            Stream::Unix(stream) => (&*stream).read(room),
        }
    }
}

impl Write for &Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => (&*stream).write(bytes),
            Stream::Unix(stream) => (&*stream).write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A socket that waits for connections.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Both versions of IP, as far as the host has them, and a Unix socket without a file.
    fn all() -> io::Result<Vec<Self>> {
        let addresses = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        let bind = |address| TcpListener::bind((address, 0)).ok();
        let mut all: Vec<Self> = addresses.into_iter().filter_map(bind).map(Self::Tcp).collect();
        let name = format!("observer-work-{}", std::process::id());
        let address = unix::SocketAddr::from_abstract_name(name)?;
        all.push(Self::Unix(UnixListener::bind_addr(&address)?));
        Ok(all)
    }

    /// Both ends of a new connection: the client's and the service's.
    fn connect(&self) -> io::Result<[Stream; 2]> {
        Ok(match self {
            Self::Tcp(listener) => {
                let client = TcpStream::connect(listener.local_addr()?)?;
                [client, listener.accept()?.0].map(Stream::Tcp)
            }
            Self::Unix(listener) => {
                let client = UnixStream::connect_addr(&listener.local_addr()?)?;
                [client, listener.accept()?.0].map(Stream::Unix)
            }
        })
    }
}

fn tid() -> u32 {
    gettid().as_raw_nonzero().get().unsigned_abs()
}

/// The service's end of a connection, and what it did there.
struct Served {
    stream: Stream,
    told: Vec<Request>,
    other_sends: u64,
}

impl Served {
    /// Takes data, once.
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let before_ns = MonoNanos::now().0;
        let bytes = (&self.stream).read(room)?;
        let after_ns = MonoNanos::now().0;
        match self.told.last_mut() {
            _ if bytes == 0 => {}
            Some(request) if request.sends == 0 => request.bytes_in += bytes as u64,
            _ => self.told.push(Request {
                remote_port: self.stream.remote_port()?,
                unix: matches!(self.stream, Stream::Unix(_)),
                reader: tid(),
                read_ns: [before_ns, after_ns],
                bytes_in: bytes as u64,
                ..Request::default()
            }),
        }
        Ok(bytes)
    }

    fn read_whole(&mut self, length: usize) -> io::Result<()> {
        let mut room = vec![0; 64 << 10];
        let mut left = length;
        while left > 0 {
            let wanted = left.min(room.len());
            match self.read(&mut room[..wanted])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => left -= bytes,
            }
        }
        Ok(())
    }

    /// Notes one call that sends.
    fn send(&mut self, send: impl FnOnce(&Stream) -> io::Result<usize>) -> io::Result<()> {
        let before_ns = MonoNanos::now().0;
        let bytes = send(&self.stream)?;
        let after_ns = MonoNanos::now().0;
        let Some(request) = self.told.last_mut() else {
            self.other_sends += 1;
            return Ok(());
        };
        request.bytes_out += bytes as u64;
        request.sends += 1;
        request.last_send_ns = [before_ns, after_ns];
        if request.sends == 1 {
            request.sender = tid();
            request.first_send_ns = [before_ns, after_ns];
        }
        Ok(())
    }

    fn write(&mut self, length: usize) -> io::Result<()> {
        // Small enough for one call.
        self.send(|mut stream| stream.write(&vec![b'r'; length]))
    }
}

/// Serves one connection to its end.
fn serve(stream: Stream, shape: Shape, over: &Sender<Handed>) -> io::Result<Served> {
    let mut served = Served { stream, told: Vec::new(), other_sends: 0 };
    if shape == Shape::Greeting {
        served.write(GREETING_BYTES)?;
    }
    for _ in 0..REPEATS {
        match shape {
            Shape::Plain | Shape::Greeting => {
                served.read_whole(REQUEST_BYTES)?;
                served.write(REPLY_BYTES)?;
            }
            Shape::Peeked => {
                recv(served.stream.as_fd(), &mut [0; REQUEST_BYTES], RecvFlags::PEEK)?;
                served.read_whole(REQUEST_BYTES)?;
                served.write(REPLY_BYTES)?;
            }
            Shape::Long => {
                served.read_whole(LONG_BYTES)?;
                for _ in 0..3 {
                    served.write(REPLY_BYTES / 3)?;
                }
            }
            Shape::Pipelined => {
                served.read_whole(2 * REQUEST_BYTES)?;
                served.write(REPLY_BYTES)?;
                served.write(REPLY_BYTES)?;
            }
            Shape::HandedOver => {
                served.read_whole(REQUEST_BYTES)?;
                let (back, returned) = channel();
                over.send(Handed { served, back }).map_err(|_| io::ErrorKind::BrokenPipe)?;
                served = returned.recv().map_err(|_| io::ErrorKind::BrokenPipe)??;
            }
            Shape::File => {
                served.read_whole(REQUEST_BYTES)?;
                let file = std::fs::File::open("/proc/self/exe")?;
                served.send(|stream| {
                    let mut from = 0;
                    Ok(rustix::fs::sendfile(stream, &file, Some(&mut from), REPLY_BYTES)?)
                })?;
            }
            Shape::Unanswered => {
                served.read_whole(REQUEST_BYTES)?;
                break;
            }
        }
    }
    Ok(served)
}

/// A request on its way to the thread that answers.
struct Handed {
    served: Served,
    back: Sender<io::Result<Served>>,
}

fn answer(handed: &Receiver<Handed>) {
    for Handed { mut served, back } in handed {
        let result = served.write(REPLY_BYTES).map(|()| served);
        let _ = back.send(result);
    }
}

/// What a client asked.
struct Asked {
    /// When each request was begun, nanoseconds.
    begun: Vec<u64>,
    /// Those that were answered.
    answered: Vec<Outgoing>,
}

/// Asks as the shape says.
fn ask(stream: &Stream, shape: Shape) -> io::Result<Asked> {
    let mut stream = stream;
    let mut room = vec![0; REPLY_BYTES];
    let (mut begun, mut answered) = (Vec::new(), Vec::new());
    let thread = tid();
    stream.send_at_once()?;
    if shape == Shape::Greeting {
        stream.read_exact(&mut room[..GREETING_BYTES])?;
    }
    for _ in 0..REPEATS {
        let before_ns = MonoNanos::now().0;
        begun.push(before_ns);
        match shape {
            Shape::Long => {
                for part in 0..10 {
                    stream.write_all(&vec![part; LONG_BYTES / 10])?;
                    thread::sleep(std::time::Duration::from_millis(1));
                }
            }
            Shape::Pipelined => {
                stream.write_all(&[b'q'; 2 * REQUEST_BYTES])?;
            }
            _ => stream.write_all(&[b'q'; REQUEST_BYTES])?,
        }
        if shape == Shape::Unanswered {
            stream.read_to_end(&mut room)?;
            return Ok(Asked { begun, answered });
        }
        let written_ns = MonoNanos::now().0;
        stream.read_exact(&mut room)?;
        let read_ns = MonoNanos::now().0;
        answered.push(Outgoing {
            thread,
            sent_ns: [before_ns, written_ns],
            replied_ns: [written_ns, read_ns],
        });
        if shape == Shape::Pipelined {
            stream.read_exact(&mut room)?;
        }
    }
    stream.shutdown()?;
    Ok(Asked { begun, answered })
}

/// One connection of each shape, so many times, over both versions of IP and over a Unix socket.
pub(crate) fn requests(rounds: usize) -> io::Result<()> {
    let listeners = Listener::all()?;
    // Older than the probe.
    let old = listeners.iter().map(Listener::connect).collect::<io::Result<Vec<_>>>()?;
    let (over, handed) = channel();
    let answers = thread::spawn(move || answer(&handed));
    if wait_for_go()? {
        let mut told = Requests::default();
        let mut run = |[client, accepted]: [Stream; 2], shape| -> io::Result<()> {
            let asks = thread::spawn(move || ask(&client, shape));
            // Some requests are in the socket before anybody has it.
            let mut served = serve(accepted, shape, &over)?;
            let asked = match shape {
                Shape::Unanswered => {
                    served.stream.shutdown()?;
                    asks.join()
                }
                _ => asks.join(),
            };
            let mut asked = asked.map_err(|_| io::ErrorKind::Other)??;
            told.outgoing.append(&mut asked.answered);
            told.unix_connections += u64::from(matches!(served.stream, Stream::Unix(_)));
            // Closed by both: its last request is complete.
            drop(served.stream);
            for (request, begun_ns) in served.told.iter_mut().zip(asked.begun) {
                request.begun_ns = begun_ns;
            }
            told.other_sends += served.other_sends;
            told.requests.append(&mut served.told);
            Ok(())
        };
        for ends in old {
            run(ends, Shape::Plain)?;
        }
        for listener in &listeners {
            for shape in SHAPES.into_iter().cycle().take(rounds * SHAPES.len()) {
                run(listener.connect()?, shape)?;
            }
        }
        report(&serde_json::to_value(told)?)?;
        wait_for_end()?;
    }
    drop(over);
    let _ = answers.join();
    Ok(())
}
