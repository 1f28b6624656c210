//! The command line of `observer load`, and the requests that it asks for.

use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use hyper::{Method, Uri};

use super::duration::parse_positive;
use crate::error::{Error, Exit, Result};
use crate::load::{
    Arrivals, Config, HttpSpec, Output, REPLY_BYTES_MAX, Rarely, RawSpec, ReplyEnd, RequestSpec,
    Text,
};

const EXAMPLES: &str = "\
Examples:
  observer load http://127.0.0.1:8080/ --rate 1000 --duration 30s --out samples.jsonl
  observer load http://127.0.0.1:8080/ --rate 200 --arrivals poisson --duration 1m > samples.jsonl
  observer load http://127.0.0.1:8080/ --rate 50 --method HEAD --header 'X-Run: 7' > run7.jsonl
  observer load tcp://127.0.0.1:6379 --rate 50 --send 'PING\\r\\n' --reply-until '\\r\\n' > ping.jsonl

With tcp://HOST:PORT, each request is the bytes of --send on a TCP connection, and its reply ends with the
bytes of --reply-until, or after --reply-bytes. Every reply that comes whole counts as a success, whatever
it says. A connection whose reply does not end within 1 MiB, or goes on behind its end, is an error, and is
closed.

During the run, one JSON line per request is written to --out; at the end, a summary is printed to
standard error. `observer run --samples observer-load` reads the lines; docs/SAMPLE_FORMAT.md describes
them.

Exit codes:
  0   success; failed requests are recorded and do not change the exit code
  2   invalid command line
  5   no request got an answer
  6   the output exists or cannot be written";

/// Send requests (HTTP, or bytes over TCP) at a fixed rate, however slowly the server answers, and write one
/// line per request.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What to request: http://HOST:PORT/PATH (plain HTTP/1.1), or tcp://HOST:PORT for another protocol, with
    /// --send
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
    /// Seed of poisson arrivals and of --rare-share; the same seed gives the same times and choices
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Where to write the lines: - (standard output), a new FILE, an existing FIFO, or unix:PATH (a
    /// listening Unix socket)
    #[arg(long, value_name = "WHERE", default_value = "-")]
    pub out: Output,
    /// Timeout of one request, including the connection set-up
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_positive)]
    pub timeout: Duration,
    /// Request method, GET if not given
    #[arg(long, help_heading = HTTP)]
    pub method: Option<Method>,
    /// Request header, `Name: value`; may be repeated
    #[arg(long, value_name = "K:V", value_parser = parse_header, help_heading = HTTP)]
    pub header: Vec<(HeaderName, HeaderValue)>,
    /// What each request sends; \r, \n, \t, \xHH (two hexadecimal digits) and \\ stand for these bytes
    #[arg(long, value_name = "TEXT", help_heading = TCP, allow_hyphen_values = true)]
    pub send: Option<Text>,
    /// The reply ends with this text, the first time that it comes; escapes as in --send
    #[arg(
        long,
        value_name = "TEXT",
        help_heading = TCP,
        conflicts_with = "reply_bytes",
        allow_hyphen_values = true
    )]
    pub reply_until: Option<Text>,
    /// The reply ends after N bytes
    #[arg(long, value_name = "N", help_heading = TCP, value_parser = parse_reply_bytes)]
    pub reply_bytes: Option<usize>,
    /// Another request, sent instead of --send in a random share of the cases (--rare-share)
    #[arg(
        long,
        value_name = "TEXT",
        help_heading = TCP,
        requires = "rare_share",
        allow_hyphen_values = true
    )]
    pub send_rarely: Option<Text>,
    /// Share of the requests that send --send-rarely, above 0 and below 1, like 0.03
    #[arg(
        long,
        value_name = "SHARE",
        help_heading = TCP,
        requires = "send_rarely",
        value_parser = parse_share
    )]
    pub rare_share: Option<f64>,
}

/// Options that only one kind of URL has.
const HTTP: &str = "Options for http://";
const TCP: &str = "Options for tcp://";

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

fn parse_reply_bytes(text: &str) -> std::result::Result<usize, String> {
    match text.parse::<usize>() {
        Ok(count) if (1..=REPLY_BYTES_MAX).contains(&count) => Ok(count),
        _ => Err(format!("must be a number from 1 to {REPLY_BYTES_MAX}")),
    }
}

fn parse_share(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("must be a number above 0 and below 1".into()),
    }
}

