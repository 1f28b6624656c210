//! redis as the service of a drill: how it is started, what it is asked for, and what its log says.
//!
//! redis has no log of requests with their times. Its slow log, which holds every command here, has the order in
//! which the one thread executed them, how long each took, and the client's port; the load generator's samples
//! have the times.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::injector::Episode;
use super::rows::Harm;
use super::service::entry::Entry;
use crate::model::Sample;

/// Milliseconds of CPU that every request takes, as in the other services, and that a harmed one takes besides.
const WORK_MS: u64 = 1;
const HARM_MS: u64 = 25;
/// Share of the requests that are harmed.
const SHARE: &str = "0.03";
/// Turns of a loop that are timed to learn how many take [`WORK_MS`], and how often they are timed.
const TURNS: u64 = 100_000;
const TIMED: u32 = 30;
/// The oldest version whose options are known.
const VERSION_MIN: u32 = 7;
/// More commands than any load sends.
const LOG_LENGTH: u32 = 1_000_000;
/// No answer takes longer, or has more bytes.
const TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: u64 = 256 << 20;

/// Whether this redis has the options that are needed.
///
/// # Errors
/// With the reason when it has not.
pub(super) fn can_play(program: &Path) -> Result<(), String> {
    let told = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let told = told.map_err(|error| format!("cannot start redis-server: {error}"))?;
    match version(&String::from_utf8_lossy(&told.stdout)) {
        Some(version) if version >= VERSION_MIN => Ok(()),
        Some(version) => Err(format!("this redis has version {version}, not {VERSION_MIN}")),
        None => Err("this redis does not say its version".into()),
    }
}

/// The first part of the version: `Redis server v=7.0.15 sha=00000000:0 ...`.
fn version(text: &str) -> Option<u32> {
    let version = text.split_whitespace().find_map(|word| word.strip_prefix("v="))?;
    version.split('.').next()?.parse().ok()
}

/// The command that starts it. It writes no file.
pub(super) fn command(program: &Path, port: u16, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1"]);
    command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
    command.args(["--set-proc-title", "no", "--enable-debug-command", "local"]);
    command.args(["--slowlog-log-slower-than", "0"]);
    command.args(["--slowlog-max-len", &LOG_LENGTH.to_string(), "--dir"]).arg(directory);
    command
}

/// Computes for this many turns of a loop. (redis freezes its clock while a script runs.)
fn compute(turns: u64) -> String {
    format!("EVAL \"for turn = 1, {turns} do end\" 0")
}

/// What the load generator is told to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requests {
    /// Turns of the loop that take a millisecond.
    turns_per_ms: u64,
}

impl Requests {
    /// Arguments of `observer load` after the URL.
    pub(super) fn arguments(self, harm: Harm) -> Vec<String> {
        let line = |command: String| format!("{command}\\r\\n");
        let usual = line(compute(self.turns_per_ms * WORK_MS));
        let mut arguments = vec!["--send".into(), usual, "--reply-until".into(), "\\r\\n".into()];
        // The word `harmed` is an argument that the script does not use: the log shows it.
        let harmed = match harm {
            Harm::Sleep => format!("DEBUG SLEEP {}", HARM_MS as f64 / 1e3),
            Harm::Burn => compute(self.turns_per_ms * (WORK_MS + HARM_MS)) + " harmed",
            _ => return arguments,
        };
        arguments.extend(["--send-rarely".into(), line(harmed)]);
        arguments.extend(["--rare-share".into(), SHARE.into()]);
        arguments
    }
}

/// Warms it up, and learns how fast it is.
///
/// # Errors
/// When it does not answer.
pub(super) fn prepare(port: u16) -> Result<Requests, String> {
    let mut client = Client::connect(port)?;
    let mut shortest = Duration::MAX;
    for _ in 0..TIMED {
        let begin = Instant::now();
        client.ask(&compute(TURNS))?;
        shortest = shortest.min(begin.elapsed());
    }
    client.ask("SLOWLOG RESET")?;
    let shortest_ns = u64::try_from(shortest.as_nanos()).unwrap_or(u64::MAX).max(1);
    Ok(Requests { turns_per_ms: TURNS * 1_000_000 / shortest_ns + 1 })
}

