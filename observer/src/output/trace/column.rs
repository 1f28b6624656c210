//! Typed access to the columns of a batch.

use arrow_array::cast::AsArray;
use arrow_array::types::ArrowPrimitiveType;
use arrow_array::{Array, BooleanArray, PrimitiveArray, RecordBatch, StringArray};

use super::TraceError;

/// The columns of one batch, by name.
pub(super) struct Batch<'a>(pub(super) &'a RecordBatch);

fn missing(column: &'static str) -> TraceError {
    TraceError::Schema(format!("column {column} is missing or of another type"))
}

fn empty(column: &'static str, row: usize) -> TraceError {
    TraceError::Value { column, row, problem: "is empty".to_owned() }
}

impl<'a> Batch<'a> {
    /// A column of another type.
    pub(super) fn array<A>(
        &self,
        column: &'static str,
        typed: impl FnOnce(&'a arrow_array::ArrayRef) -> Option<&'a A>,
    ) -> Result<&'a A, TraceError> {
        self.0.column_by_name(column).and_then(typed).ok_or_else(|| missing(column))
    }

    pub(super) fn numbers<T: ArrowPrimitiveType>(
        &self,
        column: &'static str,
    ) -> Result<Numbers<'a, T>, TraceError> {
        let array = self.0.column_by_name(column).and_then(|array| array.as_primitive_opt());
        Ok(Numbers { column, array: array.ok_or_else(|| missing(column))? })
    }

    /// A column that older files lack.
    pub(super) fn numbers_if_there<T: ArrowPrimitiveType>(
        &self,
        column: &'static str,
    ) -> Result<Option<Numbers<'a, T>>, TraceError> {
        self.0.column_by_name(column).map(|_| self.numbers(column)).transpose()
    }

    pub(super) fn flags(&self, column: &'static str) -> Result<Flags<'a>, TraceError> {
        let array = self.0.column_by_name(column).and_then(|array| array.as_boolean_opt());
        Ok(Flags { column, array: array.ok_or_else(|| missing(column))? })
    }

    pub(super) fn texts(&self, column: &'static str) -> Result<Texts<'a>, TraceError> {
        let array = self.0.column_by_name(column).and_then(|array| array.as_string_opt());
        Ok(Texts { column, array: array.ok_or_else(|| missing(column))? })
    }
}

/// A column of numbers.
pub(super) struct Numbers<'a, T: ArrowPrimitiveType> {
    column: &'static str,
    array: &'a PrimitiveArray<T>,
}

impl<T: ArrowPrimitiveType> Numbers<'_, T> {
    pub(super) fn optional(&self, row: usize) -> Option<T::Native> {
        self.array.is_valid(row).then(|| self.array.value(row))
    }

    pub(super) fn get(&self, row: usize) -> Result<T::Native, TraceError> {
        self.optional(row).ok_or_else(|| empty(self.column, row))
    }
}

/// A column of flags.
pub(super) struct Flags<'a> {
    column: &'static str,
    array: &'a BooleanArray,
}

impl Flags<'_> {
    pub(super) fn get(&self, row: usize) -> Result<bool, TraceError> {
        self.array
            .is_valid(row)
            .then(|| self.array.value(row))
            .ok_or_else(|| empty(self.column, row))
    }
}

/// A column of text.
pub(super) struct Texts<'a> {
    column: &'static str,
    array: &'a StringArray,
}

impl<'a> Texts<'a> {
    pub(super) fn optional(&self, row: usize) -> Option<&'a str> {
        self.array.is_valid(row).then(|| self.array.value(row))
    }

    pub(super) fn get(&self, row: usize) -> Result<&'a str, TraceError> {
        self.optional(row).ok_or_else(|| empty(self.column, row))
    }
}
