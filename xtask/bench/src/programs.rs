//! Where in the programs the cost goes: runs, time a run, instructions.

use std::{collections::BTreeMap, path::Path};

use super::{
    rows::{Program, Row, Rows},
    statistics::{estimate, median},
    table::{self, NONE, Table},
};

/// The name that the profiling program reports for the program that does nothing.
const EMPTY: &str = "(empty)";

/// Profiles all programs once.
pub(crate) fn measure(program: &Path, cpu: usize, rows: &mut Rows) -> Result<(), String> {
    let told = super::json_of(program, &["--cpu", &cpu.to_string()])?;
    let profile: Vec<Program> =
        serde_json::from_value(told).map_err(|error| format!("bench-programs: {error}"))?;
    profile.into_iter().try_for_each(|program| rows.push(Row::Program(program)))
}

/// Time a run, as the kernel's statistics give it.
fn run_ns(program: &Program) -> f64 {
    program.run_time_ns as f64 / program.runs as f64
}

/// The table, or nothing if no program was profiled.
pub(crate) fn markdown(rows: &Rows) -> String {
    let mut programs: BTreeMap<(&str, &str), Vec<&Program>> = BTreeMap::new();
    for row in rows.iter() {
        if let Row::Program(program) = row
            // A program that ran less often than the operation was run by another task.
            && program.runs * 4 > program.operations
        {
            programs.entry((&program.operation, &program.program)).or_default().push(program);
        }
    }
    let empty: Vec<_> = programs
        .iter()
        .filter(|((_, name), _)| *name == EMPTY)
        .flat_map(|(_, runs)| runs.iter().map(|program| run_ns(program)))
        .collect();
    if programs.is_empty() {
        return String::new();
    }
    let floor_ns = median(&empty);
    let mut table = Table::new(&[
        "operation",
        "program",
        "runs an operation",
        "ns a run",
        "instructions verified",
        "BPF bytes",
        "machine code bytes",
    ]);
    for ((operation, name), runs) in &programs {
        let Some(program) = runs.first().filter(|_| *name != EMPTY) else { continue };
        let each: Vec<_> = runs.iter().map(|program| run_ns(program) - floor_ns).collect();
        let spread = estimate(&each);
        let rates: Vec<_> =
            runs.iter().map(|one| one.runs as f64 / one.operations as f64).collect();
        let size = |size: u32| if size == 0 { NONE.to_owned() } else { size.to_string() };
        table.row(&[
            (*operation).to_owned(),
            format!("`{name}`"),
            format!("{:.2}", median(&rates)),
            table::with_interval(spread, 0),
            size(program.verified_instructions),
            size(program.translated_bytes),
            size(program.jited_bytes),
        ]);
    }
    format!(
        "\n### Programs\n\nBy the kernel's run-time statistics, less the {floor_ns:.0} ns that they \
         tell for a program that does nothing.\n\n{}",
        table.finish()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, runs: u64, run_time_ns: u64) -> Row {
        Row::Program(Program {
            operation: "switch".to_owned(),
            operations: 100,
            program: name.to_owned(),
            runs,
            run_time_ns,
            verified_instructions: 12,
            translated_bytes: 96,
            jited_bytes: 0,
        })
    }

    #[test]
    fn the_floor_is_taken_off_and_bystanders_are_left_out() {
        let mut rows = Rows::default();
        for one in [row("a", 100, 9000), row(EMPTY, 200, 8000), row("rare", 3, 900)] {
            rows.push(one).unwrap();
        }
        let page = markdown(&rows);
        assert!(page.contains("| switch | `a` | 1.00 | 50 (50..50) | 12 | 96 | – |"), "{page}");
        assert!(!page.contains("rare") && page.contains("less the 40 ns"), "{page}");
        assert_eq!(markdown(&Rows::default()), "");
    }
}
