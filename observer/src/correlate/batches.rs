//! Requests that a thread takes together and answers together: an event loop that reads and executes all that
//! has arrived, and then writes all replies.
//!
//! Such a thread is through with a request when it reads the next one, although the answer is written later. Each
//! request of the batch waits for those before it, as in a queue, and then for those behind it.

use crate::model::ServerRequest;

/// A request, and when its thread was through with it. Instants have the clock of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// Index of the request.
    pub(super) request: u32,
    /// The thread read the next one of the batch, or began to write: what it did until then was for this one.
    pub(super) through: u64,
    /// The thread was through with the last one of the batch.
    pub(super) batch_end: u64,
    /// Number of its batch among those of the thread.
    pub(super) batch: u32,
}

/// When the last of the reply was written: an answer cannot be written before the request was read.
pub(super) fn done(request: &ServerRequest) -> u64 {
    request.end().map_or(request.read, |end| end.max(request.read)).0
}

/// The requests that a thread answered, in the order in which it was through with them. A request that nothing
/// was taken together with has a batch of its own.
pub(super) fn find(requests: &[ServerRequest], mut answered: Vec<u32>) -> Vec<Taken> {
    let of = |place: u32| &requests[place as usize];
    answered.sort_by_key(|place| of(*place).read);
    let mut taken: Vec<Taken> = Vec::with_capacity(answered.len());
    let mut rest = &answered[..];
    let mut batch = 0;
    while let Some(first) = rest.first() {
        let head = of(*first);
        let reads = |request: &ServerRequest| request.reader == request.sender;
        // All of them had arrived when the thread read the first one, and it answered none until it had read
        // the last one.
        let (mut count, mut first_done) = (1, done(head));
        for next in rest[1..].iter().map(|place| of(*place)) {
            let has_arrived = next.begin() <= head.read && next.read.0 < first_done;
            if !(has_arrived && reads(head) && reads(next)) {
                break;
            }
            first_done = first_done.min(done(next));
            count += 1;
        }
        let (members, behind) = rest.split_at(count);
        let batch_end = first_done.max(members.last().map_or(0, |last| of(*last).read.0));
        for (at, place) in members.iter().enumerate() {
            let through = members.get(at + 1).map_or(batch_end, |next| of(*next).read.0);
            taken.push(Taken { request: *place, through, batch_end, batch });
        }
        (rest, batch) = (behind, batch + 1);
    }
    taken.sort_by_key(|one| one.through);
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::MonoNanos;
    use crate::model::{Tgid, Tid};

    fn request(arrival: u64, read: u64, done: u64) -> ServerRequest {
        ServerRequest {
            arrival: Some(MonoNanos(arrival)),
            read: MonoNanos(read),
            first_send: Some(MonoNanos(done)),
            last_send: Some(MonoNanos(done)),
            tgid: Tgid(1),
            reader: Tid(1),
            sender: Tid(1),
            is_unix: false,
            local_port: 80,
            remote_port: 4000,
            bytes_in: 1,
            bytes_out: 1,
        }
    }

    /// Of each request in the order of the result: its index, when the thread was through, and its batch.
    fn found(requests: &[ServerRequest]) -> Vec<(u32, u64, u32)> {
        let taken = find(requests, (0..requests.len() as u32).collect());
        for one in &taken {
            let of_batch = taken.iter().filter(|other| other.batch == one.batch);
            assert_eq!(of_batch.map(|other| other.through).max(), Some(one.batch_end));
        }
        taken.iter().map(|one| (one.request, one.through, one.batch)).collect()
    }

    #[test]
    fn what_is_read_together_and_answered_together_is_a_batch() {
        // The replies are written in the opposite order.
        let batch = [request(3, 10, 43), request(5, 20, 42), request(9, 30, 41)];
        assert_eq!(found(&batch), [(0, 20, 0), (1, 30, 0), (2, 41, 0)]);
        // One that came later is read in the next turn of the loop.
        let later = [&batch[..], &[request(15, 50, 60)]].concat();
        assert_eq!(found(&later)[3], (3, 60, 1));
    }

    #[test]
    fn a_queue_whose_requests_are_answered_one_by_one_has_no_batches() {
        let queue = [request(3, 10, 19), request(5, 20, 29), request(9, 30, 39)];
        assert_eq!(found(&queue), [(0, 19, 0), (1, 29, 1), (2, 39, 2)]);
    }

    #[test]
    fn one_that_waits_for_something_else_holds_up_nobody() {
        // The first one waits for a timer. The second one came meanwhile, and is answered first.
        let beside = [request(3, 10, 90), request(40, 41, 50)];
        assert_eq!(found(&beside), [(1, 50, 1), (0, 90, 0)]);
    }

    #[test]
    fn what_another_thread_answers_is_in_no_batch() {
        let handed = request(3, 10, 43);
        let behind = ServerRequest { reader: Tid(2), read: MonoNanos(20), ..handed.clone() };
        let handed = [handed, behind];
        assert_eq!(found(&handed), [(0, 43, 0), (1, 43, 1)]);
        assert!(found(&[]).is_empty());
    }
}
