//! The memory the maps will take, computed before anything is loaded, by the numbers the maps are
//! then made with.

use observer_ebpf::wire::{
    CGROUP_SLOTS_MAX, Config, Counts, Histogram, MemoryState, PID_MAX_LIMIT, SERIES, SOCKET_SLOTS,
    SocketEntry, TaskState,
};

use super::load::Shape;

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

/// How the kernel lays a map out.
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

/// All maps for this host.
#[must_use]
pub fn plan(ring_bytes: u32) -> Vec<MapPlan> {
    of_shape(Shape::of_host(), ring_bytes)
}

pub(super) fn of_shape(shape: Shape, ring_bytes: u32) -> Vec<MapPlan> {
    use Layout::{Array, Ring};
    let Shape { cpus, cgroup_slots, task_slots } = shape;
    let histograms = (cpus * cgroup_slots * SERIES) as u32;
    let sized = |map: MapPlan| MapPlan { sized_at_load: true, ..map };
    vec![
        sized(map("RING", Ring, ring_bytes, 1)),
        sized(map("TASKS", Array, task_slots, size_of::<TaskState>())),
        sized(map("MEMORY", Array, task_slots, size_of::<MemoryState>())),
        sized(map("HISTOGRAMS", Array, histograms, size_of::<Histogram>())),
        map("CGROUPS", Array, 1, CGROUP_SLOTS_MAX as usize * 8),
        map("TARGETS", Array, PID_MAX_LIMIT / 64, 8),
        map("SOCKETS", Array, SOCKET_SLOTS, size_of::<SocketEntry>()),
        sized(map("COUNTS", Array, cpus as u32, size_of::<Counts>())),
        map("CONFIG", Array, 1, size_of::<Config>()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_however_large_the_host() {
        let largest = Shape { cpus: 512, cgroup_slots: 4, task_slots: 1 << 17 };
        let bytes: u64 = of_shape(largest, 8 << 20).iter().map(|map| map.bytes).sum();
        assert!(bytes < 160 << 20, "{bytes}");
    }

    #[test]
    fn a_map_takes_at_least_its_values() {
        for map in plan(8 << 20) {
            assert!(map.bytes >= u64::from(map.entries), "{map:?}");
        }
    }
}
