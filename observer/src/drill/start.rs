//! Starts the service of a drill: observer's own, or a program of this host with files that are written for it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use super::cgroup::Cgroup;
use super::child::{Place, Running, await_at_times, await_line};
use super::injector::Episode;
use super::play::{REPORT_TIMEOUT, Run, START_TIMEOUT, last_line, on_disk, private_file, read_log};
use super::redis;
use super::rows::{Form, Harm, Work};
use super::service::entry::Entry;
use super::service::http::CLIENT_PORT;
use super::services::{Real, Service};
use crate::clock::namespace_offset_ns;
use crate::host::descendants::descendants;
use crate::host::network::socket_descriptors;
use crate::model::{Sample, Tgid};

/// What the compiler of Go may take, which compiles its library first.
const BUILD_TIMEOUT: Duration = Duration::from_secs(300);
/// What the service may take to write its log, or to end its worker.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections and requests on each before the load begins.
const WARM_UP: (u32, u32) = (8, 100);
/// No answer of a service is longer.
const ANSWER_BYTES_MAX: usize = 4096;

const NGINX: &str = include_str!("real/nginx.conf");
const NGINX_PROXY: &str = include_str!("real/nginx-proxy.conf");
const JAVA: &str = include_str!("real/Service.java");
const NODE: &str = include_str!("real/service.cjs");
const GO: &str = include_str!("real/service.go");

/// How a service says that the first request has come.
enum FirstRequest {
    /// With a line on its standard output.
    Line(Receiver<String>),
    /// With a line in this file.
    AccessLog(PathBuf),
    /// Not at all: redis has a connection then.
    Connection(redis::Requests),
}

/// Sockets of redis without any connection: the one that listens.
const REDIS_SOCKETS: usize = 1;

/// A service that runs.
pub(super) struct Started {
    process: Running,
    /// Port at which it listens.
    pub(super) port: u16,
    first_request: FirstRequest,
    /// The service behind a proxy.
    behind: Option<Box<Started>>,
}

impl Started {
    /// Its first process.
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Port at which the service behind it listens.
    pub(super) fn port_behind(&self) -> Option<u16> {
        self.behind.as_ref().map(|behind| behind.port)
    }

    /// The processes that serve requests.
    pub(super) fn serving(&self) -> Vec<u32> {
        match self.first_request {
            FirstRequest::Line(_) | FirstRequest::Connection(_) => vec![self.id()],
            FirstRequest::AccessLog(_) => children(self.id()),
        }
    }

    /// What the load generator requests: its first arguments.
    pub(super) fn load(&self, harm: Harm) -> Vec<String> {
        match self.first_request {
            FirstRequest::Connection(requests) => {
                let mut arguments = vec![format!("tcp://127.0.0.1:{}", self.port)];
                arguments.extend(requests.arguments(harm));
                arguments
            }
            FirstRequest::Line(_) | FirstRequest::AccessLog(_) => {
                vec![format!("http://127.0.0.1:{}/", self.port)]
            }
        }
    }

    /// Waits for the first request, while `alive` says that one may come.
    ///
    /// # Errors
    /// When none comes.
    pub(super) fn await_first_request(
        &self,
        stop: &AtomicBool,
        alive: impl FnMut() -> Result<(), String>,
    ) -> Result<(), String> {
        match &self.first_request {
            FirstRequest::Line(lines) => {
                await_line(lines, "request", START_TIMEOUT, stop, alive).map(drop)
            }
            FirstRequest::AccessLog(path) => {
                let has_line = || fs::metadata(path).is_ok_and(|log| log.len() > 0).then_some(());
                await_at_times(has_line, START_TIMEOUT, stop, alive)
            }
            FirstRequest::Connection(_) => {
                let has_more = || (redis_sockets(self.id()) > REDIS_SOCKETS).then_some(());
                await_at_times(has_more, START_TIMEOUT, stop, alive)
            }
        }
    }

    /// Ends it, after which its log is whole.
    ///
    /// # Errors
    /// When it fails or does not end.
    pub(super) fn end(&mut self, run: &Run<'_>) -> Result<(), String> {
        let stop = run.stop;
        match self.first_request {
            FirstRequest::Line(_) => self.process.close_stdin(),
            FirstRequest::AccessLog(_) => self.process.terminate(),
            FirstRequest::Connection(_) => {
                write(&log_path(run), &redis::log(self.port)?)?;
                self.process.terminate();
            }
        }
        self.process.wait(Instant::now() + END_TIMEOUT, stop)?;
        self.behind.as_mut().map_or(Ok(()), |behind| behind.end(run))
    }
}

