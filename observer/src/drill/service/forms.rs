//! The forms of the service: how its threads share the connections.

use std::collections::VecDeque;
use std::io;
use std::mem::MaybeUninit;
use std::net::TcpListener;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::Builder;
use std::time::Duration;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::handler::{Handler, Received, Thread};
use super::http::Connection;
use crate::drill::rows::Form;

/// Threads of a pool, and workers behind an acceptor.
const WORKERS: usize = 4;
/// Connections at one time; the load generator opens few.
const CONNECTIONS_MAX: usize = 1024;
/// Events that an event loop takes at a time.
const EVENTS: usize = 64;
/// Data word that stands for the listener; that of a connection is its descriptor.
const LISTENER: u64 = u64::MAX;

/// Starts the threads; they run until the process ends.
pub(super) fn start(form: Form, listener: TcpListener, handler: &Arc<Handler>) -> io::Result<()> {
    match form {
        Form::ThreadPerConnection => thread_per_connection(listener, handler),
        Form::EventLoop => poll(listener, handler, 1, EVENTS),
        Form::Pool => poll(listener, handler, WORKERS, 1),
        Form::AcceptorWorkers => acceptor_workers(listener, handler),
    }
}

fn spawn(name: String, run: impl FnOnce() -> io::Result<()> + Send + 'static) -> io::Result<()> {
    let report = move || {
        if let Err(error) = run() {
            eprintln!("a thread of the service ended: {error}");
        }
    };
    Builder::new().name(name).spawn(report).map(drop)
}

