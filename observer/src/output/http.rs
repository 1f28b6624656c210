//! The daemon's HTTP server: `/metrics`, `/healthz`, and an index.

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::openmetrics::{OPENMETRICS_TYPE, PROMETHEUS_TYPE, openmetrics, to_prometheus};
use crate::aggregate::Snapshot;

/// Connections served at a time; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 32;
/// A request must have arrived within this time, and an idle connection ends after it. Longer than
/// the usual scrape intervals, so that Prometheus keeps its connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(75);
/// A connection ends after this time, so that one which does not read its answer cannot stay.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(600);
/// Time for requests in progress at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);

type Source = dyn Fn() -> Snapshot + Send + Sync;

/// Serves until `shutdown` is ready, then lets requests under way finish (3 s at most).
///
/// `source` is called once a scrape, on a blocking thread, by one scrape at a time.
pub async fn serve(
    listener: TcpListener,
    source: impl Fn() -> Snapshot + Send + Sync + 'static,
    shutdown: impl Future<Output = ()>,
) {
    // The lock serialises the scrapes, because each reads all maps.
    let source: Arc<Mutex<Box<Source>>> = Arc::new(Mutex::new(Box::new(source)));
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let accept = async {
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            // Removes finished tasks, otherwise the set would grow for ever.
            while connections.try_join_next().is_some() {}
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (source, stopped) = (source.clone(), stopped.clone());
                    connections.spawn(async move {
                        connection(stream, source, stopped).await;
                        drop(slot);
                    });
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
    source: Arc<Mutex<Box<Source>>>,
    mut stopped: watch::Receiver<()>,
) {
    let service = service_fn(move |request| {
        let source = source.clone();
        async move { Ok::<_, Infallible>(answer(&request, source).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    let limited = timeout(CONNECTION_TIMEOUT, async {
        tokio::select! {
            // The client's errors (reset, garbage instead of HTTP) do not matter to the daemon.
            _ = &mut serving => return,
            _ = stopped.changed() => {}
        }
        serving.as_mut().graceful_shutdown();
        let _ = serving.await;
    });
    let _ = limited.await;
}

async fn answer(
    request: &Request<Incoming>,
    source: Arc<Mutex<Box<Source>>>,
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
        "/metrics" => metrics(wants_openmetrics(request.headers()), source).await,
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

async fn metrics(as_openmetrics: bool, source: Arc<Mutex<Box<Source>>>) -> Response<Full<Bytes>> {
    let rendered = tokio::task::spawn_blocking(move || {
        // A scrape that panicked leaves nothing inconsistent: the source only reads.
        let snapshot = source.lock().unwrap_or_else(PoisonError::into_inner)();
        let text = openmetrics(snapshot)?;
        Ok::<_, std::fmt::Error>(if as_openmetrics { text } else { to_prometheus(&text) })
    })
    .await;
    match rendered {
        Ok(Ok(body)) => {
            let content_type = if as_openmetrics { OPENMETRICS_TYPE } else { PROMETHEUS_TYPE };
            respond(StatusCode::OK, content_type, Bytes::from(body))
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