/// Whether it writes down itself how long its threads waited for a CPU. In Go, a request has no thread.
pub(super) const fn has_log_of_waits(service: Service) -> bool {
    !matches!(service, Service::Real(Real::Nginx | Real::NginxProxy | Real::Go | Real::Redis))
}

/// Whether this host can play the service.
///
/// # Errors
/// With the reason when it cannot.
pub(super) fn can_play(service: Service) -> Result<(), String> {
    let Service::Real(real) = service else { return Ok(()) };
    let program = program(real)?;
    match real {
        Real::Java => has_modules(&program),
        Real::Redis => redis::can_play(&program),
        Real::Nginx | Real::NginxProxy | Real::Node | Real::Go => Ok(()),
    }
}

/// Whether this java can compile a service and has the server that it uses.
fn has_modules(program: &Path) -> Result<(), String> {
    let listed = Command::new(program).arg("--list-modules").stdin(Stdio::null()).output();
    let listed = listed.map_err(|error| format!("cannot start java: {error}"))?;
    let modules = String::from_utf8_lossy(&listed.stdout);
    for needed in ["jdk.compiler", "jdk.httpserver"] {
        if !modules.contains(needed) {
            return Err(format!("this java has no module {needed}"));
        }
    }
    Ok(())
}

fn program(real: Real) -> Result<PathBuf, String> {
    real.program().ok_or_else(|| format!("this host has no program {:?}", real.program_name()))
}

/// Starts the service of a run.
///
/// # Errors
/// When it does not start.
pub(super) fn start(run: &Run<'_>, cgroup: &Cgroup) -> Result<Started, String> {
    let place =
        Place { cpu: Some(run.host.cpu), entrances: cgroup.entrances()?, has_children: false };
    match run.service {
        Service::Own(form) => own(run, form, place),
        Service::Real(Real::Nginx) => {
            let html = run.directory.join("html");
            super::make_private(&html).map_err(|error| error.to_string())?;
            write(&html.join("index.html"), "<!doctype html><title>drill</title>ok\n")?;
            nginx(run, NGINX, None, place)
        }
        Service::Real(Real::NginxProxy) => {
            // With the load generator, so that nginx has its CPU for itself.
            let behind = own(run, Form::EventLoop, Place::default())?;
            nginx(run, NGINX_PROXY, Some(behind), place)
        }
        Service::Real(Real::Java) => {
            let source = run.directory.join("Service.java");
            write(&source, JAVA)?;
            let mut command = Command::new(program(Real::Java)?);
            // Its answers do not wait for acknowledgements, and it leaves no file in /tmp.
            command.args(["-Dsun.net.httpserver.nodelay=true", "-XX:-UsePerfData"]).arg(source);
            script(run, command, place)
        }
        Service::Real(Real::Node) => {
            let source = run.directory.join("service.cjs");
            write(&source, NODE)?;
            let mut command = Command::new(program(Real::Node)?);
            command.arg(source);
            script(run, command, place)
        }
        Service::Real(Real::Go) => {
            let command = Command::new(go(run)?);
            script(run, command, place)
        }
        Service::Real(Real::Redis) => redis(run, place),
    }
}

/// What the service of the run wrote down.
///
/// # Errors
/// When the log cannot be read.
pub(super) fn entries(
    run: &Run<'_>,
    samples: &[Sample],
    waits: &[Episode],
) -> Result<Vec<Entry>, String> {
    let path = log_path(run);
    match run.service {
        Service::Real(Real::Nginx) => Ok(Vec::new()),
        Service::Own(_) | Service::Real(Real::NginxProxy) => read_log(&path),
        Service::Real(Real::Java | Real::Node | Real::Go) => {
            // These read the clock of the time namespace.
            let offset_ns = namespace_offset_ns()?;
            let mut entries = read_log(&path)?;
            for entry in &mut entries {
                for time in [&mut entry.read_ns, &mut entry.begin_ns, &mut entry.end_ns] {
                    *time = time.wrapping_add_signed(-offset_ns);
                }
            }
            Ok(entries)
        }
        Service::Real(Real::Redis) => {
            let log = fs::read_to_string(&path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            redis::entries(&log, run.row.harm, samples, waits)
        }
    }
}

fn log_path(run: &Run<'_>) -> PathBuf {
    run.directory.join("service.csv")
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    let written = private_file(path)?.write_all(text.as_bytes());
    written.map_err(|error| format!("cannot write {}: {error}", path.display()))
}

/// The word for what a share of the requests does.
const fn word(harm: Harm) -> &'static str {
    match harm {
        Harm::None => "none",
        Harm::Sleep => "sleep",
        Harm::Burn => "burn",
        Harm::Faults => "faults",
        Harm::Map => "map",
        Harm::Sync => "sync",
        Harm::Lock => "lock",
        Harm::MapLock => "map-lock",
        Harm::Background => "background",
    }
}

