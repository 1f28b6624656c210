//! Stacks as a profile for the Firefox Profiler: when each thread was away from the CPU, why, and with which
//! stack.
//!
//! A sample stands at the begin of each part of an absence, and its weight is the time. The categories are the
//! causes, so that the graphs have their colours.

use std::collections::HashMap;

use fxprof_processed_profile::{
    CategoryColor, CategoryHandle, CategoryPairHandle, CpuDelta, Frame, FrameFlags, FrameInfo,
    MarkerTiming, ProcessHandle, Profile, ReferenceTimestamp, SamplingInterval, StackHandle,
    StaticSchemaMarker, StaticSchemaMarkerField, StringHandle, ThreadHandle, Timestamp, WeightType,
};
use serde_json::Value;

use super::place::{KERNEL, Table};
use super::{RecordedStacks, Selection};
use crate::clock::{MonoNanos, WallNanos};
use crate::correlate::Part;
use crate::model::{Absence, Cause, RunInfo, Tgid, Tid};
use crate::text::clean;

/// Interval of the samples where the shortest absence is not known. Nothing depends on it.
const INTERVAL_NS: u64 = 1_000_000;

/// Colours of the causes: the profiler has few.
const COLORS: &[CategoryColor] = &[
    CategoryColor::Orange,
    CategoryColor::Blue,
    CategoryColor::Purple,
    CategoryColor::LightBlue,
    CategoryColor::Yellow,
    CategoryColor::Red,
    CategoryColor::Green,
    CategoryColor::Magenta,
    CategoryColor::Brown,
    CategoryColor::LightGreen,
    CategoryColor::LightRed,
];

/// The profile, in the processed format of the profiler.
///
/// # Errors
/// When it cannot be turned into JSON.
pub fn render(recorded: &RecordedStacks, selection: &Selection) -> serde_json::Result<String> {
    let mut writer = Writer::new(recorded);
    recorded.each(selection, |absence, parts| writer.add(absence, parts));
    writer.finish()
}

/// An interval in the chart of markers.
struct Away {
    cause: StringHandle,
    category: CategoryHandle,
}

impl StaticSchemaMarker for Away {
    const UNIQUE_MARKER_TYPE_NAME: &'static str = "Away from the CPU";
    const CHART_LABEL: Option<&'static str> = Some("{marker.name}");
    const FIELDS: &'static [StaticSchemaMarkerField] = &[];

    fn name(&self, _profile: &mut Profile) -> StringHandle {
        self.cause
    }

    fn category(&self, _profile: &mut Profile) -> CategoryHandle {
        self.category
    }

    fn string_field_value(&self, _field_index: u32) -> StringHandle {
        self.cause
    }

    fn number_field_value(&self, _field_index: u32) -> f64 {
        0.0
    }
}

struct Writer<'a> {
    recorded: &'a RecordedStacks,
    table: Table,
    profile: Profile,
    processes: HashMap<Tgid, ProcessHandle>,
    threads: HashMap<Tid, ThreadHandle>,
    categories: HashMap<Cause, CategoryHandle>,
    stacks: HashMap<(ThreadHandle, Cause, u32, u32), Option<StackHandle>>,
    /// Weights of the samples, nanoseconds. `Profile` takes whole numbers only: it gets the places in this list
    /// until it is JSON.
    weights_ns: Vec<u64>,
}

impl<'a> Writer<'a> {
    fn new(recorded: &'a RecordedStacks) -> Self {
        let RunInfo { target, kernel_release, anchors, start_ns, .. } = &recorded.run;
        let WallNanos(wall_ns) = anchors.to_wall(*start_ns).unwrap_or(WallNanos(0));
        let interval_ns = recorded.floor_ns().unwrap_or(INTERVAL_NS).max(1);
        let mut profile = Profile::new(
            &format!("observer: {}", clean(target, 200)),
            ReferenceTimestamp::from_millis_since_unix_epoch(wall_ns as f64 / 1e6),
            SamplingInterval::from_nanos(interval_ns),
        );
        profile.set_os_name(&format!("Linux {}", clean(kernel_release, 100)));
        // Labels have no addresses to look up.
        profile.set_symbolicated(true);
        Self {
            recorded,
            table: Table::new(&recorded.stacks),
            profile,
            processes: HashMap::new(),
            threads: HashMap::new(),
            categories: HashMap::new(),
            stacks: HashMap::new(),
            weights_ns: vec![0],
        }
    }

