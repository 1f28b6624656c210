//! The drills, as data: services, injections, and the answers that are right. A later cause adds one row.

use super::services::Real;

/// How the throwaway service handles its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Form {
    /// One thread serves all connections.
    EventLoop,
    /// A pool of threads shares a queue of connections that have a request.
    Pool,
    /// Each connection has a thread.
    ThreadPerConnection,
    /// One thread accepts and reads, and hands each request to a worker, which answers.
    AcceptorWorkers,
}

impl Form {
    /// The name on the command line and in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::EventLoop => "event-loop",
            Self::Pool => "pool",
            Self::ThreadPerConnection => "thread-per-connection",
            Self::AcceptorWorkers => "acceptor-workers",
        }
    }

    /// What it is, for `--list`.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::EventLoop => "one thread serves all connections",
            Self::Pool => "four threads share a queue of connections that have a request",
            Self::ThreadPerConnection => "each connection has a thread",
            Self::AcceptorWorkers => "one thread reads requests and hands them to four workers",
        }
    }
}

/// What each request does, apart from the injection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Work {
    /// Uses a millisecond of CPU.
    Spin,
    /// Reads a piece of a file into fresh memory, and looks at pages of an index.
    Read,
}

/// What a share of the requests does besides, in the service itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Harm {
    /// Nothing.
    None,
    /// Sleeps.
    Sleep,
    /// Burns CPU.
    Burn,
    /// Touches pages that were given back with `MADV_DONTNEED`.
    Faults,
    /// Maps and unmaps much memory.
    Map,
    /// Writes to a file on a disk, and waits until it is there.
    Sync,
    /// Sleeps, and wakes background threads that nobody waits for.
    Background,
    /// Nothing, but every request needs a lock that a thread without requests has now and then.
    Lock,
    /// Nothing, but every request maps a page, and a thread without requests maps much memory now and then.
    MapLock,
}

/// What is done from outside, in episodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// Nothing.
    None,
    /// Threads that burn the service's CPU.
    Hog,
    /// The same with a real-time policy.
    HogRealtime,
    /// SIGSTOP and SIGCONT to the service.
    StopService,
    /// SIGSTOP and SIGCONT to the load generator.
    StopGenerator,
    /// The limit of its memory cgroup is lowered to what it uses.
    Squeeze,
    /// Its cgroup gets less CPU time than it needs.
    Quota,
    /// Its cgroup is frozen.
    Freeze,
}

/// Which part of the service's log, or of the schedule, is the truth about the injection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// None: nothing is injected.
    None,
    /// What the handler slept.
    Slept,
    /// CPU time that the handler burnt.
    Burnt,
    /// What the handler took to touch pages.
    Faulted,
    /// What the handler spent in mmap and munmap.
    Mapped,
    /// What the handler slept in fsync.
    Synced,
    /// What the handler waited for a lock.
    Locked,
    /// When threads could run and did not.
    Waited,
    /// What the handler took longer than usual during a squeeze, without waits for a CPU.
    Squeezed,
    /// The episodes themselves.
    Stopped,
    /// The episodes, as far as requests were not sent yet.
    SentLate,
}

/// Which answers are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// One of these causes is the largest one that is named.
    OneOf(&'static [&'static str]),
    /// The injection brings several causes, each with a truth of its own: the one that is larger, or either
    /// where they hardly differ.
    Larger(&'static [(&'static str, Truth)]),
    /// No kernel cause is named: nothing was injected, or no cause stands for it yet.
    NoKernelCause,
}

/// A row of the table of injections.
#[derive(Clone, Copy, Debug)]
pub struct Injection {
    /// The name on the command line and in every output.
    pub name: &'static str,
    /// What happens, for `--list`.
    pub text: &'static str,
    /// What each request does.
    pub work: Work,
    /// What a share of the requests does besides.
    pub harm: Harm,
    /// What is done from outside.
    pub outside: Outside,
    /// Where the truth is found.
    pub truth: Truth,
    /// Which answers are right.
    pub expected: Expected,
    /// Part of `--quick`, with these services.
    pub quick: &'static [Form],
    /// The programs of this host that it is played on. Every form of the own service plays it.
    pub real: &'static [Real],
}

