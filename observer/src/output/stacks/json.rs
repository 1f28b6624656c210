//! Stacks for programs.

use serde::Serialize;

use super::{Place, StackRow, WaitingStacks};
use crate::model::Cause;

/// Version of the list. Keys may be added within a version, never renamed.
pub const STACK_LIST_SCHEMA: u32 = 1;

#[derive(Debug, Serialize)]
struct List<'a> {
    schema: u32,
    absences: u64,
    time_ns: u64,
    shown_ns: u64,
    floor_ns: Option<u64>,
    selected: Option<&'a str>,
    notes: &'a [String],
    rows: Vec<Row<'a>>,
}

#[derive(Debug, Serialize)]
struct Row<'a> {
    cause: Cause,
    thread: &'a str,
    count: u64,
    time_ns: u64,
    kernel: &'a [Place],
    user: &'a [Place],
}

impl<'a> Row<'a> {
    fn new(row: &'a StackRow) -> Self {
        let StackRow { cause, thread, user, kernel, count, time_ns } = row;
        Self { cause: *cause, thread, count: *count, time_ns: *time_ns, kernel, user }
    }
}

/// The rows, and what they are about.
pub fn list(waiting: &WaitingStacks) -> impl Serialize + '_ {
    List {
        schema: STACK_LIST_SCHEMA,
        absences: waiting.absences,
        time_ns: waiting.time_ns,
        shown_ns: waiting.shown_ns(),
        floor_ns: waiting.floor_ns,
        selected: waiting.selected.as_deref(),
        notes: &waiting.notes,
        rows: waiting.rows.iter().map(Row::new).collect(),
    }
}