/// Seconds after which a service ends in any case.
fn lifetime(run: &Run<'_>) -> String {
    (run.host.load + 2 * START_TIMEOUT + REPORT_TIMEOUT).as_secs().to_string()
}

fn errors(run: &Run<'_>, name: &str) -> Result<File, String> {
    private_file(&run.directory.join(name))
}

fn with_last_line(why: &str, run: &Run<'_>, name: &str) -> String {
    format!("{why}: {}", last_line(&run.directory.join(name)))
}

fn own(run: &Run<'_>, form: Form, place: Place) -> Result<Started, String> {
    let row = run.row;
    let mut command = Command::new(&run.host.program);
    command.args(["drill-service", "--form", form.name(), "--harm", word(row.harm)]);
    command.args(["--work", if row.work == Work::Read { "read" } else { "spin" }]);
    command.args(["--seed", &run.seed.to_string(), "--lifetime", &lifetime(run)]);
    command.arg("--log").arg(log_path(run));
    if row.work == Work::Read || row.harm == Harm::Sync {
        // The service makes it, and removes its name at once.
        let name = format!("observer-drill-{}.sparse", std::process::id());
        command.arg("--file").arg(on_disk(run.directory)?.join(name));
    }
    says_its_port(run, command, place)
}

/// The service in Go, which the first run of the series that needs it compiles.
fn go(run: &Run<'_>) -> Result<PathBuf, String> {
    let directory = run.common.join("go");
    let program = directory.join("service");
    if program.exists() {
        return Ok(program);
    }
    // What an earlier run has left failed.
    let _ = fs::remove_dir_all(&directory);
    super::make_private(&directory).map_err(|error| error.to_string())?;
    let source = directory.join("service.go");
    write(&source, GO)?;
    let mut command = Command::new(self::program(Real::Go)?);
    // Nothing is read from the network, and nothing is written elsewhere.
    for (name, value) in
        [("GO111MODULE", "off"), ("GOPROXY", "off"), ("GOTOOLCHAIN", "local"), ("GOENV", "off")]
    {
        command.env(name, value);
    }
    let cache = directory.join("cache");
    command.env("GOCACHE", &cache).env("GOPATH", directory.join("path"));
    command.env("GOTMPDIR", &directory).env("GOFLAGS", "").env("CGO_ENABLED", "0");
    command.env("HOME", &directory).env_remove("XDG_CONFIG_HOME");
    command.args(["build", "-o"]).arg(&program).arg(source).current_dir(&directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors(run, "build.err")?);
    let place = Place { has_children: true, ..Place::default() };
    let mut process = Running::start("the compiler of Go", &mut command, place)?;
    let built = process.wait(Instant::now() + BUILD_TIMEOUT, run.stop);
    let _ = fs::remove_dir_all(cache);
    built.map_err(|why| with_last_line(&why, run, "build.err"))?;
    Ok(program)
}

/// A program that takes what it does, the seed, where its log goes and when it ends in any case.
fn script(run: &Run<'_>, mut command: Command, place: Place) -> Result<Started, String> {
    let log = log_path(run);
    // Made here, so that nobody else can read it.
    drop(private_file(&log)?);
    command.current_dir(run.directory);
    command.args([word(run.row.harm), &run.seed.to_string()]).arg(log).arg(lifetime(run));
    let started = says_its_port(run, command, place)?;
    warm_up(started.port).map_err(|error| format!("the service cannot be warmed up: {error}"))?;
    Ok(started)
}

/// Sends requests that the service does not write down: what compiles its code while it runs, and reads its
/// files when it needs them, is slow at first, and that is nothing that a drill injects.
fn warm_up(port: u16) -> io::Result<()> {
    for _ in 0..WARM_UP.0 {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        connection.set_read_timeout(Some(END_TIMEOUT))?;
        for _ in 0..WARM_UP.1 {
            connection.write_all(b"GET /warm-up HTTP/1.1\r\nHost: drill\r\n\r\n")?;
            read_answer(&mut connection)?;
        }
    }
    Ok(())
}

/// Reads up to the end of the answer, which all services of a drill have in common.
fn read_answer(connection: &mut impl Read) -> io::Result<()> {
    let mut answer = Vec::new();
    let mut bytes = [0u8; 1024];
    while !answer.ends_with(b"\r\n\r\nok\n") {
        let read = connection.read(&mut bytes)?;
        if read == 0 || answer.len() > ANSWER_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        answer.extend_from_slice(&bytes[..read]);
    }
    Ok(())
}

