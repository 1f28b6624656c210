//! The generator against a small server of lines in this process, and against redis where this host has it.

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::tests::{config, errors, run};
use super::*;

/// How the server replies to a line.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// With the same line, in two pieces.
    Echo,
    /// With two lines.
    Twice,
    /// Without an end.
    Endless,
    /// It closes the connection.
    HangUp,
}

/// What a server got: each line with the port from which it came.
type Lines = Mutex<Vec<(u16, String)>>;

/// Starts it; what it gets.
fn serve(manner: Manner) -> (SocketAddr, Arc<Lines>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let lines = Arc::new(Mutex::new(Vec::new()));
    let got = Arc::clone(&lines);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let got = Arc::clone(&got);
            // A client that goes away is no failure of the test.
            std::thread::spawn(move || drop(reply(stream, manner, &got)));
        }
    });
    (address, lines)
}

fn reply(mut stream: TcpStream, manner: Manner, lines: &Lines) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let port = stream.peer_addr()?.port();
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        lines.lock().unwrap().push((port, line.clone()));
        match manner {
            Manner::Echo => {
                let (first, second) = line.split_at(line.len() / 2);
                stream.write_all(first.as_bytes())?;
                stream.write_all(second.as_bytes())?;
            }
            Manner::Twice => stream.write_all(line.repeat(2).as_bytes())?,
            Manner::Endless => loop {
                stream.write_all(&[b'x'; 4096])?;
            },
            Manner::HangUp => return Ok(()),
        }
    }
}

fn raw(address: SocketAddr, reply: ReplyEnd) -> Config {
    let mut config = config(address, 100.0, Duration::from_secs(1));
    let spec = RawSpec { send: b"usual\n".to_vec(), rarely: None, reply };
    config.request = RequestSpec::Raw(Arc::new(spec));
    config
}

fn line() -> ReplyEnd {
    ReplyEnd::Until(b"\n".to_vec())
}

#[test]
fn replies_are_rows_on_kept_connections() {
    let (address, lines) = serve(Manner::Echo);
    for reply in [line(), ReplyEnd::Bytes(6)] {
        let (report, ingested) = run(&raw(address, reply), &Stop::default());
        assert_eq!((report.totals.ok, report.ahead_failed), (100, 0), "{:?}", report.totals.errors);
        let lines = std::mem::take(&mut *lines.lock().unwrap());
        assert_eq!(lines.len(), 100);
        for sample in &ingested.samples {
            assert!(sample.ok && sample.status.is_none() && sample.error.is_none(), "{sample:?}");
            assert!(lines.iter().any(|(port, _)| Some(*port) == sample.local_port), "{sample:?}");
        }
        let ports: std::collections::BTreeSet<u16> = lines.iter().map(|(port, _)| *port).collect();
        // However slow this host is, some are used again.
        assert!(ports.len() < 100, "{}", ports.len());
    }
}

#[test]
fn the_seed_chooses_which_requests_are_other_ones() {
    let (address, lines) = serve(Manner::Echo);
    let mut config = raw(address, line());
    config.connections = 1;
    let spec = RawSpec {
        send: b"usual\n".to_vec(),
        rarely: Some(Rarely { send: b"rare\n".to_vec(), share: 0.2, seed: 3 }),
        reply: line(),
    };
    config.request = RequestSpec::Raw(Arc::new(spec));
    let (report, _) = run(&config, &Stop::default());
    assert_eq!(report.totals.ok, 100, "{:?}", report.totals.errors);
    let rare = lines.lock().unwrap().iter().filter(|(_, line)| line == "rare\n").count();
    let chosen = (0..100).filter(|seq| is_chosen(3, *seq, 0.2)).count();
    assert_eq!(rare, chosen);
    assert!((1..100).contains(&chosen), "{chosen}");
}

#[test]
fn a_reply_that_is_not_what_was_said_is_an_error_and_closes_the_connection() {
    for (manner, kind) in [
        (Manner::Twice, "reply_goes_on"),
        (Manner::Endless, "reply_too_long"),
        (Manner::HangUp, "closed"),
    ] {
        let (address, lines) = serve(manner);
        let mut config = raw(address, line());
        config.duration = Duration::from_millis(200);
        let (report, ingested) = run(&config, &Stop::default());
        assert_eq!(errors(&report), [(kind, 20)]);
        assert_eq!((report.totals.ok, report.totals.answered), (0, 0));
        assert!(ingested.samples.iter().all(|sample| !sample.ok));
        let mut ports: Vec<u16> = lines.lock().unwrap().iter().map(|(port, _)| *port).collect();
        let all = ports.len();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!((ports.len(), all), (20, 20), "each request has a connection of its own");
    }
}

#[test]
fn redis_replies_where_this_host_has_it() {
    let port = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap().port()
    };
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut redis = match command.spawn() {
        Ok(redis) => redis,
        Err(error) => {
            println!("not done: redis-server cannot be started: {error}");
            return;
        }
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let begin = Instant::now();
    while TcpStream::connect(address).is_err() && begin.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut config = raw(address, ReplyEnd::Until(b"\r\n".to_vec()));
    let spec = |send: &[u8], reply| {
        RequestSpec::Raw(Arc::new(RawSpec { send: send.to_vec(), rarely: None, reply }))
    };
    config.request = spec(b"PING\r\n", ReplyEnd::Until(b"+PONG\r\n".to_vec()));
    let (by_mark, _) = run(&config, &Stop::default());
    config.request = spec(b"*1\r\n$4\r\nPING\r\n", ReplyEnd::Bytes(7));
    let (by_length, _) = run(&config, &Stop::default());
    redis.kill().unwrap();
    redis.wait().unwrap();
    for report in [by_mark, by_length] {
        assert_eq!(report.totals.ok, 100, "{:?}", report.totals.errors);
    }
}
