//! The stacks that the programs have noted, by id.

use aya::maps::{Map, MapData, StackTraceMap};

use super::Kernel;

/// The table of stacks. It can be read as long as it lives, whatever becomes of the programs.
pub struct StackTable(StackTraceMap<MapData>);

impl Kernel {
    /// The table of stacks, for the one who reads it. `None` where stacks are not watched, or when it was
    /// taken before.
    pub fn stacks(&mut self) -> Option<StackTable> {
        self.choice("stack")?.tier?;
        match self.ebpf.take_map("STACKS")? {
            Map::StackTraceMap(map) => StackTraceMap::try_from(Map::StackTraceMap(map))
                .inspect_err(|error| tracing::warn!("cannot read the stacks: {error}"))
                .ok()
                .map(StackTable),
            _ => None,
        }
    }
}

impl StackTable {
    /// The addresses of a stack, the innermost first; `None` where there is none with this id. It takes a
    /// system call.
    #[must_use]
    pub fn frames(&self, id: u32) -> Option<Vec<u64>> {
        let stack = self.0.get(&id, 0).ok()?;
        Some(stack.frames().iter().map(|frame| frame.ip).collect())
    }
}
