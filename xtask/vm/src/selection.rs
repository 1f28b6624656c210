//! Which test programs guests run.

use xtask_common::{kernel::TURNS, test_programs::TestProgram};

/// The privileged test programs of these names. Where none is named, those whose outcome depends on the
/// kernel, which are the ones that the turns of `cargo xtask test` name. The others (commands, files,
/// load generators) do the same on every kernel, and take hours on an emulated CPU.
pub(crate) fn tests(built: &[TestProgram], names: &[String]) -> Result<Vec<TestProgram>, String> {
    let privileged = || built.iter().filter(|program| program.is_privileged());
    if names.is_empty() {
        let in_turns = |name: &str| TURNS.iter().any(|turn| turn.tests.contains(&name));
        let wanted = |program: &&TestProgram| in_turns(&program.name);
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
    fn tests_are_those_named_or_those_of_the_turns() {
        let program = |name: &str, folder: &str| TestProgram {
            name: name.to_owned(),
            path: format!("/t/{name}").into(),
            package: root().join(folder),
        };
        let built = [
            program("exactness", "tests"),
            program("demo", "tests"),
            program("unit", "observer"),
            program("doctor", "tests"),
        ];
        let names = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            tests(&built, &names)
                .map(|found| found.into_iter().map(|one| one.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]), Ok(vec!["exactness".to_owned(), "doctor".to_owned()]));
        assert_eq!(names(&["demo"]), Ok(vec!["demo".to_owned()]));
        assert!(names(&["unit"]).is_err(), "it needs no privileges");
        assert!(names(&["exactness", "gone"]).expect_err("gone").contains("gone"));
    }
}
