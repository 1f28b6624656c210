//! Hard interrupts: of devices, of the CPU's timer, and of other CPUs. They are handled with interrupts off, one at a
//! time on each CPU, in the time of whichever thread is there.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use observer_ebpf::wire::{
    COMM_LEN, IRQ_CALL, IRQ_DEVICE, IRQ_KINDS, IRQ_RESCHEDULE, IRQ_TIMER, IRQ_TLB_SHOOTDOWN,
    IRQ_WORK, IrqCpu, IrqRecord, IrqState, LossKind, RecordKind, TLB_REMOTE_SHOOTDOWN,
};

use crate::{
    burst, emit, histogram,
    kernel::{Arguments, Task, interrupt_name, now_ns},
    task,
};

/// What each CPU is handling (loader).
#[map]
static IRQS: Array<IrqCpu> = Array::with_max_entries(1, BPF_F_MMAPABLE);

tracepoint_programs! {
    /// `irq_handler_entry(irq, action)`
    irq_handler_entry, irq_handler_entry_raw => begun;
    /// `irq_handler_exit(irq, action, ret)`
    irq_handler_exit, irq_handler_exit_raw => device_done;
    /// `local_timer_entry(vector)`
    local_timer_entry, local_timer_entry_raw => begun;
    /// `local_timer_exit(vector)`
    local_timer_exit, local_timer_exit_raw => timer_done;
    /// `call_function_entry(vector)`
    call_function_entry, call_function_entry_raw => begun;
    /// `call_function_exit(vector)`
    call_function_exit, call_function_exit_raw => call_done;
    /// `call_function_single_entry(vector)`
    call_function_single_entry, call_function_single_entry_raw => begun;
    /// `call_function_single_exit(vector)`
    call_function_single_exit, call_function_single_exit_raw => call_done;
    /// `reschedule_entry(vector)`
    reschedule_entry, reschedule_entry_raw => begun;
    /// `reschedule_exit(vector)`
    reschedule_exit, reschedule_exit_raw => reschedule_done;
    /// `irq_work_entry(vector)`
    irq_work_entry, irq_work_entry_raw => begun;
    /// `irq_work_exit(vector)`
    irq_work_exit, irq_work_exit_raw => work_done;
    /// `tlb_flush(reason, pages)`
    tlb_flush, tlb_flush_raw => flushed;
}

/// What this CPU is handling.
#[inline(always)]
fn on_cpu() -> Option<&'static mut IrqCpu> {
    let cpu = IRQS.get_ptr_mut(emit::cpu())?;
    // SAFETY: a map value that only these programs write, on its own CPU, and which no other hard interrupt
    // interrupts.
    Some(unsafe { &mut *cpu })
}

#[inline(always)]
fn begun(_arguments: Arguments) {
    let Some(cpu) = on_cpu() else { return };
    // A handler that calls the handler of another interrupt, behind a controller of its own.
    if cpu.begin_ns != 0 {
        emit::lose_of(LossKind::BeginWithoutEnd, Task::current());
    }
    cpu.flushes = 0;
    cpu.begin_ns = now_ns();
}

/// The TLB of this CPU was flushed.
#[inline(always)]
fn flushed(arguments: Arguments) {
    if arguments.word::<0>() as u32 == TLB_REMOTE_SHOOTDOWN
        && let Some(cpu) = on_cpu()
    {
        cpu.flushes += 1;
    }
}

#[inline(always)]
fn device_done(arguments: Arguments) {
    done(IRQ_DEVICE, arguments.word::<0>() as u32, arguments.word::<1>());
}

#[inline(always)]
fn timer_done(_arguments: Arguments) {
    done(IRQ_TIMER, 0, 0);
}

#[inline(always)]
fn call_done(_arguments: Arguments) {
    done(IRQ_CALL, 0, 0);
}

#[inline(always)]
fn reschedule_done(_arguments: Arguments) {
    done(IRQ_RESCHEDULE, 0, 0);
}

#[inline(always)]
fn work_done(_arguments: Arguments) {
    done(IRQ_WORK, 0, 0);
}

/// An interrupt has been handled: that of a device by the handler at this address.
#[inline(always)]
fn done(kind: u32, number: u32, action: u64) {
    let Some(cpu) = on_cpu() else { return };
    let since = cpu.begin_ns;
    // One that began before the probe was attached.
    if since == 0 {
        return;
    }
    cpu.begin_ns = 0;
    let now = now_ns();
    let duration_ns = now.wrapping_sub(since);
    let kind = if kind == IRQ_CALL && cpu.flushes != 0 { IRQ_TLB_SHOOTDOWN } else { kind };
    let current = Task::current();
    let tgid = current.tgid();
    let is_target = emit::is_target(tgid);
    let (_, series) = IRQ_KINDS[kind as usize % IRQ_KINDS.len()];
    // The thread may be in the middle of a program that uses the thread's state.
    histogram::observe(current, None, is_target, series, duration_ns);
    if !is_target {
        return;
    }
    let ids = (tgid, current.tid());
    if emit::past_floor(RecordKind::Irq, duration_ns) {
        let header = emit::header(RecordKind::Irq, 0, ids, now, duration_ns);
        let name = if kind == IRQ_DEVICE { interrupt_name(action) } else { [0; COMM_LEN] };
        emit::emit(RecordKind::Irq, IrqRecord { header, kind, number, name });
    } else if let Some(state) = task::claim::<IrqState>(current) {
        burst::add(state, ids, since, now);
    }
}
