//! One HTTP request on one connection.
//!
//! A request's task drives its connection itself instead of leaving that to a task of the
//! connection's: the request is written in the same poll that hands it over, and no second
//! scheduling delay of the generator gets into the latency.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use hyper::{HeaderMap, Method, Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::client::Failure;

/// What every HTTP request asks for.
#[derive(Clone, Debug)]
pub struct HttpSpec {
    /// Method.
    pub method: Method,
    /// Path and query.
    pub path: Uri,
    /// All headers, Host included.
    pub headers: HeaderMap,
}

impl HttpSpec {
    /// A method whose requests have a body by definition says that this one is empty: servers refuse
    /// it otherwise (411), or wait for a body (RFC 9110, 8.6).
    #[must_use]
    pub fn new(method: Method, path: Uri, mut headers: HeaderMap) -> Self {
        let has_body = [Method::POST, Method::PUT, Method::PATCH].contains(&method);
        let says_so =
            [CONTENT_LENGTH, TRANSFER_ENCODING].iter().any(|name| headers.contains_key(name));
        if has_body && !says_so {
            headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        Self { method, path, headers }
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

type Driver = http1::Connection<TokioIo<TcpStream>, Empty<Bytes>>;

/// A connection, driven by the task that holds it.
pub(super) struct HttpConnection {
    spec: Arc<HttpSpec>,
    sender: http1::SendRequest<Empty<Bytes>>,
    /// `None` once it has ended.
    driver: Option<Driver>,
}

impl HttpConnection {
    pub(super) async fn open(stream: TcpStream, spec: Arc<HttpSpec>) -> Result<Self, Failure> {
        let (sender, driver) =
            http1::handshake(TokioIo::new(stream)).await.map_err(Failure::Exchange)?;
        Ok(Self { spec, sender, driver: Some(driver) })
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

    /// Sends one request and reads the whole answer; its status.
    pub(super) async fn exchange(&mut self) -> Result<u16, Failure> {
        let answer = self.sender.send_request(self.spec.request());
        let answer = Self::drive(&mut self.driver, answer).await.map_err(Failure::Exchange)?;
        let status = answer.status().as_u16();
        let mut body: Incoming = answer.into_body();
        while let Some(frame) = Self::drive(&mut self.driver, body.frame()).await {
            frame.map_err(Failure::Exchange)?;
        }
        Ok(status)
    }

    /// Whether the last exchange is over, so that another one can follow.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    /// Whether another request can be sent on it now.
    pub(super) fn is_usable(&mut self) -> bool {
        // No task drives a connection that is not in use, so this check detects that the server has
        // closed it in the meantime.
        Self::poll_driver(&mut self.driver, &mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && !self.sender.is_closed()
    }
}
