//! Tests of the exactness data and page.

use serde_json::json;

use super::*;

fn result(metric: &str, tier: &str, error: f64) -> Value {
    json!({
        "kernel": "6.1.0-51-rt-amd64", "test": "minor faults", "probe": "fault", "tier": tier,
        "metric": metric, "against": "stat", "relation": "equal", "observed": 1, "book": 1,
        "error": error, "tolerance": 0.01, "slack": 0, "passed": true,
    })
}

fn on(kernel: &str, mut result: Value) -> Value {
    result["kernel"] = json!(kernel);
    result
}

fn data(results: &[Value]) -> Data {
    Data::of_results(results)
}

#[test]
fn a_row_has_the_worst_error_of_each_kernel() {
    let mut wider = on("6.12.117+deb12-cloud-amd64", result("minor", "tp_btf", 0.02));
    wider["tolerance"] = json!(0.03);
    let page = page::page(&data(&[
        result("minor", "tp_btf", 0.001),
        result("minor", "tp_btf", -0.004),
        wider,
        on("6.18.44-custom", result("minor", "perf_event", 0.0)),
        json!({"kernel": "6.1.0", "test": "x", "probe": "fault", "metric": "major",
               "not_applicable": "no disk"}),
        json!({"kernel": "6.1.0", "test": "y", "probe": "fault", "case": "3 of 3", "passed": true}),
        json!({"kernel": "6.12.1", "test": "y", "probe": "fault", "case": "2 of 2", "passed": true}),
    ]));
    assert!(
        page.contains("| metric | compared with | tier | allowed | 6.1-rt | 6.12 | 6.18 |"),
        "{page}"
    );
    assert!(
        page.contains("| minor | = stat | tp_btf | 1 to 3 % | -0.40 % | +2.00 % |  |"),
        "{page}"
    );
    assert!(page.contains("| x | fault, major | 6.1: no disk |"), "{page}");
    assert!(page.contains("| y | fault | 6.1: 3 of 3; 6.12: 2 of 2 |"), "{page}");
}

#[test]
fn a_file_of_data_is_read_as_it_was_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("exactness.jsonl");
    let mut repeated = result("major", "fentry", -0.25);
    repeated["repeated"] = json!(2);
    let written = data(&[
        result("minor", "tp_btf", 0.001),
        repeated,
        json!({"kernel": "6.1.0", "test": "y", "probe": "fault", "case": "3 of 3", "passed": true}),
        json!({"kernel": "6.1.0", "test": "x", "probe": "fault", "metric": "major",
               "not_applicable": "no disk"}),
    ]);
    fs::write(&path, written.lines()).expect("written");
    assert_eq!(Data::read(&path), Ok(written));
    fs::write(&path, "{}\n").expect("written");
    assert!(Data::read(&path).expect_err("no key").contains("line 1"));
}

#[test]
fn newer_results_replace_those_of_the_same_test_and_kernel() {
    let other_test = || {
        let mut result = result("live", "tp_btf", 0.007);
        result["test"] = json!("sockets");
        result
    };
    let mut all = data(&[
        result("minor", "tp_btf", 0.009),
        result("major", "tp_btf", 0.009),
        on("6.18.1", result("minor", "tp_btf", 0.008)),
        other_test(),
    ]);
    all.update(data(&[result("minor", "tp_btf", 0.001)]));
    let expected = data(&[
        result("minor", "tp_btf", 0.001),
        on("6.18.1", result("minor", "tp_btf", 0.008)),
        other_test(),
    ]);
    assert_eq!(all, expected);
}

#[test]
fn a_tier_is_missed_only_where_its_test_ran() {
    let idle = |known: &Data, found: &Data| idle_tiers(known, found, "6.1-rt");
    let both = data(&[result("minor", "tp_btf", 0.0), result("minor", "fentry", 0.0)]);
    assert!(idle(&both, &both).is_empty());
    let one = data(&[result("minor", "tp_btf", 0.0)]);
    assert_eq!(idle(&both, &one), ["6.1-rt: fault=fentry"]);
    let mut another_test = result("minor", "tp_btf", 0.0);
    another_test["test"] = json!("major faults");
    let another_test = data(&[another_test]);
    assert!(idle(&both, &another_test).is_empty());
    let another_kernel = data(&[on("6.12.1", result("minor", "tp_btf", 0.0))]);
    assert!(idle(&both, &another_kernel).is_empty());

    let mut old = both;
    old.0.values_mut().flat_map(|cells| cells.values_mut()).for_each(|cell| cell.tests.clear());
    assert_eq!(idle(&old, &another_test), ["6.1-rt: fault=fentry"]);
    assert!(idle_tiers(&old, &another_test, "6.18").is_empty(), "not the host's");
}

#[test]
fn a_comparison_that_the_data_lacks_is_found_on_kernels_that_it_has() {
    let known = data(&[result("minor", "tp_btf", 0.0)]);
    assert!(unknown(&known, &data(&[result("minor", "tp_btf", 0.009)])).is_empty());
    assert_eq!(unknown(&known, &data(&[result("minor", "fentry", 0.0)])).len(), 1);
    let elsewhere = on("7.3.1", result("major", "fentry", 0.0));
    assert!(unknown(&known, &data(std::slice::from_ref(&elsewhere))).is_empty());
    let both = data(&[result("minor", "tp_btf", 0.0), elsewhere]);
    let once = unknown(&both, &data(&[result("major", "fentry", 0.0)]));
    assert!(once.is_empty(), "another kernel of the data has it");
}

#[test]
fn the_committed_page_is_the_one_of_the_committed_data() {
    let data = Data::read(&root().join(DATA)).expect("the data");
    let page = fs::read_to_string(root().join(PAGE)).expect("the page");
    assert!(page == page::page(&data), "`cargo xtask docs` writes {PAGE} again");
}
