//! Where the programs keep what they know about each thread: in tables indexed by thread id, or in
//! the kernel's task-local storage.
//!
//! A table is the faster of the two (docs/OVERHEAD.md), and it is exact as long as no two live
//! threads share an entry. That cannot happen where `pid_max` is not above the size of the table.

use std::collections::BTreeSet;
use std::fmt::Write;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported};
use object::{Object, ObjectSection};
use observer_ebpf::wire::TASK_SLOTS_MAX;

use super::attach::Choices;
use super::btf::{Btf, BtfError};
use crate::host::system;
use crate::probe::{Attach, PROBES, PerThread, Probe, ProbeOptions, Program, ThreadState};

/// All states, each with the probe that owns it.
fn states() -> impl Iterator<Item = (&'static Probe, &'static PerThread)> {
    PROBES.into_iter().filter_map(|probe| Some((probe, probe.per_thread.as_ref()?)))
}

/// The choice for the state of each probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadPlaces {
    /// The probes whose state is in task-local storage.
    stored: BTreeSet<&'static str>,
    /// Why none of them is.
    pub(super) why: Option<String>,
}

impl ThreadPlaces {
    /// Everything in tables.
    #[must_use]
    pub fn tables(why: &str) -> Self {
        Self { stored: BTreeSet::new(), why: Some(why.to_owned()) }
    }

    /// Chooses for this host.
    #[must_use]
    pub fn of_host(probes: &ProbeOptions) -> Self {
        let own = if probes.btf.is_none() { Btf::of_kernel().ok() } else { None };
        Self::choose(probes.thread_state, own.as_ref())
    }

    /// Chooses for this kernel, by its own types (`None` when the verifier does not know them).
    pub(super) fn choose(asked: ThreadState, own: Option<&Btf>) -> Self {
        if asked == ThreadState::Tables {
            return Self::tables("tables were asked for");
        }
        if asked == ThreadState::Auto && system::pid_max() <= TASK_SLOTS_MAX {
            return Self::tables("no two threads share an entry");
        }
        if let Err(why) = own.ok_or("the types are not the kernel's own".to_owned()).and_then(works)
        {
            return Self::tables(&why);
        }
        let all = asked == ThreadState::Storage;
        let stored = states().filter(|(_, state)| all || !state.hot).map(|(probe, _)| probe.name);
        Self { stored: stored.collect(), why: None }
    }

    /// Each state, and whether it is in task-local storage.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&'static PerThread, bool)> {
        states().map(|(probe, state)| (state, self.is_stored(probe)))
    }

    /// Whether the state of this probe is in task-local storage.
    pub(super) fn is_stored(&self, probe: &Probe) -> bool {
        self.stored.contains(probe.name)
    }

    /// Whether anything is in task-local storage.
    pub(super) fn any_stored(&self) -> bool {
        !self.stored.is_empty()
    }

    /// The places to load again with, if a probe was attached by a tier whose programs cannot reach
    /// its state in task-local storage.
    pub(super) fn for_choices(&self, choices: &Choices) -> Option<Self> {
        let mut places = self.clone();
        for (probe, _) in states().filter(|(_, state)| state.of_arguments) {
            let tier = choices.get(probe.name).and_then(|choice| choice.tier);
            let untyped = |program: &Program| {
                matches!(program.attach, Attach::RawTracepoint(..) | Attach::Kprobe(_))
            };
            if tier.is_some_and(|tier| tier.programs.iter().any(untyped)) {
                places.stored.remove(probe.name);
            }
        }
        (places != *self).then_some(places)
    }

    /// Where the state of the threads is, in a few words.
    #[must_use]
    pub fn text(&self) -> String {
        if !self.any_stored() {
            return "tables".to_owned();
        }
        let mut text = String::new();
        for (place, wanted) in [("task-local storage", true), ("tables", false)] {
            let probes: Vec<_> = states()
                .filter(|(probe, _)| self.is_stored(probe) == wanted)
                .map(|(probe, _)| probe.name)
                .collect();
            if !probes.is_empty() {
                let before = if text.is_empty() { "" } else { "; " };
                let _ = write!(text, "{before}{place}: {}", probes.join(", "));
            }
        }
        text
    }

    /// Why nothing is in task-local storage.
    #[must_use]
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }
}

/// Whether task-local storage can be used in the scheduler: a storage must be made without the page
/// allocator there, which a run queue's lock forbids. The kernel does so by `bpf_mem_alloc` since
/// Linux 6.4, and later by `kmalloc_nolock`.
fn works(btf: &Btf) -> Result<(), String> {
    let allocates_anywhere = ["selem_ma", "use_kmalloc_nolock"]
        .into_iter()
        .any(|member| btf.offset_of("bpf_local_storage_map", member).is_ok());
    if !allocates_anywhere {
        return Err("task-local storage may fail in the scheduler before Linux 6.4".into());
    }
    let map = is_map_supported(MapType::TaskStorage).map_err(|error| error.to_string())?;
    let helper =
        is_helper_supported(ProgramType::RawTracePoint, BpfHelper::BPF_FUNC_task_storage_get);
    if map && helper.map_err(|error| error.to_string())? {
        Ok(())
    } else {
        Err("this kernel has no task-local storage for tracing programs".into())
    }
}

