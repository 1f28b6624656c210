//! The stacks of a run: their frames while it goes on, and the functions at its end.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::time::{Duration, Instant};

use observer_ebpf::wire::{STACK_FRAMES, StackRecord, TASK_EXEC, TASK_FORK, TaskRecord};
use rustix::process::{Resource, getrlimit};

use super::Captured;
use super::sink::Sink;
use crate::kernel::Kernel;
use crate::limits;
use crate::log::NOTICE;
use crate::model::{Event, Frame, STACKS_SCHEMA, Stacks, Tgid, UserStack};
use crate::pace::rest;
use crate::stacks::mappings::{Mappings, NotKnown, PROCESSES_MAX, Place, UNKNOWN};
use crate::stacks::symbolize::{self, Symbol};
use crate::stacks::worker;
use crate::text;

/// Different stacks that are kept.
const DIFFERENT_MAX: usize = 20_000;
/// Most frames of all of them together, where memory is not limited.
pub(super) const FRAMES_MAX: usize = 200_000;
/// The name of the kernel among the files.
const KERNEL: &str = "[kernel]";

/// Time for the functions of all files.
const SYMBOLS_TIME: Duration = Duration::from_secs(60);
/// After this time the user is told what observer does.
const SILENCE: Duration = Duration::from_secs(1);

/// Reads the addresses of a stack by its id, the innermost first.
type ReadFrames = Box<dyn Fn(u32) -> Option<Vec<u64>> + Send>;

/// Functions at addresses or offsets, as many as were asked for.
type Found = Result<Vec<Option<Symbol>>, String>;

/// Gathers the stacks that events name.
pub(super) struct StackSink {
    read_frames: ReadFrames,
    frames_max: usize,
    mappings: Mappings,
    kernel: BTreeMap<u32, Vec<u64>>,
    user: BTreeMap<(Tgid, u32), Vec<Place>>,
    /// Frames of all of these.
    frames: usize,
    not_known: NotKnown,
}

impl StackSink {
    /// For the stacks that the kernel side keeps, of which so many frames are kept; `None` where it keeps
    /// none.
    pub(super) fn of_kernel(kernel: &mut Kernel, frames_max: usize) -> Option<Self> {
        let table = kernel.stacks()?;
        let files_max = limits::for_stacks(getrlimit(Resource::Nofile).current);
        Some(Self::new(Box::new(move |id| table.frames(id)), frames_max, files_max))
    }

    fn new(read_frames: ReadFrames, frames_max: usize, files_max: usize) -> Self {
        Self {
            read_frames,
            frames_max,
            mappings: Mappings::new(files_max),
            kernel: BTreeMap::new(),
            user: BTreeMap::new(),
            frames: 0,
            not_known: NotKnown::new(),
        }
    }

    /// Looks at the processes that are there when the run begins.
    pub(super) fn look_at(&mut self, processes: impl IntoIterator<Item = Tgid>) {
        processes.into_iter().take(PROCESSES_MAX).for_each(|tgid| self.mappings.look_at(tgid));
    }

    fn count(&mut self, kind: &'static str, times: usize) {
        if times > 0 {
            *self.not_known.entry(kind).or_default() += times as u64;
        }
    }

    /// The id of a part of a stack; where the kernel gave an error instead, `none` is what `EFAULT` means.
    fn id(&mut self, id: i32, none: &'static str) -> Option<u32> {
        let kind = match id {
            0.. => return Some(id.unsigned_abs()),
            _ if id == -libc::EFAULT => none,
            _ if id == -libc::EEXIST => "place_taken",
            _ => "other",
        };
        self.count(kind, 1);
        None
    }

    /// The addresses of a stack that is new; `None` where there is no room for it.
    fn read(&mut self, id: u32) -> Option<Vec<u64>> {
        if self.kernel.len() + self.user.len() >= DIFFERENT_MAX
            || self.frames + STACK_FRAMES > self.frames_max
        {
            self.count("stacks_beyond", 1);
            return None;
        }
        let frames = (self.read_frames)(id);
        self.count("frames_not_read", usize::from(frames.is_none()));
        // One that could not be read is not asked for again.
        let mut frames = frames.unwrap_or_default();
        frames.truncate(STACK_FRAMES);
        self.frames += frames.len();
        Some(frames)
    }

