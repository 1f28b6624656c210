//! Places in user-space binaries: attached and detached while processes come and go.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use observer::call_filter::{self, Threads};
use observer::host::Process;
use observer::kernel::{Binary, BinaryError, FileId, Kernel, LoadOptions, Place, UprobeError};
use observer::model::Tgid;
use observer::probe::ProbeOptions;
use observer_ebpf::wire::UPROBE_COUNTERS;
use observer_tests::privileged;
use observer_tests::process::{Placement, Running};
use observer_tests::trial::{directory, number, programs};
use observer_tests::watch::Work;

/// Functions that `observer-work calls` calls, the second twice as often, and nothing else does.
const FIRST: &str = "observer_work_first";
const SECOND: &str = "observer_work_second";

fn attach() -> Kernel {
    let selection = "task".parse().expect("a probe");
    let probes = ProbeOptions { selection, ..ProbeOptions::default() };
    let options = LoadOptions { has_target: true, ring_bytes: 1 << 20, probes, by_cgroup: false };
    Kernel::attach(&options).unwrap_or_else(|error| panic!("{error}"))
}

/// Where a function is in a file; `None` when the file has no symbol of this name.
fn find(bytes: &[u8], function: &str) -> Option<u64> {
    use object::{Object, ObjectSection, ObjectSymbol};
    let file = object::File::parse(bytes).ok()?;
    let symbol = file.symbols().find(|symbol| symbol.name() == Ok(function))?;
    let section = file.section_by_index(symbol.section_index()?).ok()?;
    Some(symbol.address() - section.address() + section.file_range()?.0)
}

fn offset_of(path: &Path, function: &str) -> u64 {
    find(&fs::read(path).expect("the program is there"), function).expect("the function")
}

/// A copy of the workload under this name.
fn copy(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(name);
    fs::copy(programs().work, &path).expect("it can be copied");
    path
}

fn started(program: &Path, arguments: &[&str]) -> Work {
    let mut programs = programs();
    programs.work = program.to_owned();
    Work::start(&programs, arguments, Placement::default())
        .unwrap_or_else(|error| panic!("{error}"))
}

fn start(program: &Path, times: u64) -> Work {
    started(program, &["calls", "--times", &times.to_string()])
}

fn process(id: u32) -> Process {
    Process::read(Tgid(id)).expect("it lives")
}

fn binary(work: &Work) -> Binary {
    Binary::of_process(&process(work.id())).unwrap_or_else(|error| panic!("{error}"))
}

/// Lets a process of the target call its functions, and returns how often it called the first.
fn go(kernel: &Kernel, work: &mut Work) -> u64 {
    kernel.targets().set(work.id(), true);
    let counts = work.go().expect("it works");
    assert_eq!(number(&counts, "second"), 2 * number(&counts, "first"));
    number(&counts, "first")
}

fn calls(kernel: &Kernel, cookie: u64) -> u64 {
    kernel.uprobe_calls(cookie).expect("a counter")
}

