//! Which test programs guests run.

use std::process::Command;

use xtask_common::{kernel::TURNS, project::printed, test_programs::TestProgram};

use crate::options::Part;

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

/// The programs of `tests` that have tests in this part of all, and the arguments that choose these.
pub(crate) fn part(
    tests: Vec<TestProgram>,
    part: Part,
) -> Result<(Vec<TestProgram>, Vec<String>), String> {
    let mut listed = Vec::new();
    for program in tests {
        let list = printed(Command::new(&program.path).args(["--list", "--format=terse"]))?;
        listed.push((program, names(&String::from_utf8_lossy(&list))));
    }
    Ok(part_of(listed, part))
}

/// The tests in the list that a test program prints.
fn names(list: &str) -> Vec<String> {
    list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// Every `of`th test, over all programs.
fn part_of(
    listed: Vec<(TestProgram, Vec<String>)>,
    Part { number, of }: Part,
) -> (Vec<TestProgram>, Vec<String>) {
    let mut arguments = vec!["--exact".to_owned()];
    let mut programs = Vec::new();
    let mut place = 0..;
    for (program, names) in listed {
        let before = arguments.len();
        arguments.extend(
            names
                .into_iter()
                .zip(&mut place)
                .filter_map(|(name, place)| (place % of == number - 1).then_some(name)),
        );
        if arguments.len() > before {
            programs.push(program);
        }
    }
    (programs, arguments)
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

    #[test]
    fn parts_have_every_test_once() {
        let program = |name: &str| TestProgram {
            name: name.to_owned(),
            path: format!("/t/{name}").into(),
            package: root().join("tests"),
        };
        let listed = || {
            let first = names("one: test\ntwo: test\nthree: test\nmeasured: benchmark\n");
            vec![(program("first"), first), (program("second"), names("four: test\n"))]
        };
        let chosen = |number, of| {
            let (programs, arguments) = part_of(listed(), Part { number, of });
            let programs: Vec<_> = programs.into_iter().map(|one| one.name).collect();
            (programs.join(" "), arguments.join(" "))
        };
        let text = |programs: &str, arguments: &str| (programs.to_owned(), arguments.to_owned());
        assert_eq!(chosen(1, 2), text("first", "--exact one three"));
        assert_eq!(chosen(2, 2), text("first second", "--exact two four"));
        assert_eq!(chosen(1, 1), text("first second", "--exact one two three four"));
        assert_eq!(chosen(5, 5), text("", "--exact"));
    }
}
