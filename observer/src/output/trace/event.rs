//! Events as columns: flat and sparse, one column a field.

use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, Int32Builder, Int64Builder, StringBuilder, UInt32Builder, UInt64Builder,
};
use arrow_array::types::{Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::DataType;
use observer_ebpf::wire::{FdSyscall, RecordKind};

use super::column::{Batch, Flags, Numbers, Texts, unknown};
use super::{Column, Columns, Row, TraceError};
use crate::clock::MonoNanos;
use crate::model::{
    Event, EventKind, FloorChange, FloorReason, MmCall, ReclaimScope, Stall, Tgid, Tid,
};

/// One list from which the columns, their builders and their readers derive. A column's name is
/// that of the field it holds.
macro_rules! event_columns {
    ($($name:ident: $kind:ident, $nullable:literal, $help:literal;)*) => {
        const EVENT_COLUMNS: &[Column] = &[$(Column {
            name: stringify!($name),
            data_type: || DataType::$kind,
            nullable: $nullable,
            help: $help,
        }),*];

        /// Builders of the columns of an [`Event`].
        #[derive(Default)]
        pub struct EventColumns { $($name: event_columns!(@builder $kind)),* }

        impl EventColumns {
            fn finish_all(&mut self) -> Vec<ArrayRef> {
                vec![$(Arc::new(self.$name.finish())),*]
            }
        }

        #[expect(dead_code, reason = "start_ns and cause are derived again from the others")]
        struct Readers<'a> { $($name: event_columns!(@reader $kind 'a)),* }

        impl<'a> Readers<'a> {
            fn new(batch: &'a RecordBatch) -> Result<Self, TraceError> {
                let batch = Batch(batch);
                Ok(Self { $($name: event_columns!(@open $kind batch, stringify!($name))?),* })
            }
        }
    };
    (@builder Utf8) => { StringBuilder };
    (@builder Boolean) => { BooleanBuilder };
    (@builder UInt32) => { UInt32Builder };
    (@builder UInt64) => { UInt64Builder };
    (@builder Int32) => { Int32Builder };
    (@builder Int64) => { Int64Builder };
    (@reader Utf8 $life:lifetime) => { Texts<$life> };
    (@reader Boolean $life:lifetime) => { Flags<$life> };
    (@reader UInt32 $life:lifetime) => { Numbers<$life, UInt32Type> };
    (@reader UInt64 $life:lifetime) => { Numbers<$life, UInt64Type> };
    (@reader Int32 $life:lifetime) => { Numbers<$life, Int32Type> };
    (@reader Int64 $life:lifetime) => { Numbers<$life, Int64Type> };
    (@open Utf8 $batch:ident, $name:expr) => { $batch.texts($name) };
    (@open Boolean $batch:ident, $name:expr) => { $batch.flags($name) };
    (@open $number:ident $batch:ident, $name:expr) => { $batch.numbers($name) };
}