/// Attaches to the first function, or panics.
#[track_caller]
fn attach_first(kernel: &mut Kernel, binary: &Binary, offset: u64, cookie: u64) {
    kernel
        .attach_uprobe(binary, Place::counted(offset, cookie))
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn every_call_of_the_target_is_counted_by_the_cookie_of_its_place() {
    let Some(_guard) = privileged::ready("uprobe cookies") else { return };
    let directory = directory();
    let path = copy(directory.path(), "program");
    let (first, second) = (offset_of(&path, FIRST), offset_of(&path, SECOND));
    let mut kernel = attach();
    let mut one = start(&path, 1_000);
    let places = [(first, 7), (second, 8), (second, u64::from(UPROBE_COUNTERS) - 1)];
    for (offset, cookie) in places {
        attach_first(&mut kernel, &binary(&one), offset, cookie);
    }
    attach_first(&mut kernel, &binary(&one), first, 7);
    assert_eq!(kernel.uprobes(), 3, "attaching twice is attaching once");
    let counted = |kernel: &Kernel| places.map(|(_, cookie)| calls(kernel, cookie));
    assert_eq!(counted(&kernel), [0; 3]);
    assert_eq!(go(&kernel, &mut one), 1_000);
    assert_eq!(counted(&kernel), [1_000, 2_000, 2_000]);

    // A second process, which started after the places were attached, and one that is not of the
    // target.
    let (mut later, mut other) = (start(&path, 10), start(&path, 5));
    go(&kernel, &mut later);
    other.go().expect("it works");
    assert_eq!(counted(&kernel), [1_010, 2_020, 2_020]);

    assert!(kernel.detach_uprobe(binary(&one).id(), Place::counted(second, 8)));
    let mut last = start(&path, 1);
    go(&kernel, &mut last);
    assert_eq!(counted(&kernel), [1_011, 2_020, 2_022]);
}

#[test]
fn the_calls_that_a_daemon_keeps_are_enough_to_attach_to_a_binary() {
    let Some(_guard) = privileged::ready("uprobe of a daemon") else { return };
    let directory = directory();
    let path = copy(directory.path(), "program");
    let place = Place::counted(offset_of(&path, FIRST), 3);
    let mut kernel = attach();
    let mut work = start(&path, 10);
    // A filter belongs to a thread. (The kernel wants CAP_SYS_ADMIN too, which the daemon gives up.)
    let attached = || {
        call_filter::apply(Threads::Own).expect("a filter");
        let binary = binary(&work);
        attach_first(&mut kernel, &binary, place.offset, place.cookie);
        assert_eq!(go(&kernel, &mut work), calls(&kernel, place.cookie));
        assert!(kernel.detach_uprobe(binary.id(), place));
    };
    std::thread::scope(|scope| scope.spawn(attached).join()).expect("it attaches");
}

#[test]
fn copies_and_replaced_files_are_other_binaries() {
    let Some(_guard) = privileged::ready("uprobe files") else { return };
    let directory = directory();
    let path = copy(directory.path(), "program");
    let offset = offset_of(&path, FIRST);
    let mut kernel = attach();
    let mut old = start(&path, 100);
    let opened = binary(&old);
    // The file is replaced between the look at it and the attachment.
    fs::rename(copy(directory.path(), "next"), &path).expect("it can be renamed");
    attach_first(&mut kernel, &opened, offset, 1);
    let mut new = start(&path, 10);
    let (old_id, new_id) = (opened.id().clone(), binary(&new).id().clone());
    assert_ne!(old_id.file, new_id.file);
    assert_eq!(old_id.build_id, new_id.build_id);
    go(&kernel, &mut new);
    assert_eq!(calls(&kernel, 1), 0, "the new file is another binary");
    go(&kernel, &mut old);
    assert_eq!(calls(&kernel, 1), 100);
    assert_eq!(binary(&old).id(), &old_id, "it is found although its name is gone");

    attach_first(&mut kernel, &binary(&new), offset, 2);
    let mut newest = start(&path, 3);
    go(&kernel, &mut newest);
    assert_eq!([1, 2].map(|cookie| calls(&kernel, cookie)), [100, 3]);
}

#[test]
fn nothing_is_counted_after_a_place_was_detached() {
    let Some(_guard) = privileged::ready("uprobe detached") else { return };
    let directory = directory();
    let path = copy(directory.path(), "program");
    let mut kernel = attach();
    let mut work = start(&path, u64::MAX / 4);
    let place = Place::counted(offset_of(&path, FIRST), 1);
    let binary = binary(&work);
    kernel.targets().set(work.id(), true);
    work.begin().expect("it works");
    for _ in 0..3 {
        let before = calls(&kernel, 1);
        kernel.attach_uprobe(&binary, place).unwrap_or_else(|error| panic!("{error}"));
        let deadline = Instant::now() + Duration::from_secs(60);
        while calls(&kernel, 1) == before {
            assert!(Instant::now() < deadline, "no call is counted");
            std::thread::yield_now();
        }
        assert!(kernel.detach_uprobe(binary.id(), place));
        let at_detach = calls(&kernel, 1);
        assert!(!kernel.detach_uprobe(binary.id(), place), "it is detached already");
        assert_eq!(kernel.uprobes(), 0);
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(calls(&kernel, 1), at_detach);
    }
}

#[test]
fn processes_that_come_and_go_are_counted_to_the_last_call() {
    let Some(_guard) = privileged::ready("uprobe family") else { return };
    let directory = directory();
    let (one, other) = (copy(directory.path(), "one"), copy(directory.path(), "other"));
    let offset = offset_of(&one, FIRST);
    let mut kernel = attach();
    // They keep their binaries executed, and call nothing.
    let holders = [start(&one, 0), start(&other, 0)];
    for (holder, cookie) in holders.iter().zip([1, 2]) {
        attach_first(&mut kernel, &binary(holder), offset, cookie);
    }
    // This process is of the target, and so are its children, from their first instruction on.
    kernel.targets().set(std::process::id(), true);
    let child = |times: usize| -> Child {
        let times = times.to_string();
        let mut command = Command::new(&one);
        // It calls, executes the other binary, and calls there.
        command.args(["calls", "--at-once", "--times", &times, "--"]).arg(&other);
        command.args(["calls", "--at-once", "--times", "3"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts")
    };
    let mut children: Vec<Child> = (0..30).map(child).collect();
    for child in &mut children {
        assert!(child.wait().expect("it ends").success());
    }
    kernel.targets().set(std::process::id(), false);
    assert_eq!([1, 2].map(|cookie| calls(&kernel, cookie)), [(0..30).sum(), 30 * 3]);
}

/// Looks for a place in each binary; the cookie is how many were looked at before.
fn watch(kernel: &mut Kernel, find: impl Fn(&[u8]) -> Option<u64> + Send + 'static) {
    let mut seen = 0;
    kernel.watch_binaries(Box::new(move |binary| {
        let mut bytes = Vec::new();
        binary.file().read_to_end(&mut bytes).expect("it can be read");
        seen += 1;
        find(&bytes).map(|offset| Place::counted(offset, seen - 1)).into_iter().collect()
    }));
}

/// Follows these processes until `done`.
#[track_caller]
fn follow(kernel: &mut Kernel, ids: &[u32], done: impl Fn(&Kernel) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let processes: Vec<Process> = ids.iter().map(|id| process(*id)).collect();
    while !done(kernel) {
        assert!(Instant::now() < deadline, "it never happens: {:?}", kernel.unwatched());
        kernel.follow_binaries(processes.iter());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Programs of the kind `BPF_PROG_TYPE_KPROBE`, to which uprobes belong, that this process holds.
fn loaded() -> usize {
    let descriptors = fs::read_dir("/proc/self/fdinfo").expect("/proc").flatten();
    let texts = descriptors.filter_map(|entry| fs::read_to_string(entry.path()).ok());
    texts.filter(|text| text.lines().any(|line| line == "prog_type:\t2")).count()
}

#[test]
fn places_are_attached_with_the_first_process_and_detached_with_the_last() {
    let Some(_guard) = privileged::ready("uprobe followed") else { return };
    let directory = directory();
    let (one, other) = (copy(directory.path(), "one"), copy(directory.path(), "other"));
    let mut kernel = attach();
    let mut first = start(&one, 20);
    kernel.follow_binaries([process(first.id())].iter());
    assert_eq!((kernel.uprobes(), kernel.binaries().count()), (0, 0), "nobody watches");
    assert_eq!(loaded(), 0, "without places, the program is not loaded");
    watch(&mut kernel, |bytes| find(bytes, FIRST));
    follow(&mut kernel, &[first.id()], |kernel| kernel.uprobes() == 1);
    assert!(loaded() > 0);
    let mut second = start(&one, 30);
    let ids = [first.id(), second.id()];
    go(&kernel, &mut first);
    go(&kernel, &mut second);
    assert_eq!(calls(&kernel, 0), 50);
    first.end().expect("it ends");
    follow(&mut kernel, &ids[1..], |kernel| kernel.binaries().count() == 1);
    assert_eq!(kernel.uprobes(), 1, "the second still executes it");

    // One executes another binary, and waits there.
    let then = other.to_str().expect("a path");
    let arguments = ["calls", "--times", "7", "--", then, "calls", "--times", "9"];
    let mut changing = started(&one, &arguments);
    let ids = [second.id(), changing.id()];
    kernel.targets().set(changing.id(), true);
    changing.begin().expect("it works");
    follow(&mut kernel, &ids, |kernel| kernel.binaries().count() == 2);
    assert_eq!([0, 1].map(|cookie| calls(&kernel, cookie)), [57, 0]);
    let counts = changing.counts();
    assert!(counts.is_err(), "the other program says that it is ready: {counts:?}");
    changing.begin().expect("it works");
    changing.counts().expect("it works");
    assert_eq!([0, 1].map(|cookie| calls(&kernel, cookie)), [57, 9]);

    second.end().expect("it ends");
    follow(&mut kernel, &ids[1..], |kernel| kernel.binaries().count() == 1);
    assert_eq!(kernel.uprobes(), 1);
    changing.end().expect("it ends");
    follow(&mut kernel, &[], |kernel| kernel.uprobes() == 0);
    assert_eq!(kernel.binaries().count(), 0);

    // A binary that is executed again at once gets its place back, and only once.
    let mut again = start(&other, 4);
    follow(&mut kernel, &[again.id()], |kernel| kernel.uprobes() == 1);
    go(&kernel, &mut again);
    assert_eq!([0, 1, 2].map(|cookie| calls(&kernel, cookie)), [57, 9, 4]);
    assert!(
        kernel.unwatched().keys().all(|kind| *kind == "process_gone"),
        "{:?}",
        kernel.unwatched()
    );
}

/// Where a function of a stripped Go program begins in its file, behind the check of the stack: with
/// too little stack, a call passes the instructions before it twice. The table is that of Go 1.18 to
/// 1.25 (src/internal/abi/symtab.go, src/cmd/link/internal/ld/pcln.go).
fn find_go(bytes: &[u8], function: &str) -> Option<u64> {
    use object::{Object, ObjectSection, ObjectSegment};
    let file = object::File::parse(bytes).ok()?;
    let table = file.section_by_name(".gopclntab")?.data().ok()?;
    let number = |at: usize, size: usize| {
        let bytes = table.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0_usize, |value, byte| value << 8 | usize::from(*byte)))
    };
    let header = |word: usize| number(8 + 8 * word, 8);
    let (functions, text, names, entries) = (header(0)?, header(2)?, header(3)?, header(7)?);
    let entry = (0..functions).find_map(|index| {
        let at = entries + 8 * index;
        let name = names + number(entries + number(at + 4, 4)? + 4, 4)?;
        let name = table.get(name..name + function.len() + 1)?;
        (name.strip_suffix(b"\0") == Some(function.as_bytes())).then_some(number(at, 4))?
    })?;
    let address = (text + entry) as u64;
    let segment = file.segments().find(|segment| {
        (segment.address()..segment.address() + segment.size()).contains(&address)
    })?;
    let offset = segment.file_range().0 + address - segment.address();
    let code = bytes.get(offset as usize..)?.get(..24)?;
    // cmp 0x10(%r14),%rsp (or %r12), and the jump that follows it.
    let compared = code.windows(3).position(|code| code == [0x3b, 0x66, 0x10])? + 3;
    let jump = if code[compared] == 0x76 { 2 } else { 6 };
    Some(offset + (compared + jump) as u64)
}

#[test]
fn calls_in_a_go_program_are_its_own_count() {
    let Some(_guard) = privileged::ready("uprobe Go") else { return };
    // `hey` sends as many requests as it is told. Nobody answers on this port.
    let hey = |arguments: &[&str]| {
        let mut command = Command::new("hey");
        command.args(arguments).arg("http://127.0.0.1:1/").stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Running::start(&mut command, Placement::default()).unwrap_or_else(|error| panic!("{error}"))
    };
    let mut kernel = attach();
    watch(&mut kernel, |bytes| {
        let offset = find_go(bytes, "github.com/rakyll/hey/requester.(*Work).makeRequest");
        Some(offset.expect("the function"))
    });
    // It keeps the binary executed, and is not of the target.
    let holder = hey(&["-z", "10m", "-c", "1", "-q", "1"]);
    follow(&mut kernel, &[holder.id()], |kernel| kernel.uprobes() == 1);
    let mut requests = 0;
    for (count, workers) in [(200, 4), (30, 30), (1_000, 1)] {
        // Its children are of the target from their first instruction on.
        kernel.targets().set(std::process::id(), true);
        let (count_text, workers) = (count.to_string(), workers.to_string());
        let mut sender = hey(&["-n", &count_text, "-c", &workers]);
        kernel.targets().set(std::process::id(), false);
        assert!(sender.wait(Duration::from_secs(60)).expect("it ends").success());
        requests += count;
        assert_eq!(calls(&kernel, 0), requests);
    }
}

#[test]
fn a_binary_is_found_in_another_mount_namespace() {
    let Some(_guard) = privileged::ready("uprobe mount namespace") else { return };
    let directory = directory();
    let program = copy(directory.path(), "program");
    // In its own namespace another file lies here.
    let private = directory.path().join("private");
    fs::create_dir(&private).expect("made");
    let outside = copy(&private, "program");
    let script = format!(
        "mount -t tmpfs none {0} && cp {1} {0}/program && exec {0}/program calls --times 40",
        private.display(),
        program.display()
    );
    let mut inside = started(Path::new("unshare"), &["--mount", "sh", "-c", &script]);
    let mut kernel = attach();
    let binary = binary(&inside);
    let other = start(&outside, 5);
    assert_ne!(binary.id().file, self::binary(&other).id().file);
    attach_first(&mut kernel, &binary, offset_of(&program, FIRST), 1);
    go(&kernel, &mut inside);
    let mut other = other;
    go(&kernel, &mut other);
    assert_eq!(calls(&kernel, 1), 40);
}

/// An overlay on `lower` at a new mount point; unmounted when dropped.
struct Overlay(PathBuf);

impl Overlay {
    fn mount(directory: &Path, lower: &Path, name: &str) -> rustix::io::Result<Self> {
        let parts =
            ["upper", "work", "merged"].map(|part| directory.join(format!("{name}-{part}")));
        parts.iter().for_each(|part| fs::create_dir(part).expect("made"));
        let [upper, work, merged] = parts;
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let options = std::ffi::CString::new(options).expect("no zero");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("overlay", &merged, "overlay", flags, Some(options.as_c_str()))?;
        Ok(Self(merged))
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn containers_of_one_image_share_a_binary_until_one_changes_it() {
    let Some(_guard) = privileged::ready("uprobe overlay") else { return };
    let directory = directory();
    let lower = directory.path().join("lower");
    fs::create_dir(&lower).expect("made");
    let offset = offset_of(&copy(&lower, "program"), FIRST);
    let mount = |name: &str| Overlay::mount(directory.path(), &lower, name);
    let (one, two, three) = match (mount("one"), mount("two"), mount("three")) {
        (Ok(one), Ok(two), Ok(three)) => (one, two, three),
        (Err(error), ..) => {
            println!("not compared: this kernel has no overlay file system ({error})");
            return;
        }
        (_, Err(error), _) | (.., Err(error)) => panic!("cannot mount a second one: {error}"),
    };
    // The change makes a copy of the file in the upper directory.
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(three.0.join("program"), permissions).expect("it can be changed");
    let mut works = [&one, &two, &three].map(|place| start(&place.0.join("program"), 10));
    let ids: Vec<FileId> = works.iter().map(|work| binary(work).id().file.clone()).collect();
    println!("{:?}", ids[0]);
    assert_eq!(ids[0], ids[1]);
    assert_ne!(ids[0], ids[2]);
    let mut kernel = attach();
    for (work, cookie) in works.iter().zip([1, 1, 2]) {
        attach_first(&mut kernel, &binary(work), offset, cookie);
    }
    assert_eq!(kernel.uprobes(), 2);
    for work in &mut works {
        go(&kernel, work);
    }
    assert_eq!([1, 2].map(|cookie| calls(&kernel, cookie)), [20, 10], "none is counted twice");
    drop(works);
}

#[test]
fn what_cannot_be_watched_is_counted_by_kind() {
    let Some(_guard) = privileged::ready("uprobe refused") else { return };
    let mut kernel = attach();
    let own = process(std::process::id());
    let binary = Binary::of_process(&own).expect("this program");
    let nowhere = Place::counted(u64::MAX, 1);
    let refused = kernel.attach_uprobe(&binary, nowhere).expect_err("nothing is there");
    assert!(matches!(refused, UprobeError::NoInstruction(u64::MAX)), "{refused}");
    assert!(!kernel.detach_uprobe(binary.id(), nowhere));
    assert_eq!(kernel.uprobe_calls(u64::from(UPROBE_COUNTERS)), None);
    assert_eq!(kernel.uprobe_calls(u64::MAX), None);

    // A process that ended before its binary was looked at.
    let mut child = Command::new("true").spawn().expect("it starts");
    let gone = Process { tgid: Tgid(child.id()), ..own.clone() };
    child.wait().expect("it ends");
    let error = Binary::of_process(&gone).expect_err("it is gone");
    assert!(matches!(error, BinaryError::Gone { .. }), "{error}");
    // Its id belongs to another process by now.
    let other = Process { start_ticks: own.start_ticks + 1, ..own.clone() };
    let error = Binary::of_process(&other).expect_err("it is another");
    assert!(matches!(error, BinaryError::Gone { .. }), "{error}");

    kernel.watch_binaries(Box::new(move |_| vec![nowhere, Place::counted(u64::MAX - 1, 1)]));
    kernel.follow_binaries([own, gone].iter());
    assert_eq!(kernel.unwatched(), &[("no_instruction", 2)].into());
    assert_eq!(kernel.uprobes(), 0);
}

#[test]
fn the_number_of_binaries_is_limited() {
    let Some(_guard) = privileged::ready("uprobe limit") else { return };
    const LIMIT: usize = 32;
    let directory = directory();
    let sleep = ["/usr/bin/sleep", "/bin/sleep"].into_iter().find(|path| Path::new(path).exists());
    let sleep = sleep.expect("sleep is there");
    let sleeper = |index: usize| {
        let path = directory.path().join(format!("sleep-{index}"));
        fs::copy(sleep, &path).expect("it can be copied");
        Running::start(Command::new(&path).arg("600"), Placement::default()).expect("it starts")
    };
    let mut sleepers: Vec<Running> = (0..=LIMIT).map(sleeper).collect();
    let ids: Vec<u32> = sleepers.iter().map(Running::id).collect();
    let mut kernel = attach();
    kernel.watch_binaries(Box::new(|_| Vec::new()));
    follow(&mut kernel, &ids, |kernel| kernel.unwatched().contains_key("too_many_binaries"));
    assert_eq!(kernel.binaries().count(), LIMIT);
    // When one is gone, there is room for the one that was left out.
    drop(sleepers.remove(0));
    let before: Vec<_> = kernel.binaries().cloned().collect();
    follow(&mut kernel, &ids[1..], |kernel| {
        kernel.binaries().count() == LIMIT && !kernel.binaries().eq(before.iter())
    });
    assert_eq!(kernel.unwatched(), &[("too_many_binaries", 1)].into());
}
