//! The daemon's HTTP server: `/metrics`, `/healthz`, and an index.
//!
//! No client can keep others from an answer by being slow or silent: a connection serves one
//! request, each of its steps has a time limit, and when there are too many connections, the one
//! that keeps the server waiting longest is closed (`http/clients.rs`).

mod clients;

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use clients::{Clients, Place};

use super::openmetrics::{OPENMETRICS_TYPE, PROMETHEUS_TYPE, openmetrics, to_prometheus};
use crate::aggregate::Snapshot;

/// The head of a request must be complete within this time.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A client must have taken its answer within this time.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection ends after this time, whatever it does.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Time for requests in progress at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

type Source = dyn Fn() -> Snapshot + Send + Sync;

/// A page in one format, and when it was begun.
type LastPage = tokio::sync::Mutex<Option<(Instant, Bytes)>>;

/// What all connections share.
struct Server {
    /// The lock serialises the scrapes, because each reads all maps.
    source: Mutex<Box<Source>>,
    /// The newest pages. Scrapes that wait for one another share the next page, so that many of them
    /// do not delay one.
    openmetrics: LastPage,
    prometheus: LastPage,
    clients: Arc<Clients>,
}

/// Serves until `shutdown` is ready, then lets requests under way finish (3 s at most).
///
/// `source` is called on a blocking thread, by one scrape at a time.
pub async fn serve(
    listener: TcpListener,
    source: impl Fn() -> Snapshot + Send + Sync + 'static,
    shutdown: impl Future<Output = ()>,
) {
    let server = Arc::new(Server {
        source: Mutex::new(Box::new(source)),
        openmetrics: LastPage::default(),
        prometheus: LastPage::default(),
        clients: Arc::default(),
    });
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let accept = async {
        loop {
            // Removes finished tasks, otherwise the set would grow for ever.
            while connections.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let place = server.clients.admit(peer.ip());
                    connections.spawn(connection(
                        stream,
                        place,
                        Arc::clone(&server),
                        stopped.clone(),
                    ));
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection: {error}");
                    // Most likely out of descriptors: try again once some may have been closed.
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown => {}
    }
    drop(listener);
    drop(stop);
    // What has not finished by then is dropped with the set.
    let _ =
        timeout(SHUTDOWN_TIMEOUT, async { while connections.join_next().await.is_some() {} }).await;
}

async fn connection(
    stream: TcpStream,
    mut place: Place,
    server: Arc<Server>,
    mut stopped: watch::Receiver<()>,
) {
    let (client, answered) = (place.client(), Arc::new(Notify::new()));
    let told = Arc::clone(&answered);
    let service = service_fn(move |request| {
        let (server, told, client) = (Arc::clone(&server), Arc::clone(&told), client);
        async move {
            let response = answer(&request, &server, client).await;
            server.clients.waits_for(client);
            told.notify_one();
            Ok::<_, Infallible>(response)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let not_taken = async {
        answered.notified().await;
        sleep(ANSWER_TIMEOUT).await;
    };
    let served = async {
        tokio::select! {
            // The client's errors (reset, garbage instead of HTTP) do not matter to the daemon.
            _ = &mut serving => return,
            _ = stopped.changed() => {}
        }
        serving.as_mut().graceful_shutdown();
        let _ = serving.await;
    };
    tokio::select! {
        () = served => {}
        () = not_taken => {}
        () = place.revoked() => {}
        () = sleep(CONNECTION_TIMEOUT) => {}
    }
}

async fn answer(
    request: &Request<Incoming>,
    server: &Arc<Server>,
    client: u64,
) -> Response<Full<Bytes>> {
    let known = matches!(request.uri().path(), "/" | "/metrics" | "/healthz");
    if !known {
        return text(StatusCode::NOT_FOUND, "not found: try /metrics or /healthz\n");
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/healthz" => text(StatusCode::OK, "ok\n"),
        // Only a scrape takes time. The rest is answered also when there are too many of them.
        "/metrics" if server.clients.begins_scrape(client) => {
            metrics(wants_openmetrics(request.headers()), server).await
        }
        "/metrics" => {
            let mut response =
                text(StatusCode::SERVICE_UNAVAILABLE, "too many scrapes at a time; try again\n");
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            response
        }
        _ => text(
            StatusCode::OK,
            concat!(
                "observer ",
                env!("CARGO_PKG_VERSION"),
                "\n\n/metrics  OpenMetrics or Prometheus text\n/healthz  liveness\n"
            ),
        ),
    }
}

async fn metrics(as_openmetrics: bool, server: &Arc<Server>) -> Response<Full<Bytes>> {
    let asked = Instant::now();
    let (last, content_type) = if as_openmetrics {
        (&server.openmetrics, OPENMETRICS_TYPE)
    } else {
        (&server.prometheus, PROMETHEUS_TYPE)
    };
    let mut last = last.lock().await;
    let fresh = last.as_ref().filter(|(begun, _)| *begun >= asked).map(|(_, page)| page.clone());
    if let Some(page) = fresh {
        return respond(StatusCode::OK, content_type, page);
    }
    let begun = Instant::now();
    let server = Arc::clone(server);
    let rendered = tokio::task::spawn_blocking(move || {
        // A scrape that panicked leaves nothing inconsistent: the source only reads.
        let snapshot = server.source.lock().unwrap_or_else(PoisonError::into_inner)();
        let text = openmetrics(snapshot)?;
        Ok::<_, std::fmt::Error>(if as_openmetrics { text } else { to_prometheus(&text) })
    })
    .await;
    match rendered {
        Ok(Ok(page)) => {
            let page = Bytes::from(page);
            *last = Some((begun, page.clone()));
            respond(StatusCode::OK, content_type, page)
        }
        _ => text(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be read\n"),
    }
}

fn text(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    respond(status, "text/plain; charset=utf-8", Bytes::from_static(body.as_bytes()))
}

fn respond(status: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    response
}

/// Whether the `Accept` header prefers OpenMetrics 1.0 text to plain text.
fn wants_openmetrics(headers: &HeaderMap) -> bool {
    let (mut open, mut plain) = (0.0f32, 0.0f32);
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in values.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let (mut quality, mut fits) = (1.0f32, true);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => quality = value.trim().parse().unwrap_or(0.0),
                "version" => fits = value.trim().trim_matches('"') == "1.0.0",
                _ => {}
            }
        }
        match media.as_str() {
            "application/openmetrics-text" if fits => open = open.max(quality),
            "text/plain" | "text/*" => plain = plain.max(quality),
            _ => {}
        }
    }
    open > 0.0 && open >= plain
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
