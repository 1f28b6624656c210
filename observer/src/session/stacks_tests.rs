use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use observer_ebpf::wire::{COMM_LEN, RecordKind};

use super::*;
use crate::output::example;
use crate::stacks::mappings::FILES_MAX;

fn stack(tgid: u32, kernel_stack: i32, user_stack: i32) -> Event {
    let mut header = example::header(RecordKind::Stack, 0, tgid, 9_000, 2_000_000);
    header.tgid = tgid;
    example::event(&StackRecord { header, kernel_stack, user_stack })
}

fn task(tgid: u32, flags: u16) -> Event {
    let mut header = example::header(RecordKind::Task, flags, tgid, 9_000, 0);
    header.tgid = tgid;
    example::event(&TaskRecord { header, parent_tid: 1, reserved: 0, comm: [0; COMM_LEN] })
}

/// A sink for this table of stacks, and how often it was read.
fn sink(table: impl Fn(u32) -> Option<Vec<u64>> + Send + 'static) -> (StackSink, Arc<AtomicUsize>) {
    let reads = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&reads);
    let read = move |id| {
        counted.fetch_add(1, Ordering::Relaxed);
        table(id)
    };
    (StackSink::new(Box::new(read), FRAMES_MAX, FILES_MAX), reads)
}

fn symbol(name: &str, offset: u64) -> Option<Symbol> {
    Some(Symbol { name: name.to_owned(), offset })
}

fn named(function: &str, module: &str, offset: u64) -> Frame {
    Frame { function: Some(function.to_owned()), module: module.to_owned(), offset }
}

fn nothing_found(addresses: &[u64]) -> Found {
    Ok(vec![None; addresses.len()])
}

#[inline(never)]
fn a_function_of_this_test() -> u64 {
    a_function_of_this_test as *const () as u64
}

#[test]
fn each_stack_is_read_once_and_gets_its_functions() {
    let own = std::process::id();
    let here = a_function_of_this_test();
    let (mut sink, reads) = sink(move |id| match id {
        0 => Some(vec![0xffff_8000_0000_1000, 0xffff_8000_0000_2000]),
        1 => Some(vec![here + 2, here + 9, 1]),
        _ => None,
    });
    for _ in 0..3 {
        sink.event(&stack(own, 0, 1));
    }
    assert_eq!(reads.load(Ordering::Relaxed), 2);
    // The same addresses are something else in another process.
    sink.event(&stack(u32::MAX, 0, 1));
    assert_eq!(reads.load(Ordering::Relaxed), 3);
    sink.event(&example::fault(1, 1, 1));

    let asked = RefCell::new(Vec::new());
    let in_kernel = |addresses: &[u64]| {
        assert_eq!(addresses, [0xffff_8000_0000_1000, 0xffff_8000_0000_1fff]);
        Ok(vec![symbol("schedule", 0x10), None])
    };
    let in_file = |file: &File, offsets: &[u64]| {
        asked.borrow_mut().push(file.metadata().expect("it is there").len());
        let [first, second] = offsets else { panic!("{offsets:?}") };
        assert_eq!(second - first, 6);
        Ok(vec![symbol("inner", 2), symbol("outer", 8)])
    };
    let stacks = sink.with_functions(in_kernel, in_file);
    assert_eq!(stacks.schema, STACKS_SCHEMA);
    let unnamed =
        Frame { function: None, module: KERNEL.to_owned(), offset: 0xffff_8000_0000_2000 };
    let kernel = BTreeMap::from([(0, vec![named("schedule", KERNEL, 0x10), unnamed])]);
    assert_eq!(stacks.kernel, kernel);
    let [known, gone] = &stacks.user[..] else { panic!("{stacks:?}") };
    let unknown = |offset| Frame { function: None, module: "[unknown]".to_owned(), offset };
    assert_eq!((known.tgid, known.id, gone.tgid, gone.id), (Tgid(own), 1, Tgid(u32::MAX), 1));
    assert_eq!(gone.frames, [here + 2, here + 9, 1].map(unknown));
    // The last one is no address of code.
    assert_eq!(known.frames.len(), 2);
    // Only root may follow the links of map_files.
    if rustix::process::geteuid().is_root() {
        let program = std::fs::metadata("/proc/self/exe").expect("it is there");
        assert_eq!(asked.into_inner(), [program.len()]);
        let module = &known.frames[0].module;
        assert_eq!(known.frames[..2], [named("inner", module, 2), named("outer", module, 9)]);
        let not_known =
            [("address_in_no_mapping", 1), ("process_gone", 1), ("symbols_of_the_kernel", 1)];
        let not_known = not_known.map(|(kind, count)| (kind.to_owned(), count));
        assert_eq!(stacks.not_known, not_known.into());
    }
}

