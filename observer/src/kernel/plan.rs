//! The memory the maps will take, computed before anything is loaded, from the same numbers that
//! the maps are then created with.

use observer_ebpf::wire::{
    CgroupHistogram, CgroupTable, Config, Counts, GENERATOR_EVENTS, GENERATOR_PROCESSES,
    GeneratorEvent, Histogram, PID_MAX_LIMIT, SCOPES, SERIES, STACK_FRAMES, STACKS_MAX,
    UPROBE_COUNTERS,
};

use super::load::Shape;
use super::messages;
use super::thread_state::ThreadPlaces;
use crate::probe::{Entries, PROBES, ProbeMap};

/// One map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapPlan {
    /// Its name in the object.
    pub name: &'static str,
    /// Entries it is made with (bytes, for the ring).
    pub entries: u32,
    /// Kernel memory, as the kernel accounts it.
    pub bytes: u64,
    /// More kernel memory for each live thread that the map has a value for; the kernel does not
    /// account it to the map.
    pub thread_bytes: u64,
    /// Its size is not the object's own, and is set at load.
    pub(super) sized_at_load: bool,
}

/// The kernel's layout of a map.
#[derive(Clone, Copy)]
enum Layout {
    /// `array_map_mem_usage` (kernel/bpf/arraymap.c); values are rounded up to eight bytes.
    Array,
    /// `ringbuf_map_mem_usage` (kernel/bpf/ringbuf.c): the data, mapped twice, and its pages'
    /// pointers.
    Ring,
    /// `stack_map_mem_usage` (kernel/bpf/stackmap.c): `struct bpf_stack_map`, rounded up, and for each
    /// stack a pointer, a header and its frames.
    Stacks,
    /// `local_storage_map_mem_usage` (kernel/bpf/bpf_local_storage.c): `struct
    /// bpf_local_storage_map`, rounded up, and two buckets a CPU or more. Values are allocated one
    /// by one.
    TaskStorage,
}

/// `struct bpf_local_storage_elem` without the value, and what the allocator adds.
const STORAGE_ELEMENT_BYTES: usize = 80;

/// `struct bpf_local_storage`, one for each thread that has a value in any map, as allocated.
const LOCAL_STORAGE_BYTES: u64 = 256;

/// `struct bpf_array`, rounded up.
const ARRAY_HEADER_BYTES: u64 = 512;

fn map(name: &'static str, layout: Layout, entries: u32, value_bytes: usize) -> MapPlan {
    let page = rustix::param::page_size() as u64;
    let whole_pages = |bytes: u64| bytes.next_multiple_of(page);
    let values = u64::from(entries) * (value_bytes as u64).next_multiple_of(8);
    let bytes = match layout {
        Layout::Array => whole_pages(ARRAY_HEADER_BYTES + values),
        Layout::Ring => {
            // One page of the kernel's own, and one each for the two positions.
            let pages = u64::from(entries).div_ceil(page);
            3 * page + whole_pages(u64::from(entries)) + (3 + 2 * pages) * 8
        }
        Layout::Stacks => ARRAY_HEADER_BYTES + u64::from(entries) * 24 + values,
        Layout::TaskStorage => 1024,
    };
    let thread_bytes = match layout {
        // The allocator's next size, at most.
        Layout::TaskStorage => (STORAGE_ELEMENT_BYTES + value_bytes).next_multiple_of(64) as u64,
        _ => 0,
    };
    MapPlan { name, entries, bytes, thread_bytes, sized_at_load: false }
}

/// All maps for this host; `by_cgroup` as in [`LoadOptions`](super::LoadOptions).
#[must_use]
pub fn plan(ring_bytes: u32, by_cgroup: bool, places: &ThreadPlaces) -> Vec<MapPlan> {
    of_shape(Shape::of_host(by_cgroup), ring_bytes, places)
}

/// What the table of stacks takes when stacks are watched, in addition to the [`plan`].
#[must_use]
pub fn stacks_bytes() -> u64 {
    stacks(STACKS_MAX).bytes
}

fn stacks(entries: u32) -> MapPlan {
    let map = map("STACKS", Layout::Stacks, entries, STACK_FRAMES * 8);
    MapPlan { sized_at_load: true, ..map }
}

