//! Real load generators and a real server.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use observer::clock::MonoNanos;
use observer::model::{Cause, EndReason, Matched, RequestsSummary, RunInfo, Summary};
use observer::output::rundir::RunDir;
use observer_tests::http::{self, ReservedPort};
use observer_tests::http2::Connection;
use observer_tests::privileged;
use observer_tests::process::{Placement, Running};
use observer_tests::trial;
use observer_tests::watch::{Watch, read_run};
use rustix::process::Signal;

/// A running nginx.
struct Nginx(Running);

impl Drop for Nginx {
    fn drop(&mut self) {
        // A master that is killed leaves its workers behind.
        self.0.signal(Signal::TERM);
        let _ = self.0.wait(Duration::from_secs(10));
    }
}

/// nginx with a configuration of its own, in the foreground. It has these servers beside one on a port.
fn nginx(directory: &Path, port: u16, servers: &str) -> Nginx {
    let configuration = directory.join("nginx.conf");
    let text = format!(
        "daemon off; worker_processes 2; pid {0}/pid; error_log {0}/error.log;
         events {{ worker_connections 256; }}
         http {{ access_log off; server {{ listen 127.0.0.1:{port}; \
         location / {{ return 200 \"ok\"; }} }} {servers} }}",
        directory.display()
    );
    fs::write(&configuration, text).expect("a file");
    // Debian has it where only root's PATH looks.
    let program = ["/usr/sbin/nginx", "nginx"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .unwrap_or("nginx");
    let mut command = Command::new(program);
    command.arg("-p").arg(directory).arg("-c").arg(&configuration);
    command.arg("-e").arg(directory.join("error.log"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let process =
        Running::start(&mut command, Placement::default()).unwrap_or_else(|e| panic!("{e}"));
    let mut nginx = Nginx(process);
    let deadline = Instant::now() + Duration::from_secs(60);
    while http::get(port, "/", "").is_err() {
        assert_eq!(nginx.0.ended().expect("a status"), None, "nginx stays");
        assert!(Instant::now() < deadline, "nginx listens");
        std::thread::sleep(Duration::from_millis(20));
    }
    nginx
}

/// What hey itself says about its requests.
#[derive(Debug)]
struct Recorded {
    rows: u64,
    /// The shortest and the longest, with what the rounding of a row may add or take.
    latencies_ns: [u64; 2],
    /// From the first begin to the last end.
    rate_hz: f64,
}

impl Recorded {
    fn of(csv: &str) -> Self {
        // hey prints four digits of a second.
        const STEP_S: f64 = 1e-4;
        let row = |line: &str| -> [f64; 2] {
            let fields: Vec<&str> = line.split(',').collect();
            [0, fields.len() - 1].map(|column| fields[column].parse().expect("seconds"))
        };
        let rows: Vec<[f64; 2]> = csv.lines().skip(1).map(row).collect();
        let all = |of: fn(&[f64; 2]) -> f64, best: fn(f64, f64) -> f64| {
            rows.iter().map(of).reduce(best).expect("rows")
        };
        let latency = |[latency, _]: &[f64; 2]| *latency;
        let (least, most) = (all(latency, f64::min), all(latency, f64::max));
        let begin = all(|[_, offset]| *offset, f64::min);
        let end = all(|[latency, offset]| latency + offset, f64::max);
        let latencies_ns = [least - STEP_S, most + STEP_S].map(|seconds| (seconds * 1e9) as u64);
        Self { rows: rows.len() as u64, latencies_ns, rate_hz: rows.len() as f64 / (end - begin) }
    }
}

#[test]
fn hey_against_nginx() {
    let Some(_guard) = privileged::ready("hey and nginx") else { return };
    let directory = trial::directory();
    let reserved = ReservedPort::new().expect("a port");
    let port = reserved.number();
    let nginx = nginx(directory.path(), port, "");
    let out = directory.path().join("run");
    let mut command = Command::new(trial::programs().observer);
    command
        .args(["run", "--budget", "none", "--port", &port.to_string(), "--samples", "hey", "--out"])
        .arg(&out);
    command.args(["--", "hey", "-z", "4s", "-c", "4", "-q", "50", "-o", "csv"]);
    command.arg(format!("http://127.0.0.1:{port}/"));
    let finished = observer_tests::command::run(&mut command, Duration::from_secs(120))
        .unwrap_or_else(|error| panic!("{error}"));
    finished.assert_code(0);

    let (summary, info) = read_run(&out).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((info.end_reason, info.command_exit), (EndReason::CommandExit, Some(0)));
    assert!(info.target_processes.contains_key(&nginx.0.id()), "{:?}", info.target_processes);
    assert!(info.target_processes.len() >= 3, "master and workers: {:?}", info.target_processes);
    let csv = fs::read_to_string(out.join("loadgen.out")).expect("what hey printed");
    let recorded = Recorded::of(&csv);
    let rows = recorded.rows;
    assert!((1..=800).contains(&rows), "at most 200 a second for 4 s: {rows}");
    let samples = &summary.samples;
    let skipped: u64 = samples.skipped.values().sum();
    assert_eq!(samples.count + skipped, rows, "{samples:?}");
    assert!(skipped <= rows / 100, "{samples:?}");
    assert!(!samples.intended_start_known, "hey does not say when it meant to send");
    // How fast all this is depends on the host. The answer says what hey says.
    let [least, most] = recorded.latencies_ns;
    assert!((least..=most).contains(&samples.latency_ns.p50), "{recorded:?}: {samples:?}");
    assert!((least..=most).contains(&samples.latency_ns.p99), "{recorded:?}: {samples:?}");
    let ratio = samples.rate_hz / recorded.rate_hz;
    assert!((0.95..1.05).contains(&ratio), "{recorded:?}: {samples:?}");
    // A busy host may delay nginx, which may have work and waits of its own, and hey. Memory has no part
    // in it.
    let waits =
        [Cause::RUNQUEUE_OTHER, Cause::RUNQUEUE_SELF, Cause::RUNQUEUE_IDLE, Cause::RUNQUEUE];
    let own = [Cause::SERVICE_CPU, Cause::SERVICE_WAIT, Cause::NETWORK];
    let possible = [&waits[..], &own].concat();
    let cause = summary.verdict.top_cause;
    assert!(cause.is_none_or(|cause| possible.contains(&cause)), "{:?}", summary.verdict);
    // One wake-up of a worker may serve several connections.
    assert!(summary.probes["runqueue"].count > rows / 20, "{:?}", summary.probes["runqueue"]);
    assert!(finished.stdout.contains("coordinated omission"), "{finished:#?}");
    drop(nginx);
}

/// hey is started by somebody else, as in a container, and COMMAND only prints what it wrote. So its start is known
/// within seconds, and the requests say the rest.
#[test]
fn a_generator_that_command_did_not_start() {
    const STARTS: &str = r#"read -r _ < "$0"; hey -n 300 -c 2 -q 50 -o csv "$1" > "$2.part"
        mv "$2.part" "$2""#;
    const PRINTS: &str = r#"sleep 1; echo go > "$0"; while ! test -e "$1"; do sleep 0.1; done
        sleep 1; cat "$1""#;
    let Some(_guard) = privileged::ready("hey that somebody else started") else { return };
    let directory = trial::directory();
    let reserved = ReservedPort::new().expect("a port");
    let port = reserved.number();
    let _nginx = nginx(directory.path(), port, "");
    let [go, result, out] = ["go", "result", "run"].map(|name| directory.path().join(name));
    let made = Command::new("mkfifo").arg(&go).status().expect("coreutils");
    assert!(made.success());
    let mut hey = Command::new("sh");
    hey.args(["-c", STARTS]).arg(&go).arg(format!("http://127.0.0.1:{port}/")).arg(&result);
    let _hey = Running::start(&mut hey, Placement::default()).expect("it starts");
    let mut command = Command::new(trial::programs().observer);
    command.args(["run", "--budget", "none", "--port", &port.to_string(), "--samples", "hey"]);
    command.arg("--out").arg(&out).args(["--", "sh", "-c", PRINTS]).arg(&go).arg(&result);
    let finished = observer_tests::command::run(&mut command, Duration::from_secs(120))
        .unwrap_or_else(|error| panic!("{error}"));
    finished.assert_code(0);
    let (summary, info) = read_run(&out).unwrap_or_else(|error| panic!("{error}"));
    let samples = &summary.samples;
    let seconds = (info.end_ns.0 - info.start_ns.0) as f64 / 1e9;
    assert_eq!(samples.count, 300, "{samples:?}");
    println!("{seconds:.1} s, clock error {} ns, {:?}", samples.clock_error_ns, summary.requests);
    // COMMAND does nothing for two seconds of its time.
    assert!(samples.clock_error_ns < 20_000_000, "{samples:?}");
    assert_eq!(summary.requests.unmatched, 0, "{:?}", summary.requests);
    assert!(finished.stdout.contains("say more exactly"), "{finished:#?}");
}

/// A service whose replies come in one piece, and every twentieth one in two. It ends with this process.
fn replies_in_parts() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let count = Arc::new(AtomicU64::new(0));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let count = Arc::clone(&count);
            std::thread::spawn(move || {
                let (mut request, mut bytes) = (Vec::new(), [0; 512]);
                while let Ok(length @ 1..) = stream.read(&mut bytes) {
                    request.extend(&bytes[..length]);
                    if !request.ends_with(b"\r\n\r\n") {
                        continue;
                    }
                    request.clear();
                    let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                    let in_parts = count.fetch_add(1, Ordering::Relaxed).is_multiple_of(20);
                    let (first, rest) = reply.split_at(reply.len() - if in_parts { 2 } else { 0 });
                    if stream.write_all(first).and_then(|()| stream.write_all(rest)).is_err() {
                        return;
                    }
                }
            });
        }
    });
    port
}

/// The kernel holds back the small last part of a reply until the first one is acknowledged.
#[test]
fn replies_in_parts_that_wait_for_an_acknowledgement_are_told() {
    let Some(_guard) = privileged::ready("replies in parts") else { return };
    let directory = trial::directory();
    let out = directory.path().join("run");
    let url = format!("http://127.0.0.1:{}/", replies_in_parts());
    let observer = trial::programs().observer;
    let pid = std::process::id().to_string();
    let mut command = Command::new(&observer);
    command.args(["run", "--budget", "none", "--pid", &pid, "--samples", "observer-load", "--out"]);
    command.arg(&out).arg("--").arg(&observer);
    command.args(["load", &url, "--rate", "150", "--duration", "4s"]);
    let finished = observer_tests::command::run(&mut command, Duration::from_secs(120))
        .unwrap_or_else(|error| panic!("{error}"));
    finished.assert_code(0);
    let (summary, _) = read_run(&out).unwrap_or_else(|error| panic!("{error}"));
    let network = summary.causes.iter().find(|row| row.cause == Cause::NETWORK);
    let network = network.unwrap_or_else(|| panic!("no network in {:?}", summary.causes));
    let [held] = &network.objects[..] else { panic!("{network:?}") };
    println!("{held:?} of {:?}, {:?}", network.share, summary.account_ns.map(|all| all.slow));
    // A client that is too busy takes longer, and some acknowledgements come at once.
    assert!(held.what.contains("delayed ACK"), "{held:?}");
    assert!(held.slow_ns > 10_000_000 && held.slow_ns > 10 * held.typical_ns, "{held:?}");
    assert!(finished.stdout.contains("delayed ACK"), "{finished:#?}");
}

/// A service whose answers wait until the test says so: one for each message.
fn held_answers() -> (u16, mpsc::Sender<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (release, released) = mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (mut request, mut bytes) = (Vec::new(), [0; 512]);
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read(&mut bytes) {
                    Ok(count @ 1..) => request.extend(&bytes[..count]),
                    _ => return,
                }
            }
            if released.recv().is_err() {
                return;
            }
            let answer = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    });
    (port, release)
}

/// On a connection of HTTP/2, fast requests overtake slow ones. The target's sockets cannot tell them apart,
/// and the answer says so instead of naming what other requests did.
#[test]
fn several_requests_at_a_time_over_one_connection() {
    const ROUNDS: usize = 5;
    /// So many come one after the other, and so many beside a slow one.
    const ALONE: usize = 50;
    const BESIDE: usize = 3;
    /// Much longer than a fast request is on its way.
    const PAUSE: Duration = Duration::from_millis(300);
    let Some(_guard) = privileged::ready("HTTP/2 and nginx") else { return };
    let directory = trial::directory();
    let reserved = [ReservedPort::new().expect("a port"), ReservedPort::new().expect("a port")];
    let [plain, port] = reserved.each_ref().map(ReservedPort::number);
    let (backend, release) = held_answers();
    let server = format!(
        "server {{ listen 127.0.0.1:{port} http2; location / {{ return 200 \"ok\"; }} \
         location /slow {{ proxy_pass http://127.0.0.1:{backend}; }} }}"
    );
    let _nginx = nginx(directory.path(), plain, &server);
    let path = directory.path().join("samples");
    let samples = format!("observer-load:{}", path.display());
    let target = ["--port", &port.to_string(), "--samples", &samples, "--slow", "200ms"];
    let watch = Watch::start(&trial::programs(), &target, directory.path());
    let watch = watch.unwrap_or_else(|error| panic!("{error}"));

    let mut connection = Connection::open(port).expect("nginx listens");
    let local_port = connection.local_port;
    let row = |start: MonoNanos| {
        let latency_ns = MonoNanos::now().since(start);
        format!(
            "{{\"start_ns\":{},\"latency_ns\":{latency_ns},\"status\":200,\"local_port\":{local_port}}}\n",
            start.0
        )
    };
    let mut rows = String::new();
    for _ in 0..ROUNDS {
        let fast = |connection: &mut Connection| {
            let start = MonoNanos::now();
            let stream = connection.get("/").expect("sent");
            connection.wait_for(stream).expect("answered");
            row(start)
        };
        rows.extend((0..ALONE).map(|_| fast(&mut connection)));
        let start = MonoNanos::now();
        let slow = connection.get("/slow").expect("sent");
        std::thread::sleep(PAUSE);
        rows.extend((0..BESIDE).map(|_| fast(&mut connection)));
        std::thread::sleep(PAUSE);
        release.send(()).expect("the service is there");
        connection.wait_for(slow).expect("answered");
        rows.push_str(&row(start));
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("it has an id");
    let sent = ROUNDS * (ALONE + BESIDE + 1);
    let text = format!(
        "{{\"format\":\"observer-samples\",\"version\":1,\"clock\":\"monotonic\",\"boot_id\":\"{}\",\
         \"unit\":\"ns\"}}\n{rows}{{\"summary\":{{\"sent\":{sent},\"ok\":{sent},\"errors\":0}}}}\n",
        boot.trim()
    );
    fs::write(&path, text).expect("a file");
    let (summary, _) = watch.finish().unwrap_or_else(|error| panic!("{error}"));

    let RequestsSummary { matched, ambiguous, unmatched, multiplexed, .. } = summary.requests;
    assert_eq!(summary.samples.count, sent as u64);
    assert_eq!((matched, ambiguous, unmatched), (0, 0, 0), "{:?}", summary.requests);
    assert_eq!(multiplexed, sent as u64);
    assert_eq!(summary.samples.slow_count, ROUNDS as u64);
    assert_eq!(summary.account_ns, None);
    for request in &summary.slowest_requests {
        assert_eq!((request.matched, &request.served), (Some(Matched::Multiplexed), &None));
    }
    let codes: Vec<&str> =
        summary.verdict.reasons.iter().map(|reason| reason.code.as_str()).collect();
    assert!(codes.contains(&"multiplexed"), "{codes:?}");
    assert!(!codes.contains(&"counted_by_thread"), "{codes:?}");
}

/// A service in this process that notes when it receives the requests for `/load`.
struct Service {
    port: u16,
    received: Arc<Mutex<Vec<u64>>>,
}

impl Service {
    fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let received = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&received);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let log = Arc::clone(&log);
                std::thread::spawn(move || answer(stream, &log));
            }
        });
        Self { port, received }
    }

    /// The times since the last call, in order.
    fn take(&self) -> Vec<u64> {
        let mut times = std::mem::take(&mut *self.received.lock().expect("no panic before"));
        times.sort_unstable();
        times
    }
}

