//! The numbers of each probe: its kinds of record, its series and its counters. A new kind, series or
//! counter is one line in the block of its probe; a new probe is one block at the end.

macro_rules! probes {
    ($(
        $probe:ident {
            records { $($(#[$of_record:meta])* $record:ident $name:literal,)* }
            series { $($(#[$of_series:meta])* $series:ident,)* }
            counters { $($(#[$of_counter:meta])* $counter:ident,)* }
        }
    )*) => {
        /// What a record is about: the `kind` of [`Header`](super::Header), the index of the floors,
        /// and (where one exists) of the loss and delivery counters.
        #[repr(u16)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum RecordKind {
            $($($(#[$of_record])* $record,)*)*
        }

        impl RecordKind {
            /// All kinds, in the order of their numbers.
            pub const ALL: [Self; [$($($name,)*)*].len()] = [$($(Self::$record,)*)*];

            /// The name used in every output (metrics label, summary key, trace column).
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $($(Self::$record => $name,)*)*
                }
            }

            /// The kind with this number.
            #[must_use]
            pub const fn from_raw(raw: u16) -> Option<Self> {
                if (raw as usize) < Self::ALL.len() { Some(Self::ALL[raw as usize]) } else { None }
            }
        }

        /// Which distribution: the index of a [`Histogram`](super::Histogram) among the series of one
        /// scope or cgroup.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Series {
            $($($(#[$of_series])* $series,)*)*
        }

        impl Series {
            /// All series, in the order of their numbers.
            pub const ALL: [Self; [$($(stringify!($series),)*)*].len()] = [$($(Self::$series,)*)*];
        }

        /// A count that is no distribution: an index into
        /// [`Counts::counters`](super::Counts::counters).
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Counter {
            $($($(#[$of_counter])* $counter,)*)*
        }

        impl Counter {
            /// All counters, in the order of their numbers.
            pub const ALL: [Self; [$($(stringify!($counter),)*)*].len()] = [$($(Self::$counter,)*)*];
        }
    };
}

probes! {
    runqueue {
        records {
            /// Wake-up (or preemption) to running; body [`RunqueueRecord`](super::RunqueueRecord).
            Runqueue "runqueue",
        }
        series {
            /// Wake-up to running.
            RunqueueWakeup,
            /// Preempted to running.
            RunqueuePreempt,
        }
        counters {
            /// Nanoseconds of sleep that the kernel counted as waits of the target
            /// ([`LossKind::SleepBookedAsWait`](super::LossKind::SleepBookedAsWait)).
            TargetSleepBookedNs,
            /// Waits of the target in which the CPU limit of a cgroup held the thread.
            TargetThrottledWaits,
            /// Nanoseconds for which it did.
            TargetThrottledNs,
            /// Times a thread of the target got the CPU without an event; its wait and its sleep were completed
            /// when it left the CPU.
            TargetUnseenArrivals,
        }
    }
    fault {
        records {
            /// Page fault; body [`FaultRecord`](super::FaultRecord).
            Fault "fault",
            /// Minor faults below the floor; body [`FaultBurstRecord`](super::FaultBurstRecord).
            FaultBurst "fault_burst",
        }
        series {
            /// Minor fault taken in user mode.
            FaultMinorUser,
            /// Minor fault taken in kernel mode (a copy to or from user memory).
            FaultMinorKernel,
            /// Major fault taken in user mode.
            FaultMajorUser,
            /// Major fault taken in kernel mode.
            FaultMajorKernel,
            /// Fault in user mode that was counted as minor before it was known to be major. It is
            /// counted a second time here, so that nothing has to be subtracted in the kernel, where
            /// the thread may be on another CPU by then; user space moves it.
            FaultCorrectedUser,
            /// The same for faults in kernel mode.
            FaultCorrectedKernel,
        }
        counters {
            /// Faults that the kernel handled on behalf of a thread without an exception
            /// (get_user_pages); their latency is not known.
            FaultsWithoutException,
        }
    }
    reclaim {
        records {
            /// Direct or memcg reclaim; body [`ReclaimRecord`](super::ReclaimRecord).
            Reclaim "reclaim",
            /// Compaction; body [`CompactionRecord`](super::CompactionRecord).
            Compaction "compaction",
        }
        series {
            /// Direct reclaim for the whole host.
            ReclaimDirect,
            /// Reclaim against a memory cgroup's limit.
            ReclaimMemcg,
            /// Direct compaction.
            Compaction,
        }
        counters {
            /// kswapd was woken.
            KswapdWakeups,
        }
    }
    mm_syscall {
        records {
            /// mmap, munmap, mremap, brk, mprotect, madvise; body
            /// [`MmSyscallRecord`](super::MmSyscallRecord).
            MmSyscall "mm_syscall",
            /// Such calls below the floor; body
            /// [`MmSyscallBurstRecord`](super::MmSyscallBurstRecord).
            MmSyscallBurst "mm_syscall_burst",
        }
        series {
            /// mmap(2).
            Mmap,
            /// munmap(2).
            Munmap,
            /// mremap(2).
            Mremap,
            /// brk(2).
            Brk,
            /// mprotect(2).
            Mprotect,
            /// madvise(2).
            Madvise,
        }
        counters {}
    }
    socket {
        records {
            /// Socket release, with lifetime; body [`SocketRecord`](super::SocketRecord).
            Socket "socket",
            /// A system call that makes a descriptor failed because a resource was used up; body
            /// [`FdFailureRecord`](super::FdFailureRecord).
            FdFailure "fd_failure",
        }
        series {
            /// Socket creation (or acceptance) to release.
            SocketLifetime,
        }
        // Failures have a table of counters: see `FD_FAILURES`.
        counters {
            /// IP sockets created, all tasks.
            SocketsCreated,
            /// IP sockets accepted, all tasks.
            SocketsAccepted,
            /// IP sockets released, all tasks.
            SocketsReleased,
            /// IP sockets created by the target.
            TargetSocketsCreated,
            /// IP sockets accepted by the target.
            TargetSocketsAccepted,
            /// IP sockets of the target released.
            TargetSocketsReleased,
        }
    }
    task {
        records {
            /// Fork, exec or exit; body [`TaskRecord`](super::TaskRecord).
            Task "task",
        }
        series {}
        counters {}
    }
    softirq {
        records {
            /// A soft interrupt in a thread's time; body [`SoftirqRecord`](super::SoftirqRecord).
            Softirq "softirq",
        }
        series {
            /// TIMER and HRTIMER.
            SoftirqTimer,
            /// NET_TX.
            SoftirqNetTx,
            /// NET_RX.
            SoftirqNetRx,
            /// BLOCK and IRQ_POLL.
            SoftirqBlock,
            /// SCHED.
            SoftirqSched,
            /// RCU.
            SoftirqRcu,
            /// HI and TASKLET.
            SoftirqOther,
        }
        counters {}
    }
    request {
        records {
            /// A request that the target served; body [`RequestRecord`](super::RequestRecord).
            Request "request",
            /// A request that the target made of another service; body
            /// [`OutgoingRecord`](super::OutgoingRecord).
            Outgoing "outgoing_request",
        }
        series {
            /// A connection was established, until accept(2) returned it.
            AcceptQueueWait,
            /// Arrival of the first byte in the socket to the first read.
            RequestSocketWait,
            /// First read to first write.
            RequestService,
        }
        counters {
            /// Requests of which the target read a first byte.
            Requests,
            /// Bytes that it read of them.
            RequestBytesIn,
            /// Bytes that it sent after it had read.
            RequestBytesOut,
            /// Writes to a connection of which nothing had been read before: a greeting, or the rest of
            /// what was requested before the probe was attached.
            RequestOtherSends,
            /// Requests that the target made of other services, and that were answered.
            OutgoingRequests,
        }
    }
    kernel_lock {
        records {
            /// A wait for a lock of the kernel; body [`KernelLockRecord`](super::KernelLockRecord).
            KernelLock "kernel_lock",
        }
        series {
            /// For the address space, for reading.
            KernelLockMmapRead,
            /// For the address space, for writing.
            KernelLockMmapWrite,
            /// For any other lock.
            KernelLockOther,
        }
        counters {}
    }
    sleep {
        records {
            /// A thread that serves requests slept; body [`SleepRecord`](super::SleepRecord).
            Sleep "sleep",
        }
        series {
            /// A signal could have ended it, and it was not for a lock.
            SleepInterruptible,
            /// The same, for a lock ([`is_lock`](super::is_lock)).
            SleepLock,
            /// Signals could not, and it was not for block I/O.
            SleepUninterruptible,
            /// For block I/O.
            SleepIo,
            /// Stopped or traced.
            SleepStopped,
        }
        counters {}
    }
    irq {
        records {
            /// A hard interrupt in a thread's time; body [`IrqRecord`](super::IrqRecord).
            Irq "irq",
            /// Hard interrupts below the floor; body [`IrqBurstRecord`](super::IrqBurstRecord).
            IrqBurst "irq_burst",
        }
        series {
            /// From a device.
            IrqDevice,
            /// From the timer of the CPU.
            IrqTimer,
            /// From another CPU, to call a function.
            IrqCall,
            /// The same, to flush the CPU's TLB.
            IrqTlbShootdown,
            /// From another CPU, which has put a thread into this one's queue.
            IrqReschedule,
            /// From the CPU itself, for delayed work.
            IrqWork,
        }
        counters {}
    }
    stack {
        records {
            /// A thread was away from the CPU; body [`StackRecord`](super::StackRecord).
            Stack "stack",
        }
        series {}
        counters {
            /// Times that a thread of the target was away from the CPU, however short.
            TargetAbsences,
        }
    }
}

/// Entries of [`Counts::counters`](super::Counts::counters): the counters of the blocks above, then
/// the table of failures. A power of two, since the programs mask the index.
pub const COUNTER_SLOTS: usize = 64;

const _: () = assert!(RecordKind::ALL.len() <= super::KIND_SLOTS);
