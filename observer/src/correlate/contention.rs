//! How long requests wait for CPUs that other threads of the same service have: a replay in which its
//! threads share the CPUs equally (L. Kleinrock, Time-shared systems: a theoretical treatment, Journal of the
//! ACM 14, 1967).
//!
//! Work that piled up behind a stall makes threads compete that otherwise would not, so their waits for each
//! other are a consequence of that stall. How much smaller these waits are without it is the ratio between
//! two replays, one with the stall and one without.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No request comes before.
pub(super) const NONE: u32 = u32::MAX;
/// Requests from which the number of CPUs is found.
const FITTED: usize = 100_000;
/// No service can use more.
const MOST_CPUS: u32 = 1_024;

/// What a request needs of the thread that answers it. All times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Job {
    /// When it could have begun, but for its thread.
    pub(super) ready: u64,
    /// How long its thread does not need a CPU.
    pub(super) delay: f32,
    /// How long it needs one.
    pub(super) cpu: f32,
    /// The job that its thread has to be done with before; [`NONE`] for none. It comes earlier in the list.
    pub(super) after: u32,
    /// Number of its thread, from 0 on.
    pub(super) thread: u32,
}

/// How long each of `count` jobs waits for a CPU, nanoseconds, when threads share so many CPUs. `job` gives
/// the job at a place.
pub(super) fn waits(count: usize, job: impl Fn(usize) -> Job, cpus: u32) -> Vec<f32> {
    let mut waits = vec![0.0; count];
    // Of each job the first that waits for it, and the next one that waits for the same.
    let (mut first, mut next) = (vec![NONE; count], vec![NONE; count]);
    // Jobs that will need a CPU at a time, the earliest first.
    let mut upcoming: BinaryHeap<Reverse<(u64, u32)>> = BinaryHeap::new();
    for (place, job) in (0..count).map(&job).enumerate() {
        match first.get_mut(job.after as usize) {
            Some(head) => next[place] = std::mem::replace(head, place as u32),
            None => upcoming.push(Reverse((job.ready + job.delay as u64, place as u32))),
        }
    }
    let threads = (0..count).map(|place| job(place).thread as usize + 1).max().unwrap_or(0);
    let mut on_thread = vec![0u32; threads];
    let mut busy = 0u32;
    // Jobs on a CPU by what every thread must have had since the begin when they are done.
    let mut running: BinaryHeap<Reverse<(u64, u32)>> = BinaryHeap::new();
    let mut since = vec![0u64; count];
    let (mut now, mut had) = (0.0f64, 0.0f64);
    loop {
        let share = (f64::from(cpus) / f64::from(busy.max(1))).min(1.0);
        let done = running.peek().map(|Reverse((end, _))| now + (*end as f64 - had) / share);
        let begins = upcoming.peek().map(|Reverse((at, _))| *at as f64);
        match (done, begins) {
            (Some(at), begins) if begins.is_none_or(|begins| at <= begins) => {
                let Some(Reverse((end, place))) = running.pop() else { return waits };
                (now, had) = (at.max(now), end as f64);
                let done = job(place as usize);
                waits[place as usize] =
                    ((now - since[place as usize] as f64) as f32 - done.cpu).max(0.0);
                let on = &mut on_thread[done.thread as usize];
                *on -= 1;
                busy -= u32::from(*on == 0);
                let mut follower = first[place as usize];
                while follower != NONE {
                    let Job { ready, delay, .. } = job(follower as usize);
                    let begin = ready.max(now as u64);
                    upcoming.push(Reverse((begin + delay as u64, follower)));
                    follower = next[follower as usize];
                }
            }
            (_, Some(at)) => {
                let Some(Reverse((begin, place))) = upcoming.pop() else { return waits };
                had += (at - now).max(0.0) * share * f64::from(u32::from(busy > 0));
                now = at.max(now);
                let begun = job(place as usize);
                since[place as usize] = begin;
                running.push(Reverse(((had + f64::from(begun.cpu)).round() as u64, place)));
                let on = &mut on_thread[begun.thread as usize];
                busy += u32::from(*on == 0);
                *on += 1;
            }
            _ => return waits,
        }
    }
}

