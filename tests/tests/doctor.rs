//! `observer doctor` on the real kernel, with privileges and without.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use observer_tests::privileged;
use observer_tests::trial::programs;

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn with_privileges_the_exit_code_agrees_with_what_is_printed() {
    let Some(_guard) = privileged::ready("doctor with privileges") else { return };
    let output =
        Command::new(programs().observer).args(["doctor", "--json"]).output().expect("runs");
    let found = json(&output);
    assert_eq!(output.status.code().map(i64::from), found["exit_code"].as_i64());
    assert_eq!(found["run_would_work"], output.status.success());
    assert_eq!(found["schema"], 1);
    let ids: Vec<&str> = found["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .filter_map(|c| c["id"].as_str())
        .collect();
    for id in ["kernel", "privileges", "btf", "ring_buffer", "uprobe", "cgroups", "clock_source"] {
        assert!(ids.contains(&id), "{id} is missing from {ids:?}");
    }
    // The host of this test must be able to run observer, otherwise the other checks prove nothing.
    assert!(output.status.success(), "{found:#}");
    let probes = found["probes"].as_array().expect("probes");
    let runqueue = probes.iter().find(|probe| probe["probe"] == "runqueue").expect("runqueue");
    assert_eq!(runqueue["state"], "attached");
    assert!(runqueue["tier"].is_string());
}

#[test]
fn without_privileges_it_says_so_in_one_line_and_exits_with_3() {
    let Some(_guard) = privileged::ready("doctor without privileges") else { return };
    // The build directory may be closed to others: the program is copied out of it.
    let directory = tempfile::Builder::new().prefix("observer-doctor-").tempdir().expect("made");
    let copy = directory.path().join("observer");
    std::fs::copy(programs().observer, &copy).expect("copied");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(directory.path(), open).expect("opened");
    let output = Command::new(&copy)
        .args(["doctor", "--json"])
        .uid(65_534)
        .gid(65_534)
        .current_dir("/")
        .output()
        .expect("runs");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert!(complaint.starts_with("observer: error: `observer run` does not work on this host: "));
    let found = json(&output);
    assert_eq!(found["run_would_work"], false);
    assert_eq!(found["probes"], serde_json::json!([]), "nothing was tried");
}

#[test]
fn a_closed_or_full_standard_output_is_no_panic() {
    let run = |stdout: Stdio| {
        let output = Command::new(programs().observer)
            .arg("doctor")
            .stdout(stdout)
            .stderr(Stdio::piped())
            .output()
            .expect("runs");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    assert!(!run(writer.into()).contains("panicked"));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let complaint = run(full.into());
    assert!(complaint.contains("cannot write to standard output"), "{complaint}");
}
