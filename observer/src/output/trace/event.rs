//! Events as columns: first those that all kinds have, then the fields of the kind's row.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow_array::builder::{
    ArrayBuilder, BooleanBuilder, Int32Builder, Int64Builder, ListBuilder, StringBuilder,
    UInt32Builder, UInt64Builder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{Int32Type, Int64Type, UInt32Type, UInt64Type};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field as ArrowField, Schema};
use observer_ebpf::wire::OWN_KINDS;

use super::column::{Batch, Numbers, Texts};
use super::read::Reader;
use super::{Columns, TraceError, content, key, metadata, other_content};
use crate::clock::MonoNanos;
use crate::model::{Data, Event, Field, LossSpan, RecordRow, Stall, Tgid, Tid, TraceRow, Value};
use crate::probe;

/// Content of a stream of one kind.
const CONTENT: &str = "event";
/// Content of the one stream that version 2 and before had.
const LEGACY_CONTENT: &str = "events";
/// Events of different CPUs may change places by so much.
const SLACK_NS: u64 = 1_000_000_000;
/// Columns of unknown names that are counted one by one.
const UNKNOWN_COLUMNS_MAX: usize = 100;

/// Columns of every kind.
const TIMES: [(&str, &str); 3] = [
    ("start_ns", "first instant: `end_ns - duration_ns`"),
    ("end_ns", "end of the stall, or the instant of the event"),
    ("duration_ns", "length; 0 for instants"),
];
/// Columns of events that happen to a thread.
const THREAD: [(&str, &str); 3] = [
    ("tid", "thread it happened to (initial pid namespace)"),
    ("tgid", "its process"),
    ("cpu", "CPU it ended on"),
];
/// Column of events that stall a thread.
const CAUSE: (&str, &str) = ("cause", "the cause of the stall");

/// Whether events of a kind happen to a thread.
const fn has_thread(row: &RecordRow) -> bool {
    row.kind < OWN_KINDS
}

fn data_type(data: Data) -> DataType {
    match data {
        Data::U64 => DataType::UInt64,
        Data::U32 => DataType::UInt32,
        Data::I64 => DataType::Int64,
        Data::I32 => DataType::Int32,
        Data::Flag(_) => DataType::Boolean,
        Data::FlagNames(_) | Data::Names(_) | Data::Text(_) | Data::Address => DataType::Utf8,
        Data::List(_) => {
            DataType::List(Arc::new(ArrowField::new_list_field(DataType::UInt64, true)))
        }
    }
}

/// The columns that all kinds share, as a Markdown table.
#[must_use]
pub fn common_markdown() -> String {
    let mut text = String::from("| column | type | kinds | content |\n| --- | --- | --- | --- |\n");
    let rows = [
        ("UInt64", "all", &TIMES[..]),
        ("UInt32", "all that happen to a thread", &THREAD[..]),
        ("Utf8", "stalls", &[CAUSE][..]),
    ];
    for (data_type, kinds, columns) in rows {
        for (name, about) in columns {
            text += &format!("| `{name}` | {data_type} | {kinds} | {about} |\n");
        }
    }
    text
}

/// The kinds, each with the columns of its own, as Markdown.
#[must_use]
pub fn fields_markdown() -> String {
    let mut text = String::new();
    for row in probe::records() {
        text += &format!("#### {}.arrows\n\n{}\n", row.name, row.about);
        text += "\n| column | type | content |\n| --- | --- | --- |\n";
        for field in row.fields {
            let data_type = match field.data {
                Data::List(_) => "List(UInt64)".to_owned(),
                data => data_type(data).to_string(),
            };
            text += &format!("| `{}` | {data_type} | {} |\n", field.name, field.about);
        }
        text += "\n";
    }
    text
}

/// Builder of one column of the kind's own.
enum Builder {
    U64(UInt64Builder),
    U32(UInt32Builder),
    I64(Int64Builder),
    I32(Int32Builder),
    Flag(BooleanBuilder),
    Text(StringBuilder),
    List(ListBuilder<UInt64Builder>),
}

impl Builder {
    fn new(data: Data) -> Self {
        match data {
            Data::U64 => Self::U64(UInt64Builder::new()),
            Data::U32 => Self::U32(UInt32Builder::new()),
            Data::I64 => Self::I64(Int64Builder::new()),
            Data::I32 => Self::I32(Int32Builder::new()),
            Data::Flag(_) => Self::Flag(BooleanBuilder::new()),
            Data::FlagNames(_) | Data::Names(_) | Data::Text(_) | Data::Address => {
                Self::Text(StringBuilder::new())
            }
            Data::List(_) => Self::List(ListBuilder::new(UInt64Builder::new())),
        }
    }

