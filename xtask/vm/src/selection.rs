//! Which test programs each kernel runs.

use xtask_common::{kernel::Kernel, test_programs::TestProgram};

/// Privileged test programs that need more than a guest has: other programs of the host, or more than
/// an emulated CPU.
const NOT_IN_GUESTS: &[&str] =
    &["cli", "demo", "examples", "faults", "floor", "generators", "hardening", "logging"];

const EVERY: &[Kernel] = &[Kernel::V6_1, Kernel::V6_12, Kernel::V6_1Rt, Kernel::V6_12Rt];

/// The programs that guests run in `cargo xtask test`, and the kernels that run them. Programs that
/// take long on an emulated CPU run on one kernel, so that the shares take about the same time; one
/// that takes as long as a share has a turn of its own (`xtask_common::kernel::Turn`). All others run
/// with a plain `cargo xtask vm`.
const SHARE: &[(&str, &[Kernel])] = &[
    ("exactness", EVERY),
    ("kernel_counters", EVERY),
    ("doctor", EVERY),
    ("target", EVERY),
    ("daemon", EVERY),
    ("edge_memory", &[Kernel::V6_1]),
    ("pressure", &[Kernel::V6_1]),
    ("records", &[Kernel::V6_12]),
    ("edge_runqueue", &[Kernel::V6_12]),
    ("edge_tasks", &[Kernel::V6_12]),
    ("uprobe", &[Kernel::V6_1Rt, Kernel::V6_12Rt]),
];

/// The privileged test programs of these names; all that can run in a guest where none is named.
pub(crate) fn tests(built: &[TestProgram], names: &[String]) -> Result<Vec<TestProgram>, String> {
    let privileged = || built.iter().filter(|program| program.is_privileged());
    if names.is_empty() {
        let wanted = |program: &&TestProgram| !NOT_IN_GUESTS.contains(&program.name.as_str());
        return Ok(privileged().filter(wanted).cloned().collect());
    }
    let named = |name: &String| {
        let found = privileged().find(|program| program.name == *name);
        found.cloned().ok_or_else(|| format!("there is no privileged test program {name}"))
    };
    names.iter().map(named).collect()
}

/// Whether a kernel runs this program in `cargo xtask test`.
pub(crate) fn in_share(kernel: Kernel, name: &str) -> bool {
    SHARE.iter().any(|(shared, kernels)| *shared == name && kernels.contains(&kernel))
}

#[cfg(test)]
mod tests {
    use xtask_common::project::root;

    use super::*;

    #[test]
    fn programs_that_are_treated_apart_exist() {
        let shared = SHARE.iter().map(|(name, _)| name);
        for name in NOT_IN_GUESTS.iter().chain(shared) {
            let path = root().join("tests/tests").join(name).with_extension("rs");
            assert!(path.is_file(), "{} is not there", path.display());
        }
    }

    #[test]
    fn tests_are_those_named_or_all_that_guests_can_run() {
        let program = |name: &str, folder: &str| TestProgram {
            name: name.to_owned(),
            path: format!("/t/{name}").into(),
            package: root().join(folder),
        };
        let built = [
            program("exactness", "tests"),
            program("demo", "tests"),
            program("unit", "observer"),
            program("new", "tests"),
        ];
        let names = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            tests(&built, &names)
                .map(|found| found.into_iter().map(|one| one.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]), Ok(vec!["exactness".to_owned(), "new".to_owned()]));
        assert_eq!(names(&["demo"]), Ok(vec!["demo".to_owned()]));
        assert!(names(&["unit"]).is_err(), "it needs no privileges");
        assert!(names(&["exactness", "gone"]).expect_err("gone").contains("gone"));
    }

    #[test]
    fn every_kernel_has_a_share_and_new_programs_are_in_none() {
        use clap::ValueEnum;
        assert_eq!(EVERY, Kernel::value_variants());
        for kernel in EVERY {
            assert!(in_share(*kernel, "exactness") && !in_share(*kernel, "new"));
        }
        assert!(in_share(Kernel::V6_1, "pressure") && !in_share(Kernel::V6_12, "pressure"));
    }
}
