//! The measurements, row by row: appended to a file if wanted, and the only source of the tables.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::Operation;

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "part", rename_all = "snake_case")]
pub(crate) enum Row {
    /// The machine that was measured.
    Host { text: String },
    /// One operation with one observer attached, and without before and after.
    Operation { operation: Operation, observer: String, bare_ns: f64, with_ns: f64 },
    /// A service at saturation with one observer attached, and without before and after.
    Service { service: String, observer: String, none: Served, with: Served },
    /// An observer's own use of the processor over a time.
    Own {
        observer: String,
        load: String,
        seconds: f64,
        rate_hz: f64,
        cpu_seconds: f64,
        bpf_seconds: f64,
    },
    /// An observer's own use of the processor over a time in which it read samples, and the load
    /// generator's.
    OwnRequests {
        observer: String,
        rate_hz: f64,
        seconds: f64,
        cpu_seconds: f64,
        generator_cpu_seconds: f64,
    },
    /// One program while one operation was done in a loop.
    Program(Program),
    /// One tier of one probe, on one kernel.
    Tier {
        kernel: String,
        probe: String,
        tier: String,
        operation: String,
        bare_ns: f64,
        with_ns: f64,
    },
    /// A tier that a kernel does not offer.
    NoTier { kernel: String, probe: String, tier: String, reason: String },
    /// The drain of the ring.
    Drain {
        /// Highest rate that was kept up without loss.
        sustained_hz: f64,
        /// Whether a higher one lost records; otherwise no more could be made.
        until_loss: bool,
        /// Of the thread that drains, for a million records.
        cpu_seconds_per_million: f64,
        delivered: f64,
        wakeups: f64,
    },
    /// Memory of an observer over a time.
    Memory {
        observer: String,
        seconds: f64,
        first_bytes: f64,
        last_bytes: f64,
        most_bytes: f64,
        map_bytes: f64,
    },
    /// The answer of a made-up run, and the list of its slowest requests. Times are of the CPU, and memory
    /// is beyond that of the run.
    Answer {
        requests: f64,
        answer_seconds: f64,
        answer_bytes: f64,
        list_seconds: f64,
        list_bytes: f64,
    },
    /// What did not run, and so is in no table.
    LeftOut { observer: String, reason: String },
}

/// What a generator saw of a service.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) rate_hz: f64,
    pub(crate) p99_us: f64,
}

/// A program as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) operation: String,
    pub(crate) operations: u64,
    pub(crate) program: String,
    pub(crate) runs: u64,
    pub(crate) run_time_ns: u64,
    pub(crate) verified_instructions: u32,
    pub(crate) translated_bytes: u32,
    pub(crate) jited_bytes: u32,
}

/// All rows of one benchmark.
#[derive(Default)]
pub(crate) struct Rows {
    rows: Vec<Row>,
    file: Option<File>,
}

impl Rows {
    /// Appends to `path`, if there is one: rows of several runs make one set of tables.
    pub(crate) fn new(path: Option<&Path>) -> Result<Self, String> {
        let file = path.map(|path| {
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|error| format!("cannot write {}: {error}", path.display()))
        });
        Ok(Self { rows: Vec::new(), file: file.transpose()? })
    }

    /// Reads what [`Rows::new`] wrote.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let file = File::open(path).map_err(|error| failed(&error))?;
        let mut rows = Self::default();
        for line in BufReader::new(file).lines() {
            let line = line.map_err(|error| failed(&error))?;
            rows.rows.push(serde_json::from_str(&line).map_err(|error| failed(&error))?);
        }
        Ok(rows)
    }

    pub(crate) fn push(&mut self, row: Row) -> Result<(), String> {
        if let Some(file) = &mut self.file {
            let line = serde_json::to_string(&row).map_err(|error| error.to_string())?;
            writeln!(file, "{line}").map_err(|error| format!("cannot write a row: {error}"))?;
        }
        self.rows.push(row);
        Ok(())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rows");
        let rows = [
            Row::Host { text: "Linux".to_owned() },
            Row::Operation {
                operation: Operation::Switch,
                observer: "all".to_owned(),
                bare_ns: 1.5,
                with_ns: 2.5,
            },
        ];
        for row in &rows {
            Rows::new(Some(&path)).unwrap().push(row.clone()).unwrap();
        }
        let read: Vec<Row> = Rows::read(&path).unwrap().iter().cloned().collect();
        assert_eq!(read, rows);
        std::fs::write(&path, "{").unwrap();
        assert!(Rows::read(&path).is_err());
    }
}
