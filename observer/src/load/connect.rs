//! Which of a server's addresses is used.

use std::future::Future;
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;

/// How long an address may take to answer before the next one is tried as well, as in curl.
const HEAD_START: Duration = Duration::from_millis(200);

/// No address has worked yet.
const NONE: usize = usize::MAX;

type Attempt = Pin<Box<dyn Future<Output = (usize, Result<TcpStream>)> + Send>>;

/// The addresses of a server, in the order of the resolver with the families alternating (RFC 8305).
#[derive(Debug)]
pub(super) struct Addresses {
    all: Vec<SocketAddr>,
    /// Index of the one that worked last.
    works: AtomicUsize,
}

impl Addresses {
    /// `all` is what the resolver says, and not empty.
    pub(super) fn new(mut all: Vec<SocketAddr>) -> Self {
        let mut different = std::collections::HashSet::new();
        all.retain(|address| different.insert(*address));
        let is_v6 = all.first().is_some_and(SocketAddr::is_ipv6);
        let (first, second): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|address| address.is_ipv6() == is_v6);
        let mut second = second.into_iter();
        let mut ordered = Vec::new();
        for address in first {
            ordered.push(address);
            ordered.extend(second.next());
        }
        ordered.extend(second);
        Self { all: ordered, works: AtomicUsize::new(NONE) }
    }

    /// Connects to the address that worked last, however long it takes, and to the others when it
    /// fails. While none has worked, slow ones race.
    pub(super) async fn connect(&self) -> Result<TcpStream> {
        let works = self.works.load(Ordering::Relaxed);
        let mut failure = None;
        if let Some(address) = self.all.get(works) {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = Some(error),
            }
        }
        let mut left = self.all.iter().copied().enumerate().filter(|(index, _)| *index != works);
        let mut attempts: Vec<Attempt> = Vec::new();
        loop {
            match left.next() {
                Some((index, address)) => {
                    attempts
                        .push(Box::pin(async move { (index, TcpStream::connect(address).await) }));
                }
                None if attempts.is_empty() => break,
                None => {}
            }
            let first = std::future::poll_fn(|cx| first_done(&mut attempts, cx));
            let (index, outcome) = if left.size_hint().1 == Some(0) {
                first.await
            } else {
                match tokio::time::timeout(HEAD_START, first).await {
                    Ok(done) => done,
                    Err(_) => continue,
                }
            };
            match outcome {
                Ok(stream) => {
                    self.works.store(index, Ordering::Relaxed);
                    return Ok(stream);
                }
                // The reason of the address that should be used, not of the last resort.
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        Err(failure.unwrap_or_else(|| Error::other("the server has no address")))
    }
}

/// Polls all attempts; the one that is done is removed.
fn first_done(
    attempts: &mut Vec<Attempt>,
    cx: &mut Context<'_>,
) -> Poll<(usize, Result<TcpStream>)> {
    let done =
        attempts.iter_mut().enumerate().find_map(|(at, attempt)| match attempt.as_mut().poll(cx) {
            Poll::Ready(done) => Some((at, done)),
            Poll::Pending => None,
        });
    match done {
        Some((at, done)) => {
            drop(attempts.swap_remove(at));
            Poll::Ready(done)
        }
        None => Poll::Pending,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_alternate_and_each_address_is_tried_once() {
        let resolved =
            ["[::1]:1", "[::2]:1", "[::1]:1", "127.0.0.1:1", "127.0.0.2:1", "127.0.0.3:1"];
        let wanted = ["[::1]:1", "127.0.0.1:1", "[::2]:1", "127.0.0.2:1", "127.0.0.3:1"];
        assert_eq!(Addresses::new(addresses(&resolved)).all, addresses(&wanted));
    }

    #[test]
    fn the_address_that_works_is_found_and_remembered() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
        let address = |listener: &TcpListener| listener.local_addr().unwrap();
        let dead = address(&bind());
        let (second, third) = (bind(), bind());
        let (second_at, third_at) = (address(&second), address(&third));
        let all = Addresses::new(vec![dead, second_at, third_at]);
        let connect = || runtime.block_on(all.connect()).and_then(|stream| stream.peer_addr());
        assert_eq!(connect().unwrap(), second_at);
        assert_eq!(all.works.load(Ordering::Relaxed), 1);
        // Something listens on the first one now: the one that worked stays in use.
        let first = TcpListener::bind(dead).unwrap();
        assert_eq!(connect().unwrap(), second_at);
        // When it fails, the others are tried again.
        drop((first, second));
        assert_eq!(connect().unwrap(), third_at);
        assert_eq!(connect().unwrap(), third_at);
        drop(third);
        let error = connect().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn an_address_that_does_not_answer_does_not_hold_up_the_others() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        // A full queue of connections drops further attempts without a word.
        let (silent, _listener) = silent_listener();
        let mut waiting = Vec::new();
        while let Ok(stream) =
            std::net::TcpStream::connect_timeout(&silent, Duration::from_millis(100))
        {
            waiting.push(stream);
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let answers = listener.local_addr().unwrap();
        let all = Addresses::new(vec![silent, answers]);
        let stream = runtime.block_on(all.connect()).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), answers);
    }

    /// A listener with a short queue that accepts nothing.
    fn silent_listener() -> (SocketAddr, rustix::fd::OwnedFd) {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
        let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&fd, &"127.0.0.1:0".parse::<SocketAddr>().unwrap()).unwrap();
        listen(&fd, 1).unwrap();
        (SocketAddr::try_from(getsockname(&fd).unwrap()).unwrap(), fd)
    }
}