    fn stack(&mut self, tgid: Tgid, record: &StackRecord) {
        if let Some(id) = self.id(record.kernel_stack, "no_kernel_stack")
            && !self.kernel.contains_key(&id)
            && let Some(frames) = self.read(id)
        {
            self.kernel.insert(id, frames);
        }
        if let Some(id) = self.id(record.user_stack, "no_user_stack")
            && !self.user.contains_key(&(tgid, id))
            && let Some(frames) = self.read(id)
        {
            let places = match &frames[..] {
                [] => Vec::new(),
                addresses => self.mappings.places(tgid, addresses),
            };
            self.user.insert((tgid, id), without_numbers(places));
            rest();
        }
    }

    /// The stacks with the functions that these two find.
    fn with_functions(
        mut self,
        in_kernel: impl FnOnce(&[u64]) -> Found,
        in_file: impl Fn(&File, &[u64]) -> Found,
    ) -> Stacks {
        let kernel = self.functions_of_kernel(in_kernel);
        let mappings = std::mem::replace(&mut self.mappings, Mappings::new(0));
        let (modules, not_known) = mappings.finish();
        not_known.into_iter().for_each(|(kind, count)| self.count(kind, count as usize));
        let files: Vec<(&str, Option<&File>)> =
            modules.iter().map(|module| (module.name.as_str(), module.file.as_ref())).collect();
        let user = self.functions_of_files(&files, in_file);

        let in_kernel = |(index, address): (usize, &u64)| {
            let call = call(index, *address);
            frame(KERNEL, kernel.get(&call), *address, *address - call)
        };
        let in_file = |(index, place): (usize, &Place)| {
            let call = call(index, place.offset);
            let name = files[place.module as usize].0;
            let found = user.get(&Place { offset: call, ..*place });
            frame(name, found, place.offset, place.offset - call)
        };
        let kernel = self.kernel.into_iter().filter(|(_, frames)| !frames.is_empty());
        let user = self.user.into_iter().filter(|(_, frames)| !frames.is_empty());
        Stacks {
            schema: STACKS_SCHEMA,
            kernel: kernel
                .map(|(id, frames)| {
                    let frames = frames.iter().enumerate().map(in_kernel).collect();
                    (id, without_tracing(frames))
                })
                .collect(),
            user: user
                .map(|((tgid, id), places)| {
                    let frames = places.iter().enumerate().map(in_file).collect();
                    UserStack { tgid, id, frames }
                })
                .collect(),
            not_known: self
                .not_known
                .into_iter()
                .map(|(kind, count)| (kind.to_owned(), count))
                .collect(),
        }
    }

    fn functions_of_kernel(
        &mut self,
        in_kernel: impl FnOnce(&[u64]) -> Found,
    ) -> BTreeMap<u64, Symbol> {
        let calls = |frames: &Vec<u64>| {
            let frames = frames.iter().enumerate();
            frames.map(|(index, address)| call(index, *address)).collect::<Vec<_>>()
        };
        let addresses: BTreeSet<u64> = self.kernel.values().flat_map(calls).collect();
        if addresses.is_empty() {
            return BTreeMap::new();
        }
        let addresses: Vec<u64> = addresses.into_iter().collect();
        let none_shown = "/proc/kallsyms shows no addresses (sysctl kernel.kptr_restrict)";
        let found = match in_kernel(&addresses) {
            Ok(found) if found.iter().all(Option::is_none) => Err(none_shown.to_owned()),
            found => found,
        };
        let found = found.unwrap_or_else(|why| {
            tracing::warn!("the functions of the kernel in stacks are not known: {why}");
            Vec::new()
        });
        let found = addresses.iter().zip(found);
        let found: BTreeMap<u64, Symbol> =
            found.filter_map(|(address, symbol)| Some((*address, symbol?))).collect();
        self.count("symbols_of_the_kernel", addresses.len() - found.len());
        found
    }

