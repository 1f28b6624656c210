//! The begin of the load: COMMAND, the reader of its samples, and the files that keep its output.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::samples::{OutputKeeper, SampleReader};
use super::{Generator, Session, identity, source_name, unexpected};
use crate::error::Result;
use crate::host::network::listened_ports;
use crate::loadgen::kept::{KeptFile, OUTPUT_BYTES, SAMPLES_BYTES};
use crate::loadgen::{ClockError, ClockKind, RelAnchor, SamplesSource, SamplesSpec};
use crate::log::NOTICE;
use crate::model::{Tgid, files};
use crate::target::{Membership, TargetSpec};

impl Session {
    pub(super) fn start_generator(&mut self) -> Result<()> {
        let samples = self.options.samples.clone();
        let samples = samples.as_ref();
        let source = samples.map(|spec| &spec.source);
        let from_command = source == Some(&SamplesSource::CommandOutput);
        let started = !self.options.command.is_empty();
        let clock_error = ClockError::of(self.options.clock_error_ns, started);
        let is_apart = |source: &SamplesSource| {
            matches!(source, SamplesSource::Path(_) | SamplesSource::Socket(_))
        };
        let out_is_samples = source.is_some_and(|source| !is_apart(source));
        let out_limit = if out_is_samples { SAMPLES_BYTES } else { OUTPUT_BYTES };
        let mut out = Some(self.keep(files::LOADGEN_OUT, out_limit)?);
        // Opens samples that do not come from COMMAND before any request is sent.
        if let Some(spec) = samples.filter(|_| !from_command) {
            let copy = if is_apart(&spec.source) {
                Some(self.keep(files::LOADGEN_SAMPLES, SAMPLES_BYTES)?)
            } else {
                out.take()
            };
            let read = |copy| read_samples(spec, clock_error, self.memory.samples, None, copy);
            self.reader = copy.map(read).transpose()?;
        }
        if self.options.command.is_empty() {
            if let Some(path) = self.reader.as_ref().and_then(SampleReader::missing) {
                let path = path.display();
                tracing::info!(target: NOTICE, "waiting for the samples in {path}, which does not exist yet");
            }
            return Ok(());
        }
        let err = self.keep(files::LOADGEN_ERR, OUTPUT_BYTES)?;
        let user = identity::identity(self.options.user.as_deref())?;
        if let Some(user) = &user {
            tracing::info!("COMMAND runs as {} (uid {})", user.name, user.uid);
        }
        if let (Some(user), Some(SamplesSource::Socket(path))) = (&user, source) {
            // Otherwise COMMAND could not connect.
            std::os::unix::fs::lchown(path, Some(user.uid), None)
                .map_err(|error| unexpected(&error))?;
        }
        self.journal.info.command_user = user.as_ref().map(|user| user.name.clone());
        self.kernel.watch_generator();
        let mut generator = Generator::start(&self.options.command, user)?;
        // If the target is named by command, cgroup or port, the generator must not become part of
        // it.
        self.membership.exclude(Tgid(generator.supervisor()));
        self.membership.exclude(Tgid(generator.pid()));
        let (output, errors) = (generator.take_output(), generator.take_errors());
        self.generator = Some(generator);
        let mut keep = |output: Option<OwnedFd>, copy| -> Result<()> {
            let started = output.map(|output| OutputKeeper::start(output, copy)).transpose();
            self.outputs.extend(started.map_err(|error| unexpected(&error))?);
            Ok(())
        };
        let beside = err.beside().map_err(|error| unexpected(&error))?;
        keep(errors, err)?;
        match (samples.filter(|_| from_command), out) {
            (Some(spec), Some(out)) => {
                self.reader =
                    Some(read_samples(spec, clock_error, self.memory.samples, output, out)?);
            }
            (None, Some(out)) => keep(output, out)?,
            // The samples come from standard input, and take its place in the directory.
            (_, None) => keep(output, beside)?,
        }
        Ok(())
    }

    /// Before run.json is written: what was seen of COMMAND's processes so far, so that times that count
    /// from its start can be placed if the run is killed.
    pub(super) fn note_generator(&mut self) {
        let samples = self.options.samples.as_ref();
        let is_relative = samples.is_some_and(|spec| spec.adapter.clock == ClockKind::Relative);
        if is_relative
            && self.journal.is_due()
            && let Some(generator) = &self.generator
        {
            self.journal.info.generator = Some(RelAnchor {
                spawned: Some(generator.spawned),
                exited: None,
                processes: self.kernel.generator_processes(),
                ports: ports(&self.options.target, &self.membership),
            });
        }
    }

    /// A new file of the run that keeps the beginning of a stream.
    fn keep(&mut self, name: &'static str, limit: u64) -> Result<KeptFile> {
        let file = self.journal.directory.create_file(name)?;
        let kept = Arc::clone(self.journal.kept.entry(name).or_default());
        Ok(KeptFile::new(file, limit, kept))
    }
}

/// The ports of the target.
pub(super) fn ports(target: &TargetSpec, membership: &Membership) -> BTreeSet<u16> {
    match target.port() {
        Some(port) => BTreeSet::from([port]),
        None => listened_ports(&membership.tgids()),
    }
}

fn read_samples(
    spec: &SamplesSpec,
    clock_error: ClockError,
    room_for: usize,
    command_output: Option<OwnedFd>,
    copy: KeptFile,
) -> Result<SampleReader> {
    SampleReader::start(spec, clock_error, room_for, command_output, copy)
        .map_err(|error| error.at(&source_name(spec)))
}