fn parse_header(text: &str) -> std::result::Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("there is no colon: write 'Name: value'")?;
    let name = HeaderName::from_str(name.trim()).map_err(|error| error.to_string())?;
    let value = HeaderValue::from_str(value.trim()).map_err(|error| error.to_string())?;
    Ok((name, value))
}

fn usage(args: &Args, what: &str) -> Error {
    Error::new(Exit::Usage, format!("{}: {what}", args.url))
}

/// What is to be sent, when and where.
///
/// # Errors
///
/// When the options do not go together, or the host cannot be resolved.
pub(super) fn config(args: &Args) -> Result<Config> {
    let uri: Uri = args.url.parse().map_err(|error| usage(args, &format!("not a URL: {error}")))?;
    let (request, default_port) = match uri.scheme_str() {
        Some("http") => (http(args, &uri)?, Some(80)),
        Some("tcp") => (raw(args, &uri)?, None),
        Some("https") => {
            let what = "https is not supported, plain HTTP only: use an http:// URL";
            return Err(usage(args, what));
        }
        _ => {
            let what = "not a URL of the form http://HOST[:PORT]/PATH or tcp://HOST:PORT";
            return Err(usage(args, what));
        }
    };
    let host = uri.host().ok_or_else(|| usage(args, "the URL has no host"))?;
    let port = uri.port_u16().or(default_port);
    let port = port.ok_or_else(|| usage(args, "the URL has no port: write tcp://HOST:PORT"))?;
    let addresses = resolve(host, port).map_err(|error| {
        Error::new(Exit::Target, format!("{host}: cannot be resolved: {error}"))
    })?;
    Ok(Config {
        addresses,
        url: args.url.clone(),
        request,
        rate_hz: args.rate,
        duration: args.duration,
        arrivals: args.arrivals,
        seed: args.seed,
        connections: args.connections,
        max_connections: args.max_connections,
        timeout: args.timeout,
    })
}

/// The HTTP request.
fn http(args: &Args, uri: &Uri) -> Result<RequestSpec> {
    let usage = |what: &str| usage(args, what);
    let of_tcp = [
        ("--send", args.send.is_some()),
        ("--reply-until", args.reply_until.is_some()),
        ("--reply-bytes", args.reply_bytes.is_some()),
        ("--send-rarely", args.send_rarely.is_some()),
    ];
    if let Some((option, _)) = of_tcp.into_iter().find(|(_, given)| *given) {
        return Err(usage(&format!("{option} is for tcp:// URLs only")));
    }
    let authority = uri.authority().ok_or_else(|| usage("the URL has no host"))?;
    if authority.as_str().contains('@') {
        return Err(usage("a user name in the URL is not supported: use --header"));
    }
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
    let method = args.method.clone().unwrap_or_default();
    Ok(RequestSpec::Http(Arc::new(HttpSpec::new(method, path, headers))))
}

/// The request of another protocol.
fn raw(args: &Args, uri: &Uri) -> Result<RequestSpec> {
    let usage = |what: &str| usage(args, what);
    let of_http = [("--method", args.method.is_some()), ("--header", !args.header.is_empty())];
    if let Some((option, _)) = of_http.into_iter().find(|(_, given)| *given) {
        return Err(usage(&format!("{option} is for http:// URLs only")));
    }
    let is_bare = matches!(uri.path_and_query().map(|path| path.as_str()), None | Some("" | "/"));
    if !is_bare || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(usage("only a host and a port are possible here: write tcp://HOST:PORT"));
    }
    let send =
        args.send.clone().ok_or_else(|| usage("--send is missing: what each request sends"))?;
    let until = args.reply_until.clone().map(|text| ReplyEnd::Until(text.0));
    let reply = until.or(args.reply_bytes.map(ReplyEnd::Bytes)).ok_or_else(|| {
        usage("nothing says where a reply ends: use --reply-until TEXT or --reply-bytes N")
    })?;
    let rarely = args.send_rarely.clone().zip(args.rare_share);
    let rarely = rarely.map(|(text, share)| Rarely { send: text.0, share, seed: args.seed });
    Ok(RequestSpec::Raw(Arc::new(RawSpec { send: send.0, rarely, reply })))
}

fn resolve(host: &str, port: u16) -> std::io::Result<Vec<SocketAddr>> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> = (bare, port).to_socket_addrs()?.collect();
    if addresses.is_empty() {
        return Err(std::io::Error::other("the name has no address"));
    }
    Ok(addresses)
}

