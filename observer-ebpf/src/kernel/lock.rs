//! Locks of the kernel: the one of an address space, and who has it.

use observer_ebpf::wire::{NO_SYSCALL, OWNER_FLAGS, READER_OWNED};

use super::{Pointer, Task};
use crate::config;

impl Task {
    /// Address of the lock of its address space (`mm_struct::mmap_lock`).
    #[inline(always)]
    pub(crate) fn mmap_lock(self) -> u64 {
        self.field::<u64>(config::off_task_mm()).wrapping_add(u64::from(config::off_mm_lock()))
    }

    /// Number of the system call that it is in, or [`NO_SYSCALL`]: in an exception or an interrupt, or in
    /// none.
    #[inline(always)]
    pub(crate) fn syscall(self) -> u32 {
        match self.saved_registers().map(|registers| registers.number()) {
            // -1 in an exception, and more than 32 bits are no system call.
            Some(number) if number < 1 << 31 => number as u32,
            _ => NO_SYSCALL,
        }
    }
}

/// The thread that has a reader-writer semaphore for writing; nothing where readers have it, or the kernel does not
/// tell.
#[inline(always)]
pub(crate) fn write_owner(semaphore: u64) -> Option<Task> {
    if config::off_rwsem_owner() == 0 {
        return None;
    }
    let semaphore = Pointer { address: semaphore as *const u8, typed: false };
    let owner: u64 = semaphore.load(config::off_rwsem_owner());
    let task = owner & !OWNER_FLAGS;
    (task != 0 && owner & READER_OWNED == 0).then_some(Task::at(task))
}