/// With how many CPUs the jobs wait about as long as they did; `None` where they hardly waited.
pub(super) fn cpus(jobs: &[Job], waited_ns: &[f32]) -> Option<u32> {
    // The list is in order of threads, so a part of the time has to be taken.
    let mut begins: Vec<u64> = jobs.iter().map(|job| job.ready).collect();
    let until = match begins.len() > FITTED {
        true => *begins.select_nth_unstable(FITTED).1,
        false => u64::MAX,
    };
    drop(begins);
    let mut places = vec![NONE; jobs.len()];
    let (mut part, mut wanted) = (Vec::new(), 0.0);
    for (place, job) in jobs.iter().enumerate().filter(|(_, job)| job.ready < until) {
        places[place] = part.len() as u32;
        let after = places.get(job.after as usize).copied().unwrap_or(NONE);
        part.push(Job { after, ..*job });
        wanted += f64::from(waited_ns[place]);
    }
    if wanted <= 0.0 {
        return None;
    }
    let mut best: Option<(f64, u32)> = None;
    for cpus in 1..=MOST_CPUS {
        let found: f64 =
            waits(part.len(), |place| part[place], cpus).into_iter().map(f64::from).sum();
        let error = (found - wanted).abs();
        if best.is_none_or(|(least, _)| error < least) {
            best = Some((error, cpus));
        }
        // With more CPUs there is less to wait for.
        if found <= wanted {
            break;
        }
    }
    best.map(|(_, cpus)| cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(jobs: &[Job], cpus: u32) -> Vec<f32> {
        super::waits(jobs.len(), |place| jobs[place], cpus)
    }

    fn job(ready: u64, delay: f32, cpu: f32, after: u32, thread: u32) -> Job {
        Job { ready, delay, cpu, after, thread }
    }

    #[test]
    fn threads_share_the_cpus_equally() {
        let two = [job(0, 0.0, 100.0, NONE, 0), job(0, 0.0, 100.0, NONE, 1)];
        assert_eq!(waits(&two, 1), [100.0, 100.0]);
        assert_eq!(waits(&two, 2), [0.0, 0.0]);
        // The second one comes when the first one is half done: both have half until that is done.
        let later = [job(0, 0.0, 100.0, NONE, 0), job(20, 30.0, 100.0, NONE, 1)];
        assert_eq!(waits(&later, 1), [50.0, 50.0]);
        let three = [0, 1, 2].map(|thread| job(0, 0.0, 60.0, NONE, thread));
        assert_eq!(waits(&three, 2), [30.0; 3]);
        // A gap in which nobody runs.
        let apart = [job(0, 0.0, 10.0, NONE, 0), job(1_000, 0.0, 10.0, NONE, 1)];
        assert_eq!(waits(&apart, 1), [0.0, 0.0]);
        assert!(waits(&[], 1).is_empty());
    }

    #[test]
    fn a_thread_takes_one_after_the_other() {
        // Not a wait for a CPU: the thread was busy.
        let queue = [job(0, 0.0, 100.0, NONE, 0), job(10, 0.0, 100.0, 0, 0)];
        assert_eq!(waits(&queue, 1), [0.0, 0.0]);
        // Requests that a thread has at the same time share it.
        let open = [job(0, 0.0, 100.0, NONE, 0), job(0, 0.0, 100.0, NONE, 0)];
        assert_eq!(waits(&open, 1), [0.0, 0.0]);
        let beside = [queue[0], queue[1], job(100, 0.0, 100.0, NONE, 1)];
        assert_eq!(waits(&beside, 1), [0.0, 100.0, 100.0]);
        assert_eq!(waits(&beside, 2), [0.0; 3]);
    }

    #[test]
    fn the_number_of_cpus_is_found() {
        let jobs: Vec<Job> = (0..4_000u64)
            .map(|place| {
                let thread = (place % 8) as u32;
                let after = place.checked_sub(8).map_or(NONE, |before| before as u32);
                job(place * 1_000 + place * 7_919 % 700, 40.0, 2_300.0, after, thread)
            })
            .collect();
        for wanted in [1, 2] {
            let waited = waits(&jobs, wanted);
            assert!(waited.iter().sum::<f32>() > 0.0);
            assert_eq!(cpus(&jobs, &waited), Some(wanted));
        }
        assert_eq!(cpus(&jobs, &vec![0.0; jobs.len()]), None);
    }
}
