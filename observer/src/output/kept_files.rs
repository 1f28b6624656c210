//! Whether the files that keep the generator's output are as they were written.

use std::io::{ErrorKind, Read};

use super::rundir::RunDir;
use super::text::count;
use crate::error::Result;
use crate::model::{EndReason, KeptPart, RunInfo, files};

impl RunDir {
    /// What is wrong with the files that keep the generator's output, by name, going by `run.json`: one
    /// sentence each. While a run goes on, and of one that was killed, only what had been written at
    /// the last checkpoint is known.
    #[must_use]
    pub fn kept_damage(&self, run: &RunInfo) -> Vec<(&'static str, String)> {
        let names = [files::LOADGEN_OUT, files::LOADGEN_SAMPLES, files::LOADGEN_ERR];
        let damage = names.into_iter().filter_map(|name| {
            let part = run.kept.get(name)?;
            let found = self.problem(name, part, run.end_reason == EndReason::Running);
            Some((name, found.unwrap_or_else(|error| Some(error.to_string()))?))
        });
        damage.collect()
    }

    fn problem(&self, name: &str, part: &KeptPart, may_grow: bool) -> Result<Option<String>> {
        let Some(file) = self.open_file(name)? else {
            let text =
                || format!("{name} is missing: the run wrote {} bytes to it", count(part.bytes));
            return Ok((part.bytes > 0).then(text));
        };
        let most = if may_grow { part.bytes } else { u64::MAX };
        let (length, sum) = sum(file.take(most)).map_err(|error| self.read_error(name, error))?;
        if KeptPart::new(length, sum) == *part {
            return Ok(None);
        }
        let mut text = if length < part.bytes {
            let (length, bytes) = (count(length), count(part.bytes));
            format!("{name} has {length} bytes, and {bytes} were written to it")
        } else {
            format!("{name} is damaged: it does not match its checksum")
        };
        // Its copy begins anew then, and run.json may not say so yet.
        if may_grow && name == files::LOADGEN_SAMPLES {
            text += ", unless the samples file was replaced just before the run ended";
        }
        Ok(Some(text))
    }
}

/// Length and checksum.
fn sum(mut input: impl Read) -> std::io::Result<(u64, crc32fast::Hasher)> {
    let (mut length, mut sum) = (0, crc32fast::Hasher::new());
    let mut buffer = vec![0; 1 << 18];
    loop {
        match input.read(&mut buffer) {
            Ok(0) => return Ok((length, sum)),
            Ok(count) => {
                sum.update(&buffer[..count]);
                length += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