    fn add(&mut self, absence: &Absence, parts: &[Part]) {
        let thread = self.thread(absence.tgid, absence.tid);
        let (kernel, user) = self.table.of(absence);
        for (place, part) in parts.iter().enumerate() {
            let stack = self.stack(thread, part.cause, kernel, user);
            let end = MonoNanos(part.start.0.saturating_add(part.ns));
            let (start_time, end_time) = (self.time(part.start), self.time(end));
            // More than 32 bits count would not fit into memory.
            let weight = self.weights_ns.len() as i32;
            self.weights_ns.push(part.ns);
            self.profile.add_sample(thread, start_time, stack, CpuDelta::ZERO, weight);
            let goes_on = parts.get(place + 1).is_some_and(|next| next.start == end);
            if !goes_on {
                // The thread had a CPU, or the time is not shown.
                self.profile.add_sample(thread, end_time, None, CpuDelta::ZERO, 0);
            }
            let category = self.category(part.cause);
            let cause = self.profile.intern_string(part.cause.name());
            let timing = MarkerTiming::Interval(start_time, end_time);
            let marker = self.profile.add_marker(thread, timing, Away { cause, category });
            self.profile.set_marker_stack(thread, marker, stack);
        }
    }

    fn time(&self, time: MonoNanos) -> Timestamp {
        Timestamp::from_nanos_since_reference(time.since(self.recorded.run.start_ns))
    }

    fn thread(&mut self, tgid: Tgid, tid: Tid) -> ThreadHandle {
        if let Some(thread) = self.threads.get(&tid) {
            return *thread;
        }
        let Self { recorded, profile, processes, .. } = self;
        let begin = Timestamp::from_nanos_since_reference(0);
        let process = *processes
            .entry(tgid)
            .or_insert_with(|| profile.add_process(&recorded.process(tgid), tgid.0, begin));
        let thread = profile.add_thread(process, tid.0, begin, tid.0 == tgid.0);
        profile.set_thread_name(thread, &recorded.thread(tid));
        profile.set_thread_samples_weight_type(thread, WeightType::TracingMs);
        self.threads.insert(tid, thread);
        thread
    }

    fn category(&mut self, cause: Cause) -> CategoryHandle {
        let profile = &mut self.profile;
        *self.categories.entry(cause).or_insert_with(|| {
            let color = match cause {
                Cause::UNEXPLAINED => CategoryColor::Gray,
                cause => COLORS[cause.index() % COLORS.len()],
            };
            profile.add_category(cause.name(), color)
        })
    }

    fn stack(
        &mut self,
        thread: ThreadHandle,
        cause: Cause,
        kernel: u32,
        user: u32,
    ) -> Option<StackHandle> {
        let key = (thread, cause, kernel, user);
        if let Some(stack) = self.stacks.get(&key) {
            return *stack;
        }
        let category_pair = CategoryPairHandle::from(self.category(cause));
        let (kernel, user) = (self.table.places(kernel), self.table.places(user));
        let kernel = kernel.iter().rev().map(|place| place.name() + KERNEL);
        let names: Vec<String> =
            user.iter().rev().map(|place| place.name()).chain(kernel).collect();
        let frames: Vec<FrameInfo> = names
            .iter()
            .map(|name| FrameInfo {
                frame: Frame::Label(self.profile.intern_string(name)),
                category_pair,
                flags: FrameFlags::empty(),
            })
            .collect();
        let stack = self.profile.intern_stack_frames(thread, frames.into_iter());
        self.stacks.insert(key, stack);
        stack
    }

    /// The JSON, in which the weights are milliseconds. The samples have no CPU time: with zeros, the profiler would
    /// draw a thread that never does anything.
    fn finish(self) -> serde_json::Result<String> {
        let mut json = serde_json::to_value(&self.profile)?;
        let threads = json.get_mut("threads").and_then(Value::as_array_mut);
        for thread in threads.into_iter().flatten() {
            let Some(samples) = thread.get_mut("samples").and_then(Value::as_object_mut) else {
                continue;
            };
            samples.remove("threadCPUDelta");
            let weights = samples.get_mut("weight").and_then(Value::as_array_mut);
            for weight in weights.into_iter().flatten() {
                let place = weight.as_u64().unwrap_or(0) as usize;
                *weight =
                    Value::from(self.weights_ns.get(place).map_or(0.0, |ns| *ns as f64 / 1e6));
            }
        }
        serde_json::to_string(&json)
    }
}