    /// Values have the type of their field, so that the conversions keep them.
    fn push(&mut self, value: Value<'_>) {
        match (self, value) {
            (Self::U64(builder), Value::Unsigned(value)) => builder.append_value(value),
            (Self::U32(builder), Value::Unsigned(value)) => builder.append_value(value as u32),
            (Self::I64(builder), Value::Signed(value)) => builder.append_value(value),
            (Self::I32(builder), Value::Signed(value)) => builder.append_value(value as i32),
            (Self::Flag(builder), Value::Flag(value)) => builder.append_value(value),
            (Self::Text(builder), Value::Text(value)) => builder.append_value(value),
            (Self::List(builder), Value::List(values)) => {
                builder.append_value(values.into_iter().map(Some));
            }
            // A row always has a value in each column, or the batch would not be one.
            (builder, _) => builder.push_null(),
        }
    }

    fn push_null(&mut self) {
        match self {
            Self::U64(builder) => builder.append_value(0),
            Self::U32(builder) => builder.append_value(0),
            Self::I64(builder) => builder.append_value(0),
            Self::I32(builder) => builder.append_value(0),
            Self::Flag(builder) => builder.append_value(false),
            Self::Text(builder) => builder.append_value(""),
            Self::List(builder) => builder.append(true),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::U64(builder) => Arc::new(builder.finish()),
            Self::U32(builder) => Arc::new(builder.finish()),
            Self::I64(builder) => Arc::new(builder.finish()),
            Self::I32(builder) => Arc::new(builder.finish()),
            Self::Flag(builder) => Arc::new(builder.finish()),
            Self::Text(builder) => Arc::new(builder.finish()),
            Self::List(builder) => ArrayBuilder::finish(builder),
        }
    }
}

/// Builders of the columns of events of one kind.
pub struct EventColumns {
    row: &'static RecordRow,
    times: [UInt64Builder; 3],
    thread: [UInt32Builder; 3],
    cause: StringBuilder,
    fields: Vec<Builder>,
}

impl EventColumns {
    /// Without a row yet.
    #[must_use]
    pub fn new(row: &'static RecordRow) -> Self {
        Self {
            row,
            times: Default::default(),
            thread: Default::default(),
            cause: StringBuilder::new(),
            fields: row.fields.iter().map(|field| Builder::new(field.data)).collect(),
        }
    }
}

impl Columns for EventColumns {
    type Row = Event;

    fn schema(&self) -> Schema {
        let mut fields: Vec<ArrowField> =
            TIMES.iter().map(|(name, _)| ArrowField::new(*name, DataType::UInt64, false)).collect();
        if has_thread(self.row) {
            let thread = THREAD.iter();
            fields.extend(thread.map(|(name, _)| ArrowField::new(*name, DataType::UInt32, false)));
        }
        if self.row.floor_ns.is_some() {
            fields.push(ArrowField::new(CAUSE.0, DataType::Utf8, false));
        }
        let own = self.row.fields.iter();
        fields.extend(own.map(|field| ArrowField::new(field.name, data_type(field.data), false)));
        let mut metadata = metadata(CONTENT);
        metadata.insert(key::KIND.to_owned(), self.row.name.to_owned());
        Schema::new(fields).with_metadata(metadata)
    }

    fn push(&mut self, event: &Event) {
        let times = [event.start().0, event.end.0, event.duration_ns];
        self.times.iter_mut().zip(times).for_each(|(builder, time)| builder.append_value(time));
        let thread = [event.tid.0, event.tgid.0, event.cpu];
        if has_thread(self.row) {
            self.thread.iter_mut().zip(thread).for_each(|(builder, id)| builder.append_value(id));
        }
        if self.row.floor_ns.is_some() {
            self.cause.append_value(event.cause().map_or("", |cause| cause.name()));
        }
        for (builder, field) in self.fields.iter_mut().zip(self.row.fields) {
            builder.push(field.value(event));
        }
    }

    fn finish(&mut self) -> Vec<ArrayRef> {
        let mut arrays: Vec<ArrayRef> = Vec::new();
        arrays.extend(self.times.iter_mut().map(|builder| Arc::new(builder.finish()) as ArrayRef));
        if has_thread(self.row) {
            let thread = self.thread.iter_mut();
            arrays.extend(thread.map(|builder| Arc::new(builder.finish()) as ArrayRef));
        }
        if self.row.floor_ns.is_some() {
            arrays.push(Arc::new(self.cause.finish()));
        }
        arrays.extend(self.fields.iter_mut().map(Builder::finish));
        arrays
    }
}

/// An event of a trace, with its place there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TraceEvent {
    /// Its row in the stream of its kind; `None` in the one stream of version 2.
    pub row: Option<TraceRow>,
    /// The event.
    pub event: Event,
}

