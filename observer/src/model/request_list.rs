//! A list of single requests of a run, for programs.

use serde::{Deserialize, Serialize};

use super::SlowRequest;
use crate::clock::MonoNanos;

/// Most requests that are listed.
pub const REQUESTS_LISTED_MAX: u64 = 10_000;

/// Which requests of a run are listed: those that fit, the slowest of them first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestSelection {
    /// At most so many.
    pub requests: u64,
    /// Only requests that took at least so long, nanoseconds.
    pub slower_than_ns: Option<u64>,
    /// Only requests that were in flight at this instant: it is not before the moment when the request
    /// should have been sent, and before the end.
    pub at_ns: Option<MonoNanos>,
}

/// Single requests of a run. The entries are those of `slowest_requests` in `summary.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestList {
    /// [`super::SUMMARY_SCHEMA`].
    pub schema: u32,
    /// Which requests were asked for.
    pub selection: RequestSelection,
    /// Requests that were watched from begin to end.
    pub in_run: u64,
    /// Requests that began before the run or ended after it. They are never listed.
    pub outside_run: u64,
    /// Requests in the run that fit the selection.
    pub total: u64,
    /// Of these, the requests listed.
    pub listed: u64,
    /// What should be known about the list, one sentence each.
    pub notes: Vec<String>,
    /// The requests, the slowest first.
    pub requests: Vec<SlowRequest>,
}