fn thread_per_connection(listener: TcpListener, handler: &Arc<Handler>) -> io::Result<()> {
    let handler = Arc::clone(handler);
    spawn("drill-accept".into(), move || {
        let threads = Arc::new(());
        loop {
            // Out of descriptors, or the client gave up.
            let Ok((stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            if Arc::strong_count(&threads) > CONNECTIONS_MAX {
                continue;
            }
            let (handler, counted) = (Arc::clone(&handler), Arc::clone(&threads));
            spawn("drill-conn".into(), move || {
                let _counted = counted;
                let mut thread = Thread::new(&handler)?;
                let mut connection = Connection::new(stream)?;
                while connection.read_request() {
                    let received = thread.received();
                    if thread.serve(&connection, received).is_err() {
                        break;
                    }
                }
                Ok(())
            })?;
        }
    })
}

/// One epoll for the listener and all connections. Each is armed once at a time, so that one thread
/// at a time has it.
struct Poller {
    epoll: OwnedFd,
    listener: TcpListener,
    /// Connections that are armed, by descriptor.
    armed: Vec<Mutex<Option<Connection>>>,
}

const ONCE: EventFlags = EventFlags::IN.union(EventFlags::ONESHOT);

impl Poller {
    fn new(listener: TcpListener) -> io::Result<Self> {
        // A client that is gone before accept(2) must not block a thread there.
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &listener, EventData::new_u64(LISTENER), ONCE)?;
        let armed = (0..CONNECTIONS_MAX).map(|_| Mutex::default()).collect();
        Ok(Self { epoll, listener, armed })
    }

    /// Waits for at most as many events as `events` has room for; the data of each.
    fn wait(&self, events: &mut [MaybeUninit<Event>], ready: &mut Vec<u64>) -> io::Result<()> {
        ready.clear();
        match epoll::wait(&self.epoll, events, None) {
            Ok((filled, _)) => ready.extend(filled.iter().map(|event| event.data.u64())),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn accept(&self) -> io::Result<()> {
        let accepted = self.listener.accept();
        epoll::modify(&self.epoll, &self.listener, EventData::new_u64(LISTENER), ONCE)?;
        let Ok((stream, _)) = accepted else { return Ok(()) };
        let connection = Connection::new(stream)?;
        let descriptor = connection.stream().as_raw_fd() as usize;
        let Some(place) = self.armed.get(descriptor) else { return Ok(()) };
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = place.insert(connection).stream().as_fd();
        Ok(epoll::add(&self.epoll, stream, EventData::new_u64(descriptor as u64), ONCE)?)
    }

    /// The connection that became ready.
    fn take(&self, descriptor: u64) -> Option<Connection> {
        let place = self.armed.get(usize::try_from(descriptor).ok()?)?;
        place.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits for the next request of a connection.
    fn arm(&self, connection: Connection) -> io::Result<()> {
        let descriptor = connection.stream().as_raw_fd() as usize;
        let Some(place) = self.armed.get(descriptor) else { return Ok(()) };
        // Held until it is armed: the thread that is told of the next request must find it.
        let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = place.insert(connection).stream().as_fd();
        Ok(epoll::modify(&self.epoll, stream, EventData::new_u64(descriptor as u64), ONCE)?)
    }
}

/// Threads that wait for events, and serve the requests.
fn poll(
    listener: TcpListener,
    handler: &Arc<Handler>,
    threads: usize,
    events: usize,
) -> io::Result<()> {
    let poller = Arc::new(Poller::new(listener)?);
    for number in 0..threads {
        let (poller, handler) = (Arc::clone(&poller), Arc::clone(handler));
        spawn(format!("drill-worker-{number}"), move || {
            let mut thread = Thread::new(&handler)?;
            let mut room = vec![MaybeUninit::uninit(); events];
            let mut ready = Vec::new();
            loop {
                poller.wait(&mut room, &mut ready)?;
                for &data in &ready {
                    if data == LISTENER {
                        poller.accept()?;
                    } else if let Some(connection) = poller.take(data) {
                        serve_all(&poller, &mut thread, connection)?;
                    }
                }
            }
        })?;
    }
    Ok(())
}

fn serve_all(poller: &Poller, thread: &mut Thread, mut connection: Connection) -> io::Result<()> {
    loop {
        if !connection.read_request() {
            return Ok(());
        }
        let received = thread.received();
        if thread.serve(&connection, received).is_err() {
            return Ok(());
        }
        if !connection.has_request() {
            return poller.arm(connection);
        }
    }
}

/// Requests between the thread that reads and the workers.
#[derive(Default)]
struct Queue {
    jobs: Mutex<VecDeque<(Connection, Received)>>,
    more: Condvar,
}

fn acceptor_workers(listener: TcpListener, handler: &Arc<Handler>) -> io::Result<()> {
    let poller = Arc::new(Poller::new(listener)?);
    let queue = Arc::new(Queue::default());
    for number in 0..WORKERS {
        let (poller, handler, queue) =
            (Arc::clone(&poller), Arc::clone(handler), Arc::clone(&queue));
        spawn(format!("drill-worker-{number}"), move || {
            let mut thread = Thread::new(&handler)?;
            loop {
                let (connection, received) = {
                    let jobs = queue.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                    let mut jobs = queue
                        .more
                        .wait_while(jobs, |jobs| jobs.is_empty())
                        .unwrap_or_else(PoisonError::into_inner);
                    let Some(job) = jobs.pop_front() else { continue };
                    job
                };
                if thread.serve(&connection, received).is_ok() {
                    poller.arm(connection)?;
                }
            }
        })?;
    }
    let handler = Arc::clone(handler);
    spawn("drill-reader".into(), move || {
        let mut thread = Thread::new(&handler)?;
        let mut room = vec![MaybeUninit::uninit(); EVENTS];
        let mut ready = Vec::new();
        loop {
            poller.wait(&mut room, &mut ready)?;
            for &data in &ready {
                if data == LISTENER {
                    poller.accept()?;
                } else if let Some(mut connection) = poller.take(data)
                    && connection.read_request()
                {
                    let received = thread.received();
                    let mut jobs = queue.jobs.lock().unwrap_or_else(PoisonError::into_inner);
                    jobs.push_back((connection, received));
                    drop(jobs);
                    queue.more.notify_one();
                }
            }
        }
    })
}