impl TraceEvent {
    /// The stalls it stands for.
    pub fn stalls(&self) -> impl Iterator<Item = Stall> {
        Stall::of_event(&self.event).map(|stall| Stall { row: self.row, ..stall })
    }
}

/// Takes events out of a stream, and counts what this version cannot use.
#[derive(Debug, Default)]
pub struct EventReader {
    /// What the stream holds; `None` for all kinds in one.
    kind: Option<&'static RecordRow>,
    next_row: u64,
    /// The last instant in the rows so far.
    last_end: MonoNanos,
    /// Rows that are missing, with the time that they are from.
    pub lost: Vec<LossSpan>,
    /// Rows of a kind, or with a word, that this version does not know.
    pub skipped_rows: u64,
    /// Columns that this version does not know.
    pub unknown_columns: BTreeSet<String>,
}

impl EventReader {
    /// Rows read so far are those before this one: the stream goes on in another file.
    #[must_use]
    pub fn starting_at(row: u64) -> Self {
        Self { next_row: row, ..Self::default() }
    }

    /// The row that comes next.
    #[must_use]
    pub const fn next_row(&self) -> u64 {
        self.next_row
    }

    fn note_columns(&mut self, schema: &Schema, row: &RecordRow) {
        let common = TIMES.iter().chain(&THREAD).chain([&CAUSE]).map(|(name, _)| *name);
        let known: BTreeSet<&str> =
            common.chain(row.fields.iter().map(|field| field.name)).collect();
        let unknown = schema.fields().iter().filter(|field| !known.contains(field.name().as_str()));
        self.unknown_columns.extend(
            unknown.take(UNKNOWN_COLUMNS_MAX).map(|field| crate::text::clean(field.name(), 40)),
        );
    }
}

impl Reader for EventReader {
    type Row = TraceEvent;

    fn open(&mut self, schema: &Schema) -> Result<(), TraceError> {
        match content(schema)? {
            LEGACY_CONTENT => Ok(()),
            CONTENT => {
                let name = schema.metadata().get(key::KIND).map_or("", String::as_str);
                let row = probe::records()
                    .find(|row| row.name == name)
                    .ok_or_else(|| TraceError::UnknownKind(crate::text::clean(name, 40)))?;
                self.kind = Some(row);
                self.note_columns(schema, row);
                Ok(())
            }
            other => Err(other_content(other, LEGACY_CONTENT)),
        }
    }

    fn skip(&mut self, rows: u64) {
        self.next_row = self.next_row.saturating_add(rows);
        let Some(row) = self.kind else { return };
        // Events are in the order in which they came, which is almost that of their ends.
        let start = MonoNanos(self.last_end.0.saturating_sub(SLACK_NS));
        let end = MonoNanos(u64::MAX);
        self.lost.push(LossSpan { start, end, kind: row.name.to_owned(), count: rows });
    }

    fn read(&mut self, batch: &RecordBatch, into: &mut Vec<TraceEvent>) -> Result<(), TraceError> {
        let first = self.next_row;
        let place = |row| self.kind.and_then(|kind| TraceRow::new(kind.kind, row));
        self.next_row += batch.num_rows() as u64;
        let before = into.len();
        into.reserve(batch.num_rows());
        if let Some(row) = self.kind {
            let cells = Cells::new(batch, row)?;
            let events = (0..batch.num_rows()).map(|index| cells.event(index));
            take((first..).map(place).zip(events), into)?;
        } else {
            let kinds = Batch(batch).texts("kind")?;
            // A kind that the stream has no columns for is not in it.
            let rows: Vec<_> = probe::records()
                .filter_map(|row| Some((row.name, Cells::new(batch, row).ok()?)))
                .collect();
            let event = |index| {
                let kind = kinds.get(index)?;
                let known = rows.iter().find(|(name, _)| *name == kind);
                known.map_or(Ok(None), |(_, cells)| cells.event(index))
            };
            take((first..).map(place).zip((0..batch.num_rows()).map(event)), into)?;
        }
        self.skipped_rows += (batch.num_rows() - (into.len() - before)) as u64;
        let ends = || into[before..].iter().map(|row| row.event.end);
        if let Some(gap) = self.lost.last_mut().filter(|gap| gap.end.0 == u64::MAX)
            && let Some(first) = ends().min()
        {
            gap.end = MonoNanos(first.0.saturating_add(SLACK_NS));
        }
        self.last_end = ends().fold(self.last_end, MonoNanos::max);
        Ok(())
    }
}

/// Takes the events that there are, with their rows.
fn take(
    events: impl Iterator<Item = (Option<TraceRow>, Result<Option<Event>, TraceError>)>,
    into: &mut Vec<TraceEvent>,
) -> Result<(), TraceError> {
    for (row, event) in events {
        into.extend(event?.map(|event| TraceEvent { row, event }));
    }
    Ok(())
}

