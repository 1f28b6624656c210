//! One request on one connection, and the connections kept between requests.
//!
//! A request's task drives its connection itself instead of leaving that to a task of the
//! connection's: the request is written in the same poll that hands it over, and no second
//! scheduling delay of the generator gets into the latency.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use hyper::{HeaderMap, Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::connect::Addresses;
use crate::clock::MonoNanos;

/// What every request asks for.
#[derive(Clone, Debug)]
pub struct RequestSpec {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub path: Uri,
    /// All headers, Host included.
    pub headers: HeaderMap,
}

impl RequestSpec {
    /// A method whose requests have a body by definition says that this one is empty: servers refuse
    /// it otherwise (411), or wait for a body (RFC 9110, 8.6).
    pub(super) fn with_length(mut self) -> Self {
        let has_body = [Method::POST, Method::PUT, Method::PATCH].contains(&self.method);
        let says_so =
            [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| self.headers.contains_key(name));
        if has_body && !says_so {
            self.headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        self
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// Why a request has no answer. [`Failure::kind`] begins the row's `error`.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Connecting failed.
    #[error("connect: {0}")]
    Connect(#[source] std::io::Error),
    /// The exchange failed.
    #[error("{}", chain(.0))]
    Exchange(#[source] hyper::Error),
    /// No answer within the time allowed.
    #[error("no complete answer within {0:?}")]
    Timeout(Duration),
    /// All connections were busy and no more may be opened.
    #[error("all {0} connections were busy")]
    NoConnection(usize),
    /// The generator was asked to end.
    #[error("the generator was interrupted")]
    Interrupted,
}

/// An error with what it wraps, on one line.
fn chain(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

impl Failure {
    /// The word errors are counted by.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Connect(error) => io_kind(error).unwrap_or("connect"),
            Self::Exchange(error) => {
                let source = std::error::Error::source(error)
                    .and_then(|source| source.downcast_ref::<std::io::Error>());
                match source.and_then(io_kind) {
                    Some(kind) => kind,
                    None if error.is_incomplete_message() || error.is_canceled() => "closed",
                    None if error.is_parse() => "not_http",
                    None => "exchange",
                }
            }
            Self::Timeout(_) => "timeout",
            Self::NoConnection(_) => "no_connection",
            Self::Interrupted => "interrupted",
        }
    }
}

fn io_kind(error: &std::io::Error) -> Option<&'static str> {
    use std::io::ErrorKind;
    Some(match error.kind() {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => "reset",
        ErrorKind::ConnectionAborted | ErrorKind::UnexpectedEof => "closed",
        ErrorKind::TimedOut => "timeout",
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable",
        ErrorKind::AddrNotAvailable => "no_local_port",
        _ => match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => "no_file_descriptor",
            _ => return None,
        },
    })
}

type Driver = http1::Connection<TokioIo<TcpStream>, Empty<Bytes>>;

/// A connection, driven by the task that holds it.
struct Connection {
    /// Its port at this end.
    local_port: Option<u16>,
    sender: http1::SendRequest<Empty<Bytes>>,
    /// `None` once it has ended.
    driver: Option<Driver>,
}

impl Connection {
    async fn open(addresses: &Addresses) -> Result<Self, Failure> {
        let stream = addresses.connect().await.map_err(Failure::Connect)?;
        stream.set_nodelay(true).map_err(Failure::Connect)?;
        let local_port = stream.local_addr().ok().map(|address| address.port());
        let (sender, driver) =
            http1::handshake(TokioIo::new(stream)).await.map_err(Failure::Exchange)?;
        Ok(Self { local_port, sender, driver: Some(driver) })
    }

    /// Lets the connection make progress; detects that the server has closed it.
    fn poll_driver(driver: &mut Option<Driver>, cx: &mut Context<'_>) {
        // An error reaches the task that waits for the answer; here it only means the end.
        if driver.as_mut().is_some_and(|driver| Pin::new(driver).poll(cx).is_ready()) {
            *driver = None;
        }
    }

