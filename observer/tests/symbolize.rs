//! The process that reads the symbols of a file: whatever the file is, and whatever the process does,
//! there is an answer.

use std::fs::{self, File, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use observer::model::Tgid;
use observer::stacks::mappings::{FILES_MAX, Mappings};
use observer::stacks::symbolize::Symbol;
use observer::stacks::worker::{Answer, FILE_TIME, symbols_by};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn observer() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_observer"))
}

fn ask(file: &File, offsets: &[u64]) -> Answer {
    symbols_by(observer(), file, offsets, FILE_TIME)
}

#[inline(never)]
fn a_function_of_this_test(number: u64) -> u64 {
    std::hint::black_box(number) + 1
}

#[test]
fn a_function_of_this_program_has_its_name() {
    assert_eq!(a_function_of_this_test(1), 2);
    let address = a_function_of_this_test as *const () as u64;
    let mut mappings = Mappings::new(FILES_MAX);
    let offset = mappings.places(Tgid(std::process::id()), &[address])[0].offset;
    let own = File::open("/proc/self/exe").expect("it is there");
    let found = ask(&own, &[offset + 1, u64::MAX]).expect("it is an ELF file");
    let [Some(Symbol { name, offset }), None] = &found[..] else { panic!("{found:?}") };
    assert!(name.ends_with("a_function_of_this_test") && *offset == 1, "{found:?}");
    // As many as there may be, of which the process reads all before it answers.
    let many: Vec<u64> = (0..200_000).collect();
    assert_eq!(ask(&own, &many).expect("it is an ELF file").len(), many.len());
}

#[test]
fn a_file_of_another_kind_is_an_error_of_one_line() {
    let mut file = tempfile::tempfile().expect("a file");
    for bytes in [&b""[..], b"\x7fELF", &[0xff; 5_000]] {
        file.set_len(0).expect("it is empty");
        file.seek(SeekFrom::Start(0)).expect("its begin");
        file.write_all(bytes).expect("it takes bytes");
        let error = ask(&file, &[1]).expect_err("no ELF file");
        assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
    }
    let directory = File::open("/").expect("it is there");
    assert!(ask(&directory, &[1]).is_err());
}

#[test]
fn damaged_files_end_nothing_but_their_reader() {
    let good = fs::read("/bin/true").expect("it is there");
    let number = |at: usize, bytes: usize| {
        good[at..at + bytes].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    // The ELF header, and the two tables that it names.
    let (segments, sections) = (number(32, 8), number(40, 8));
    let tables = [
        0..64,
        segments..segments + number(54, 2) * number(56, 2),
        sections..sections + number(58, 2) * number(60, 2),
    ];
    let mut random = StdRng::seed_from_u64(5);
    let mut file = tempfile::tempfile().expect("a file");
    let mut answers = 0;
    for round in 0..60 {
        let mut bytes = good.clone();
        let table = tables[round % tables.len()].clone();
        for _ in 0..random.random_range(1..4) {
            let place = random.random_range(table.clone());
            bytes[place] = [0, 1, 0x7f, 0x80, 0xff, random.random()][random.random_range(0..6)];
        }
        if round % 7 == 0 {
            bytes.truncate(random.random_range(64..bytes.len()));
        }
        file.set_len(0).expect("it is empty");
        file.seek(SeekFrom::Start(0)).expect("its begin");
        file.write_all(&bytes).expect("it takes bytes");
        let offsets = [0, 1, 0x1000, 0x2000, 0x4000, u64::MAX];
        match ask(&file, &offsets) {
            Ok(found) => answers += usize::from(found.len() == offsets.len()),
            Err(error) => assert!(!error.is_empty() && !error.contains('\n'), "{error:?}"),
        }
    }
    assert!(answers > 0, "most of the damage does not matter");
}

/// A program that ignores what it is asked.
fn program(directory: &Path, name: &str, text: &str) -> Answer {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("it can be executed");
    let file = File::open("/proc/self/exe").expect("it is there");
    symbols_by(&path, &file, &[1], Duration::from_secs(1))
}

#[test]
fn a_reader_that_is_slow_dies_or_lies_is_an_error() {
    let root = tempfile::tempdir().expect("a directory");
    let error = |name: &str, text: &str| {
        let error = program(root.path(), name, text).expect_err(name);
        assert!(!error.contains('\n'), "{error:?}");
        error
    };
    let slow = error("slow", "exec sleep 1000");
    assert!(slow.contains("more than 1 s"), "{slow}");
    let dead = error("dead", "kill -BUS $$");
    assert!(dead.contains("signal: 7"), "{dead}");
    let early = error("early", "exit 3");
    assert!(early.contains("exit status: 3"), "{early}");
    let long = error("long", "exec yes");
    assert!(long.contains("too long"), "{long}");
    let wrong = error("wrong", "echo '{\"Ok\":[]}'");
    assert!(wrong.contains("wrong answer"), "{wrong}");
    let escape = error("escape", "printf '{\"Err\":\"\\\\u001b[2J\"}'");
    assert!(escape.contains("?[2J"), "{escape:?}");
    let missing = File::open("/proc/self/exe").expect("it is there");
    let missing = symbols_by(Path::new("/nowhere"), &missing, &[1], FILE_TIME);
    assert!(missing.expect_err("no program").contains("cannot be started"));
    let names = "printf '{\"Ok\":[{\"name\":\"a\\\\u001b\",\"offset\":4}]}'";
    let found = program(root.path(), "names", names).expect("an answer");
    assert_eq!(found, [Some(Symbol { name: "a?".to_owned(), offset: 4 })]);
}