event_columns! {
    start_ns: UInt64, false, "first instant: `end_ns - duration_ns`";
    end_ns: UInt64, false, "end of the stall, or the instant of the event";
    duration_ns: UInt64, false, "length; 0 for instants";
    tid: UInt32, false, "thread it happened to (initial pid namespace)";
    tgid: UInt32, false, "its process";
    cpu: UInt32, false, "CPU it ended on";
    kind: Utf8, false, "`runqueue`, `fault`, `reclaim`, `compaction`, `mm_syscall`, `socket`, `fd_failure`, `task`, `floor`";
    cause: Utf8, true, "the cause of the stall; empty for events that stall nobody";
    preempted: Boolean, true, "runqueue: preempted while running (otherwise woken)";
    ran_tid: UInt32, true, "runqueue: thread that ran instead; 0 when the CPU was idle";
    ran_tgid: UInt32, true, "runqueue: its process";
    ran_comm: Utf8, true, "runqueue: its command name";
    major: Boolean, true, "fault: the page came from a device";
    kernel_mode: Boolean, true, "fault: taken in kernel mode";
    address: UInt64, true, "fault: faulting address; mm_syscall: first argument";
    reclaim_scope: Utf8, true, "reclaim: `direct` (the host) or `memcg` (a memory cgroup)";
    reclaimed_pages: UInt64, true, "reclaim: pages freed";
    order: UInt32, true, "reclaim: allocation order";
    gfp_flags: UInt32, true, "reclaim: allocation flags (`gfp_t`)";
    compaction_status: Int32, true, "compaction: `enum compact_result`";
    syscall: Utf8, true, "mm_syscall, fd_failure: the system call";
    length_bytes: UInt64, true, "mm_syscall: bytes asked for (0 for brk)";
    result: Int64, true, "mm_syscall: return value, negative errno on failure";
    argument: UInt32, true, "mm_syscall: protection (mmap, mprotect) or advice (madvise); otherwise 0";
    accepted: Boolean, true, "socket: accepted rather than created";
    preexisting: Boolean, true, "socket: older than the run, the lifetime is unknown";
    family: UInt32, true, "socket: `AF_INET` (2) or `AF_INET6` (10)";
    socket_type: UInt32, true, "socket: `SOCK_STREAM` (1), `SOCK_DGRAM` (2), ...; 0 when unknown";
    errno: UInt32, true, "fd_failure: positive errno";
    task: Utf8, true, "task: `fork`, `exec` or `exit`";
    parent_tid: UInt32, true, "task fork: the parent thread";
    comm: Utf8, true, "task: command name";
    floor_record: Utf8, true, "floor: the kind of record whose floor was changed at `end_ns`";
    floor_old_ns: UInt64, true, "floor: shorter stalls were counted and not sent until then";
    floor_new_ns: UInt64, true, "floor: shorter stalls are counted and not sent from then on";
    floor_reason: Utf8, true, "floor: `loss`, `ring`, `rate` or `room` (raised), `calm` (lowered)";
}

impl Columns<Event> for EventColumns {
    fn push(&mut self, event: &Event) {
        self.start_ns.append_value(event.start().0);
        self.end_ns.append_value(event.end.0);
        self.duration_ns.append_value(event.duration_ns);
        self.tid.append_value(event.tid.0);
        self.tgid.append_value(event.tgid.0);
        self.cpu.append_value(event.cpu);
        self.kind.append_value(event.kind.name());
        self.cause.append_option(Stall::from_event(event).map(|stall| stall.cause.name()));
        let cells = Cells::of(&event.kind);
        self.preempted.append_option(cells.preempted);
        self.ran_tid.append_option(cells.ran_tid);
        self.ran_tgid.append_option(cells.ran_tgid);
        self.ran_comm.append_option(cells.ran_comm);
        self.major.append_option(cells.major);
        self.kernel_mode.append_option(cells.kernel_mode);
        self.address.append_option(cells.address);
        self.reclaim_scope.append_option(cells.reclaim_scope);
        self.reclaimed_pages.append_option(cells.reclaimed_pages);
        self.order.append_option(cells.order);
        self.gfp_flags.append_option(cells.gfp_flags);
        self.compaction_status.append_option(cells.compaction_status);
        self.syscall.append_option(cells.syscall);
        self.length_bytes.append_option(cells.length_bytes);
        self.result.append_option(cells.result);
        self.argument.append_option(cells.argument);
        self.accepted.append_option(cells.accepted);
        self.preexisting.append_option(cells.preexisting);
        self.family.append_option(cells.family);
        self.socket_type.append_option(cells.socket_type);
        self.errno.append_option(cells.errno);
        self.task.append_option(cells.task);
        self.parent_tid.append_option(cells.parent_tid);
        self.comm.append_option(cells.comm);
        self.floor_record.append_option(cells.floor.map(|change| change.record.name()));
        self.floor_old_ns.append_option(cells.floor.map(|change| change.old_ns));
        self.floor_new_ns.append_option(cells.floor.map(|change| change.new_ns));
        self.floor_reason.append_option(cells.floor.map(|change| change.reason.name()));
    }

