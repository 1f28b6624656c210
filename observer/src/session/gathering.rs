//! How long the bytes of a stream gather before they are read.
//!
//! Reading each row as it comes takes a wake-up and several system calls for each row. So a reader lets
//! rows gather, but only for as long as they take a small part of the room that the kernel has for
//! them: a writer that finds no room would have to wait.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::pipe::{fcntl_getpipe_size, fcntl_setpipe_size};
use rustix::time::Timespec;

/// The longest time in which rows gather. What was shown and kept of a run is older by that.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// The first one. Each may be twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The room that pipes are given, which is the most that the kernel allows all users by default. It
/// takes memory only while bytes are in it.
const PIPE_BYTES: usize = 1 << 20;
/// The room of what is not a pipe: a socket that is full of single rows has no more.
const OTHER_BYTES: usize = 1 << 16;
/// So much of the room may fill up in a pause, at the rate of the last one. The rest is for bursts.
const PART: usize = 16;

/// The pauses between the reads of one stream.
#[derive(Debug)]
pub(super) struct Gathering {
    wanted_bytes: usize,
    pause: Duration,
}

impl Gathering {
    /// Of a stream. If it is a pipe, it gets more room, where the kernel allows that.
    pub(super) fn of(stream: &impl AsFd) -> Self {
        let _ = fcntl_setpipe_size(stream, PIPE_BYTES);
        Self::with_room(fcntl_getpipe_size(stream).unwrap_or(OTHER_BYTES))
    }

    fn with_room(bytes: usize) -> Self {
        Self { wanted_bytes: bytes / PART, pause: FIRST_PAUSE }
    }

    /// The pause before the next read.
    pub(super) const fn pause(&self) -> Duration {
        self.pause
    }

    /// So many bytes had gathered in this time. `more` are there still.
    pub(super) fn note(&mut self, bytes: usize, time: Duration, more: bool) {
        if more {
            self.pause = Duration::ZERO;
            return;
        }
        let fills_up = time.as_secs_f64() * self.wanted_bytes as f64 / bytes.max(1) as f64;
        let longest = LONGEST_PAUSE.min(2 * self.pause.max(FIRST_PAUSE));
        self.pause = Duration::from_secs_f64(fills_up.min(longest.as_secs_f64()));
    }
}

/// Tells a thread that reads a stream to come to its end.
#[derive(Debug)]
pub(super) struct Stop {
    is_raised: AtomicBool,
    /// Readable once it is raised.
    event: OwnedFd,
}

impl Stop {
    /// # Errors
    /// When the system has no descriptor left.
    pub(super) fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        Ok(Self { is_raised: AtomicBool::new(false), event })
    }

    pub(super) fn raise(&self) {
        self.is_raised.store(true, Ordering::Relaxed);
        // It cannot fail: the counter is 0 before.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    pub(super) fn is_raised(&self) -> bool {
        self.is_raised.load(Ordering::Relaxed)
    }

    /// Waits until there is something to read, or it is raised; whether there is.
    pub(super) fn wait_for(&self, stream: &impl AsFd) -> bool {
        let mut polled =
            [PollFd::new(stream, PollFlags::IN), PollFd::new(&self.event, PollFlags::IN)];
        poll(&mut polled, None).is_ok() && !polled[0].revents().is_empty()
    }

    /// Lets bytes gather, until the stream has ended or it is raised.
    pub(super) fn gather(&self, stream: &impl AsFd, time: Duration) {
        // The end of a stream is reported in any case.
        let stream = PollFd::new(stream, PollFlags::empty());
        let _ = poll(&mut [stream, PollFd::new(&self.event, PollFlags::IN)], Some(&timespec(time)));
    }

    /// Lets time pass, until it is raised.
    pub(super) fn pause(&self, time: Duration) {
        let _ = poll(&mut [PollFd::new(&self.event, PollFlags::IN)], Some(&timespec(time)));
    }
}

/// Waits for something to read, but not for long.
pub(super) fn readable(stream: &impl AsFd, time: Duration) -> bool {
    let mut polled = [PollFd::new(stream, PollFlags::IN)];
    poll(&mut polled, Some(&timespec(time))).is_ok_and(|ready| ready > 0)
}

fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Instant;

    use super::*;

    /// Time passes in which bytes come at a rate; the lengths of the pauses.
    fn pauses(gathering: &mut Gathering, bytes_hz: f64, count: usize) -> Vec<Duration> {
        let one = |_| {
            let pause = gathering.pause();
            let time = pause + Duration::from_micros(20);
            gathering.note((bytes_hz * time.as_secs_f64()) as usize, time, false);
            pause
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn few_bytes_gather_for_long_and_many_take_a_small_part_of_the_room() {
        let mut gathering = Gathering::with_room(1 << 20);
        let first = pauses(&mut gathering, 30e3, 20);
        assert!(first.windows(2).all(|pair| pair[1] <= 2 * pair[0].max(FIRST_PAUSE)), "{first:?}");
        assert_eq!(first.last(), Some(&LONGEST_PAUSE));
        for bytes_hz in [30e3, 1e6, 10e6, 100e6] {
            for room in [1 << 16, 1 << 20] {
                let mut gathering = Gathering::with_room(room);
                let all = pauses(&mut gathering, bytes_hz, 50);
                let most = all.iter().map(|pause| pause.as_secs_f64() * bytes_hz);
                let most = most.fold(0.0, f64::max);
                assert!(most <= (room / PART) as f64 * 1.1 + 2e-3 * bytes_hz, "{most} {all:?}");
            }
        }
    }

    #[test]
    fn what_is_left_is_read_at_once() {
        let mut gathering = Gathering::with_room(1 << 20);
        pauses(&mut gathering, 30e3, 20);
        gathering.note(1 << 16, LONGEST_PAUSE, true);
        assert_eq!(gathering.pause(), Duration::ZERO);
        gathering.note(1 << 15, Duration::from_micros(1), false);
        assert!(gathering.pause() < FIRST_PAUSE);
        pauses(&mut gathering, 30e3, 20);
        assert_eq!(gathering.pause(), LONGEST_PAUSE);
    }

    #[test]
    fn a_pipe_gets_more_room_and_its_end_or_a_stop_ends_every_wait() {
        const LONG: Duration = Duration::from_secs(60);
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let gathering = Gathering::of(&reader);
        let room = fcntl_getpipe_size(&reader).expect("a pipe");
        assert_eq!(gathering.wanted_bytes, room / PART);
        let stop = Stop::new().expect("a descriptor");
        writer.write_all(b"row").expect("room");
        assert!(stop.wait_for(&reader));
        let begun = Instant::now();
        drop(writer);
        stop.gather(&reader, LONG);
        assert!(begun.elapsed() < LONG);

        let (reader, _writer) = std::io::pipe().expect("a pipe");
        let stopped = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stop.wait_for(&reader));
            stop.raise();
            waiting.join().expect("no panic")
        });
        assert!(!stopped && stop.is_raised());
        stop.gather(&reader, LONG);
        stop.pause(LONG);
        assert!(begun.elapsed() < LONG);
        // A socket and a file are no pipes.
        let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        assert_eq!(Gathering::of(&socket).wanted_bytes, OTHER_BYTES / PART);
    }
}