/// All programs of the host.
const REAL: &[Real] =
    &[Real::Nginx, Real::NginxProxy, Real::Java, Real::Node, Real::Go, Real::Redis];

/// A row with nothing in it.
const PLAIN: Injection = Injection {
    name: "",
    text: "",
    work: Work::Spin,
    harm: Harm::None,
    outside: Outside::None,
    truth: Truth::None,
    expected: Expected::NoKernelCause,
    quick: &[],
    real: &[],
};

/// All injections, in the order in which they are run.
pub static INJECTIONS: &[Injection] = &[
    Injection {
        name: "nothing",
        text: "nothing is injected: no kernel cause may be named that the service did not meet",
        quick: &[Form::EventLoop, Form::Pool],
        real: REAL,
        ..PLAIN
    },
    Injection {
        name: "sleep",
        text: "3 % of the requests sleep 25 ms",
        harm: Harm::Sleep,
        truth: Truth::Slept,
        expected: Expected::OneOf(&["service_wait"]),
        quick: &[Form::EventLoop, Form::Pool],
        real: &[Real::NginxProxy, Real::Java, Real::Node, Real::Go, Real::Redis],
        ..PLAIN
    },
    Injection {
        name: "burn",
        text: "3 % of the requests burn 25 ms of CPU",
        harm: Harm::Burn,
        truth: Truth::Burnt,
        // Where several threads burn at once, they wait for each other for as long.
        expected: Expected::Larger(&[
            ("service_cpu", Truth::Burnt),
            ("runqueue_self", Truth::Waited),
        ]),
        quick: &[Form::EventLoop],
        real: &[Real::Java, Real::Node, Real::Go, Real::Redis],
        ..PLAIN
    },
    Injection {
        name: "hog",
        text: "four threads of another process burn the service's CPU now and then",
        outside: Outside::Hog,
        truth: Truth::Waited,
        expected: Expected::OneOf(&["runqueue_other"]),
        quick: &[Form::EventLoop, Form::Pool],
        real: &[Real::Nginx, Real::Node, Real::Go, Real::Redis],
        ..PLAIN
    },
    Injection {
        name: "hog-realtime",
        text: "one thread with the policy SCHED_FIFO burns the service's CPU now and then",
        outside: Outside::HogRealtime,
        truth: Truth::Waited,
        expected: Expected::OneOf(&["runqueue_other"]),
        real: REAL,
        ..PLAIN
    },
    Injection {
        name: "stop-service",
        text: "the service gets SIGSTOP, and SIGCONT later",
        outside: Outside::StopService,
        truth: Truth::Stopped,
        expected: Expected::OneOf(&["stopped"]),
        real: REAL,
        ..PLAIN
    },
    Injection {
        name: "freeze",
        text: "the service's cgroup is frozen now and then, as by docker pause",
        outside: Outside::Freeze,
        truth: Truth::Stopped,
        expected: Expected::OneOf(&["stopped"]),
        real: &[Real::Nginx, Real::Go, Real::Redis],
        ..PLAIN
    },
    Injection {
        name: "stop-generator",
        text: "the load generator gets SIGSTOP, and SIGCONT later",
        outside: Outside::StopGenerator,
        truth: Truth::SentLate,
        expected: Expected::OneOf(&["load_generator"]),
        quick: &[Form::EventLoop],
        real: REAL,
        ..PLAIN
    },
    Injection {
        name: "memcg",
        text: "the service's memory limit is lowered to what it uses now and then",
        work: Work::Read,
        outside: Outside::Squeeze,
        truth: Truth::Squeezed,
        expected: Expected::OneOf(&["reclaim_memcg"]),
        ..PLAIN
    },
    Injection {
        name: "fault-storm",
        text: "3 % of the requests touch pages that were given back with MADV_DONTNEED, for 25 ms",
        harm: Harm::Faults,
        truth: Truth::Faulted,
        expected: Expected::OneOf(&["fault_minor"]),
        ..PLAIN
    },
    Injection {
        name: "mmap",
        text: "3 % of the requests map and unmap 8 MiB again and again for 25 ms",
        harm: Harm::Map,
        truth: Truth::Mapped,
        expected: Expected::OneOf(&["mm_syscall"]),
        ..PLAIN
    },
    Injection {
        name: "sync",
        text: "3 % of the requests write to a file and call fsync again and again for 25 ms",
        harm: Harm::Sync,
        truth: Truth::Synced,
        expected: Expected::OneOf(&["block_io"]),
        ..PLAIN
    },
    Injection {
        name: "lock",
        text: "every request needs a lock that another thread has for 25 ms now and then",
        harm: Harm::Lock,
        truth: Truth::Locked,
        expected: Expected::OneOf(&["lock_wait"]),
        ..PLAIN
    },
    Injection {
        name: "mmap-lock",
        text: "every request maps a page, and another thread maps much memory for 25 ms now and then",
        harm: Harm::MapLock,
        truth: Truth::Mapped,
        expected: Expected::OneOf(&["mmap_lock"]),
        ..PLAIN
    },
    Injection {
        name: "quota",
        text: "a CFS quota gives the service less CPU time than it needs now and then",
        outside: Outside::Quota,
        truth: Truth::Waited,
        expected: Expected::OneOf(&["cpu_throttle"]),
        // nginx needs too little CPU time.
        real: &[Real::Java, Real::Node, Real::Go, Real::Redis],
        ..PLAIN
    },
    Injection {
        name: "background",
        text: "3 % of the requests sleep 25 ms and wake 50 busy threads that nobody waits for",
        harm: Harm::Background,
        truth: Truth::Slept,
        expected: Expected::OneOf(&["service_wait"]),
        ..PLAIN
    },
];

