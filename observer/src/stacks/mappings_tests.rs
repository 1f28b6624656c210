use std::cell::Cell;
use std::io::Write;
use std::os::unix::fs::symlink;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const PROCESS: Tgid = Tgid(7);

fn this_process() -> Tgid {
    Tgid(std::process::id())
}

/// A directory of links to mapped files, and lists that lead there.
struct Links(tempfile::TempDir);

impl Links {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn link(&self, range: &str, name: &str) {
        let file = self.0.path().join(name);
        File::options().append(true).create(true).open(&file).expect("a file");
        symlink(file, self.0.path().join(range)).expect("a link");
    }

    fn list(&self, text: &str) -> Option<List> {
        Some(List { text: text.to_owned(), links: self.0.path().to_owned(), is_cut: false })
    }

    fn places(&self, mappings: &mut Mappings, text: &str, addresses: &[u64]) -> Vec<Place> {
        mappings.forget(PROCESS);
        mappings.places_at(PROCESS, addresses, Instant::now(), |_| self.list(text))
    }
}

fn names(mappings: &Mappings, places: &[Place]) -> Vec<String> {
    places.iter().map(|place| mappings.modules[place.module as usize].name.clone()).collect()
}

#[inline(never)]
fn known_function() -> u64 {
    known_function as *const () as u64
}

#[test]
fn an_address_of_this_process_is_in_its_program() {
    let mut mappings = Mappings::new(FILES_MAX);
    let here = known_function();
    let on_the_stack = &raw const here as u64;
    let places = mappings.places(this_process(), &[here, on_the_stack, 8]);
    let program = std::env::current_exe().expect("a program");
    let [place, stack, low] = places[..] else { panic!("{places:?}") };
    assert_eq!(stack, Place { module: UNKNOWN, offset: on_the_stack });
    assert_eq!(low, Place { module: UNKNOWN, offset: 8 });
    let (modules, not_known) = mappings.finish();
    assert_eq!(not_known.get("address_in_no_mapping"), Some(&2));
    let module = &modules[place.module as usize];
    assert_eq!(module.name, text::clean(&program.display().to_string(), NAME_CHARACTERS));
    // Only root may follow the links of map_files.
    if rustix::process::geteuid().is_root() {
        let file = module.file.as_ref().expect("it is open").metadata().expect("it is there");
        assert_eq!(file.len(), program.metadata().expect("it is there").len());
        assert!(place.offset < file.len());
    }
}

#[test]
fn lines_of_mappings_are_parsed() {
    let line = "7fc4a9800000-7fc4a98ad000 r-xp 00001000 fd:1a 18147308   /a b\\012c (deleted)";
    let parsed = Line::parse(line).expect("a line");
    assert_eq!((parsed.start, parsed.end), (0x7fc4_a980_0000, 0x7fc4_a98a_d000));
    assert_eq!((parsed.offset, parsed.inode, parsed.is_executable), (0x1000, 18_147_308, true));
    assert_eq!(parsed.name, "/a b\\012c (deleted)");
    let bare = Line::parse("1000-2000 rw-p 00000000 00:00 0").expect("a line");
    assert_eq!((bare.is_executable, bare.inode, bare.name), (false, 0, ""));
    let long = u128::MAX.to_string();
    for hostile in [
        "",
        " ",
        "1000",
        "1000-",
        "2000-1000 r-xp 0 0:0 1 /a",
        "1000-1000 r-xp 0 0:0 1 /a",
        "1000-2000 r-xp zz 0:0 1 /a",
        "1000-2000 r-xp 0 0:0 -1 /a",
        "1000-2000 r-xp 0 0:0",
        "-1000-2000 r-xp 0 0:0 1 /a",
        &format!("{long}-{long} r-xp 0 0:0 1 /a"),
        &format!("1000-2000 r-xp 0 0:0 {long} /a"),
        "1000-2000  r-xp 0 0:0 1 /a",
    ] {
        assert_eq!(Line::parse(hostile), None, "{hostile:?}");
    }
}

