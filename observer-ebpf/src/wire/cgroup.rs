//! The cgroup table: which histogram slot a cgroup uses.

/// The catch-all slot, used when the table is full; never assigned to a cgroup.
pub const CGROUP_SLOT_OTHER: u32 = 0;

/// The slot of the target's processes, whatever their cgroup; never assigned to a cgroup.
pub const CGROUP_SLOT_TARGET: u32 = 1;

/// First slot that is assigned to a cgroup.
pub const CGROUP_SLOT_FIRST: u32 = 2;

/// Slots looked at before a cgroup is counted under [`CGROUP_SLOT_OTHER`].
pub const CGROUP_PROBES: u32 = 4;

/// Largest number of cgroup slots; the loader may use fewer to keep within its memory budget.
/// A power of two.
pub const CGROUP_SLOTS_MAX: u32 = 64;