    /// The functions in files, by the place of the call.
    fn functions_of_files(
        &mut self,
        files: &[(&str, Option<&File>)],
        in_file: impl Fn(&File, &[u64]) -> Found,
    ) -> BTreeMap<Place, Symbol> {
        let mut offsets: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        for (index, place) in self.user.values().flat_map(|places| places.iter().enumerate()) {
            if files[place.module as usize].1.is_some() {
                offsets.entry(place.module).or_default().insert(call(index, place.offset));
            }
        }
        // Where time is short, it is used for the most.
        let mut offsets: Vec<(u32, Vec<u64>)> = offsets
            .into_iter()
            .map(|(module, offsets)| (module, offsets.into_iter().collect()))
            .collect();
        offsets.sort_by_key(|(_, offsets)| std::cmp::Reverse(offsets.len()));
        let (begun, files_in_all, mut told) = (Instant::now(), offsets.len(), false);
        let mut functions = BTreeMap::new();
        for (number, (module, offsets)) in offsets.iter().enumerate() {
            let (name, Some(file)) = files[*module as usize] else { continue };
            if begun.elapsed() >= SILENCE && !told {
                told = true;
                let left = text::count((files_in_all - number) as u64);
                tracing::info!(target: NOTICE, "looking up the functions of stacks: {left} files are left");
            }
            match in_file(file, offsets) {
                Ok(found) => {
                    let found = offsets.iter().zip(found);
                    functions.extend(found.filter_map(|(offset, symbol)| {
                        Some((Place { module: *module, offset: *offset }, symbol?))
                    }));
                }
                Err(why) => {
                    tracing::warn!("the functions of {name} in stacks are not known: {why}");
                    self.count("symbols_of_a_file", offsets.len());
                }
            }
        }
        functions
    }
}

/// The frames of a stack up to the last one that lies in code. What a frame pointer leads to in code without frame
/// pointers is no address: it tells nothing, and is another number each time. All of them where none is known.
fn without_numbers(mut places: Vec<Place>) -> Vec<Place> {
    let known = places.iter().rposition(|place| place.module != UNKNOWN);
    places.truncate(known.map_or(places.len(), |last| last + 1));
    places
}

/// The frames of the thread, without those by which its switch got to the program that notes the stack: how many there
/// are, and their names, depends on the kernel and the tier.
fn without_tracing(mut frames: Vec<Frame>) -> Vec<Frame> {
    /// No way from a tracepoint to a program is longer.
    const WAY_FRAMES: usize = 8;
    /// `include/trace/bpf_probe.h` and kernel/trace/bpf_trace.c name the functions of a tracepoint, and `bpf_prog_ksym_set_name`
    /// (kernel/bpf/core.c) the program.
    const NAMES: [&str; 4] = ["__traceiter_", "__bpf_trace_", "bpf_trace_run", "bpf_prog_"];
    let traces = |frame: &Frame| {
        frame.function.as_deref().is_some_and(|name| NAMES.iter().any(|one| name.starts_with(one)))
    };
    let last = frames.iter().take(WAY_FRAMES).rposition(traces);
    frames.drain(..last.map_or(0, |last| last + 1));
    frames
}

/// Where the function of a frame is looked for. All frames but the innermost are where a call returns to,
/// and the call may be the last instruction of its function.
fn call(index: usize, address: u64) -> u64 {
    if index == 0 { address } else { address.saturating_sub(1) }
}

/// A frame, from what was found for its call, its own offset, and how far it is behind the call.
fn frame(module: &str, found: Option<&Symbol>, offset: u64, behind: u64) -> Frame {
    Frame {
        function: found.map(|symbol| symbol.name.clone()),
        module: module.to_owned(),
        offset: found.map_or(offset, |symbol| symbol.offset.saturating_add(behind)),
    }
}

impl Sink for StackSink {
    fn event(&mut self, event: &Event) {
        if let Some(record) = event.record::<StackRecord>() {
            self.stack(event.tgid, &record);
        } else if let Some(record) = event.record::<TaskRecord>() {
            if event.flags & TASK_EXEC != 0 {
                self.mappings.forget(event.tgid);
            } else if event.flags & TASK_FORK != 0 && event.tid.0 == event.tgid.0 {
                // Known by its first thread's id only.
                self.mappings.inherit(event.tgid, Tgid(record.parent_tid));
            }
        }
    }

    fn finish(self: Box<Self>, captured: &mut Captured) {
        let deadline = Instant::now() + SYMBOLS_TIME;
        let in_file = |file: &File, offsets: &[u64]| {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("other files took too long".to_owned());
            }
            worker::symbols(file, offsets, left.min(worker::FILE_TIME))
        };
        captured.stacks = Some(self.with_functions(symbolize::in_kernel, in_file));
    }
}

#[cfg(test)]
#[path = "stacks_tests.rs"]
mod tests;
