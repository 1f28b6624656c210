//! Samples as columns.

use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, StringBuilder, UInt16Builder, UInt64Builder};
use arrow_array::types::{UInt16Type, UInt64Type};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Field, Schema};

use super::column::Batch;
use super::read::Reader;
use super::{Columns, TraceError, content, metadata, other_content};
use crate::clock::MonoNanos;
use crate::model::Sample;

/// Builders of the columns of a [`Sample`].
#[derive(Default)]
pub struct SampleColumns {
    intended_start_ns: UInt64Builder,
    start_ns: UInt64Builder,
    end_ns: UInt64Builder,
    precision_ns: UInt64Builder,
    status: UInt16Builder,
    ok: BooleanBuilder,
    error: StringBuilder,
    seq: UInt64Builder,
    local_port: UInt16Builder,
}

impl Columns for SampleColumns {
    type Row = Sample;

    fn schema(&self) -> Schema {
        let field =
            |column: &Column| Field::new(column.name, (column.data_type)(), column.nullable);
        let fields: Vec<Field> = COLUMNS.iter().map(field).collect();
        Schema::new(fields).with_metadata(metadata(CONTENT))
    }

    fn push(&mut self, sample: &Sample) {
        self.intended_start_ns.append_option(sample.intended_start.map(|time| time.0));
        self.start_ns.append_value(sample.start.0);
        self.end_ns.append_value(sample.end.0);
        self.precision_ns.append_value(sample.precision_ns);
        self.status.append_option(sample.status);
        self.ok.append_value(sample.ok);
        self.error.append_option(sample.error.as_deref());
        self.seq.append_option(sample.seq);
        self.local_port.append_option(sample.local_port);
    }

    fn finish(&mut self) -> Vec<ArrayRef> {
        vec![
            Arc::new(self.intended_start_ns.finish()),
            Arc::new(self.start_ns.finish()),
            Arc::new(self.end_ns.finish()),
            Arc::new(self.precision_ns.finish()),
            Arc::new(self.status.finish()),
            Arc::new(self.ok.finish()),
            Arc::new(self.error.finish()),
            Arc::new(self.seq.finish()),
            Arc::new(self.local_port.finish()),
        ]
    }
}

const fn column(
    name: &'static str,
    data_type: fn() -> DataType,
    nullable: bool,
    help: &'static str,
) -> Column {
    Column { name, data_type, nullable, help }
}

/// One column, as documented in docs/TRACE_FORMAT.md.
struct Column {
    name: &'static str,
    data_type: fn() -> DataType,
    nullable: bool,
    help: &'static str,
}

/// The content in a stream's metadata.
const CONTENT: &str = "samples";

const COLUMNS: &[Column] = &[
    column(
        "intended_start_ns",
        || DataType::UInt64,
        true,
        "when the schedule wanted the request sent; empty when the generator does not say",
    ),
    column("start_ns", || DataType::UInt64, false, "when it was sent"),
    column(
        "end_ns",
        || DataType::UInt64,
        false,
        "when the answer was complete, or the failure known",
    ),
    column(
        "precision_ns",
        || DataType::UInt64,
        false,
        "resolution of the generator's times, nanoseconds",
    ),
    column("status", || DataType::UInt16, true, "HTTP status; empty without an answer"),
    column("ok", || DataType::Boolean, false, "the generator counts it as a success"),
    column("error", || DataType::Utf8, true, "what went wrong"),
    column("seq", || DataType::UInt64, true, "the generator's own number of the request"),
    column(
        "local_port",
        || DataType::UInt16,
        true,
        "port of the connection at the generator's end; the column is missing in older runs",
    ),
];

/// The columns as a Markdown table.
#[must_use]
pub fn columns_markdown() -> String {
    let mut text = String::from("| column | type | empty | content |\n| --- | --- | --- | --- |\n");
    for column in COLUMNS {
        let empty = if column.nullable { "where it does not apply" } else { "never" };
        let data_type = (column.data_type)();
        text += &format!("| `{}` | {data_type} | {empty} | {} |\n", column.name, column.help);
    }
    text
}

/// Reads samples from their stream.
#[derive(Debug, Default)]
pub struct SampleReader;

impl Reader for SampleReader {
    type Row = Sample;

    fn open(&mut self, schema: &Schema) -> Result<(), TraceError> {
        match content(schema)? {
            CONTENT => Ok(()),
            other => Err(other_content(other, CONTENT)),
        }
    }

    fn read(&mut self, batch: &RecordBatch, into: &mut Vec<Sample>) -> Result<(), TraceError> {
        let columns = Batch(batch);
        let intended_start_ns = columns.numbers::<UInt64Type>("intended_start_ns")?;
        let start_ns = columns.numbers::<UInt64Type>("start_ns")?;
        let end_ns = columns.numbers::<UInt64Type>("end_ns")?;
        let precision_ns = columns.numbers::<UInt64Type>("precision_ns")?;
        let status = columns.numbers::<UInt16Type>("status")?;
        let ok = columns.flags("ok")?;
        let error = columns.texts("error")?;
        let seq = columns.numbers::<UInt64Type>("seq")?;
        let local_port = columns.numbers_if_there::<UInt16Type>("local_port")?;
        into.reserve(batch.num_rows());
        for row in 0..batch.num_rows() {
            into.push(Sample {
                intended_start: intended_start_ns.optional(row).map(MonoNanos),
                start: MonoNanos(start_ns.get(row)?),
                end: MonoNanos(end_ns.get(row)?),
                precision_ns: precision_ns.get(row)?,
                status: status.optional(row),
                ok: ok.get(row)?,
                error: error.optional(row).map(str::to_owned),
                seq: seq.optional(row),
                local_port: local_port.as_ref().and_then(|column| column.optional(row)),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_older_runs_have_no_port() {
        let sample = Sample {
            intended_start: None,
            start: MonoNanos(1),
            end: MonoNanos(2),
            precision_ns: 1,
            status: Some(200),
            ok: true,
            error: None,
            seq: Some(3),
            local_port: Some(40_000),
        };
        let mut columns = SampleColumns::default();
        columns.push(&sample);
        let schema = Arc::new(columns.schema());
        let whole = RecordBatch::try_new(schema, columns.finish()).expect("a batch");
        let older = whole.project(&[0, 1, 2, 3, 4, 5, 6, 7]).expect("without the last column");
        let mut rows = Vec::new();
        SampleReader.read(&whole, &mut rows).expect("a row");
        SampleReader.read(&older, &mut rows).expect("a row");
        assert_eq!(rows, [sample.clone(), Sample { local_port: None, ..sample }]);
    }
}