#[test]
fn a_file_has_one_module_and_its_name_cannot_steer_a_terminal() {
    let links = Links::new();
    links.link("1000-2000", "file");
    links.link("5000-6000", "file");
    links.link("7000-8000", "other");
    let text = "\
1000-2000 r-xp 00003000 fd:1a 18   /lib/\u{1b}[2Jx (deleted)
2000-3000 rw-p 00000000 fd:1a 18   /lib/data
5000-6000 r-xp 00000000 fd:1a 18   /lib/again
7000-8000 r-xp 00000000 fd:1a 19   /lib/other
9000-a000 r-xp 00000000 fd:1a 20   /lib/gone
b000-c000 r-xp 00000000 00:00 0
d000-e000 r-xp 00000000 00:00 0   [vdso]
f000-f800 r-xp 00000000 00:00 0   [anon:x]";
    let mut mappings = Mappings::new(FILES_MAX);
    let addresses = [0x1010, 0x2000, 0x5020, 0x7000, 0x9001, 0xb002, 0xd003, 0xf004, 0xf800];
    let places = links.places(&mut mappings, text, &addresses);
    let found = names(&mappings, &places);
    let cleaned = "/lib/?[2Jx (deleted)";
    let anonymous = "[anonymous]";
    let wanted = [
        cleaned,
        "[unknown]",
        cleaned,
        "/lib/other",
        "/lib/gone",
        anonymous,
        "[vdso]",
        anonymous,
        "[unknown]",
    ];
    assert_eq!(found, wanted);
    let offsets: Vec<u64> = places.iter().map(|place| place.offset).collect();
    assert_eq!(offsets, [0x3010, 0x2000, 0x20, 0, 1, 0xb002, 3, 0xf004, 0xf800]);
    let (modules, not_known) = mappings.finish();
    assert_eq!(modules.iter().filter(|module| module.file.is_some()).count(), 2);
    assert_eq!(not_known, [("address_in_no_mapping", 2), ("file_not_opened", 1)].into());
}

#[test]
fn only_regular_files_are_opened_and_no_more_than_allowed() {
    let links = Links::new();
    let fifo = links.0.path().join("1000-2000");
    fs::mknodat(fs::CWD, fifo, FileType::Fifo, Mode::RUSR, 0).expect("a FIFO");
    symlink("/dev/zero", links.0.path().join("2000-3000")).expect("a link");
    symlink("/", links.0.path().join("3000-4000")).expect("a link");
    links.link("4000-5000", "one");
    links.link("5000-6000", "two");
    let line = |start: u64| {
        format!("{:x}-{:x} r-xp 00000000 fd:1a {start}   /{start}\n", start, start + 0x1000)
    };
    let text: String = [0x1000, 0x2000, 0x3000, 0x4000, 0x5000].map(line).concat();
    let mut mappings = Mappings::new(1);
    let places = links.places(&mut mappings, &text, &[0x1000, 0x2000, 0x3000, 0x4000, 0x5000]);
    let named = [0x1000, 0x2000, 0x3000, 0x4000, 0x5000].map(|start: u64| format!("/{start}"));
    assert_eq!(names(&mappings, &places), named);
    let open = |module: &&Module| module.file.is_some();
    let (modules, not_known) = mappings.finish();
    let open: Vec<&str> = modules.iter().filter(open).map(|module| module.name.as_str()).collect();
    assert_eq!(open, [format!("/{}", 0x4000)]);
    assert_eq!(not_known, [("file_not_opened", 3), ("files_beyond", 1)].into());
}

#[test]
fn names_and_mappings_are_bounded() {
    let links = Links::new();
    let mut text = String::new();
    for index in 0..MODULES_MAX as u64 + 10 {
        let start = 0x1000 * (index + 1);
        text += &format!("{start:x}-{:x} r-xp 00000000 fd:1a 1   /{index}\n", start + 0x1000);
    }
    let mut mappings = Mappings::new(FILES_MAX);
    let last = 0x1000 * (MODULES_MAX as u64 + 9);
    let places = links.places(&mut mappings, &text, &[0x1000, last]);
    assert_eq!(names(&mappings, &places), ["/0", "[unknown]"]);
    assert_eq!(mappings.modules.len(), MODULES_MAX);

    let mut text = String::new();
    for index in 0..MAPPINGS_MAX as u64 + 3 {
        let start = 0x1000 * (index + 1);
        text += &format!("{start:x}-{:x} r-xp 00000000 00:00 0\n", start + 0x1000);
    }
    let _ = links.places(&mut mappings, &text, &[]);
    assert_eq!((mappings.kept, mappings.not_known["mappings_beyond"]), (MAPPINGS_MAX, 3));
    mappings.forget(PROCESS);
    assert_eq!(mappings.kept, 0);
    let cut =
        List { is_cut: true, ..links.list("1000-2000 r-xp 0 0:0 0\n3000-4").expect("a list") };
    assert_eq!(mappings.take(&cut).len(), 1);
}

