//! Which test programs guests run.

use xtask_common::test_programs::TestProgram;

/// Privileged test programs that need more than a guest has: other programs of the host, or more than
/// an emulated CPU.
const NOT_IN_GUESTS: &[&str] =
    &["cli", "demo", "examples", "faults", "floor", "generators", "hardening", "logging"];

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

#[cfg(test)]
mod tests {
    use xtask_common::project::root;

    use super::*;

    #[test]
    fn programs_that_are_treated_apart_exist() {
        for name in NOT_IN_GUESTS {
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
}