/// Answers until the client closes the connection.
fn answer(mut stream: TcpStream, log: &Mutex<Vec<u64>>) {
    let (mut request, mut byte) = (Vec::new(), [0]);
    // A byte at a time, so that it is known where a request ends.
    while let Ok(1) = stream.read(&mut byte) {
        request.push(byte[0]);
        if request.ends_with(b"\r\n\r\n") {
            if request.starts_with(b"GET /load ") {
                log.lock().expect("no panic before").push(MonoNanos::now().0);
            }
            request.clear();
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            if stream.write_all(answer).is_err() {
                return;
            }
        }
    }
}

/// Where hey's requests lie, behind wrappers that do other things first, by the service's own log.
#[test]
fn hey_is_placed_behind_any_wrapper() {
    let Some(_guard) = privileged::ready("hey behind wrappers") else { return };
    let directory = trial::directory();
    let (service, other) = (Service::start(), Service::start());
    let url = |service: &Service, path| format!("http://127.0.0.1:{}/{path}", service.port);
    // Connects from the shell's own process, as long as it lives.
    let connect = |service: &Service| {
        format!(
            "exec 3<>/dev/tcp/127.0.0.1/{}; printf 'GET /warm HTTP/1.1\\r\\n\\r\\n' >&3; \
             head -c 15 <&3 >/dev/null",
            service.port
        )
    };
    let hey =
        |service: &Service, path| format!("hey -n 30 -c 2 -q 15 -o csv {}", url(service, path));
    let load = hey(&service, "load");
    // The script, and whether it may leave open which process is the generator.
    let wrappers = [
        ("a delay", format!("sleep 1; {load}"), false),
        (
            "its own connection to another port",
            format!("{}; sleep 1; {load}", connect(&other)),
            false,
        ),
        ("its own connection", format!("{}; sleep 1; {load}", connect(&service)), false),
        (
            "a short connection of another process",
            format!("({}); sleep 1; exec {load}", connect(&service)),
            false,
        ),
        ("the same load elsewhere", format!("{} >/dev/null; {load}", hey(&other, "warm")), false),
        (
            "many processes, and the load in the background",
            format!("for i in $(seq 50); do /bin/true; done; sleep 1; setsid {load} & wait"),
            false,
        ),
        ("two recordings", format!("{}; {load}", hey(&service, "warm")), false),
        ("the same load", format!("{} >/dev/null; {load}", hey(&service, "warm")), true),
    ];
    for (what, script, may_be_open) in wrappers {
        let out = directory.path().join(what);
        let mut command = Command::new(trial::programs().observer);
        command.args(["run", "--port", &service.port.to_string(), "--samples", "hey", "--out"]);
        command.arg(&out).args(["--", "bash", "-c", &script]);
        let finished = observer_tests::command::run(&mut command, Duration::from_secs(60))
            .unwrap_or_else(|error| panic!("{error}"));
        finished.assert_code(0);
        let (summary, info) = read_run(&out).unwrap_or_else(|error| panic!("{error}"));
        let samples = RunDir::open(&out).and_then(|run| run.read_samples()).expect("samples");
        let samples = samples.expect("samples").rows;
        let received = service.take();
        assert_eq!((samples.len(), received.len()), (30, 30), "{what}");
        // The nth request was received between the nth begin and the nth end.
        let mut begins: Vec<_> = samples.iter().map(|sample| sample.start.0 as i64).collect();
        let mut ends: Vec<_> = samples.iter().map(|sample| sample.end.0 as i64).collect();
        begins.sort_unstable();
        ends.sort_unstable();
        let after = |times: &[i64]| -> Vec<i64> {
            received.iter().zip(times).map(|(at, time)| *at as i64 - time).collect()
        };
        // Begin and end are rounded to a step each.
        let step = samples[0].precision_ns as i64;
        let least = after(&ends).into_iter().max().expect("30") - 2 * step;
        let most = after(&begins).into_iter().min().expect("30") + 2 * step;
        let error = summary.samples.clock_error_ns as i64;
        assert!(least <= error && -error <= most, "{what}: {least}..{most} of {error}");
        // The wrapper took so long before it started the generator.
        let before = received[0] as i64 - info.start_ns.0 as i64;
        assert!(may_be_open || error < before / 4, "{what}: {error} ns of {before}");
    }
}