    /// Runs a part of an exchange and the connection together.
    async fn drive<F: Future>(driver: &mut Option<Driver>, part: F) -> F::Output {
        let mut part = pin!(part);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(done) = part.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            Self::poll_driver(driver, cx);
            // What the connection has just read may complete the part; its wake-up has been
            // requested by the first poll.
            part.as_mut().poll(cx)
        })
        .await
    }

    async fn exchange(&mut self, request: Request<Empty<Bytes>>) -> Result<u16, Failure> {
        let answer = self.sender.send_request(request);
        let answer = Self::drive(&mut self.driver, answer).await.map_err(Failure::Exchange)?;
        let status = answer.status().as_u16();
        let mut body: Incoming = answer.into_body();
        while let Some(frame) = Self::drive(&mut self.driver, body.frame()).await {
            frame.map_err(Failure::Exchange)?;
        }
        Ok(status)
    }

    /// Whether another request can be sent on it now.
    fn is_usable(&mut self) -> bool {
        // No task drives a connection that is not in use, so this check detects that the server has
        // closed it in the meantime.
        Self::poll_driver(&mut self.driver, &mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && !self.sender.is_closed()
    }
}

/// Connections kept open between requests.
pub(super) struct Pool {
    addresses: Addresses,
    idle: Mutex<Vec<Connection>>,
    open: AtomicUsize,
    max_open: usize,
    /// Most connections in use or kept at one time.
    peak: AtomicUsize,
}

impl Pool {
    pub(super) fn new(addresses: Vec<SocketAddr>, max_open: usize) -> Self {
        Self {
            addresses: Addresses::new(addresses),
            idle: Mutex::new(Vec::new()),
            open: AtomicUsize::new(0),
            max_open,
            peak: AtomicUsize::new(0),
        }
    }

    /// Opens one connection ahead of the schedule.
    pub(super) async fn open_ahead(&self) -> Result<(), Failure> {
        let permit = self.permit()?;
        let connection = Connection::open(&self.addresses).await?;
        self.keep(connection);
        permit.keep();
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn keep(&self, connection: Connection) {
        self.lock().push(connection);
    }

    /// A kept connection that still works.
    fn take(&self) -> Option<Connection> {
        loop {
            let mut connection = self.lock().pop()?;
            if connection.is_usable() {
                return Some(connection);
            }
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn permit(&self) -> Result<Permit<'_>, Failure> {
        let open = self.open.fetch_add(1, Ordering::Relaxed);
        let permit = Permit { pool: self, kept: false };
        if open >= self.max_open {
            return Err(Failure::NoConnection(self.max_open));
        }
        self.peak.fetch_max(open + 1, Ordering::Relaxed);
        Ok(permit)
    }

    /// Most connections open at one time.
    pub(super) fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// Sends one request; `local_port` is set as soon as there is a connection for it, because a
    /// request that times out never returns.
    async fn exchange(
        &self,
        spec: &RequestSpec,
        local_port: &mut Option<u16>,
    ) -> Result<u16, Failure> {
        let (permit, mut connection) = match self.take() {
            Some(connection) => (Permit { pool: self, kept: false }, connection),
            None => {
                let permit = self.permit()?;
                (permit, Connection::open(&self.addresses).await?)
            }
        };
        *local_port = connection.local_port;
        let status = connection.exchange(spec.request()).await?;
        if connection.is_usable() && connection.sender.is_ready() {
            self.keep(connection);
            permit.keep();
        }
        Ok(status)
    }

    /// Sends one request and waits for the whole answer.
    pub(super) async fn send(
        &self,
        spec: &RequestSpec,
        timeout: Duration,
        aborted: &mut watch::Receiver<bool>,
    ) -> Done {
        let start = MonoNanos::now();
        let mut local_port = None;
        let outcome = tokio::select! {
            biased;
            outcome = tokio::time::timeout(timeout, self.exchange(spec, &mut local_port)) => {
                outcome.unwrap_or(Err(Failure::Timeout(timeout)))
            }
            _ = aborted.wait_for(|aborted| *aborted) => Err(Failure::Interrupted),
        };
        Done { start, end: MonoNanos::now(), local_port, outcome }
    }
}

/// Counts a connection as open until dropped, unless it is kept.
struct Permit<'a> {
    pool: &'a Pool,
    kept: bool,
}

impl Permit<'_> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.pool.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The result of a request.
pub(super) struct Done {
    /// Its task began to run: it takes a free connection, or begins to open one.
    pub(super) start: MonoNanos,
    /// The last byte of the answer was read, or the failure known.
    pub(super) end: MonoNanos,
    /// Port of its connection at this end; `None` without one.
    pub(super) local_port: Option<u16>,
    /// HTTP status, or why there is none.
    pub(super) outcome: Result<u16, Failure>,
}