/// `enum bpf_map_type` and flags of `BPF_MAP_CREATE` (include/uapi/linux/bpf.h).
const TASK_STORAGE: u32 = 29;
const NO_PREALLOC: u32 = 1;
const ARRAY: u32 = 2;

/// The object with its maps for task-local storage turned into arrays, for kernels that cannot
/// create such maps. The verifier then removes the code that would use them.
///
/// A map's definition is a struct of pointers to arrays of i32 whose lengths are the numbers.
pub(super) fn without_storage(object: &[u8]) -> Result<Vec<u8>, BtfError> {
    let malformed = BtfError::Malformed;
    let file = object::File::parse(object).map_err(|_| malformed("the object is not ELF"))?;
    let section = file.section_by_name(".BTF").ok_or(malformed("the object has no .BTF"))?;
    let (start, size) = section.file_range().ok_or(malformed("the object's .BTF is empty"))?;
    let start = start as usize;
    let bytes = object.get(start..start + size as usize).ok_or(malformed("cut .BTF"))?;
    let btf = Btf::parse(bytes.to_vec())?;
    let mut changed = object.to_vec();
    for (at, length) in btf.arrays_of("i32") {
        let instead = match length {
            TASK_STORAGE => ARRAY,
            NO_PREALLOC => 0,
            _ => continue,
        };
        changed[start + at..start + at + 4].copy_from_slice(&instead.to_ne_bytes());
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::super::attach::Choice;
    use super::super::load::Shape;
    use super::super::plan;
    use super::*;

    const ALL: [&str; 8] =
        ["runqueue", "fault", "reclaim", "mm_syscall", "kernel_lock", "irq", "sleep", "stack"];

    fn places(stored: &[&'static str]) -> ThreadPlaces {
        ThreadPlaces { stored: stored.iter().copied().collect(), why: None }
    }

    #[test]
    fn a_place_is_told_in_words() {
        assert_eq!(ThreadPlaces::tables("no").text(), "tables");
        let some = places(&["mm_syscall", "reclaim"]);
        let text = "task-local storage: reclaim, mm_syscall; tables: runqueue, fault, kernel_lock, \
                    irq, sleep, stack";
        assert_eq!(some.text(), text);
        let all = "task-local storage: runqueue, fault, reclaim, mm_syscall, kernel_lock, irq, \
                   sleep, stack";
        assert_eq!(places(&ALL).text(), all);
    }

    #[test]
    fn a_state_takes_memory_in_one_place_only() {
        let shape = Shape::new(2, 1 << 30, 1 << 22, false);
        let some = places(&ALL[2..]);
        let maps = plan::of_shape(shape, 1 << 20, &some);
        for (state, stored) in some.iter() {
            let map = |name| maps.iter().find(|map| map.name == name).expect("a map");
            let (table, storage) = (map(state.table), map(state.storage));
            assert_eq!(table.entries, if stored { 1 } else { TASK_SLOTS_MAX }, "{table:?}");
            assert_eq!(storage.thread_bytes > 0, stored, "{storage:?}");
        }
        let tables = plan::of_shape(shape, 1 << 20, &ThreadPlaces::tables("no"));
        assert!(tables.iter().all(|map| map.thread_bytes == 0));
    }

    #[test]
    fn tables_are_chosen_where_task_local_storage_cannot_be_used() {
        let asked = |state| ThreadPlaces::choose(state, None);
        assert!(!asked(ThreadState::Storage).any_stored());
        assert!(asked(ThreadState::Tables).why().is_some());
    }

    #[test]
    fn untyped_tasks_force_tables_on_the_state_of_other_tasks() {
        let choose = |probe: &str, tier: &str| {
            let row = PROBES.iter().find(|row| row.name == probe).expect("a probe");
            let tier = row.tiers.iter().find(|row| row.name == tier);
            (row.name, Choice { tier, offers: Vec::new(), refused: Vec::new() })
        };
        let all = places(&ALL);
        for tier in ["tp_btf", "tp_btf_pair"] {
            assert_eq!(all.for_choices(&[choose("runqueue", tier)].into()), None, "{tier}");
        }
        for tier in ["raw_tracepoint", "raw_tracepoint_pair"] {
            let moved = all.for_choices(&[choose("runqueue", tier)].into());
            assert_eq!(moved, Some(places(&ALL[1..])), "{tier}");
        }
        assert_eq!(all.for_choices(&[choose("fault", "raw_tracepoint")].into()), None);
    }

    #[test]
    fn the_object_without_storage_has_only_arrays_instead() {
        let changed = without_storage(super::super::load::OBJECT).expect("an object");
        let lengths = |object: &[u8]| {
            let file = object::File::parse(object).expect("ELF");
            let section = file.section_by_name(".BTF").expect("BTF").data().expect("bytes");
            let btf = Btf::parse(section.to_vec()).expect("BTF");
            btf.arrays_of("i32").map(|(_, length)| length).collect::<Vec<_>>()
        };
        assert!(lengths(super::super::load::OBJECT).contains(&TASK_STORAGE));
        assert!(!lengths(&changed).contains(&TASK_STORAGE));
        assert_eq!(changed.len(), super::super::load::OBJECT.len());
    }
}