impl Injection {
    /// A run without injection, which others are compared with.
    #[must_use]
    pub const fn baseline(work: Work) -> Self {
        Self { name: "baseline", text: "nothing is injected", work, ..PLAIN }
    }

    /// The row of this name.
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        INJECTIONS.iter().find(|row| row.name == name)
    }

    /// The answers that are right, for tables.
    #[must_use]
    pub fn expected_text(&self) -> String {
        match self.expected {
            Expected::OneOf(causes) => causes.join(" or "),
            Expected::Larger(causes) => {
                let names: Vec<&str> = causes.iter().map(|(name, _)| *name).collect();
                names.join(" or ")
            }
            Expected::NoKernelCause => "no kernel cause".into(),
        }
    }

    /// Whether it is done from outside, in episodes.
    #[must_use]
    pub fn has_episodes(&self) -> bool {
        self.outside != Outside::None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_have_names_of_their_own_and_are_whole() {
        let names: BTreeSet<&str> = INJECTIONS.iter().map(|row| row.name).collect();
        assert_eq!(names.len(), INJECTIONS.len());
        for row in INJECTIONS {
            assert!(row.name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{}", row.name);
            assert!(!row.text.is_empty() && !row.text.ends_with('.'), "{}", row.name);
            let injects = row.harm != Harm::None || row.outside != Outside::None;
            assert_eq!(injects, row.truth != Truth::None, "{}", row.name);
            assert!(std::ptr::eq(Injection::find(row.name).unwrap(), row));
            match row.expected {
                Expected::OneOf(causes) => assert!(!causes.is_empty(), "{}", row.name),
                Expected::Larger(causes) => assert_eq!(causes[0].1, row.truth, "{}", row.name),
                Expected::NoKernelCause => {}
            }
        }
        assert!(Injection::find("no-such").is_none());
    }

    #[test]
    fn the_first_row_is_the_one_that_all_others_are_compared_with() {
        assert_eq!(INJECTIONS[0].name, "nothing");
    }
}