#[test]
fn what_has_no_stack_is_counted_by_kind() {
    let (mut sink, reads) = sink(|_| None);
    sink.event(&stack(1, -libc::EFAULT, -libc::EFAULT));
    sink.event(&stack(1, -libc::EEXIST, -libc::EEXIST));
    sink.event(&stack(1, -libc::ENOMEM, i32::MIN));
    assert_eq!(reads.load(Ordering::Relaxed), 0);
    // Its frames are gone from the table.
    sink.event(&stack(1, 5, -libc::EEXIST));
    sink.event(&stack(1, 5, -libc::EEXIST));
    assert_eq!(reads.load(Ordering::Relaxed), 1);
    let nothing = |_: &[u64]| -> Found { panic!("there is nothing to look up") };
    let stacks = sink.with_functions(nothing, |_, _| panic!("there is nothing to look up"));
    let not_known = [
        ("frames_not_read", 1),
        ("no_kernel_stack", 1),
        ("no_user_stack", 1),
        ("other", 2),
        ("place_taken", 4),
    ];
    let not_known = not_known.map(|(kind, count)| (kind.to_owned(), count)).into();
    assert_eq!(stacks, Stacks { schema: STACKS_SCHEMA, not_known, ..Stacks::default() });
}

#[test]
fn stacks_and_frames_are_bounded() {
    let (mut sink, reads) = sink(|_| Some(vec![0xffff_8000_0000_1000]));
    let more = DIFFERENT_MAX as i32 + 5;
    for id in 0..more {
        sink.event(&stack(1, id, -libc::EFAULT));
    }
    assert_eq!(reads.load(Ordering::Relaxed), DIFFERENT_MAX);
    let stacks = sink.with_functions(nothing_found, |_, offsets| nothing_found(offsets));
    assert_eq!((stacks.kernel.len(), stacks.not_known["stacks_beyond"]), (DIFFERENT_MAX, 5));

    let (mut sink, reads) = self::sink(|_| Some(vec![0xffff_8000_0000_1000; 1_000]));
    for id in 0..2_000 {
        sink.event(&stack(1, id, -libc::EFAULT));
    }
    let fit = FRAMES_MAX / STACK_FRAMES;
    assert_eq!(reads.load(Ordering::Relaxed), fit);
    let stacks = sink.with_functions(nothing_found, |_, offsets| nothing_found(offsets));
    let frames: usize = stacks.kernel.values().map(Vec::len).sum();
    assert_eq!(frames, fit * STACK_FRAMES);
    assert_eq!(stacks.not_known["stacks_beyond"], 2_000 - fit as u64);
}

#[test]
fn a_file_that_ends_its_reader_costs_its_functions_only() {
    let here = a_function_of_this_test();
    let (mut sink, _) = sink(move |_| Some(vec![here]));
    sink.event(&stack(std::process::id(), 0, 1));
    let stacks = sink.with_functions(|_| Err("no list".into()), |_, _| Err("it is hostile".into()));
    assert_eq!(stacks.not_known["symbols_of_the_kernel"], 1);
    let unnamed = |frame: &Frame| frame.function.is_none() && !frame.module.is_empty();
    assert!(stacks.kernel[&0].iter().chain(&stacks.user[0].frames).all(unnamed), "{stacks:?}");
    if rustix::process::geteuid().is_root() {
        assert_eq!(stacks.not_known["symbols_of_a_file"], 1);
    }
}