/// The slow log as text: a line for each command, the last one first, with the client's address, the length in
/// microseconds, and whether the command was harmed.
///
/// # Errors
/// When it does not answer.
pub(super) fn log(port: u16) -> Result<String, String> {
    let script = "local lines = {} \
                  for _, entry in ipairs(redis.call('SLOWLOG', 'GET', ARGV[1])) do \
                  local words = entry[4] \
                  local harmed = words[1] == 'DEBUG' or words[4] == 'harmed' \
                  lines[#lines + 1] = table.concat({entry[5], entry[3], tostring(harmed)}, ',') end \
                  return table.concat(lines, '\\\\n')";
    Client::connect(port)?.ask(&format!("EVAL \"{script}\" 0 {LOG_LENGTH}"))
}

/// A connection to redis.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(port: u16) -> Result<Self, String> {
        let connect = || {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        let stream = connect().map_err(|error: std::io::Error| format!("redis: {error}"))?;
        Ok(Self(BufReader::new(stream)))
    }

    /// Sends a command of one line, and reads the answer.
    fn ask(&mut self, command: &str) -> Result<String, String> {
        let sent = self.0.get_mut().write_all(format!("{command}\r\n").as_bytes());
        sent.map_err(|error| format!("redis: {error}"))?;
        read_answer(&mut self.0)
    }
}

/// Reads an answer that is a line or a text. (<https://redis.io/docs/latest/develop/reference/protocol-spec/>)
fn read_answer(from: &mut impl BufRead) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("redis: {error}");
    let mut line = String::new();
    from.by_ref().take(ANSWER_BYTES_MAX).read_line(&mut line).map_err(failed)?;
    let line = line.strip_suffix("\r\n").ok_or("redis: the answer is cut off")?;
    let (kind, rest) = line.split_at_checked(1).unwrap_or_default();
    let length = match kind {
        "+" | ":" => return Ok(rest.to_owned()),
        // A script without a result.
        "$" if rest == "-1" => return Ok(String::new()),
        "$" => rest.parse::<u64>().ok().filter(|length| *length <= ANSWER_BYTES_MAX),
        _ => None,
    };
    let length = length.ok_or_else(|| format!("redis: {}", crate::text::clean(line, 200)))?;
    let mut text = String::new();
    let read = from.by_ref().take(length + 2).read_to_string(&mut text).map_err(failed)?;
    let whole = text.strip_suffix("\r\n").filter(|_| read as u64 == length + 2);
    whole.map(str::to_owned).ok_or_else(|| "redis: the answer is cut off".to_owned())
}

/// A command of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Executed {
    port: u16,
    length_ns: u64,
    is_harmed: bool,
}

impl Executed {
    /// A line of [`log`].
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(',');
        let port = fields.next()?.rsplit_once(':')?.1.parse().ok()?;
        let length_us: u64 = fields.next()?.parse().ok()?;
        let is_harmed = fields.next()?.parse().ok()?;
        Some(Self { port, length_ns: length_us.checked_mul(1000)?, is_harmed })
    }
}

/// What the log says about the requests of the load, with their times.
///
/// # Errors
/// When a line of the log makes no sense.
pub(super) fn entries(
    log: &str,
    harm: Harm,
    samples: &[Sample],
    waits: &[Episode],
) -> Result<Vec<Entry>, String> {
    let executed: Option<Vec<Executed>> = log.lines().rev().map(Executed::parse).collect();
    let executed = executed.ok_or("redis: a line of its log makes no sense")?;
    let mut by_port: BTreeMap<u16, Vec<&Sample>> = BTreeMap::new();
    for sample in samples {
        by_port.entry(sample.local_port.unwrap_or(0)).or_default().push(sample);
    }
    for of_port in by_port.values_mut() {
        of_port.sort_by_key(|sample| sample.start);
    }
    // A connection has one request at a time: its commands are its samples, in order.
    let mut next: BTreeMap<u16, usize> = BTreeMap::new();
    let with_sample = executed.into_iter().filter_map(|command| {
        let of_port = by_port.get(&command.port)?;
        let next = next.entry(command.port).or_default();
        let sample = of_port.get(*next)?;
        *next += 1;
        Some((command, *sample))
    });
    let matched: Vec<(Executed, &Sample)> = with_sample.collect();
    // From the last one to the first: a command ended before its answer came, and before the next one began.
    let mut next_begin = u64::MAX;
    let mut entries = Vec::with_capacity(matched.len());
    for (command, sample) in matched.into_iter().rev() {
        let end = sample.end.0.min(next_begin);
        let begin = end.saturating_sub(command.length_ns);
        next_begin = begin;
        let mut entry = Entry {
            port: command.port,
            reader: 1,
            worker: 1,
            read_ns: begin,
            begin_ns: begin,
            end_ns: end,
            ..Entry::default()
        };
        if command.is_harmed && harm == Harm::Sleep {
            entry.slept_ns = command.length_ns;
        } else if command.is_harmed {
            let waited: u64 = waits.iter().map(|wait| overlap(*wait, begin, end)).sum();
            let computed_ns = command.length_ns.saturating_sub(waited);
            entry.burnt_ns = computed_ns * HARM_MS / (WORK_MS + HARM_MS);
        }
        entries.push(entry);
    }
    entries.reverse();
    Ok(entries)
}

