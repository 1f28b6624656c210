//! A thread that waits for locks of several kinds, and otherwise, and what the kernel counted of each.

use std::cell::UnsafeCell;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::sleeps::{Reading, Slept};
use crate::stage::{pin, report, wait_for_end, wait_for_go};

/// How long a lock is kept while another thread waits for it.
const KEPT: Duration = Duration::from_millis(4);
/// After that time, one that waits no longer than so does without the lock.
const PATIENCE: Duration = Duration::from_millis(2);

/// A mutex of the C library.
pub(crate) struct CMutex(UnsafeCell<libc::pthread_mutex_t>);

// SAFETY: a mutex is made to be used by several threads at a time.
unsafe impl Send for CMutex {}
// SAFETY: as above.
unsafe impl Sync for CMutex {}

impl CMutex {
    pub(crate) fn new(protocol: libc::c_int) -> Arc<Self> {
        let mutex = Arc::new(Self(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER)));
        // SAFETY: zeros are room for attributes, which are initialised first; the mutex stays where it is.
        unsafe {
            let mut attributes: libc::pthread_mutexattr_t = std::mem::zeroed();
            libc::pthread_mutexattr_init(&raw mut attributes);
            libc::pthread_mutexattr_setprotocol(&raw mut attributes, protocol);
            libc::pthread_mutex_init(mutex.0.get(), &raw const attributes);
            libc::pthread_mutexattr_destroy(&raw mut attributes);
        }
        mutex
    }

    pub(crate) fn lock(&self) {
        // SAFETY: it was initialised, and lives as long as this.
        unsafe { libc::pthread_mutex_lock(self.0.get()) };
    }

    fn unlock(&self) {
        // SAFETY: as above, and this thread has it.
        unsafe { libc::pthread_mutex_unlock(self.0.get()) };
    }

    /// Waits for the lock, at most for a while; whether it has it.
    pub(crate) fn lock_for(&self, patience: Duration) -> bool {
        let until = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + patience;
        let until = libc::timespec {
            tv_sec: until.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(until.subsec_nanos()),
        };
        // SAFETY: as above; the time lives through the call.
        unsafe { libc::pthread_mutex_timedlock(self.0.get(), &raw const until) == 0 }
    }
}

/// In which ways a thread waits, in turn; the last ones are no locks.
const WAYS: usize = 6;
const OF_LOCKS: usize = 4;

struct Shared {
    rust: Mutex<()>,
    plain: Arc<CMutex>,
    inheriting: Arc<CMutex>,
    never: (Mutex<()>, Condvar),
    /// Twice the round, and 1 more while its lock is kept.
    round: AtomicUsize,
}

impl Shared {
    /// Keeps the lock of each round for a while, when the other thread is done with the one before.
    fn keep(&self, rounds: usize) {
        pin(1);
        for round in 0..rounds {
            self.wait_until(2 * round);
            let guard = (round % WAYS == 0).then(|| self.rust.lock());
            let lock = match round % WAYS {
                1 | 3 => Some(&self.plain),
                2 => Some(&self.inheriting),
                _ => None,
            };
            lock.iter().for_each(|lock| lock.lock());
            self.round.store(2 * round + 1, Ordering::Release);
            thread::sleep(KEPT);
            lock.iter().for_each(|lock| lock.unlock());
            drop(guard);
        }
    }

    fn wait_until(&self, round: usize) {
        while self.round.load(Ordering::Acquire) != round {
            thread::sleep(Duration::from_micros(50));
        }
    }

    /// Waits for each of them; what it slept for locks.
    fn want(&self, rounds: usize) -> Slept {
        pin(0);
        let mut slept = Slept::default();
        for round in 0..rounds {
            self.wait_until(2 * round + 1);
            let before = Reading::take();
            match round % WAYS {
                0 => drop(self.rust.lock()),
                1 => {
                    self.plain.lock();
                    self.plain.unlock();
                }
                2 => {
                    self.inheriting.lock();
                    self.inheriting.unlock();
                }
                3 => {
                    if self.plain.lock_for(PATIENCE) {
                        self.plain.unlock();
                    }
                }
                4 => {
                    let guard = self.never.0.lock().unwrap_or_else(PoisonError::into_inner);
                    drop(self.never.1.wait_timeout(guard, PATIENCE));
                }
                _ => thread::park_timeout(PATIENCE),
            }
            if round % WAYS < OF_LOCKS {
                slept.add(Slept::since(before));
            }
            self.round.store(2 * round + 2, Ordering::Release);
        }
        slept
    }
}

/// A thread waits for locks that another one keeps.
pub(crate) fn locks(rounds: usize) -> io::Result<()> {
    if wait_for_go()? {
        let shared = Arc::new(Shared {
            rust: Mutex::default(),
            plain: CMutex::new(libc::PTHREAD_PRIO_NONE),
            inheriting: CMutex::new(libc::PTHREAD_PRIO_INHERIT),
            never: Default::default(),
            round: AtomicUsize::new(0),
        });
        let (keeping, wanting) = (Arc::clone(&shared), shared);
        let keeper = thread::Builder::new().spawn(move || keeping.keep(rounds))?;
        let waiter = thread::Builder::new().spawn(move || wanting.want(rounds))?;
        let slept = waiter.join().unwrap_or_default();
        // It may have ended without the last word.
        let _ = keeper.join();
        report(&json!({ "locks": slept.count, "slept_ns": slept.sum_ns }))?;
    }
    wait_for_end()
}
