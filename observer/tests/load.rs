//! `observer load` as a process of its own: signals, exit codes, and whose fault a delay is.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on may panic")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use observer::clock::{Anchor, Anchors, MonoNanos};
use observer::loadgen::{Ingest, Ingested, RelAnchor, SamplesFile, Window, adapter};

/// Answers every request on every connection, at once.
fn serve() -> SocketAddr {
    fn answer(stream: TcpStream) -> std::io::Result<()> {
        let mut writer = stream.try_clone()?;
        let mut lines = BufReader::new(stream).lines();
        while let Some(line) = lines.next().transpose()? {
            if line.is_empty() {
                writer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            }
        }
        Ok(())
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn start(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_observer"))
        .arg("load")
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn run(args: &[&str]) -> Output {
    start(args).wait_with_output().unwrap()
}

fn signal(child: &Child, signal: libc::c_int) {
    // SAFETY: plain system call; the child has not been waited for, so its id is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

fn ingest(bytes: &[u8]) -> Ingested {
    let mut ingest = Ingest::new(adapter("observer").unwrap());
    ingest.feed(bytes);
    let now = Anchor::take();
    let hour = 3_600_000_000_000;
    let start = MonoNanos(now.monotonic_ns.0.saturating_sub(hour));
    let window = Window { start, end: now.monotonic_ns, went_on: false };
    ingest.finish(&Anchors(vec![now]), window, &RelAnchor::default()).unwrap()
}

#[test]
fn a_stopped_generator_is_late_and_not_the_server_slow() {
    let url = format!("http://{}/", serve());
    let mut child = start(&[&url, "--rate", "200", "--duration", "2s"]);
    // It has begun when it has written rows.
    let mut rows = BufReader::new(child.stdout.take().unwrap());
    let mut bytes = Vec::new();
    for _ in 0..20 {
        rows.read_until(b'\n', &mut bytes).unwrap();
    }
    signal(&child, libc::SIGSTOP);
    // All of its threads have stopped.
    // SAFETY: plain system call; the child stays to be waited for.
    let waited = unsafe { libc::waitpid(child.id() as libc::pid_t, &mut 0, libc::WUNTRACED) };
    assert_eq!(waited as u32, child.id());
    let stopped = Instant::now();
    std::thread::sleep(Duration::from_millis(400));
    let stopped_ns = u64::try_from(stopped.elapsed().as_nanos()).unwrap();
    signal(&child, libc::SIGCONT);
    rows.read_to_end(&mut bytes).unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
    let ingested = ingest(&bytes);
    assert_eq!(ingested.samples.len(), 400);
    assert!(!ingested.truncated && ingested.intended_start_known);
    // The schedule was not moved for it.
    let due: Vec<u64> = ingested.samples.iter().map(|s| s.intended_start.unwrap().0).collect();
    assert!(due.windows(2).all(|pair| pair[1] - pair[0] == 5_000_000), "{due:?}");
    // The requests that were due while it was stopped are late, the first one by all of it. A busy
    // host makes others late as well.
    let late = ingested.samples.iter().filter(|s| s.lateness_ns() > 20_000_000).count() as u64;
    assert!(late + 1 >= (stopped_ns - 20_000_000) / 5_000_000, "{late} in {stopped_ns} ns");
    let latest = ingested.samples.iter().map(|s| s.lateness_ns()).max().unwrap();
    assert!(latest + 5_000_000 >= stopped_ns, "{latest} of {stopped_ns} ns");
    // One request may have been under way when it was stopped, and only that one looks slow; a
    // generator that counts from the time a request was due would show most of the late ones.
    let slow =
        ingested.samples.iter().filter(|s| s.end.since(s.start) > 300_000_000).count() as u64;
    assert!(slow * 10 < late, "{slow} of {late}");
}

#[test]
fn an_interrupt_ends_it_in_good_order() {
    let url = format!("http://{}/", serve());
    let child = start(&[&url, "--rate", "100", "--duration", "60s"]);
    std::thread::sleep(Duration::from_millis(600));
    signal(&child, libc::SIGINT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let ingested = ingest(&output.stdout);
    assert!(!ingested.truncated && ingested.skipped.is_empty());
    assert!((10..200).contains(&ingested.samples.len()), "{}", ingested.samples.len());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(errors.contains("interrupted before the end"), "{errors}");
}

/// The first request that a server gets, up to its empty line, in small letters.
fn first_request(args: &[&str]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let mut all = vec![url.as_str(), "--rate", "10", "--duration", "100ms", "--connections", "0"];
    all.extend(args);
    let child = start(&all);
    let (mut stream, _) = listener.accept().unwrap();
    let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(|line| line.unwrap());
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
    head.join("\n").to_lowercase()
}

#[test]
fn a_request_with_an_empty_body_says_so() {
    for method in ["POST", "PUT", "PATCH"] {
        let head = first_request(&["--method", method]);
        assert_eq!(head.matches("content-length: 0").count(), 1, "{head}");
    }
    for method in ["GET", "HEAD", "DELETE"] {
        let head = first_request(&["--method", method]);
        assert!(!head.contains("content-length"), "{head}");
    }
    let head = first_request(&["--method", "POST", "--header", "Content-Length: 0"]);
    assert_eq!(head.matches("content-length").count(), 1, "{head}");
}

#[test]
fn every_failure_has_its_exit_code_and_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let existing = dir.path().join("there");
    std::fs::write(&existing, "mine").unwrap();
    let existing = existing.to_str().unwrap();
    let refused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = format!("http://{refused}/");
    let url = format!("http://{}/", serve());
    let nobody = format!("unix:{}/nobody", dir.path().display());
    for (args, code, says) in [
        (vec!["https://127.0.0.1/", "--rate", "1"], 2, "plain HTTP only"),
        (vec![&refused, "--rate", "20", "--duration", "200ms"], 5, "is the service running?"),
        (vec![&url, "--rate", "1", "--out", existing], 6, "never overwritten"),
        (vec![&url, "--rate", "1", "--out", "/no/such/dir/x"], 6, "/no/such/dir/x"),
        (vec![&url, "--rate", "1", "--out", &nobody], 6, "is anything listening there?"),
    ] {
        let output = run(&args);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("observer: ") && last.contains(says), "{args:?}: {text}");
    }
    assert_eq!(std::fs::read(existing).unwrap(), b"mine");
}

#[test]
fn a_reader_that_goes_away_ends_it() {
    let url = format!("http://{}/", serve());
    let mut child = start(&[&url, "--rate", "100", "--duration", "60s"]);
    let mut head = [0; 200];
    child.stdout.take().unwrap().read_exact(&mut head).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(6));
    assert!(String::from_utf8(output.stderr).unwrap().contains("Broken pipe"));
}

#[test]
fn a_file_is_read_while_it_is_written() {
    let url = format!("http://{}/", serve());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("samples.jsonl");
    let mut source = SamplesFile::follow(Path::new(&path)).unwrap();
    let mut ingest = Ingest::new(adapter("observer").unwrap());
    let mut child =
        start(&[&url, "--rate", "100", "--duration", "1s", "--out", path.to_str().unwrap()]);
    let mut counts = Vec::new();
    while child.try_wait().unwrap().is_none() {
        source.read(&mut ingest).unwrap();
        counts.push(ingest.live().count);
        std::thread::sleep(Duration::from_millis(20));
    }
    source.read(&mut ingest).unwrap();
    assert_eq!(source.finish(), Ok(()));
    assert_eq!(ingest.live().count, 100);
    assert!(counts.iter().any(|count| (20..80).contains(count)), "{counts:?}");
}
