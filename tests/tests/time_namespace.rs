//! observer in a time namespace, in which its monotonic clock is not the kernel's.

use std::process::Command;
use std::time::Duration;

use observer_tests::command::{Finished, run};
use observer_tests::privileged;
use observer_tests::process::{Placement, Service};
use observer_tests::trial::{Run, directory, programs};
use observer_tests::watch::read_run;

/// What the namespace adds to the monotonic clock.
const OFFSET_SECONDS: &str = "100000";

/// Runs observer in a new time namespace.
fn in_namespace(arguments: &[&str]) -> Finished {
    let mut command = Command::new("unshare");
    command.args(["--time", "--monotonic", OFFSET_SECONDS, "--fork"]).arg(programs().observer);
    run(command.args(arguments), Duration::from_secs(60)).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn observer_finds_the_kernels_clock() {
    let Some(_guard) = privileged::ready("time namespace") else { return };
    let supported = Command::new("unshare").args(["--time", "--fork", "true"]).status();
    assert!(
        supported.is_ok_and(|status| status.success()),
        "unshare makes a time namespace (Linux 5.6, util-linux 2.36)"
    );
    let doctor = in_namespace(&["doctor", "--json"]);
    doctor.assert_code(0);
    let text = &doctor.stdout;
    assert!(text.contains("time_namespace") && text.contains("+100000.000000000 s"), "{text}");

    let directory = directory();
    let service = Service::start(&programs().service, &[], Placement::default())
        .unwrap_or_else(|error| panic!("{error}"));
    let out = directory.path().join("run");
    let (port, url) = (service.port.to_string(), format!("{}/", service.url));
    let programs = programs();
    let [out_text, load] = [&out, &programs.observer].map(|path| path.to_str().expect("UTF-8"));
    let watch = ["run", "--floor", "runqueue=0us", "--samples", "observer-load", "--port", &port];
    let command =
        ["--out", out_text, "--", load, "load", "--rate", "100", "--duration", "2s", &url];
    in_namespace(&[&watch[..], &command].concat()).assert_code(0);
    let (summary, info) = read_run(&out).unwrap_or_else(|error| panic!("{error}"));
    let samples = &summary.samples;
    assert_eq!((samples.count, samples.skipped.len()), (200, 0), "{samples:?}");
    // The times of the run and of its records are the kernel's, not those of the namespace.
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_sec;
    assert!(info.end_ns.0 / 1_000_000_000 <= uptime.unsigned_abs(), "{info:?}");
    let (start, end) = (info.start_ns, info.end_ns);
    let run = Run { summary, info, directory: out };
    let (mut inside, mut outside) = (0, 0);
    for event in run.events().iter().filter(|event| event.duration_ns > 0) {
        let is_inside = (start..=end).contains(&event.end);
        *(if is_inside { &mut inside } else { &mut outside }) += 1;
    }
    // A few may have been recorded while the probes were being attached and detached.
    assert!(inside > outside, "{inside} records inside the run, {outside} outside");
}