#[test]
fn mappings_are_read_again_for_new_addresses_and_not_too_often() {
    let links = Links::new();
    let mut mappings = Mappings::new(FILES_MAX);
    let begun = Instant::now();
    let reads = Cell::new(0);
    // A code segment that grows with each look.
    let mut look = |after: Duration, address: u64, gone: bool| {
        let read = |_| {
            reads.set(reads.get() + 1);
            let text = format!("1000-{:x}000 r-xp 00000000 00:00 0", reads.get() + 1);
            links.list(&text).filter(|_| !gone)
        };
        let places = mappings.places_at(PROCESS, &[address], begun + after, read);
        (places[0].module == ANONYMOUS, reads.get())
    };
    let seconds = Duration::from_secs;
    assert_eq!(look(seconds(0), 0x1000, false), (true, 1));
    assert_eq!(look(seconds(9), 0x1fff, false), (true, 1), "it is known");
    assert_eq!(look(seconds(9), 8, false), (false, 1), "this is no address");
    assert_eq!(look(seconds(9), 0x2000, false), (true, 2));
    assert_eq!(look(seconds(9), 0x3000, false), (false, 2), "too early");
    assert_eq!(look(seconds(10), 0x3000, false), (true, 3));
    assert_eq!(look(seconds(11), 0xf_0000, false), (false, 4));
    assert_eq!(look(seconds(12), 0xf_0000, false), (false, 4), "the last look was of no use");
    assert_eq!(look(seconds(13), 0xf_0000, false), (false, 5));
    // Of a process that is gone, the last mappings stay.
    assert_eq!(look(seconds(99), 0xf_0000, true), (false, 6));
    assert_eq!(look(seconds(99), 0x3000, true), (true, 6));
}

#[test]
fn processes_that_are_gone_are_counted_and_the_oldest_makes_room() {
    let links = Links::new();
    let mut mappings = Mappings::new(FILES_MAX);
    let begun = Instant::now();
    let places = mappings.places_at(PROCESS, &[0x1000], begun, |_| None);
    assert_eq!(places, [Place { module: UNKNOWN, offset: 0x1000 }]);
    let _ = mappings.places_at(PROCESS, &[0x1000], begun, |_| panic!("it is known to be gone"));
    assert_eq!(mappings.not_known, [("process_gone", 2)].into());
    let _ = mappings.places(Tgid(u32::MAX), &[0x1000]);
    assert_eq!(mappings.not_known, [("process_gone", 3)].into());
    mappings.forget(Tgid(u32::MAX));
    for index in 1..=PROCESSES_MAX as u32 {
        let now = begun + Duration::from_secs(index.into());
        let read = |_| links.list("1000-2000 r-xp 0 0:0 0");
        let _ = mappings.places_at(Tgid(100 + index), &[0x1000], now, read);
    }
    assert_eq!((mappings.processes.len(), mappings.kept), (PROCESSES_MAX, PROCESSES_MAX));
    assert!(!mappings.processes.contains_key(&PROCESS));
}

#[test]
fn no_list_leads_to_a_panic() {
    let links = Links::new();
    links.link("1000-2000", "file");
    let good = "1000-2000 r-xp 00003000 fd:1a 18   /lib/x (deleted)\n\
        3000-4000 r-xp 00000000 00:00 0   [vdso]\n";
    let mut random = StdRng::seed_from_u64(11);
    let mut mappings = Mappings::new(FILES_MAX);
    for _ in 0..2_000 {
        let mut bytes = good.as_bytes().to_vec();
        for _ in 0..random.random_range(1..6) {
            let index = random.random_range(0..bytes.len());
            bytes[index] = random.random();
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let places = links.places(&mut mappings, &text, &[0x1000, 0x3fff, u64::MAX, 0]);
        assert_eq!(places.len(), 4);
    }
    let mut file = File::options().append(true).open(links.0.path().join("file")).expect("a file");
    file.write_all(b"it is not locked").expect("it takes bytes");
}