fn overlap(wait: Episode, begin: u64, end: u64) -> u64 {
    wait.end.min(end).saturating_sub(wait.begin.max(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn an_answer_is_a_line_or_a_text_of_a_known_length() {
        for (bytes, answer) in [("+OK\r\n", "OK"), ("$-1\r\n", ""), ("$4\r\na\nbc\r\n", "a\nbc")] {
            assert_eq!(read_answer(&mut bytes.as_bytes()).as_deref(), Ok(answer));
        }
        for bad in ["", "+OK", "-ERR no\r\n", "$-2\r\n", "$9\r\nshort\r\n", "*1\r\n", "\r\n"] {
            assert!(read_answer(&mut bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn versions_are_compared_by_their_first_part() {
        let text = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64";
        assert_eq!(version(text), Some(7));
        assert_eq!(version("no version here"), None);
    }

    #[test]
    fn only_a_harmed_load_sends_two_kinds_of_requests() {
        let requests = Requests { turns_per_ms: 10 };
        assert_eq!(requests.arguments(Harm::None).len(), 4);
        let burn = requests.arguments(Harm::Burn);
        assert_eq!(burn[1], "EVAL \"for turn = 1, 10 do end\" 0\\r\\n");
        assert_eq!(burn[5], "EVAL \"for turn = 1, 260 do end\" 0 harmed\\r\\n");
        assert_eq!(requests.arguments(Harm::Sleep)[5], "DEBUG SLEEP 0.025\\r\\n");
    }

    fn sample(begin_ms: u64, end_ms: u64, port: u16) -> Sample {
        Sample { local_port: Some(port), ..Sample::of_times(begin_ms * MS, end_ms * MS) }
    }

    #[test]
    fn commands_of_one_turn_of_the_loop_lie_one_behind_the_other() {
        // 2 ms, 25 ms and 1 ms on three connections, all answered at the end; then the first one again.
        let log = "1.1.1.1:7,1000,false\n1.1.1.1:9,1000,false\n1.1.1.1:8,25000,true\n\
                   1.1.1.1:7,2000,false\n1.1.1.1:5,1,false";
        let samples = [sample(40, 41, 7), sample(0, 28, 7), sample(0, 28, 8), sample(3, 28, 9)];
        let entries = entries(log, Harm::Sleep, &samples, &[]).unwrap();
        let of: Vec<_> = entries
            .iter()
            .map(|one| (one.port, one.begin_ns / MS, one.end_ns / MS, one.slept_ns / MS))
            .collect();
        assert_eq!(of, [(7, 0, 2, 0), (8, 2, 27, 25), (9, 27, 28, 0), (7, 40, 41, 0)]);
    }

    #[test]
    fn what_a_command_burnt_is_without_its_waits_and_its_usual_work() {
        let samples = [sample(0, 40, 7)];
        let wait = Episode { begin: 10 * MS, end: 14 * MS };
        let log = "1.1.1.1:7,30000,true";
        let burnt = entries(log, Harm::Burn, &samples, &[wait]).unwrap()[0].burnt_ns;
        assert_eq!(burnt, 26 * MS * 25 / 26);
        assert!(entries("1.1.1.1:7,x,true", Harm::Burn, &samples, &[]).is_err());
        assert!(entries("1.1.1.1:7,1", Harm::Burn, &samples, &[]).is_err());
    }
}
