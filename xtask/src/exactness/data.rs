//! docs/exactness.jsonl: what the tests compared on each kernel, one JSON object a line.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    fs,
    path::Path,
};

use serde_json::{Map, Value, json};

/// What a line is about. The kernels are in the line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// A number of observer and a number of the kernel.
    Comparison(Comparison),
    /// Behaviour that a test checked without comparing numbers.
    Checked { test: String, probe: String },
    /// Something that was not compared on these kernels.
    NotCompared { test: String, probe: String, metric: String },
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Comparison {
    pub(super) probe: String,
    pub(super) metric: String,
    /// The number that it is compared with.
    pub(super) against: String,
    pub(super) relation: String,
    pub(super) tier: String,
}

/// The entry of one kernel.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Cell {
    /// Number of comparisons.
    pub(super) comparisons: u64,
    /// Comparisons that failed; none in a committed file.
    pub(super) failed: u64,
    /// Measurements that were repeated because the host disturbed them.
    pub(super) repeated: u64,
    /// The largest error, relative to the kernel's number.
    pub(super) worst: f64,
    /// The largest relative tolerance.
    pub(super) tolerance: f64,
    /// The largest tolerance in events or nanoseconds.
    pub(super) slack: u64,
    /// What was observed, or the reason why nothing was compared.
    pub(super) text: String,
    /// The tests that wrote it.
    pub(super) tests: BTreeSet<String>,
}

/// All lines.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Data(pub(super) BTreeMap<Key, BTreeMap<String, Cell>>);

/// `6.1.0-51-rt-amd64` is `6.1-rt`: builds and machines are not distinguished.
pub(super) fn kernel_name(release: &str) -> String {
    let mut numbers = release.split(['.', '-']);
    let (major, minor) = (numbers.next().unwrap_or("?"), numbers.next().unwrap_or("?"));
    let real_time = if release.split('-').any(|part| part == "rt") { "-rt" } else { "" };
    format!("{major}.{minor}{real_time}")
}

fn text(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_default().to_owned()
}

impl Data {
    /// The lines that the tests wrote (tests/src/results.rs), combined.
    pub(super) fn of_results(results: &[Value]) -> Self {
        let mut data = Self::default();
        for result in results {
            let Some((key, said)) = key_of(result) else { continue };
            let kernels = data.0.entry(key).or_default();
            let cell = kernels.entry(kernel_name(&text(result, "kernel"))).or_default();
            cell.tests.insert(text(result, "test"));
            cell.text = said;
            cell.comparisons += 1;
            cell.failed += u64::from(result["passed"] == false);
            cell.repeated += result["repeated"].as_u64().unwrap_or_default();
            let error = result["error"].as_f64().unwrap_or_default();
            if error.abs() >= cell.worst.abs() {
                cell.worst = error;
            }
            cell.tolerance = cell.tolerance.max(result["tolerance"].as_f64().unwrap_or_default());
            cell.slack = cell.slack.max(result["slack"].as_u64().unwrap_or_default());
        }
        data
    }

    /// The kernels in it.
    pub(super) fn kernels(&self) -> BTreeSet<&str> {
        self.0.values().flat_map(BTreeMap::keys).map(String::as_str).collect()
    }

    /// The tests that ran on each kernel: kernel and test.
    pub(super) fn ran(&self) -> BTreeSet<(&str, &str)> {
        let cells = self.0.values().flatten();
        cells
            .flat_map(|(kernel, cell)| {
                cell.tests.iter().map(|test| (kernel.as_str(), test.as_str()))
            })
            .collect()
    }

    /// Puts `newer` in the place of what the same tests left on the same kernels, and keeps the rest.
    pub(super) fn update(&mut self, newer: Self) {
        let ran = newer.ran();
        for cells in self.0.values_mut() {
            cells.retain(|kernel, cell| {
                !cell.tests.iter().any(|test| ran.contains(&(kernel.as_str(), test.as_str())))
            });
        }
        for (key, cells) in newer.0 {
            self.0.entry(key).or_default().extend(cells);
        }
        self.0.retain(|_, cells| !cells.is_empty());
    }

