//! `observer load`: the open-loop generator on the command line.

use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Uri};
use indicatif::ProgressBar;

use super::duration::parse_positive;
use crate::clock::namespace_offset_ns;
use crate::error::{Error, Exit, Result};
use crate::limits::{self, Needs};
use crate::load::{
    Arrivals, Config, LoadError, Output, Report, RequestSpec, Snapshot, Stop, generate,
};

const EXAMPLES: &str = "\
Examples:
  observer load http://127.0.0.1:8080/ --rate 1000 --duration 30s --out samples.jsonl
  observer load http://127.0.0.1:8080/ --rate 200 --arrivals poisson --duration 1m > samples.jsonl
  observer load http://127.0.0.1:8080/ --rate 50 --method HEAD --header 'X-Run: 7' > run7.jsonl

During the run, one JSON line per request is written to --out; at the end, a summary is printed to
standard error. `observer run --samples observer-load` reads the lines; docs/SAMPLE_FORMAT.md describes
them.

Exit codes:
  0   success; failed requests are recorded and do not change the exit code
  2   invalid command line
  5   no request got an answer
  6   the output exists or cannot be written";

/// Send HTTP requests at a fixed rate, however slowly the server answers, and write one line per request.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// URL to request, like http://HOST:PORT/PATH (plain HTTP/1.1)
    pub url: String,
    /// Requests per second
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    pub rate: f64,
    /// How long to send requests (30s, 500ms, 2m)
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_positive)]
    pub duration: Duration,
    /// Connections to open in advance and keep; if all are busy, more are opened
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub connections: usize,
    /// Maximum concurrent connections; further requests are recorded as errors
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = parse_max_connections)]
    pub max_connections: usize,
    /// Distribution of the requests over time
    #[arg(long, value_enum, default_value_t = Arrivals::Constant)]
    pub arrivals: Arrivals,
    /// Seed of poisson arrivals; the same seed gives the same times
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Where to write the lines: - (standard output), a new FILE, an existing FIFO, or unix:PATH (a
    /// listening Unix socket)
    #[arg(long, value_name = "WHERE", default_value = "-")]
    pub out: Output,
    /// Request method
    #[arg(long, default_value = "GET")]
    pub method: Method,
    /// Request header, `Name: value`; may be repeated
    #[arg(long, value_name = "K:V", value_parser = parse_header)]
    pub header: Vec<(HeaderName, HeaderValue)>,
    /// Timeout of one request, including the connection set-up
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_positive)]
    pub timeout: Duration,
}

fn parse_rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err("must be a number above 0 and at most 1000000".into()),
    }
}

fn parse_max_connections(text: &str) -> std::result::Result<usize, String> {
    match text.parse::<usize>() {
        Ok(count) if (1..=60_000).contains(&count) => Ok(count),
        _ => Err("must be a number from 1 to 60000".into()),
    }
}

fn parse_header(text: &str) -> std::result::Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("there is no colon: write 'Name: value'")?;
    let name = HeaderName::from_str(name.trim()).map_err(|error| error.to_string())?;
    let value = HeaderValue::from_str(value.trim()).map_err(|error| error.to_string())?;
    Ok((name, value))
}

/// Runs it.
///
/// # Errors
///
/// When nothing can be sent or written, or no request got an answer.
#[expect(clippy::needless_pass_by_value)]
pub fn run(args: Args) -> Result<()> {
    let stop = Stop::default();
    let config = config(&args)?;
    namespace_offset_ns().map_err(|reason| {
        let todo = "start observer in a new process: unshare --time --fork observer load ...";
        Error::new(Exit::Kernel, format!("cannot know the kernel's clock: {reason}; {todo}"))
    })?;
    raise_file_limit();
    limits::check(Needs::LOAD)?;
    // Opened after the address was checked: a wrong address must not leave an empty file behind.
    let out = open_output(&args.out)?;
    catch_signals(&stop);
    let bar = progress_bar(&args, &config);
    let report = generate(&config, out, &stop, |now| show(bar.as_ref(), now));
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    let report = report.map_err(|error| match error {
        LoadError::Output(_) => Error::new(Exit::Output, format!("{}: {error}", args.out)),
        LoadError::Start(_) | LoadError::Thread(_) => {
            Error::new(Exit::Failure, format!("load: {error}"))
        }
    })?;
    summarize(&config, &report, &mut std::io::stderr().lock());
    if report.totals.answered == 0 && report.totals.sent > 0 && !report.interrupted {
        let kinds = kinds(&report);
        return Err(Error::new(
            Exit::Target,
            format!("{}: no request got an answer ({kinds}); is the service running?", args.url),
        ));
    }
    Ok(())
}