    fn finish(&mut self) -> Vec<ArrayRef> {
        self.finish_all()
    }
}

/// The sparse part of one row.
#[derive(Default)]
struct Cells<'a> {
    preempted: Option<bool>,
    ran_tid: Option<u32>,
    ran_tgid: Option<u32>,
    ran_comm: Option<&'a str>,
    major: Option<bool>,
    kernel_mode: Option<bool>,
    address: Option<u64>,
    reclaim_scope: Option<&'a str>,
    reclaimed_pages: Option<u64>,
    order: Option<u32>,
    gfp_flags: Option<u32>,
    compaction_status: Option<i32>,
    syscall: Option<&'a str>,
    length_bytes: Option<u64>,
    result: Option<i64>,
    argument: Option<u32>,
    accepted: Option<bool>,
    preexisting: Option<bool>,
    family: Option<u32>,
    socket_type: Option<u32>,
    errno: Option<u32>,
    task: Option<&'a str>,
    parent_tid: Option<u32>,
    comm: Option<&'a str>,
    floor: Option<FloorChange>,
}

impl<'a> Cells<'a> {
    fn of(kind: &'a EventKind) -> Self {
        let none = Self::default();
        match kind {
            EventKind::Runqueue { preempted, ran_tid, ran_tgid, ran_comm } => Self {
                preempted: Some(*preempted),
                ran_tid: Some(ran_tid.0),
                ran_tgid: Some(ran_tgid.0),
                ran_comm: Some(ran_comm),
                ..none
            },
            EventKind::Fault { major, kernel_mode, address } => Self {
                major: Some(*major),
                kernel_mode: Some(*kernel_mode),
                address: Some(*address),
                ..none
            },
            EventKind::Reclaim { scope, reclaimed_pages, order, gfp_flags } => Self {
                reclaim_scope: Some(scope_name(*scope)),
                reclaimed_pages: Some(*reclaimed_pages),
                order: Some(*order),
                gfp_flags: Some(*gfp_flags),
                ..none
            },
            EventKind::Compaction { status } => Self { compaction_status: Some(*status), ..none },
            EventKind::MmSyscall { call, address, length_bytes, result, argument } => Self {
                syscall: Some(call.name()),
                address: Some(*address),
                length_bytes: Some(*length_bytes),
                result: Some(*result),
                argument: Some(*argument),
                ..none
            },
            EventKind::SocketReleased { accepted, preexisting, family, socket_type } => Self {
                accepted: Some(*accepted),
                preexisting: Some(*preexisting),
                family: Some(*family),
                socket_type: Some(*socket_type),
                ..none
            },
            EventKind::FdFailure { call, errno } => {
                Self { syscall: Some(call), errno: Some(*errno), ..none }
            }
            EventKind::Fork { parent_tid, comm } => Self {
                task: Some("fork"),
                parent_tid: Some(parent_tid.0),
                comm: Some(comm),
                ..none
            },
            EventKind::Exec { comm } => Self { task: Some("exec"), comm: Some(comm), ..none },
            EventKind::Exit { comm } => Self { task: Some("exit"), comm: Some(comm), ..none },
            EventKind::Floor(change) => Self { floor: Some(*change), ..none },
        }
    }
}

const fn scope_name(scope: ReclaimScope) -> &'static str {
    match scope {
        ReclaimScope::Direct => "direct",
        ReclaimScope::Memcg => "memcg",
    }
}