    /// Reads such a file; a file that is missing is empty.
    pub(super) fn read(path: &Path) -> Result<Self, String> {
        let failed = |error: &dyn Display| format!("cannot read {}: {error}", path.display());
        let file = match fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            other => other.map_err(|error| failed(&error))?,
        };
        let mut data = Self::default();
        for (index, line) in file.lines().enumerate() {
            let failed = |error: &dyn Display| failed(&format!("line {}: {error}", index + 1));
            let object: Value = serde_json::from_str(line).map_err(|error| failed(&error))?;
            let kernels = object["kernels"].as_object();
            let (Some((key, _)), Some(kernels)) = (key_of(&object), kernels) else {
                return Err(failed(&"not a line of this file"));
            };
            let cells = kernels.iter().map(|(name, cell)| (name.clone(), Cell::read(cell)));
            data.0.insert(key, cells.collect());
        }
        Ok(data)
    }

    /// The contents of such a file.
    pub(super) fn lines(&self) -> String {
        let mut lines = String::new();
        for (key, cells) in &self.0 {
            let mut object = key.object();
            let cells: Map<_, _> =
                cells.iter().map(|(kernel, cell)| (kernel.clone(), cell.object(key))).collect();
            object["kernels"] = Value::Object(cells);
            lines.push_str(&format!("{object}\n"));
        }
        lines
    }
}

/// The key of a line of either kind of file, and the text that it has.
fn key_of(object: &Value) -> Option<(Key, String)> {
    let field = |name: &str| text(object, name);
    let (test, probe) = (field("test"), field("probe"));
    if object["against"].is_string() {
        let (metric, against) = (field("metric"), field("against"));
        let (relation, tier) = (field("relation"), field("tier"));
        let comparison = Comparison { probe, metric, against, relation, tier };
        return Some((Key::Comparison(comparison), String::new()));
    }
    if let Some(reason) = object.get("not_applicable") {
        let said = reason.as_str().unwrap_or_default().to_owned();
        return Some((Key::NotCompared { test, probe, metric: field("metric") }, said));
    }
    let said = object.get("case").or_else(|| object.get("checked"))?;
    Some((Key::Checked { test, probe }, said.as_str().unwrap_or_default().to_owned()))
}

impl Key {
    fn object(&self) -> Value {
        match self {
            Self::Comparison(Comparison { probe, metric, against, relation, tier }) => json!({
                "probe": probe, "metric": metric, "against": against, "relation": relation,
                "tier": tier,
            }),
            Self::Checked { test, probe } => {
                json!({"test": test, "probe": probe, "checked": true})
            }
            Self::NotCompared { test, probe, metric } => {
                json!({"test": test, "probe": probe, "metric": metric, "not_applicable": true})
            }
        }
    }
}

impl Cell {
    fn read(object: &Value) -> Self {
        let number = |name: &str| object[name].as_u64().unwrap_or_default();
        let tests = object["tests"].as_array().map(Vec::as_slice).unwrap_or_default();
        Self {
            comparisons: number("comparisons"),
            failed: 0,
            repeated: number("repeated"),
            worst: object["worst"].as_f64().unwrap_or_default(),
            tolerance: object["tolerance"].as_f64().unwrap_or_default(),
            slack: number("slack"),
            text: text(object, "text"),
            tests: tests.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        }
    }

    fn object(&self, key: &Key) -> Value {
        let Self { comparisons, repeated, worst, tolerance, slack, text, tests, .. } = self;
        // Kernels that were last measured before tests were recorded have none.
        match key {
            Key::Comparison(_) => json!({
                "comparisons": comparisons, "repeated": repeated, "worst": rounded(*worst),
                "tolerance": rounded(*tolerance), "slack": slack, "tests": tests,
            }),
            _ => json!({"comparisons": comparisons, "text": text, "tests": tests}),
        }
    }
}

/// To a ten-thousandth of a percent, which is enough for readers of the file.
fn rounded(part: f64) -> f64 {
    (part * 1e6).round() / 1e6
}
