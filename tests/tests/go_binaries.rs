//! Functions of programs in Go, stripped or not.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{LittleEndian, Object, ObjectSymbol, SymbolKind};
use observer::output::rundir::RunDir;
use observer::stacks::symbolize::ElfFile;
use observer_tests::command::run;
use observer_tests::process::{Placement, Running};
use observer_tests::{go, privileged, trial};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::Signal;

/// It sleeps in a function that is called by another one, both of which the compiler leaves as they are.
const SLEEPS: &str = r#"package main

import (
	"runtime"
	"syscall"
)

//go:noinline
func sleeps() {
	wait := syscall.Timespec{Nsec: 50000000}
	syscall.Nanosleep(&wait, nil)
}

//go:noinline
func calls() {
	sleeps()
	runtime.Gosched()
}

func main() {
	runtime.LockOSThread()
	for {
		calls()
	}
}
"#;

/// Names of places, and not of functions, begin with these.
const MARKS: [&str; 3] = ["runtime.text", "runtime.etext", "go:text"];

const LIMIT: Duration = Duration::from_secs(60);

/// A name as the table of the runtime has it: one for both ways to call a function, and without the types of a
/// generic one (Go's cmd/link/internal/ld/pcln.go).
fn in_table_of_runtime(name: &str) -> String {
    let name = name.strip_suffix(".abi0").unwrap_or(name).replace('·', ".");
    match (name.split_once('['), name.rsplit_once(']')) {
        (Some((before, _)), Some((_, behind))) => format!("{before}[...]{behind}"),
        _ => name,
    }
}

/// The functions of a program that is not stripped, by their offset in the file.
fn in_symbol_table(bytes: &[u8]) -> BTreeMap<u64, Vec<String>> {
    let file = ElfFile64::<LittleEndian>::parse(bytes).expect("ELF");
    let endian = LittleEndian;
    let segments = file.elf_header().program_headers(endian, bytes).expect("segments");
    let mut functions = BTreeMap::<_, Vec<_>>::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let address = symbol.address();
        let segment = segments.iter().find(|one| {
            (one.p_vaddr(endian)..=one.p_vaddr(endian) + one.p_filesz(endian)).contains(&address)
        });
        let Some(segment) = segment else { continue };
        let offset = address - segment.p_vaddr(endian) + segment.p_offset(endian);
        let name = symbol.name().expect("a name");
        functions.entry(offset).or_default().push(in_table_of_runtime(name));
    }
    functions
}

fn stripped(program: &Path) -> Vec<u8> {
    let copy = program.with_extension("stripped");
    let status =
        Command::new("strip").arg("--strip-all").arg("-o").arg(&copy).arg(program).status();
    assert!(status.expect("binutils are installed").success());
    fs::read(copy).expect("it was made")
}

/// The same program without its list of sections.
fn without_sections(program: &[u8]) -> Vec<u8> {
    let mut program = program.to_vec();
    // e_shoff, and e_shnum and e_shstrndx, elf(5)
    program[40..48].fill(0);
    program[60..64].fill(0);
    program
}

fn opened(bytes: &[u8]) -> (tempfile::TempDir, ElfFile) {
    let directory = trial::directory();
    let path = directory.path().join("program");
    fs::write(&path, bytes).expect("it is written");
    let file = ElfFile::open(&path).expect("it is there");
    (directory, file)
}

/// Checks that the functions have the names of the symbol table.
fn all_are_known(functions: &BTreeMap<u64, Vec<String>>, program: &[u8], what: &str) {
    let (_directory, file) = opened(program);
    // Three bytes behind their begin; no function is shorter.
    let offsets: Vec<u64> = functions.keys().map(|offset| offset + 3).collect();
    let found = file.symbols(&offsets).expect("a program in Go");
    let place = |mark: &str| {
        let found = functions.iter().find(|(_, names)| names.iter().any(|name| name == mark));
        *found.unwrap_or_else(|| panic!("{what}: no {mark}")).0
    };
    // Others are those of C.
    let of_go = place("runtime.text")..place("runtime.etext");
    let mut checked = 0;
    for ((offset, names), found) in functions.iter().zip(&found) {
        if names.iter().any(|name| MARKS.iter().any(|mark| name.starts_with(mark))) {
            continue;
        }
        if !of_go.contains(offset) {
            // Some of them are known to the dynamic linker.
            let is_own = found.as_ref().is_none_or(|found| names.contains(&found.name));
            assert!(is_own, "{what}: {names:?} is {found:?}");
            continue;
        }
        let Some(found) = found else { panic!("{what}: {names:?} at {offset:#x} is not found") };
        let name = in_table_of_runtime(&found.name);
        assert!(names.contains(&name), "{what}: {names:?} at {offset:#x} is {found:?}");
        assert_eq!(found.offset, 3, "{what}: {found:?}");
        checked += 1;
    }
    assert!(
        checked > 500 && checked + 60 > functions.len(),
        "{what}: {checked} of {}",
        functions.len()
    );
}