impl Readers<'_> {
    fn kind(&self, row: usize) -> Result<EventKind, TraceError> {
        Ok(match self.kind.get(row)? {
            "runqueue" => EventKind::Runqueue {
                preempted: self.preempted.get(row)?,
                ran_tid: Tid(self.ran_tid.get(row)?),
                ran_tgid: Tgid(self.ran_tgid.get(row)?),
                ran_comm: self.ran_comm.get(row)?.to_owned(),
            },
            "fault" => EventKind::Fault {
                major: self.major.get(row)?,
                kernel_mode: self.kernel_mode.get(row)?,
                address: self.address.get(row)?,
            },
            "reclaim" => EventKind::Reclaim {
                scope: match self.reclaim_scope.get(row)? {
                    "direct" => ReclaimScope::Direct,
                    "memcg" => ReclaimScope::Memcg,
                    other => return Err(unknown("reclaim_scope", row, other)),
                },
                reclaimed_pages: self.reclaimed_pages.get(row)?,
                order: self.order.get(row)?,
                gfp_flags: self.gfp_flags.get(row)?,
            },
            "compaction" => EventKind::Compaction { status: self.compaction_status.get(row)? },
            "mm_syscall" => EventKind::MmSyscall {
                call: self.mm_call(row)?,
                address: self.address.get(row)?,
                length_bytes: self.length_bytes.get(row)?,
                result: self.result.get(row)?,
                argument: self.argument.get(row)?,
            },
            "socket" => EventKind::SocketReleased {
                accepted: self.accepted.get(row)?,
                preexisting: self.preexisting.get(row)?,
                family: self.family.get(row)?,
                socket_type: self.socket_type.get(row)?,
            },
            "fd_failure" => {
                EventKind::FdFailure { call: self.fd_call(row)?, errno: self.errno.get(row)? }
            }
            "task" => self.task_kind(row)?,
            "floor" => EventKind::Floor(self.floor_change(row)?),
            other => return Err(unknown("kind", row, other)),
        })
    }

    fn mm_call(&self, row: usize) -> Result<MmCall, TraceError> {
        let name = self.syscall.get(row)?;
        let call = MmCall::ALL.into_iter().find(|call| call.name() == name);
        call.ok_or_else(|| unknown("syscall", row, name))
    }

    fn fd_call(&self, row: usize) -> Result<&'static str, TraceError> {
        let name = self.syscall.get(row)?;
        let call = FdSyscall::ALL.into_iter().find(|call| call.name() == name);
        call.map(FdSyscall::name).ok_or_else(|| unknown("syscall", row, name))
    }

    fn floor_change(&self, row: usize) -> Result<FloorChange, TraceError> {
        let record = self.floor_record.get(row)?;
        let reason = self.floor_reason.get(row)?;
        Ok(FloorChange {
            record: RecordKind::ALL
                .into_iter()
                .find(|kind| kind.name() == record)
                .ok_or_else(|| unknown("floor_record", row, record))?,
            old_ns: self.floor_old_ns.get(row)?,
            new_ns: self.floor_new_ns.get(row)?,
            reason: FloorReason::ALL
                .into_iter()
                .find(|known| known.name() == reason)
                .ok_or_else(|| unknown("floor_reason", row, reason))?,
        })
    }

    fn task_kind(&self, row: usize) -> Result<EventKind, TraceError> {
        let comm = self.comm.get(row)?.to_owned();
        Ok(match self.task.get(row)? {
            "fork" => EventKind::Fork { parent_tid: Tid(self.parent_tid.get(row)?), comm },
            "exec" => EventKind::Exec { comm },
            "exit" => EventKind::Exit { comm },
            other => return Err(unknown("task", row, other)),
        })
    }
}

impl Row for Event {
    const CONTENT: &'static str = "events";
    const COLUMNS: &'static [Column] = EVENT_COLUMNS;
    type Columns = EventColumns;

    fn decode(batch: &RecordBatch, into: &mut Vec<Self>) -> Result<(), TraceError> {
        let readers = Readers::new(batch)?;
        into.reserve(batch.num_rows());
        for row in 0..batch.num_rows() {
            into.push(Self {
                end: MonoNanos(readers.end_ns.get(row)?),
                duration_ns: readers.duration_ns.get(row)?,
                tid: Tid(readers.tid.get(row)?),
                tgid: Tgid(readers.tgid.get(row)?),
                cpu: readers.cpu.get(row)?,
                kind: readers.kind(row)?,
            });
        }
        Ok(())
    }
}