/// The columns of one batch that the events of a kind need.
struct Cells<'a> {
    row: &'static RecordRow,
    end_ns: Numbers<'a, UInt64Type>,
    duration_ns: Numbers<'a, UInt64Type>,
    thread: Option<[Numbers<'a, UInt32Type>; 3]>,
    /// `None` for one that the stream lacks and may lack.
    fields: Vec<Option<Column<'a>>>,
}

/// The column of a field.
enum Column<'a> {
    U64(Numbers<'a, UInt64Type>),
    U32(Numbers<'a, UInt32Type>),
    I64(Numbers<'a, Int64Type>),
    I32(Numbers<'a, Int32Type>),
    Flag(&'a arrow_array::BooleanArray),
    Text(Texts<'a>),
    List(&'a arrow_array::ListArray),
}

impl<'a> Column<'a> {
    fn new(batch: &Batch<'a>, field: &Field) -> Result<Self, TraceError> {
        Ok(match field.data {
            Data::U64 => Self::U64(batch.numbers(field.name)?),
            Data::U32 => Self::U32(batch.numbers(field.name)?),
            Data::I64 => Self::I64(batch.numbers(field.name)?),
            Data::I32 => Self::I32(batch.numbers(field.name)?),
            Data::Flag(_) => Self::Flag(batch.array(field.name, |array| array.as_boolean_opt())?),
            Data::FlagNames(_) | Data::Names(_) | Data::Text(_) | Data::Address => {
                Self::Text(batch.texts(field.name)?)
            }
            Data::List(_) => Self::List(batch.array(field.name, |array| {
                let list = array.as_list_opt::<i32>()?;
                (*list.values().data_type() == DataType::UInt64).then_some(list)
            })?),
        })
    }

    /// The value of a cell; `None` when it is empty.
    fn value(&self, index: usize) -> Option<Value<'_>> {
        Some(match self {
            Self::U64(numbers) => Value::Unsigned(numbers.optional(index)?),
            Self::U32(numbers) => Value::Unsigned(numbers.optional(index)?.into()),
            Self::I64(numbers) => Value::Signed(numbers.optional(index)?),
            Self::I32(numbers) => Value::Signed(numbers.optional(index)?.into()),
            Self::Flag(flags) => Value::Flag(flags.is_valid(index).then(|| flags.value(index))?),
            Self::Text(texts) => Value::Text(texts.optional(index)?.into()),
            Self::List(lists) => {
                let items = lists.is_valid(index).then(|| lists.value(index))?;
                Value::List(items.as_primitive_opt::<UInt64Type>()?.iter().flatten().collect())
            }
        })
    }
}

impl<'a> Cells<'a> {
    fn new(batch: &'a RecordBatch, row: &'static RecordRow) -> Result<Self, TraceError> {
        let batch = Batch(batch);
        let column = |field: &Field| match Column::new(&batch, field) {
            Ok(column) => Ok(Some(column)),
            Err(_) if field.optional => Ok(None),
            Err(error) => Err(error),
        };
        let thread = || -> Result<_, TraceError> {
            let [tid, tgid, cpu] = THREAD.map(|(name, _)| batch.numbers(name));
            Ok([tid?, tgid?, cpu?])
        };
        Ok(Self {
            row,
            end_ns: batch.numbers("end_ns")?,
            duration_ns: batch.numbers("duration_ns")?,
            thread: has_thread(row).then(thread).transpose()?,
            fields: row.fields.iter().map(column).collect::<Result<_, _>>()?,
        })
    }

    /// The event of a row; `None` where a cell holds what this version does not know.
    fn event(&self, index: usize) -> Result<Option<Event>, TraceError> {
        let mut event = Event::empty(self.row);
        event.end = MonoNanos(self.end_ns.get(index)?);
        event.duration_ns = self.duration_ns.get(index)?;
        if let Some([tid, tgid, cpu]) = &self.thread {
            event.tid = Tid(tid.get(index)?);
            event.tgid = Tgid(tgid.get(index)?);
            event.cpu = cpu.get(index)?;
        }
        for (field, column) in self.row.fields.iter().zip(&self.fields) {
            let value = column.as_ref().and_then(|column| column.value(index));
            let known = match value {
                Some(value) => field.put(&mut event, &value),
                None => field.optional,
            };
            if !known {
                return Ok(None);
            }
        }
        Ok(Some(event))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The event of one row of a batch, of a kind that is not in the table.
    pub(in super::super) fn event_of(
        batch: &RecordBatch,
        row: &'static RecordRow,
        index: usize,
    ) -> Result<Option<Event>, TraceError> {
        Cells::new(batch, row)?.event(index)
    }
}