#[test]
fn functions_of_stripped_programs_are_those_of_the_symbol_table() {
    let directory = trial::directory();
    for arguments in [&[][..], &["-buildmode=pie"], &["-ldflags=-linkmode=external"]] {
        let program = go::compiled(directory.path(), SLEEPS, arguments);
        let whole = fs::read(&program).expect("it was made");
        let functions = in_symbol_table(&whole);
        let stripped = stripped(&program);
        assert!(in_symbol_table(&stripped).is_empty());
        all_are_known(&functions, &stripped, &format!("stripped {arguments:?}"));
        let bare = without_sections(&stripped);
        all_are_known(&functions, &bare, &format!("without sections {arguments:?}"));

        // What lies behind the functions has no name: the data, and the end of the file.
        let (_directory, file) = opened(&stripped);
        let found = file.symbols(&[0, whole.len() as u64, u64::MAX]).expect("a program in Go");
        assert!(found.iter().all(Option::is_none), "{found:?}");
        damaged(&bare, &functions);
    }
}

/// Looks for functions in damaged copies of a program; some are found, or none.
fn damaged(program: &[u8], functions: &BTreeMap<u64, Vec<String>>) {
    let mut random = StdRng::seed_from_u64(11);
    let offsets: Vec<u64> = functions.keys().copied().step_by(50).collect();
    let magic = [0xf0_u8, 0xf1].map(|first| [first, 0xff, 0xff, 0xff, 0, 0, 1, 8]);
    let table = (0..program.len())
        .step_by(8)
        .find(|at| magic.iter().any(|magic| program[*at..].starts_with(magic)));
    let table = table.expect("its table");
    let mut unknown = 0;
    for round in 0..60 {
        let mut copy = program.to_vec();
        // The header of the file or of the table, or anywhere in the table.
        let (start, length) = [(0, 1_024), (table, 72), (table, copy.len() - table)][round % 3];
        for _ in 0..[1, 8, 4_096][round / 3 % 3] {
            copy[start + random.random_range(0..length)] = random.random();
        }
        if round % 7 == 0 {
            copy.truncate(random.random_range(0..copy.len()));
        }
        let path = trial::directory();
        let path = path.path().join("program");
        fs::write(&path, &copy).expect("it is written");
        let Ok(file) = ElfFile::open(&path) else { continue };
        match file.symbols(&offsets) {
            Ok(found) => unknown += found.iter().filter(|found| found.is_none()).count(),
            Err(error) => assert!(!error.is_empty() && !error.contains('\n'), "{error:?}"),
        }
    }
    assert!(unknown > 0, "nothing was damaged");
}

#[test]
fn stacks_of_a_stripped_program_have_its_functions() {
    let Some(_guard) = privileged::ready("stacks of a program in Go") else { return };
    let directory = trial::directory();
    let program = go::compiled(&directory.path().join("go"), SLEEPS, &["-ldflags=-s -w"]);
    let place = Placement::default();
    let process = Running::start(&mut Command::new(program), place).expect("it starts");
    let id = process.id().to_string();
    let out = directory.path().join("run");
    let mut observer = Command::new(trial::programs().observer);
    observer.args(["run", "--pid", &id, "--stacks", "20ms", "--duration", "2s", "--out"]).arg(&out);
    run(&mut observer, LIMIT).expect("a run").assert_code(0);
    process.signal(Signal::KILL);
    let stacks =
        RunDir::open(&out).expect("a run").read_stacks().expect("stacks").expect("with stacks");
    let is_asleep = |names: &[&str]| {
        names.windows(2).any(|pair| pair == ["main.sleeps", "main.calls"])
            && names.contains(&"main.main")
    };
    let found = stacks.user.iter().any(|stack| {
        let names: Vec<_> = stack
            .frames
            .iter()
            .map(|frame| frame.function.as_deref().unwrap_or_default())
            .collect();
        is_asleep(&names)
    });
    assert!(found, "{:#?}", stacks.user);
}