#[test]
fn another_program_has_other_mappings() {
    let here = a_function_of_this_test();
    let (mut sink, _) = sink(move |_| Some(vec![here]));
    let own = std::process::id();
    sink.event(&stack(own, -libc::EFAULT, 1));
    for (flags, tid) in [(TASK_EXEC, own), (TASK_FORK, own), (TASK_FORK, own + 1)] {
        let mut event = task(own, flags);
        event.tid.0 = tid;
        sink.event(&event);
        let is_thread = tid != own;
        assert_eq!(sink.mappings.knows(Tgid(own)), is_thread);
        sink.user.clear();
        sink.event(&stack(own, -libc::EFAULT, 1));
        assert!(sink.mappings.knows(Tgid(own)));
    }
}

#[test]
fn a_child_that_is_gone_has_the_mappings_of_its_parent() {
    let here = a_function_of_this_test();
    let (mut sink, _) = sink(move |_| Some(vec![here]));
    let (own, child) = (std::process::id(), u32::MAX);
    sink.look_at([Tgid(own)]);
    let header = example::header(RecordKind::Task, TASK_FORK, child, 9_000, 0);
    let header = observer_ebpf::wire::Header { tgid: child, tid: child, ..header };
    let parent_tid = own;
    let record = TaskRecord { header, parent_tid, reserved: 0, comm: [0; COMM_LEN] };
    sink.event(&example::event(&record));
    sink.event(&stack(child, -libc::EFAULT, 1));
    let stacks = sink.with_functions(nothing_found, |_, addresses| nothing_found(addresses));
    let program = std::env::current_exe().expect("a program").display().to_string();
    assert_eq!(stacks.user[0].tgid, Tgid(child));
    assert!(program.ends_with(&stacks.user[0].frames[0].module), "{stacks:?}");
    assert!(!stacks.not_known.contains_key("process_gone"), "{stacks:?}");
}

#[test]
fn what_notes_a_stack_is_not_in_it() {
    let frames = |names: &[&str]| -> Vec<Frame> {
        let frame = |name: &&str| Frame {
            function: (!name.is_empty()).then(|| (*name).to_owned()),
            module: KERNEL.to_owned(),
            offset: 1,
        };
        names.iter().map(frame).collect()
    };
    for (stack, kept) in [
        (
            &[
                "bpf_prog_1f_sched_switch_stack",
                "bpf_trace_run4",
                "__traceiter_sched_switch",
                "__schedule",
                "do_nanosleep",
            ][..],
            2,
        ),
        // A name is missing, and the thread itself is in such a function further out.
        (
            &[
                "",
                "__bpf_trace_sched_switch",
                "__schedule",
                "a",
                "b",
                "c",
                "d",
                "e",
                "f",
                "bpf_trace_run2",
            ],
            8,
        ),
        (&["__schedule", "schedule"], 2),
        (&["bpf_trace_run4"], 0),
        (&[], 0),
    ] {
        let left = without_tracing(frames(stack));
        assert_eq!(left, frames(&stack[stack.len() - kept..]), "{stack:?}");
    }
}

#[test]
fn numbers_that_are_no_addresses_end_a_stack() {
    let places = |modules: &[u32]| -> Vec<Place> {
        modules.iter().map(|module| Place { module: *module, offset: 7 }).collect()
    };
    for (stack, kept) in [
        (&[9, UNKNOWN, UNKNOWN][..], 1),
        (&[9, UNKNOWN, 9, UNKNOWN], 3),
        (&[UNKNOWN, UNKNOWN], 2),
        (&[UNKNOWN, 9], 2),
        (&[], 0),
    ] {
        assert_eq!(without_numbers(places(stack)), places(&stack[..kept]), "{stack:?}");
    }
}