pub(super) fn of_shape(shape: Shape, ring_bytes: u32, places: &ThreadPlaces) -> Vec<MapPlan> {
    use Layout::{Array, Ring, TaskStorage};
    let Shape { cpus, cgroup_rows, task_slots, stacks: has_stacks, .. } = shape;
    let histograms = (cpus * SCOPES * SERIES) as u32;
    // A map has at least one entry.
    let cgroup_histograms = (shape.cgroup_stripes() * cgroup_rows * SERIES).max(1) as u32;
    let sized = |map: MapPlan| MapPlan { sized_at_load: true, ..map };
    // Of a state's two maps one is in use, and the other as small as possible.
    let states = places.iter().flat_map(|(state, stored)| {
        let (slots, layout, entries) = match (stored, places.any_stored()) {
            (true, _) => (1, TaskStorage, 0),
            (false, true) => (task_slots, TaskStorage, 0),
            (false, false) => (task_slots, Array, 1),
        };
        let storage = sized(map(state.storage, layout, entries, state.stored_bytes));
        let thread_bytes = if stored { storage.thread_bytes } else { 0 };
        [
            sized(map(state.table, Array, slots, state.slot_bytes)),
            MapPlan { thread_bytes, ..storage },
        ]
    });
    let of_probe = |own: &ProbeMap| match own.entries {
        Entries::PerCpu => sized(map(own.name, Array, cpus as u32, own.value_bytes)),
        Entries::Fixed(entries) => map(own.name, Array, entries, own.value_bytes),
    };
    let others = [
        sized(map("RING", Ring, ring_bytes, 1)),
        sized(map("HISTOGRAMS", Array, histograms, size_of::<Histogram>())),
        sized(map("CGROUP_HISTOGRAMS", Array, cgroup_histograms, size_of::<CgroupHistogram>())),
        map("CGROUPS", Array, 1, size_of::<CgroupTable>()),
        map("TARGETS", Array, PID_MAX_LIMIT / 64, 8),
        sized(map("COUNTS", Array, cpus as u32, size_of::<Counts>())),
        map("UPROBE_CALLS", Array, UPROBE_COUNTERS, 8),
        map("GENERATOR", Array, GENERATOR_EVENTS, size_of::<GeneratorEvent>()),
        map("GENERATOR_CONNECTIONS", Array, GENERATOR_PROCESSES, 8),
        map("CONFIG", Array, 1, size_of::<Config>()),
        stacks(if has_stacks { STACKS_MAX } else { 1 }),
        sized(map("AYA_LOGS", Ring, messages::ring_bytes(), 1)),
    ];
    let mut maps: Vec<MapPlan> = others.into_iter().chain(states).collect();
    maps.extend(PROBES.into_iter().flat_map(|probe| probe.maps).map(of_probe));
    if let Some(first) = maps.iter_mut().find(|map| map.thread_bytes > 0) {
        first.thread_bytes += LOCAL_STORAGE_BYTES;
    }
    maps
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::CGROUP_ROWS_MAX;

    use super::*;
    use crate::session::memory::START_BYTES;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    /// Of a daemon, with the `pid_max` that systemd sets.
    fn shape(cpus: usize, memory_bytes: u64) -> Shape {
        Shape::new(cpus, memory_bytes, PID_MAX_LIMIT, true)
    }

    fn tables() -> ThreadPlaces {
        ThreadPlaces::tables("a test")
    }

    fn bytes(shape: Shape) -> u64 {
        of_shape(shape, 8 << 20, &tables()).iter().map(|map| map.bytes).sum()
    }

    fn cgroup_bytes(shape: Shape) -> u64 {
        (shape.cgroup_stripes() * shape.cgroup_rows * SERIES * size_of::<CgroupHistogram>()) as u64
    }

    #[test]
    fn memory_is_bounded_however_large_the_host() {
        for cpus in [1, 2, 3, 8, 31, 128, 511, 512] {
            let shape = shape(cpus, cpus as u64 * 2 * GIB);
            assert_eq!(shape.cgroup_rows, CGROUP_ROWS_MAX, "{cpus} CPUs");
            let own = cpus as u64 * SCOPES as u64 * SERIES as u64 * 2048;
            let bytes = bytes(shape);
            assert!(bytes < own + (130 << 20), "{bytes} on {cpus} CPUs");
            let stripes = shape.cgroup_stripes();
            assert!(stripes << shape.cgroup_stripe_shift >= cpus, "each CPU has a stripe");
        }
    }

    #[test]
    fn a_small_host_pays_by_its_memory() {
        let usual = shape(2, GIB);
        assert_eq!((usual.cgroup_rows, usual.cgroup_stripes()), (CGROUP_ROWS_MAX, 2));
        let small = shape(2, 384 * MIB);
        assert_eq!((small.cgroup_rows, small.cgroup_stripes()), (CGROUP_ROWS_MAX, 1));
        let without = Shape::new(2, GIB, PID_MAX_LIMIT, false);
        assert!(bytes(without) + cgroup_bytes(usual) <= bytes(usual));
    }

    #[test]
    fn the_smallest_host_that_a_daemon_begins_on_has_rows_for_many_cgroups() {
        let begins = |memory: &u64| START_BYTES + bytes(shape(1, *memory)) <= *memory;
        let least = (1..1024).map(|mib| mib * MIB).find(begins).expect("a size");
        let small = shape(1, least);
        assert!(cgroup_bytes(small) <= least / 32, "{small:?} in {least}");
        assert!((256..CGROUP_ROWS_MAX / 2).contains(&small.cgroup_rows), "{small:?} in {least}");
        // Where others hold all memory, it is refused by a plan that it is not loaded with.
        let none = shape(1, 0);
        assert!((16..32).contains(&none.cgroup_rows), "{none:?}");
    }

    #[test]
    fn a_map_takes_at_least_its_values() {
        for by_cgroup in [false, true] {
            for map in plan(8 << 20, by_cgroup, &tables()) {
                assert!(map.bytes >= u64::from(map.entries), "{map:?}");
            }
        }
    }
}
