//! The memory the maps will take, computed before anything is loaded, from the same numbers that
//! the maps are then created with.

use observer_ebpf::wire::{
    CgroupHistogram, CgroupTable, Config, Counts, FaultState, Histogram, MmSyscallState,
    PID_MAX_LIMIT, ReclaimState, RunqueueState, SCOPES, SOCKET_SLOTS, Slot, SocketEntry, UPROBE_COUNTERS,
};

use super::load::Shape;
use super::messages;

/// One map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapPlan {
    /// Its name in the object.
    pub name: &'static str,
    /// Entries it is made with (bytes, for the ring).
    pub entries: u32,
    /// Kernel memory, as the kernel accounts it.
    pub bytes: u64,
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
}

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
    };
    MapPlan { name, entries, bytes, sized_at_load: false }
}

/// All maps for this host; `by_cgroup` as in [`LoadOptions`](super::LoadOptions).
#[must_use]
pub fn plan(ring_bytes: u32, by_cgroup: bool) -> Vec<MapPlan> {
    of_shape(Shape::of_host(by_cgroup), ring_bytes)
}

pub(super) fn of_shape(shape: Shape, ring_bytes: u32) -> Vec<MapPlan> {
    use Layout::{Array, Ring};
    let Shape { cpus, series, cgroup_rows, task_slots, .. } = shape;
    let histograms = (cpus * SCOPES * series) as u32;
    // A map has at least one entry.
    let cgroup_histograms = (shape.cgroup_stripes() * cgroup_rows * series).max(1) as u32;
    let sized = |map: MapPlan| MapPlan { sized_at_load: true, ..map };
    vec![
        sized(map("RING", Ring, ring_bytes, 1)),
        sized(map("RUNQUEUE", Array, task_slots, size_of::<Slot<RunqueueState>>())),
        sized(map("FAULTS", Array, task_slots, size_of::<Slot<FaultState>>())),
        sized(map("MM_SYSCALLS", Array, task_slots, size_of::<Slot<MmSyscallState>>())),
        sized(map("RECLAIMS", Array, task_slots, size_of::<Slot<ReclaimState>>())),
        sized(map("HISTOGRAMS", Array, histograms, size_of::<Histogram>())),
        sized(map("CGROUP_HISTOGRAMS", Array, cgroup_histograms, size_of::<CgroupHistogram>())),
        map("CGROUPS", Array, 1, size_of::<CgroupTable>()),
        map("TARGETS", Array, PID_MAX_LIMIT / 64, 8),
        map("SOCKETS", Array, SOCKET_SLOTS, size_of::<SocketEntry>()),
        sized(map("COUNTS", Array, cpus as u32, size_of::<Counts>())),
        map("UPROBE_CALLS", Array, UPROBE_COUNTERS, 8),
        map("CONFIG", Array, 1, size_of::<Config>()),
        sized(map("AYA_LOGS", Ring, messages::ring_bytes(), 1)),
    ]
}

#[cfg(test)]
mod tests {
    use observer_ebpf::wire::{CGROUP_ROWS_MAX, SERIES_PLANNED};

    use super::*;

    const GIB: u64 = 1 << 30;

    fn shape(cpus: usize, memory_bytes: u64) -> Shape {
        Shape::new(cpus, memory_bytes, 1 << 17, SERIES_PLANNED, true)
    }

    fn bytes(shape: Shape) -> u64 {
        of_shape(shape, 8 << 20).iter().map(|map| map.bytes).sum()
    }

    #[test]
    fn memory_is_bounded_however_large_the_host() {
        for cpus in [1, 2, 3, 8, 31, 128, 511, 512] {
            let shape = shape(cpus, cpus as u64 * 2 * GIB);
            assert_eq!(shape.cgroup_rows, CGROUP_ROWS_MAX, "{cpus} CPUs");
            let own = cpus as u64 * SCOPES as u64 * SERIES_PLANNED as u64 * 2048;
            let bytes = bytes(shape);
            assert!(bytes < own + (112 << 20), "{bytes} on {cpus} CPUs");
            let stripes = shape.cgroup_stripes();
            assert!(stripes << shape.cgroup_stripe_shift >= cpus, "each CPU has a stripe");
        }
    }

    #[test]
    fn a_small_host_pays_by_its_memory() {
        let usual = shape(2, GIB);
        assert_eq!((usual.cgroup_rows, usual.cgroup_stripes()), (CGROUP_ROWS_MAX, 2));
        let small = shape(2, GIB / 3);
        assert_eq!((small.cgroup_rows, small.cgroup_stripes()), (CGROUP_ROWS_MAX, 1));
        let least = shape(1, 64 << 20);
        assert!(least.cgroup_rows >= 16 && least.cgroup_rows < CGROUP_ROWS_MAX / 2, "{least:?}");
        let without = Shape::new(2, GIB, 1 << 17, SERIES_PLANNED, false);
        assert!(bytes(without) + (8 << 20) < bytes(usual));
    }

    #[test]
    fn a_map_takes_at_least_its_values() {
        for map in plan(8 << 20, true) {
            assert!(map.bytes >= u64::from(map.entries), "{map:?}");
        }
    }
}
