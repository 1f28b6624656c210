//! Real services under a generator that keeps them busy: throughput and p99 with and without an
//! observer, in short alternations.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    observers::{self, Running, Session},
    rows::{Row, Rows, Served},
    statistics::{Estimate, estimate},
    table::{self, Table},
};

/// A service there is a generator for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Nginx,
    Redis,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Redis => "redis",
        }
    }

    /// The programs it needs, and Debian's packages for them.
    const fn programs(self) -> [&'static str; 2] {
        match self {
            Self::Nginx => ["nginx", "wrk"],
            Self::Redis => ["redis-server", "redis-benchmark"],
        }
    }
}

/// Connections that are always busy.
const CONNECTIONS: &str = "32";
/// One measurement.
const SLICE: Duration = Duration::from_secs(2);

/// A running service on a processor of its own; ended when dropped.
struct Service {
    kind: Kind,
    child: Child,
    port: u16,
    /// Requests that make a slice.
    requests: u64,
    _directory: tempfile::TempDir,
}

impl Service {
    /// On that processor; the generator runs where this process may, which is on the others.
    fn start(kind: Kind, cpu: usize) -> Result<Self, String> {
        for program in kind.programs() {
            if !observers::in_path(program) {
                return Err(format!(
                    "{program} is not installed; see scripts/setup.sh --with-bench"
                ));
            }
        }
        let failed = |error: std::io::Error| format!("{}: {error}", kind.name());
        let directory = tempfile::tempdir().map_err(failed)?;
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        let port = listener.local_addr().map_err(failed)?.port();
        drop(listener);
        let words = match kind {
            Kind::Nginx => nginx(directory.path(), port).map_err(failed)?,
            Kind::Redis => redis(directory.path(), port),
        };
        let child = Command::new("taskset")
            .args(["--cpu-list", &cpu.to_string()])
            .args(words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let mut service = Self { kind, child, port, requests: 20_000, _directory: directory };
        service.wait()?;
        // The number of requests in a slice is found by trying.
        let rate_hz = service.serve()?.rate_hz;
        service.requests = (rate_hz * SLICE.as_secs_f64()) as u64;
        Ok(service)
    }

    fn wait(&mut self) -> Result<(), String> {
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(format!("{} ended with {status}", self.kind.name()));
            }
            if started.elapsed() > Duration::from_secs(10) {
                return Err(format!("{} does not answer", self.kind.name()));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// One slice of requests as fast as they are answered.
    fn serve(&self) -> Result<Served, String> {
        let [_, generator] = self.kind.programs();
        let mut command = Command::new(generator);
        match self.kind {
            Kind::Nginx => command
                .args(["--threads", "1", "--connections", CONNECTIONS, "--latency", "--duration"])
                .arg(format!("{}s", SLICE.as_secs()))
                .arg(format!("http://127.0.0.1:{}/", self.port)),
            Kind::Redis => command
                .args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-c", CONNECTIONS])
                .args(["-t", "get", "--csv", "-n", &self.requests.to_string()]),
        };
        let output = command.output().map_err(|error| format!("{generator}: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let served = match self.kind {
            Kind::Nginx => wrk(&text),
            Kind::Redis => redis_benchmark(&text),
        };
        served.ok_or_else(|| {
            let said = String::from_utf8_lossy(&output.stderr);
            format!("{generator} printed no rate: {} {}", text.trim(), said.trim())
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It fails for a child that has ended, which needs no signal.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}

fn nginx(directory: &Path, port: u16) -> std::io::Result<Vec<String>> {
    let at = directory.display();
    // As root it would serve as nobody, who may not read the directory.
    let text = format!(
        "daemon off; worker_processes 1; user root; pid {at}/pid; error_log /dev/null;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {at}/body;\n\
         proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi; uwsgi_temp_path {at}/uwsgi;\n\
         scgi_temp_path {at}/scgi; server {{ listen 127.0.0.1:{port}; root {at}; }} }}\n"
    );
    fs::write(directory.join("conf"), text)?;
    fs::write(directory.join("index.html"), [b'x'; 1024])?;
    Ok(vec![
        "nginx".to_owned(),
        "-p".to_owned(),
        at.to_string(),
        "-c".to_owned(),
        "conf".to_owned(),
    ])
}

fn redis(directory: &Path, port: u16) -> Vec<String> {
    let port = port.to_string();
    let directory = directory.to_string_lossy();
    let words = ["redis-server", "--port", &port, "--bind", "127.0.0.1", "--dir", &directory];
    words
        .iter()
        .chain(&["--save", "", "--appendonly", "no"])
        .map(|word| (*word).to_owned())
        .collect()
}

/// Rate and p99 from what wrk prints.
fn wrk(text: &str) -> Option<Served> {
    let after = |label: &str| text.lines().find_map(|line| line.trim().strip_prefix(label));
    let p99 = after("99%")?.trim();
    let unit = p99.find(char::is_alphabetic)?;
    let factor = match &p99[unit..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ => return None,
    };
    Some(Served {
        rate_hz: after("Requests/sec:")?.trim().parse().ok()?,
        p99_us: p99[..unit].parse::<f64>().ok()? * factor,
    })
}

/// Rate and p99 from redis-benchmark's CSV.
fn redis_benchmark(text: &str) -> Option<Served> {
    let mut lines = text.lines().map(|line| {
        line.split(',').map(|cell| cell.trim().trim_matches('"').to_owned()).collect::<Vec<_>>()
    });
    let heads = lines.next()?;
    let values = lines.next()?;
    let cell = |head: &str| -> Option<f64> {
        values.get(heads.iter().position(|one| one == head)?)?.parse().ok()
    };
    Some(Served { rate_hz: cell("rps")?, p99_us: cell("p99_latency_ms")? * 1e3 })
}

/// Slices of one service with each observer, without one between them.
pub(crate) fn measure(
    kind: Kind,
    observer: &Path,
    rounds: usize,
    (cpu, cpus): (usize, usize),
    bpftrace: bool,
    rows: &mut Rows,
) -> Result<(), String> {
    let service = Service::start(kind, cpu)?;
    let id = service.child.id();
    let mut sessions = vec![
        observers::run(observer, "observer run, the service its target", id, &[]),
        observers::run(observer, "the same, --budget none", id, &["--budget", "none"]),
        observers::daemon(observer, "observer daemon, host-wide", &[], &[]),
        observers::daemon(
            observer,
            "the same, --probes runqueue,fault,reclaim",
            &["--probes", "runqueue,fault,reclaim"],
            &[],
        ),
    ];
    sessions.extend(bpftrace.then(observers::bpftrace_all));
    let anywhere = format!("0-{}", cpus - 1);
    let mut none = service.serve()?;
    for round in 0..rounds {
        for index in 0..sessions.len() {
            let session = &sessions[(round + index) % sessions.len()];
            eprintln!("{} round {} of {rounds}: {}", kind.name(), round + 1, session.observer);
            let measured = alternate(session, &service, &anywhere);
            let after = service.serve()?;
            let mean = Served {
                rate_hz: f64::midpoint(none.rate_hz, after.rate_hz),
                p99_us: f64::midpoint(none.p99_us, after.p99_us),
            };
            none = after;
            match measured {
                Ok(with) => rows.push(Row::Service {
                    service: kind.name().to_owned(),
                    observer: session.observer.clone(),
                    none: mean,
                    with,
                })?,
                Err(reason) => super::operations::left_out(session, reason, rows)?,
            }
        }
    }
    Ok(())
}

fn alternate(session: &Session, service: &Service, cpus: &str) -> Result<Served, String> {
    // Not pinned, as in production.
    let running = Running::start(session, Some(cpus))?;
    // Under this load the budget acts within the first tenth of a second, and stays.
    service.serve()?;
    let with = service.serve()?;
    running.stop(session)?;
    Ok(with)
}

/// Throughput may fall by this part, and p99 rise by that.
const RATE_GOAL: f64 = 0.99;
const P99_GOAL: f64 = 1.02;

/// Service and observer; ratios of rates and of p99s; what was without.
type Ratios<'rows> = ((&'rows str, &'rows str), [Vec<f64>; 2], Vec<Served>);

/// The table, or nothing if no service was measured.
pub(crate) fn markdown(rows: &Rows) -> String {
    let mut ratios: Vec<Ratios<'_>> = Vec::new();
    for row in rows.iter() {
        let Row::Service { service, observer, none, with } = row else { continue };
        let key = (service.as_str(), observer.as_str());
        let index = ratios.iter().position(|(known, ..)| *known == key).unwrap_or_else(|| {
            ratios.push((key, Default::default(), Vec::new()));
            ratios.len() - 1
        });
        let (_, [rates, p99s], bare) = &mut ratios[index];
        rates.push(with.rate_hz / none.rate_hz);
        p99s.push(with.p99_us / none.p99_us);
        bare.push(*none);
    }
    if ratios.is_empty() {
        return String::new();
    }
    let heads =
        ["service", "observer", "requests/s without", "throughput", "p99 without, µs", "p99"];
    let mut table = Table::new(&[&heads[..], &["met: throughput / p99"]].concat());
    for ((service, observer), [rates, p99s], bare) in &ratios {
        let (rate, p99) = (estimate(rates), estimate(p99s));
        let without = |value: fn(&Served) -> f64| -> Estimate {
            estimate(&bare.iter().map(value).collect::<Vec<_>>())
        };
        table.row(&[
            (*service).to_owned(),
            (*observer).to_owned(),
            format!("{:.0}", without(|served| served.rate_hz).value),
            table::percent_change(rate),
            format!("{:.0}", without(|served| served.p99_us).value),
            table::percent_change(p99),
            format!(
                "{} / {}",
                table::judge(-rate.high, -rate.low, -RATE_GOAL),
                table::judge(p99.low, p99.high, P99_GOAL)
            ),
        ]);
    }
    format!(
        "\n### Services at saturation\n\nChange of throughput and p99 against no observer. Goals: at \
         most 1 % less, at most 2 % more.\n\n{}",
        table.finish()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_generators_print_is_understood() {
        let text = "  Latency Distribution\n     50%  349.00us\n     99%    1.25ms\n  \
                    100 requests in 2.00s, 1MB read\nRequests/sec:  68000.50\n";
        assert_eq!(wrk(text), Some(Served { rate_hz: 68000.5, p99_us: 1250.0 }));
        assert_eq!(wrk("unable to connect"), None);
        let text = "\"test\",\"rps\",\"avg_latency_ms\",\"p99_latency_ms\"\n\
                    \"GET\",\"90000.00\",\"0.2\",\"0.535\"\n";
        assert_eq!(redis_benchmark(text), Some(Served { rate_hz: 90000.0, p99_us: 535.0 }));
        assert_eq!(redis_benchmark("refused"), None);
    }

    #[test]
    fn goals_are_judged_by_the_interval() {
        let mut rows = Rows::default();
        for step in 0..9 {
            rows.push(Row::Service {
                service: "nginx".to_owned(),
                observer: "run".to_owned(),
                none: Served { rate_hz: 1000.0, p99_us: 100.0 },
                with: Served { rate_hz: 970.0 + f64::from(step), p99_us: 101.0 },
            })
            .unwrap();
        }
        let page = markdown(&rows);
        assert!(
            page.contains("| -2.6 % (-2.9..-2.3) | 100 | +1.0 % (+1.0..+1.0) | no / yes |"),
            "{page}"
        );
        assert_eq!(markdown(&Rows::default()), "");
    }
}