fn config(args: &Args) -> Result<Config> {
    let usage = |what: &str| Error::new(Exit::Usage, format!("{}: {what}", args.url));
    let uri: Uri = args.url.parse().map_err(|error| usage(&format!("not a URL: {error}")))?;
    match uri.scheme_str() {
        Some("http") => {}
        Some("https") => {
            return Err(usage("https is not supported, plain HTTP only: use an http:// URL"));
        }
        _ => return Err(usage("not a URL of the form http://HOST[:PORT]/PATH")),
    }
    let authority = uri.authority().ok_or_else(|| usage("the URL has no host"))?;
    if authority.as_str().contains('@') {
        return Err(usage("a user name in the URL is not supported: use --header"));
    }
    let host = authority.host();
    let addresses = resolve(host, authority.port_u16().unwrap_or(80)).map_err(|error| {
        Error::new(Exit::Target, format!("{host}: cannot be resolved: {error}"))
    })?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    // A query that directly follows the host needs a path.
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let path = Uri::from_str(&path).map_err(|error| usage(&format!("not a path: {error}")))?;
    let mut headers = HeaderMap::new();
    let host = HeaderValue::from_str(authority.as_str())
        .map_err(|error| usage(&format!("the host cannot be sent: {error}")))?;
    headers.insert(HOST, host);
    let agent = concat!("observer-load/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    // The first of a name replaces the default, a second one is sent as well.
    for (index, (name, value)) in args.header.iter().enumerate() {
        if args.header[..index].iter().any(|(earlier, _)| earlier == name) {
            headers.append(name, value.clone());
        } else {
            headers.insert(name, value.clone());
        }
    }
    Ok(Config {
        addresses,
        url: args.url.clone(),
        request: RequestSpec { method: args.method.clone(), path, headers },
        rate_hz: args.rate,
        duration: args.duration,
        arrivals: args.arrivals,
        seed: args.seed,
        connections: args.connections,
        max_connections: args.max_connections,
        timeout: args.timeout,
    })
}

fn resolve(host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> = (bare, port).to_socket_addrs()?.collect();
    if addresses.is_empty() {
        return Err(std::io::Error::other("the name has no address"));
    }
    Ok(addresses)
}

fn open_output(out: &Output) -> Result<Box<dyn Write + Send>> {
    out.open().map_err(|error| {
        let what = match (out, error.kind()) {
            (Output::File(_), std::io::ErrorKind::AlreadyExists) => {
                "already exists and is never overwritten: use another file".into()
            }
            (Output::Unix(_), _) => {
                format!("cannot connect ({error}): is anything listening there?")
            }
            _ => format!("cannot be written: {error}"),
        };
        Error::new(Exit::Output, format!("{out}: {what}"))
    })
}

static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();

extern "C" fn on_signal(_: libc::c_int) {
    if let Some(flag) = STOP.get() {
        flag.store(true, Ordering::Relaxed);
    }
}

/// The first SIGINT or SIGTERM ends the schedule, the second one ends the process.
fn catch_signals(stop: &Stop) {
    if STOP.set(stop.flag()).is_err() {
        return;
    }
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: an all-zero sigaction is a valid one (no flags, empty mask); the handler only
        // reads an initialised static and stores to an atomic, which is async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESETHAND;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    }
}

/// Every connection needs a descriptor; the usual soft limit of 1024 exists for select(2).
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // If it cannot be raised, connections fail with `no_file_descriptor` and are counted.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// None where it would mix with the rows.
fn progress_bar(args: &Args, config: &Config) -> Option<ProgressBar> {
    let rows_on_terminal = args.out == Output::Stdout && std::io::stdout().is_terminal();
    if rows_on_terminal || !crate::log::shows_progress() {
        return None;
    }
    let bar = ProgressBar::new_spinner();
    bar.set_prefix(format!("{} req/s for {:?}", config.rate_hz, config.duration));
    if let Ok(style) =
        indicatif::ProgressStyle::with_template("{spinner} {elapsed} of {prefix}  {msg}")
    {
        bar.set_style(style);
    }
    Some(bar)
}

fn show(bar: Option<&ProgressBar>, now: Snapshot) {
    if let Some(bar) = bar {
        let lost = if now.lost > 0 { format!(", {} rows lost", now.lost) } else { String::new() };
        bar.set_message(format!("{} requests, {} errors{lost}", now.rows, now.errors));
        bar.tick();
    }
}

fn kinds(report: &Report) -> String {
    let kinds: Vec<String> =
        report.totals.errors.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    kinds.join(", ")
}

/// Writes the human-readable summary.
fn summarize(config: &Config, report: &Report, out: &mut impl Write) {
    let totals = &report.totals;
    let ms = |ns: u64| ns as f64 / 1e6;
    let mut lines = vec![format!(
        "sent {} requests at {:.1}/s (requested: {} {}), {} ok, {} errors, at most {} connections",
        totals.sent,
        totals.rate_hz(),
        config.rate_hz,
        config.arrivals.name(),
        totals.ok,
        totals.error_count(),
        report.peak_connections,
    )];
    let histograms = [
        ("latency (from the intended start)", &totals.response),
        ("latency (from the actual start)", &totals.service),
        ("lateness (actual - intended start)", &totals.lateness),
    ];
    for (name, histogram) in histograms.into_iter().filter(|(_, histogram)| !histogram.is_empty()) {
        lines.push(format!(
            "{name:<34} p50 {:.3}  p90 {:.3}  p99 {:.3}  p99.9 {:.3}  max {:.3} ms",
            ms(histogram.value_at_quantile(0.5)),
            ms(histogram.value_at_quantile(0.9)),
            ms(histogram.value_at_quantile(0.99)),
            ms(histogram.value_at_quantile(0.999)),
            ms(histogram.max()),
        ));
    }
    if !totals.errors.is_empty() {
        lines.push(format!("errors: {}", kinds(report)));
    }
    if report.ahead_failed > 0 {
        lines.push(format!("{} connections could not be opened in advance", report.ahead_failed));
    }
    if report.rows_lost > 0 {
        lines.push(format!(
            "{} rows were lost: the reader of the output was too slow",
            report.rows_lost
        ));
    }
    if report.interrupted {
        lines.push("interrupted before the end of the schedule".into());
    }
    for line in lines {
        // Standard error may be gone; the rows are written.
        let _ = writeln!(out, "{line}");
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &str) -> std::result::Result<Args, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.args)
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_sent() {
        for bad in [
            "load http://h/",
            "load http://h/ --rate 0",
            "load http://h/ --rate inf",
            "load http://h/ --rate 1 --duration 10",
            "load http://h/ --rate 1 --max-connections 0",
            "load http://h/ --rate 1 --arrivals uniform",
            "load http://h/ --rate 1 --header nocolon",
            "load http://h/ --rate 1 --out unix:",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        for (url, exit, says) in [
            ("https://127.0.0.1/", Exit::Usage, "https is not supported"),
            ("127.0.0.1:80", Exit::Usage, "http://HOST"),
            ("ftp://127.0.0.1/", Exit::Usage, "http://HOST"),
            ("http://user:secret@127.0.0.1/", Exit::Usage, "--header"),
            ("http://no-such-host.invalid/", Exit::Target, "cannot be resolved"),
        ] {
            let error = config(&parse(&format!("load {url} --rate 1")).unwrap()).unwrap_err();
            assert_eq!(error.exit, exit, "{url}: {error}");
            assert!(error.to_string().contains(says), "{url}: {error}");
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn the_request_is_what_was_asked_for() {
        let line = "load http://127.0.0.1:8080/a/b?c=d --rate 5 --method PUT --header X-A:1 \
                    --header X-A:2 --header Host:other";
        let config = config(&parse(line).unwrap()).unwrap();
        assert_eq!(config.addresses, ["127.0.0.1:8080".parse().unwrap()]);
        assert_eq!(config.request.path.to_string(), "/a/b?c=d");
        assert_eq!(config.request.method, Method::PUT);
        assert_eq!(config.request.headers[HOST], "other");
        let twice: Vec<_> = config.request.headers.get_all("x-a").iter().collect();
        assert_eq!(twice, ["1", "2"]);
        let config = super::config(&parse("load http://[::1]?q --rate 5").unwrap()).unwrap();
        assert_eq!(config.addresses, ["[::1]:80".parse().unwrap()]);
        assert_eq!(config.request.headers[HOST], "[::1]");
        assert_eq!(config.request.path.to_string(), "/?q");
    }

    #[test]
    fn a_service_that_is_not_there_leaves_rows_and_an_exit_code() {
        let address = {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        let line =
            format!("load http://{address}/ --rate 50 --duration 200ms --out {}", path.display());
        let error = run(parse(&line).unwrap()).unwrap_err();
        assert_eq!(error.exit, Exit::Target);
        assert!(error.to_string().contains("10 refused"), "{error}");
        let rows = std::fs::read_to_string(&path).unwrap();
        assert_eq!(rows.lines().filter(|line| line.contains("\"error\":\"refused: ")).count(), 10);
        assert!(rows.lines().last().unwrap().starts_with("{\"summary\":"));
        // The same line again: the file is there now.
        let error = run(parse(&line).unwrap()).unwrap_err();
        assert_eq!(error.exit, Exit::Output);
        assert!(error.to_string().contains("never overwritten"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), rows);
    }
}
