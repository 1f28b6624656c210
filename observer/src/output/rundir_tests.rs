use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use super::*;
use crate::model::{Frame, Tgid, UserStack};
use crate::output::example;

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn stacks() -> Stacks {
    let frame = |function: &str| Frame {
        function: Some(function.to_owned()),
        module: "[kernel]".to_owned(),
        offset: 16,
    };
    let user = UserStack { tgid: Tgid(7), id: 3, frames: vec![Frame::default()] };
    Stacks {
        schema: STACKS_SCHEMA,
        kernel: [(9, vec![frame("schedule"), frame("do_syscall_64")])].into(),
        user: vec![user],
        not_known: [("place_taken".to_owned(), 2)].into(),
    }
}

fn refusal<T: std::fmt::Debug>(result: Result<T>, exit: Exit) -> String {
    let error = result.expect_err("refused");
    assert_eq!(error.exit, exit, "{error}");
    assert!(!error.to_string().contains('\n'), "{error}");
    error.to_string()
}

#[test]
fn a_run_comes_back_from_its_directory_which_only_its_owner_can_read() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("run");
    let directory = RunDir::create(Some(&path)).unwrap();
    let (run, summary) = (example::run(), example::attributed());
    directory.write_run(&example::crashed_run()).unwrap();
    directory.write_run(&run).unwrap();
    directory.write_summary(&summary).unwrap();
    directory.write_stacks(&stacks()).unwrap();
    let mut events = directory.create_events().unwrap();
    example::events().iter().for_each(|event| {
        events.append(event).unwrap();
    });
    events.finish().unwrap();
    let mut samples = directory.create_samples().unwrap();
    example::samples().iter().for_each(|sample| samples.append(sample).unwrap());
    samples.finish().unwrap();

    assert_eq!(mode(&path), 0o700);
    let names: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(names.len(), 7, "no temporary file is left");
    assert!(names.iter().all(|entry| mode(&entry.path()) == 0o600));

    let directory = RunDir::open(&path).unwrap();
    assert_eq!(directory.read_run().unwrap(), run);
    assert_eq!(directory.read_summary().unwrap(), Some(summary));
    assert_eq!(directory.read_stacks().unwrap(), Some(stacks()));
    assert_eq!(directory.read_events().unwrap().unwrap().rows.len(), example::events().len());
    assert_eq!(directory.read_samples().unwrap().unwrap().rows, example::samples());
}

#[test]
fn nothing_that_exists_is_overwritten() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("run");
    let directory = RunDir::create(Some(&path)).unwrap();
    let text = refusal(RunDir::create(Some(&path)), Exit::OutputExists);
    assert!(text.contains("never overwritten") && text.contains("another directory"), "{text}");
    assert_eq!(refusal(RunDir::check(Some(&path)), Exit::OutputExists), text);
    assert!(RunDir::check(Some(&root.path().join("free"))).is_ok() && RunDir::check(None).is_ok());
    let link = root.path().join("link");
    symlink("/nowhere", &link).unwrap();
    refusal(RunDir::create(Some(&link)), Exit::OutputExists);
    directory.create_file(files::LOADGEN_OUT).unwrap();
    refusal(directory.create_file(files::LOADGEN_OUT), Exit::Output);
    // A symbolic link in the place of a file is not followed.
    let aim = root.path().join("aim");
    symlink(&aim, path.join(files::SAMPLES)).unwrap();
    refusal(directory.create_samples().map(|_| ()), Exit::Output);
    assert!(!aim.exists());
    let file = root.path().join("file");
    create_private_file(&file).unwrap();
    refusal(create_private_file(&file), Exit::Output);
}

#[test]
fn bad_places_are_refused_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let text = refusal(RunDir::create(Some(&root.path().join("a/b"))), Exit::Output);
    assert!(text.contains("does not exist"), "{text}");
    refusal(RunDir::create(Some(Path::new("/"))), Exit::Output);
    refusal(RunDir::create(Some(Path::new("/proc/run"))), Exit::Output);
    let open = root.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    let text = refusal(RunDir::create(Some(&open.join("run"))), Exit::Output);
    assert!(text.contains("not sticky"), "{text}");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o1777)).unwrap();
    RunDir::create(Some(&open.join("run"))).unwrap();
}

#[test]
fn a_missing_run_is_distinguished_from_a_damaged_one() {
    let root = tempfile::tempdir().unwrap();
    refusal(RunDir::open(&root.path().join("none")), Exit::RunUnreadable);
    let file = root.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let text = refusal(RunDir::open(&file), Exit::RunUnreadable);
    assert!(text.contains("not a directory"), "{text}");
    let directory = RunDir::open(root.path()).unwrap();
    let text = refusal(directory.read_run(), Exit::RunUnreadable);
    assert!(text.contains("not a run directory"), "{text}");
    assert_eq!(directory.read_summary().unwrap(), None);
    assert_eq!(directory.read_stacks().unwrap(), None);
    assert!(directory.read_events().unwrap().is_none());
    std::fs::write(root.path().join(files::RUN), "{\"schema\": 1}").unwrap();
    refusal(directory.read_run(), Exit::RunUnreadable);
    std::fs::write(root.path().join(files::RUN), "{\"schema\": 99}").unwrap();
    let text = refusal(directory.read_run(), Exit::RunUnreadable);
    assert!(text.contains("newer"), "{text}");
    rustix::fs::mknodat(CWD, root.path().join(files::SAMPLES), FileType::Fifo, Mode::RUSR, 0)
        .unwrap();
    refusal(directory.read_samples(), Exit::RunUnreadable);
}

#[test]
fn damage_of_the_stacks_is_said() {
    let root = tempfile::tempdir().unwrap();
    let directory = RunDir::create(Some(&root.path().join("run"))).unwrap();
    directory.write_stacks(&stacks()).unwrap();
    let file = directory.path().join(files::STACKS);
    let good = std::fs::read_to_string(&file).unwrap();
    let damage = |from: &str, to: &str| {
        std::fs::write(&file, good.replacen(from, to, 1)).unwrap();
        let directory = RunDir::open(directory.path()).unwrap();
        (directory.read_stacks(), directory.doubts())
    };
    let (read, doubts) = damage("schedule", "schedole");
    assert!(read.unwrap().is_some());
    assert!(doubts.iter().any(|doubt| doubt.starts_with("stacks.json is damaged")), "{doubts:?}");
    let (read, doubts) = damage("\"kernel\": {", "\"kernel\": [");
    assert_eq!(read.unwrap(), None);
    assert!(doubts.iter().any(|doubt| doubt.starts_with("stacks.json is damaged")), "{doubts:?}");
    std::fs::write(&file, "{\"schema\": 99}").unwrap();
    let text = refusal(directory.read_stacks(), Exit::RunUnreadable);
    assert!(text.contains("newer"), "{text}");
}

#[test]
fn the_default_name_contains_the_time() {
    let time = time::OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
    assert_eq!(default_name(time), "observer-run-20231114-221320");
}
