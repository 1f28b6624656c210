//! The connections kept between requests, and what came of each request.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::connect::Addresses;
use super::http::{HttpConnection, HttpSpec};
use super::raw::{RawConnection, RawSpec};
use crate::clock::MonoNanos;

/// What every request asks for.
#[derive(Clone, Debug)]
pub enum RequestSpec {
    /// Over HTTP.
    Http(Arc<HttpSpec>),
    /// Bytes over a TCP connection.
    Raw(Arc<RawSpec>),
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
    /// Bytes could not be sent or read.
    #[error("{0}")]
    Socket(#[source] std::io::Error),
    /// A reply that has no end.
    #[error("the reply has not ended after {0} bytes")]
    ReplyTooLong(usize),
    /// More came than the reply has by its definition.
    #[error("at least {0} bytes follow the end of the reply")]
    ReplyGoesOn(usize),
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
            Self::Socket(error) => io_kind(error).unwrap_or("exchange"),
            Self::ReplyTooLong(_) => "reply_too_long",
            Self::ReplyGoesOn(_) => "reply_goes_on",
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

/// A connection, used by one request at a time.
struct Connection {
    /// Its port at this end.
    local_port: Option<u16>,
    protocol: Protocol,
}

/// A connection by what is spoken on it.
enum Protocol {
    Http(Box<HttpConnection>),
    Raw(RawConnection),
}

impl Connection {
    async fn open(addresses: &Addresses, spec: &RequestSpec) -> Result<Self, Failure> {
        let stream = addresses.connect().await.map_err(Failure::Connect)?;
        stream.set_nodelay(true).map_err(Failure::Connect)?;
        let local_port = stream.local_addr().ok().map(|address| address.port());
        let protocol = match spec {
            RequestSpec::Http(spec) => {
                Protocol::Http(Box::new(HttpConnection::open(stream, Arc::clone(spec)).await?))
            }
            RequestSpec::Raw(spec) => Protocol::Raw(RawConnection::new(stream, Arc::clone(spec))),
        };
        Ok(Self { local_port, protocol })
    }

    /// Sends the request of this number in the schedule, and reads the whole answer; its HTTP status.
    async fn exchange(&mut self, seq: u64) -> Result<Option<u16>, Failure> {
        match &mut self.protocol {
            Protocol::Http(connection) => connection.exchange().await.map(Some),
            Protocol::Raw(connection) => connection.exchange(seq).await.map(|()| None),
        }
    }

    /// Whether another request can be sent on it now.
    fn is_usable(&mut self) -> bool {
        match &mut self.protocol {
            Protocol::Http(connection) => connection.is_usable(),
            Protocol::Raw(connection) => connection.is_usable(),
        }
    }

    /// Whether it can be kept after an exchange.
    fn can_be_kept(&mut self) -> bool {
        let is_ready = match &self.protocol {
            Protocol::Http(connection) => connection.is_ready(),
            Protocol::Raw(_) => true,
        };
        self.is_usable() && is_ready
    }
}

/// Connections kept open between requests.
pub(super) struct Pool {
    addresses: Addresses,
    spec: RequestSpec,
    idle: Mutex<Vec<Connection>>,
    open: AtomicUsize,
    max_open: usize,
    /// Most connections in use or kept at one time.
    peak: AtomicUsize,
}

impl Pool {
    pub(super) fn new(addresses: Vec<SocketAddr>, spec: RequestSpec, max_open: usize) -> Self {
        Self {
            addresses: Addresses::new(addresses),
            spec,
            idle: Mutex::new(Vec::new()),
            open: AtomicUsize::new(0),
            max_open,
            peak: AtomicUsize::new(0),
        }
    }

    /// Opens one connection ahead of the schedule.
    pub(super) async fn open_ahead(&self) -> Result<(), Failure> {
        let permit = self.permit()?;
        let connection = Connection::open(&self.addresses, &self.spec).await?;
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

    /// Sends the request of this number; `local_port` is set as soon as there is a connection for it, because a
    /// request that times out never returns.
    async fn exchange(
        &self,
        seq: u64,
        local_port: &mut Option<u16>,
    ) -> Result<Option<u16>, Failure> {
        let (permit, mut connection) = match self.take() {
            Some(connection) => (Permit { pool: self, kept: false }, connection),
            None => {
                let permit = self.permit()?;
                (permit, Connection::open(&self.addresses, &self.spec).await?)
            }
        };
        *local_port = connection.local_port;
        let status = connection.exchange(seq).await?;
        if connection.can_be_kept() {
            self.keep(connection);
            permit.keep();
        }
        Ok(status)
    }

    /// Sends the request of this number in the schedule and waits for the whole answer.
    pub(super) async fn send(
        &self,
        seq: u64,
        timeout: Duration,
        aborted: &mut watch::Receiver<bool>,
    ) -> Done {
        let start = MonoNanos::now();
        let mut local_port = None;
        let outcome = tokio::select! {
            biased;
            outcome = tokio::time::timeout(timeout, self.exchange(seq, &mut local_port)) => {
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
    /// HTTP status, if the answer has one, or why there is no answer.
    pub(super) outcome: Result<Option<u16>, Failure>,
}