#[cfg(test)]
pub(super) mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    pub(in crate::cli) fn parse(line: &str) -> std::result::Result<Args, clap::Error> {
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
            ("127.0.0.1:80", Exit::Usage, "tcp://HOST"),
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
        let request = http_of(&config);
        assert_eq!(request.path.to_string(), "/a/b?c=d");
        assert_eq!(request.method, Method::PUT);
        assert_eq!(request.headers[HOST], "other");
        let twice: Vec<_> = request.headers.get_all("x-a").iter().collect();
        assert_eq!(twice, ["1", "2"]);
        let config = super::config(&parse("load http://[::1]?q --rate 5").unwrap()).unwrap();
        assert_eq!(config.addresses, ["[::1]:80".parse().unwrap()]);
        assert_eq!(http_of(&config).headers[HOST], "[::1]");
        assert_eq!(http_of(&config).path.to_string(), "/?q");
        assert_eq!(http_of(&config).method, Method::GET);
    }

    fn http_of(config: &Config) -> &HttpSpec {
        let RequestSpec::Http(spec) = &config.request else { panic!("not HTTP: {config:?}") };
        spec
    }

    #[test]
    fn bytes_over_tcp_are_what_was_asked_for() {
        let line =
            r"load tcp://127.0.0.1:6379 --rate 5 --send PING\r\n --reply-until \r\n --seed 9";
        let asked = |line: &str| config(&parse(line).unwrap()).unwrap();
        let RequestSpec::Raw(spec) = asked(line).request else { panic!("not bytes") };
        assert_eq!((&spec.send[..], &spec.rarely), (&b"PING\r\n"[..], &None));
        assert_eq!(spec.reply, ReplyEnd::Until(b"\r\n".to_vec()));
        let rare = format!("{line} --send-rarely -X --rare-share 0.03");
        let RequestSpec::Raw(spec) = asked(&rare).request else { panic!("not bytes") };
        let wanted = Rarely { send: b"-X".to_vec(), share: 0.03, seed: 9 };
        assert_eq!(spec.rarely, Some(wanted));
        let config = asked("load tcp://[::1]:7/ --rate 5 --send x --reply-bytes 3");
        let RequestSpec::Raw(spec) = config.request else { panic!("not bytes") };
        assert_eq!(spec.reply, ReplyEnd::Bytes(3));
        assert_eq!(config.addresses, ["[::1]:7".parse().unwrap()]);
    }

    #[test]
    fn options_that_do_not_go_together_are_refused_in_one_line() {
        let tcp = "load tcp://127.0.0.1:7 --rate 1";
        for (bad, says) in [
            (format!("{tcp} --reply-bytes 1"), "--send is missing"),
            (format!("{tcp} --send x"), "--reply-until"),
            (format!("{tcp} --send x --reply-bytes 1 --method PUT"), "--method is for http://"),
            (format!("{tcp} --send x --reply-bytes 1 --header A:b"), "--header is for http://"),
            ("load tcp://127.0.0.1 --rate 1 --send x --reply-bytes 1".into(), "no port"),
            ("load tcp://127.0.0.1:7/a --rate 1 --send x --reply-bytes 1".into(), "only a host"),
            ("load tcp://a@127.0.0.1:7 --rate 1 --send x --reply-bytes 1".into(), "only a host"),
            ("load http://127.0.0.1/ --rate 1 --send x".into(), "--send is for tcp://"),
            ("load http://127.0.0.1/ --rate 1 --reply-bytes 1".into(), "--reply-bytes is for tcp"),
        ] {
            let error = config(&parse(&bad).unwrap()).unwrap_err();
            assert_eq!(error.exit, Exit::Usage, "{bad}: {error}");
            assert!(error.to_string().contains(says), "{bad}: {error}");
            assert!(!error.to_string().contains('\n'));
        }
        for bad in [
            "--send= --reply-bytes 1",
            r"--send \q --reply-bytes 1",
            "--send x --reply-until=",
            "--send x --reply-bytes 0",
            "--send x --reply-bytes 1048577",
            "--send x --reply-bytes 1 --reply-until y",
            "--send x --reply-bytes 1 --send-rarely y",
            "--send x --reply-bytes 1 --rare-share 0.5",
            "--send x --reply-bytes 1 --send-rarely y --rare-share 1",
            "--send x --reply-bytes 1 --send-rarely y --rare-share nan",
        ] {
            assert!(parse(&format!("{tcp} {bad}")).is_err(), "{bad}");
        }
    }
}
