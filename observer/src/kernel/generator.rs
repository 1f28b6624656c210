//! The log of the load generator's processes.

use std::collections::BTreeMap;
use std::mem::offset_of;

use aya::programs::{ProgramError, RawTracePoint};
use observer_ebpf::wire::{
    Config, GENERATOR_CONNECT, GENERATOR_CONNECTS, GENERATOR_EVENTS, GENERATOR_EXEC, GeneratorEvent,
};

use super::Kernel;
use super::links::Site;
use super::mapped::MappedWords;
use crate::clock::MonoNanos;
use crate::model::{GeneratorProcess, GeneratorProcesses};
use crate::text::until_nul;

const WATCHED: usize = offset_of!(Config, generator_watched) / 8;
const EVENTS: usize = offset_of!(Config, generator_events) / 8;
const EVENT_WORDS: usize = size_of::<GeneratorEvent>() / 8;

/// The program that sees connections, and its tracepoint.
const PROGRAM: &str = "generator_connects";
const TRACEPOINT: &str = "inet_sock_set_state";

impl Kernel {
    /// From now on, the kernel side logs what observer's descendants execute and where they connect.
    pub fn watch_generator(&mut self) {
        self.config.set(WATCHED, 1);
        self.sees_connects = match self.attach_to_connects() {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!("connections of COMMAND are not watched: {error}");
                false
            }
        };
    }

    fn attach_to_connects(&mut self) -> Result<(), ProgramError> {
        let program = self.ebpf.program_mut(PROGRAM);
        let program = program.ok_or(ProgramError::UnexpectedProgramType)?;
        let raw: &mut RawTracePoint = program.try_into()?;
        raw.load()?;
        self.links.add(program, PROGRAM, vec![Site::RawTracepoint(TRACEPOINT)])
    }

    /// The processes of the load generator so far; `None` when they did more than the log holds.
    #[must_use]
    pub fn generator_processes(&self) -> Option<GeneratorProcesses> {
        let count = self.config.get(EVENTS);
        if count > u64::from(GENERATOR_EVENTS) {
            return None;
        }
        let processes = replay(events(&self.generator, count as usize));
        Some(GeneratorProcesses { processes, connects_known: self.sees_connects })
    }
}

/// Events in the order in which they happened.
fn events(log: &MappedWords, count: usize) -> Vec<GeneratorEvent> {
    let mut events: Vec<GeneratorEvent> = (0..count)
        .map(|place| {
            let words: [u64; EVENT_WORDS] =
                std::array::from_fn(|word| log.get(place * EVENT_WORDS + word));
            bytemuck::cast(words)
        })
        .filter(|event: &GeneratorEvent| event.at_ns != 0)
        .collect();
    events.sort_by_key(|event| event.at_ns);
    events
}

fn replay(events: Vec<GeneratorEvent>) -> Vec<GeneratorProcess> {
    let mut all: Vec<GeneratorProcess> = Vec::new();
    let mut living: BTreeMap<u32, usize> = BTreeMap::new();
    for event in events {
        let at = MonoNanos(event.at_ns);
        let tgid = event.tgid;
        match event.what {
            GENERATOR_EXEC => {
                if let Some(earlier) = living.insert(tgid, all.len()) {
                    all[earlier].ended = Some(at);
                }
                let comm = until_nul(&event.comm).into_owned();
                let began = Some(at);
                all.push(GeneratorProcess { tgid, comm, began, ..GeneratorProcess::default() });
            }
            GENERATOR_CONNECT => {
                let place = *living.entry(tgid).or_insert(all.len());
                if place == all.len() {
                    all.push(GeneratorProcess { tgid, ..GeneratorProcess::default() });
                }
                let process = &mut all[place];
                process.connects.push((at, event.port));
                process.more_connects = process.connects.len() as u64 >= GENERATOR_CONNECTS;
            }
            _ => {
                if let Some(ended) = living.remove(&tgid) {
                    all[ended].ended = Some(at);
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::GENERATOR_EXIT;

    use super::*;

    #[test]
    fn each_program_of_a_process_is_one_of_its_own() {
        let event = |at_ns, tgid, what, port| {
            let comm =
                if what == GENERATOR_EXEC { *b"hey\0\0\0\0\0\0\0\0\0\0\0\0\0" } else { [0; 16] };
            GeneratorEvent { at_ns, tgid, what, port, comm }
        };
        let found = replay(vec![
            event(1, 7, GENERATOR_EXEC, 0),
            event(2, 7, GENERATOR_CONNECT, 80),
            event(3, 7, GENERATOR_EXEC, 0),
            event(4, 8, GENERATOR_CONNECT, 0),
            event(5, 7, GENERATOR_EXIT, 0),
            event(6, 9, GENERATOR_EXIT, 0),
            event(7, 7, GENERATOR_CONNECT, 81),
        ]);
        let process =
            |tgid, began: Option<u64>, ended: Option<u64>, connect: Option<(u64, u16)>| {
                GeneratorProcess {
                    tgid,
                    comm: began.map(|_| "hey".to_owned()).unwrap_or_default(),
                    began: began.map(MonoNanos),
                    ended: ended.map(MonoNanos),
                    connects: connect.into_iter().map(|(at, port)| (MonoNanos(at), port)).collect(),
                    more_connects: false,
                }
            };
        assert_eq!(
            found,
            [
                process(7, Some(1), Some(3), Some((2, 80))),
                process(7, Some(3), Some(5), None),
                process(8, None, None, Some((4, 0))),
                process(7, None, None, Some((7, 81))),
            ]
        );
    }
}