fn says_its_port(run: &Run<'_>, mut command: Command, place: Place) -> Result<Started, String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(errors(run, "service.err")?);
    let mut process = Running::start("the service", &mut command, place)?;
    let lines = process.lines()?;
    let alive = || process.is_alive();
    let port = await_line(&lines, "listening ", START_TIMEOUT, run.stop, alive)
        .map_err(|why| with_last_line(&why, run, "service.err"))?;
    let port = port.parse().map_err(|_| format!("the service says its port is {port:?}"))?;
    Ok(Started { process, port, first_request: FirstRequest::Line(lines), behind: None })
}

fn nginx(
    run: &Run<'_>,
    configuration: &str,
    behind: Option<Started>,
    place: Place,
) -> Result<Started, String> {
    let port = free_port()?;
    let mut text = configuration.replace("LISTEN_PORT", &port.to_string());
    if let Some(behind) = &behind {
        text = text.replace("BEHIND_PORT", &behind.port.to_string());
        text = text.replace("CLIENT_PORT_HEADER", CLIENT_PORT);
    }
    write(&run.directory.join("nginx.conf"), &text)?;
    let mut command = Command::new(program(Real::Nginx)?);
    command.args(["-e", "stderr", "-c", "nginx.conf", "-p"]).arg(run.directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors(run, "nginx.err")?);
    let place = Place { has_children: true, ..place };
    let mut process = Running::start("nginx", &mut command, place)?;
    let id = process.id();
    // It listens before it starts its worker.
    let has_worker = || (!children(id).is_empty()).then_some(());
    await_at_times(has_worker, START_TIMEOUT, run.stop, || process.is_alive())
        .map_err(|why| with_last_line(&why, run, "nginx.err"))?;
    let first_request = FirstRequest::AccessLog(run.directory.join("access.log"));
    Ok(Started { process, port, first_request, behind: behind.map(Box::new) })
}

fn redis(run: &Run<'_>, place: Place) -> Result<Started, String> {
    let port = free_port()?;
    let mut command = redis::command(&program(Real::Redis)?, port, run.directory);
    command.stdin(Stdio::null()).stdout(errors(run, "redis.out")?).stderr(Stdio::null());
    let mut process = Running::start("redis", &mut command, place)?;
    let id = process.id();
    let listens = || (redis_sockets(id) == REDIS_SOCKETS).then_some(());
    await_at_times(listens, START_TIMEOUT, run.stop, || process.is_alive())
        .map_err(|why| with_last_line(&why, run, "redis.out"))?;
    let requests = redis::prepare(port)?;
    // The end of the connection of the warm-up must not be taken for the begin of the load.
    await_at_times(listens, START_TIMEOUT, run.stop, || process.is_alive())?;
    Ok(Started { process, port, first_request: FirstRequest::Connection(requests), behind: None })
}

/// How many sockets redis has.
fn redis_sockets(process: u32) -> usize {
    socket_descriptors(Tgid(process)).map_or(0, |sockets| sockets.len())
}

fn children(process: u32) -> Vec<u32> {
    descendants(Tgid(process)).into_iter().map(|one| one.tgid.0).collect()
}

/// A port at which no process listens now.
fn free_port() -> Result<u16, String> {
    let found =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
    found.map(|address| address.port()).map_err(|error| format!("no free port: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_this_host_does_not_have_is_no_failure() {
        assert_eq!(can_play(Service::Own(Form::Pool)), Ok(()));
        for real in [Real::Nginx, Real::Node, Real::Go, Real::Redis] {
            let can = can_play(Service::Real(real));
            assert_eq!(can.is_ok(), real.program().is_some(), "{can:?}");
        }
    }

    #[test]
    fn an_answer_is_read_up_to_its_end() {
        let mut one = &b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"[..];
        read_answer(&mut one).unwrap();
        assert!(one.is_empty());
        for bad in [&b"HTTP/1.1 200 OK\r\n\r\nno\n"[..], b""] {
            assert!(read_answer(&mut &*bad).is_err());
        }
        assert!(read_answer(&mut io::repeat(b'x')).is_err());
    }

    #[test]
    fn nothing_of_nginx_is_outside_of_the_directory_of_the_run() {
        for text in [NGINX, NGINX_PROXY] {
            for word in text.split_whitespace() {
                assert!(!word.starts_with('/') || word == "/", "{word}");
            }
            for path in ["pid ", "access_log ", "client_body_temp_path ", "proxy_temp_path "] {
                assert!(text.contains(path), "{path}");
            }
        }
        assert!(!NGINX.contains("CLIENT_PORT_HEADER") && NGINX_PROXY.contains("BEHIND_PORT"));
    }

    #[test]
    fn the_words_are_those_that_the_own_service_takes() {
        use clap::ValueEnum;
        for harm in Harm::value_variants() {
            assert_eq!(Harm::from_str(word(*harm), false), Ok(*harm));
        }
    }
}
