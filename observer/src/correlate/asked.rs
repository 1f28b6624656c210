//! Which other services a request waited for, where its thread had many connections to wait at.
//!
//! A thread that serves many connections sleeps until anything happens on one of them, so its sleep does
//! not say what a request waited for. What the thread did last before it answered does: it read the reply of
//! the service that it had asked for this request. What it did last before it asked is that it read either
//! the request itself, or the reply to what it had asked before. Where a thread reads several replies before
//! it works on the first, or answers something else in between, nothing is said.

use std::collections::HashMap;

use super::Evidence;
use crate::clock::MonoNanos;
use crate::model::{OutgoingRequest, Tid};

/// Services that a request asks one after the other are followed back so far.
const DEEPEST: usize = 64;

/// What a thread did.
#[derive(Clone, Copy, Debug)]
struct Step {
    at: MonoNanos,
    /// It read the reply to this outgoing request; `None` where it read or answered a request that the
    /// target serves.
    reply: Option<u32>,
}

/// Knows which services each request waited for.
pub(super) struct Asked<'a> {
    evidence: &'a Evidence<'a>,
    /// What each thread that asked a service did, in order of time.
    steps: HashMap<Tid, Vec<Step>>,
}

impl<'a> Asked<'a> {
    pub(super) fn new(evidence: &'a Evidence<'a>) -> Self {
        let mut steps: HashMap<Tid, Vec<Step>> = HashMap::new();
        for (place, outgoing) in evidence.outgoing.iter().enumerate() {
            let step = Step { at: outgoing.replied, reply: Some(place as u32) };
            steps.entry(outgoing.reader).or_default().push(step);
        }
        for request in evidence.requests {
            let done = [(request.reader, Some(request.read)), (request.sender, request.first_send)];
            for (thread, at) in done {
                if let (Some(of_thread), Some(at)) = (steps.get_mut(&thread), at) {
                    of_thread.push(Step { at, reply: None });
                }
            }
        }
        steps.values_mut().for_each(|steps| steps.sort_unstable_by_key(|step| step.at));
        Self { evidence, steps }
    }

    /// What the target asked other services for the request at this place, the last first. They do not
    /// overlap in time.
    pub(super) fn services(&self, place: usize) -> Vec<&'a OutgoingRequest> {
        let mut found = Vec::new();
        let Some(request) = self.evidence.requests.get(place) else { return found };
        let Some(mut until) = request.first_send else { return found };
        let mut thread = request.sender;
        while found.len() < DEEPEST
            && let Some(outgoing) = self.last_reply(thread, until)
            && outgoing.sent >= request.read
            // As always, but a trace can say anything.
            && outgoing.sent < until
        {
            found.push(outgoing);
            (thread, until) = (outgoing.sender, outgoing.sent);
        }
        found
    }

    /// The outgoing request whose reply this thread read as the last that it did before an instant.
    fn last_reply(&self, thread: Tid, until: MonoNanos) -> Option<&'a OutgoingRequest> {
        let steps = self.steps.get(&thread)?;
        let last = steps[..steps.partition_point(|step| step.at < until)].last()?;
        self.evidence.outgoing.get(last.reply? as usize)
    }
}