/// hey had printed its recording when the run was killed: where its requests lie, by the service's own
/// log.
#[test]
fn hey_is_placed_in_a_run_that_was_killed() {
    let Some(_guard) = privileged::ready("hey in a killed run") else { return };
    let directory = trial::directory();
    let service = Service::start();
    let out = directory.path().join("run");
    let url = format!("http://127.0.0.1:{}/load", service.port);
    let script = format!("sleep 1; hey -n 30 -c 2 -q 15 -o csv {url}; sleep 60");
    let mut command = Command::new(trial::programs().observer);
    command.args(["run", "--budget", "none", "--port", &service.port.to_string()]);
    command.args(["--samples", "hey", "--out"]).arg(&out).args(["--", "bash", "-c", &script]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut observer = Running::start(&mut command, Placement::default()).expect("it starts");
    // A checkpoint after its end.
    let checkpoint = || -> Option<RunInfo> {
        let info = RunDir::open(&out).and_then(|run| run.read_run()).ok()?;
        let all = info.generator.as_ref()?.processes.as_ref()?;
        let hey = all.processes.iter().find(|process| process.comm == "hey")?;
        hey.ended.is_some_and(|ended| ended < info.end_ns).then_some(info)
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let info = loop {
        if let Some(info) = checkpoint() {
            break info;
        }
        assert!(Instant::now() < deadline, "hey ends");
        std::thread::sleep(Duration::from_millis(20));
    };
    observer.signal(Signal::KILL);
    observer.wait(Duration::from_secs(60)).expect("it is gone");
    let mut report = Command::new(trial::programs().observer);
    report.arg("report").arg(&out).arg("--json");
    let finished = observer_tests::command::run(&mut report, Duration::from_secs(120))
        .unwrap_or_else(|error| panic!("{error}"));
    finished.assert_code(0);
    let summary: Summary = serde_json::from_str(&finished.stdout).expect("an answer");
    let received = service.take();
    let verdict = &summary.verdict;
    assert_eq!((summary.samples.count, received.len()), (30, 30), "{verdict:?}");
    let error = summary.samples.clock_error_ns;
    let before = received[0] - info.start_ns.0;
    assert!(error < before / 4, "{error} ns of {before}: {verdict:?}");
    // Each request was received between its begin and its end, which hey rounds to 0.1 ms each.
    let error = error + 200_000;
    assert_eq!(summary.slowest_requests.len(), 10);
    for request in &summary.slowest_requests {
        let (begin, end) = (request.begin_ns.0 - error, request.end_ns.0 + error);
        let is_there = received.iter().any(|at| (begin..=end).contains(at));
        assert!(is_there, "{begin}..{end}: {received:?}");
    }
}
