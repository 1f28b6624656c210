//! Real run directories, damaged on purpose: each report is the one of the whole run, or says what is
//! damaged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rand::{RngExt, SeedableRng};

/// What `observer report` says about damage, one of them at least.
const SAID: &[&str] = &["damaged", "cannot read", "is missing", "were written to it", "ends early"];

/// A copy of a fixture, which is damaged and mended in its place.
struct Copy {
    root: tempfile::TempDir,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Copy {
    fn of(name: &str) -> Self {
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/runs");
        let root = tempfile::tempdir().expect("a temporary directory");
        let mut files = Vec::new();
        for entry in fs::read_dir(Path::new(fixtures).join(name)).expect("the fixture") {
            let entry = entry.expect("a file");
            let (path, bytes) = (root.path().join(entry.file_name()), fs::read(entry.path()));
            files.push((path, bytes.expect("it can be read")));
        }
        files.sort();
        let copy = Self { root, files };
        copy.mend();
        copy
    }

    fn mend(&self) {
        for (path, bytes) in &self.files {
            fs::write(path, bytes).expect("it can be written");
        }
    }

    /// Everything that is printed, and how it ended.
    fn report(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_observer"))
            .arg("report")
            .arg(self.root.path())
            .args(arguments)
            .output()
            .expect("observer starts");
        let code = output.status.code().expect("no signal ends it");
        let both = [output.stdout, output.stderr].concat();
        format!("{}\nexit code {code}\n", String::from_utf8(both).expect("UTF-8"))
    }

    /// How many bytes of a file have a checksum: of the generator's output, those at the last checkpoint.
    fn summed_bytes(&self, path: &Path, bytes: &[u8]) -> usize {
        let run = fs::read(self.root.path().join("run.json")).expect("run.json");
        let run: serde_json::Value = serde_json::from_slice(&run).unwrap_or_default();
        let name = path.file_name().expect("a name").to_string_lossy();
        run["kept"][&*name]["bytes"].as_u64().map_or(bytes.len(), |bytes| bytes as usize)
    }

    /// Those that a report is made from.
    fn read_files(&self, of: impl Fn(&str) -> bool) -> Vec<&(PathBuf, Vec<u8>)> {
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        self.files.iter().filter(|(path, _)| name(path).is_some_and(|name| of(&name))).collect()
    }
}

fn is_stream(name: &str) -> bool {
    name.ends_with(".arrows")
}

/// Whether a report says more about damage than that of the whole run.
fn says(report: &str, whole: &str) -> bool {
    let (report, whole) = (in_a_line(report), in_a_line(whole));
    SAID.iter().any(|said| report.matches(said).count() > whole.matches(said).count())
}

/// Sentences are wrapped.
fn in_a_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn assert_said(report: &str, whole: &str, what: &str) -> bool {
    assert!(report == whole || says(report, whole), "{what} is not said:\n{report}");
    report == whole
}

#[test]
fn a_damaged_bit_anywhere_is_said_or_changes_nothing() {
    let mut random = rand::rngs::StdRng::seed_from_u64(5);
    for name in ["sealed", "sealed-killed"] {
        let copy = Copy::of(name);
        let (whole, json) = (copy.report(&[]), copy.report(&["--json"]));
        let is_read =
            |name: &str| is_stream(name) || name.ends_with(".json") || name == "loadgen.out";
        let (mut equal, mut said) = (0, 0);
        for (path, bytes) in copy.read_files(is_read) {
            for round in 0..40 {
                let bit = random.random_range(0..copy.summed_bytes(path, bytes) * 8);
                let mut damaged = bytes.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                fs::write(path, damaged).expect("it can be written");
                let what = format!("bit {} of byte {} of {}", bit % 8, bit / 8, path.display());
                let is_equal = if round % 4 == 0 {
                    assert_said(&copy.report(&["--json"]), &json, &what)
                } else {
                    assert_said(&copy.report(&[]), &whole, &what)
                };
                *if is_equal { &mut equal } else { &mut said } += 1;
            }
            fs::write(path, bytes).expect("it can be written");
        }
        println!("{name}: {said} said, {equal} without effect");
        assert!(said > equal, "most bits matter: {said}, {equal}");
        assert_eq!(copy.report(&[]), whole);
    }
}

#[test]
fn damage_of_the_generators_output_is_said_and_names_no_cause() {
    for name in ["sealed", "sealed-killed"] {
        let copy = Copy::of(name);
        let json = copy.report(&["--json"]);
        let [(path, bytes)] = copy.read_files(|name| name == "loadgen.out")[..] else {
            panic!("one file");
        };
        let summed = copy.summed_bytes(path, bytes);
        // A latency of a request that the answer is about becomes another number.
        let at = (0..summed).rfind(|at| bytes[..*at].ends_with(b"latency_ns\":")).expect("a row");
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let mut longer = bytes.clone();
        longer.extend(b"more");
        let cases = [
            (Some(changed), "loadgen.out is damaged: it does not match its checksum"),
            (Some(bytes[..at].to_vec()), " were written to it"),
            (None, "loadgen.out is missing: the run wrote "),
            (Some(longer), "loadgen.out is damaged: it does not match its checksum"),
        ];
        for (index, (content, said)) in cases.into_iter().enumerate() {
            match content {
                Some(content) => fs::write(path, content).expect("it can be written"),
                None => fs::remove_file(path).expect("it was there"),
            }
            let is_killed = name == "sealed-killed";
            // What comes after the last checkpoint is not known.
            let is_known = !is_killed || index < 3;
            let report = in_a_line(&copy.report(&[]));
            assert_eq!(report.contains(said), is_known, "{said}:\n{report}");
            let answer = copy.report(&["--json"]);
            assert!(is_killed || answer == json, "it is in a file of its own:\n{answer}");
            assert_eq!(answer.contains("samples_damaged"), is_killed && is_known, "{answer}");
            copy.mend();
        }
    }
}

/// Where messages begin, and some places that only look like it.
fn borders(bytes: &[u8]) -> Vec<usize> {
    let marks = bytes.windows(8).enumerate();
    let marks = marks.filter(|(_, mark)| mark[..4] == [0xff; 4] && mark[7] == 0);
    marks.map(|(at, _)| at).collect()
}

#[test]
fn a_stream_that_was_cut_anywhere_is_said() {
    for name in ["sealed", "sealed-killed"] {
        let copy = Copy::of(name);
        let whole = copy.report(&[]);
        for (path, bytes) in copy.read_files(is_stream) {
            let file = path.file_name().expect("a name").to_string_lossy();
            // Of a run that was killed, every stream ends early, and that is said of all.
            let is_open = whole.contains(&*file);
            let borders = borders(bytes);
            assert!(borders.len() >= 2, "{file}");
            let step = borders.len().div_ceil(12);
            for at in borders.into_iter().step_by(step) {
                for cut in [at, at + 1, at + 4, at + 8, at + 100, at + 500] {
                    if cut < bytes.len() {
                        fs::write(path, &bytes[..cut]).expect("it can be written");
                        let report = copy.report(&[]);
                        let is_said = is_open || report != whole && says(&report, &whole);
                        assert!(is_said, "{file} cut at {cut} is not said:\n{report}");
                    }
                }
            }
            fs::write(path, bytes).expect("it can be written");
        }
    }
}

#[test]
fn a_stream_that_was_deleted_or_is_of_another_run_is_said() {
    for name in ["sealed", "sealed-killed"] {
        let copy = Copy::of(name);
        let whole = copy.report(&[]);
        let other = Copy::of(if name == "sealed" { "sealed-killed" } else { "sealed" });
        let mut exchanged = 0;
        for (path, bytes) in copy.read_files(is_stream) {
            let file = path.file_name().expect("a name");
            fs::remove_file(path).expect("it was there");
            let said = format!("{} is missing: the run wrote ", file.to_string_lossy());
            let report = in_a_line(&copy.report(&[]));
            assert!(report.contains(&said) && !whole.contains(&said), "{said:?}:\n{report}");
            if let Ok(foreign) = fs::read(other.root.path().join(file)) {
                fs::write(path, foreign).expect("it can be written");
                let report = in_a_line(&copy.report(&[]));
                assert!(report.contains("it was written by another run"), "{report}");
                exchanged += 1;
            }
            fs::write(path, bytes).expect("it can be written");
        }
        assert!(exchanged > 0, "{name}");
        assert_eq!(copy.report(&[]), whole);
    }
}
