use std::path::Path;

use serde_json::Value;

use super::*;
use crate::output::answer::Answer;
use crate::output::{example as runs, html, terminal};

const MS: u64 = 1_000_000;

fn sum_up(causes: &[Cause]) -> WaitingStacks {
    let selection = Selection { causes: causes.to_vec(), times: None };
    example::recorded().sum_up(&selection)
}

/// Without line breaks.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn all() -> WaitingStacks {
    sum_up(&[])
}

#[test]
fn the_rows_have_all_of_the_time() {
    let waiting = all();
    assert_eq!((waiting.absences, waiting.time_ns, waiting.shown_ns()), (4, 12 * MS, 12 * MS));
    let rows: Vec<_> = waiting
        .rows
        .iter()
        .map(|row| (row.cause.name(), &*row.thread, row.count, row.time_ns / MS))
        .collect();
    let expected = [
        ("lock_wait", "worker-1", 2, 5),
        ("unexplained", "</b><i>?[31m", 1, 5),
        ("runqueue_other", "worker-1", 1, 1),
        ("runqueue", "thread 103", 1, 1),
    ];
    assert_eq!(rows, expected, "calls from elsewhere in a function are the same stack");
}

#[test]
fn causes_and_times_select() {
    let waiting = sum_up(&[Cause::RUNQUEUE, Cause::RUNQUEUE_OTHER]);
    assert_eq!((waiting.rows.len(), waiting.shown_ns(), waiting.time_ns), (2, 2 * MS, 12 * MS));
    let text = words(&text::render(&waiting, 10, false));
    assert!(text.contains("Of that, 2.00 ms are shown: runqueue, runqueue_other."), "{text}");
    let recorded = example::recorded();
    let at = |ms| crate::clock::MonoNanos(recorded.run.start_ns.0 + ms * MS);
    let times = Some(ThreadTimes::new([(Tid(101), at(8), at(19))]));
    let waiting = recorded.sum_up(&Selection { causes: Vec::new(), times });
    let rows: Vec<_> =
        waiting.rows.iter().map(|row| (row.cause, row.count, row.time_ns / MS)).collect();
    assert_eq!(rows, [(Cause::LOCK_WAIT, 2, 2), (Cause::RUNQUEUE_OTHER, 1, 1)]);
}

#[test]
fn text_shows_the_innermost_function_first() {
    let text = text::render(&all(), 10, false);
    let wanted = "\
lock_wait: waiting for a lock, 5.00 ms (42 %)
   5.00 ms   42 %  2 times in worker-*
      schedule_[k]
      futex_wait_queue_[k]
      do_syscall_64_[k]
      __lll_lock_wait (libc.so.6)
      Pool<a, b>::take(int; char) (service (deleted))
      main (service (deleted))
";
    assert!(text.contains(wanted), "{text}");
    for wanted in [
        "\nunexplained: no record says why",
        "[kernel stack lost: another one has its place]_[k]",
        "      <plug in>;.so+0x2a\n      [unknown]\n",
        "  1.00 ms  8.3 %  once in thread *\n",
        "      [no user stack]\n",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let headline = "away from the CPU for 12.0 ms together, in 4 absences of 1.00 ms or longer.";
    assert!(words(&text).contains(headline), "{text}");
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn text_shows_the_stacks_with_the_most_time_and_counts_the_others() {
    let mut waiting = all();
    let row = waiting.rows[0].clone();
    for number in 0..3 {
        let name = format!("f{number}");
        let place = Place { function: Some(name), module: "/a".into(), offset: None };
        let time_ns = (1 + number) * MS;
        waiting.rows.push(StackRow { user: [place].into(), count: 1, time_ns, ..row.clone() });
    }
    let text = text::render(&waiting, 2, false);
    assert!(text.contains("lock_wait: waiting for a lock, 11.0 ms (61 %)"), "{text}");
    assert!(text.contains("      f2 (a)\n   3.00 ms   17 %  in 2 more\n"), "{text}");
    assert!(!text.contains("f1 (a)") && !text.contains("f0 (a)"), "{text}");
}

#[test]
fn folded_stacks_are_a_line_each_whatever_the_names() {
    let text = folded::render(&all());
    let expected = "\
</b><i>?[31m;[unknown];<plug_in>:.so+0x2a;</b><i>?[31m;[kernel_stack_lost:_another_one_has_its_place]_[k] 5000
thread_103;[no_user_stack];exit_to_user_mode_loop_[k];schedule_[k] 1000
worker-1;main;Pool<a,_b>::take(int:_char);__lll_lock_wait;do_syscall_64_[k];futex_wait_queue_[k];schedule_[k] 6000
";
    assert_eq!(text, expected);
}

#[test]
fn a_profile_has_each_absence_with_its_time_and_cause() {
    let json = firefox::render(&example::recorded(), &Selection::default()).expect("JSON");
    let profile: Value = serde_json::from_str(&json).expect("JSON");
    assert!(profile["meta"]["preprocessedProfileVersion"].is_u64());
    assert_eq!(profile["meta"]["startTime"], 1_700_000_000_000.0);
    let names = |list: &Value, key: &str| -> Vec<String> {
        let list = list.as_array().expect("a list");
        list.iter().map(|one| one[key].as_str().expect("a name").to_owned()).collect()
    };
    let categories = names(&profile["meta"]["categories"], "name");
    for cause in ["lock_wait", "runqueue_other", "runqueue", "unexplained"] {
        assert!(categories.iter().any(|name| name == cause), "{categories:?}");
    }
    assert_eq!(names(&profile["threads"], "name"), ["</b><i>?[31m", "thread 103", "worker-1"]);
    assert_eq!(names(&profile["threads"], "processName"), ["service"; 3]);
    let worker = &profile["threads"][2];
    let samples = &worker["samples"];
    assert_eq!(samples["weightType"], "tracing-ms");
    assert!(samples.get("threadCPUDelta").is_none());
    assert_eq!(samples["weight"], serde_json::json!([3.0, 1.0, 0.0, 2.0, 0.0]));
    assert_eq!(samples["timeDeltas"], serde_json::json!([6.0, 3.0, 1.0, 8.0, 2.0]));
    // The same functions for two causes are two stacks, and where the thread ran there is none.
    let stacks = samples["stack"].as_array().expect("stacks");
    assert!(stacks[0].is_u64() && stacks[0] == stacks[3] && stacks[0] != stacks[1]);
    assert!(stacks[2].is_null() && stacks[4].is_null());
    assert_eq!(worker["markers"]["length"], 3);
    assert_eq!(worker["markers"]["startTime"], serde_json::json!([6.0, 9.0, 18.0]));
    assert_eq!(worker["markers"]["endTime"], serde_json::json!([9.0, 10.0, 20.0]));
    let functions: Vec<&str> = worker["stringArray"]
        .as_array()
        .expect("names")
        .iter()
        .map(|name| name.as_str().expect("a name"))
        .collect();
    assert!(functions.contains(&"futex_wait_queue_[k]") && functions.contains(&"main"));
    // A stack names its caller: the innermost function leads to the outermost one.
    let (frames, funcs) = (&worker["frameTable"]["func"], &worker["funcTable"]["name"]);
    let table = &worker["stackTable"];
    let mut path = Vec::new();
    let mut next = stacks[0].as_u64();
    while let Some(stack) = next {
        let frame = table["frame"][stack as usize].as_u64().expect("a frame") as usize;
        let function = frames[frame].as_u64().expect("a function") as usize;
        path.push(functions[funcs[function].as_u64().expect("a name") as usize]);
        next = table["prefix"][stack as usize].as_u64();
    }
    assert_eq!((path.len(), path[0], path[5]), (6, "schedule_[k]", "main"));
}

#[test]
fn a_list_for_programs_has_all_rows() {
    let list = serde_json::to_value(json::list(&all())).expect("JSON");
    assert_eq!(list["schema"], json::STACK_LIST_SCHEMA);
    let rows = list["rows"].as_array().expect("rows");
    let sum: u64 = rows.iter().map(|row| row["time_ns"].as_u64().expect("a time")).sum();
    assert_eq!((Some(sum), list["absences"].as_u64()), (list["time_ns"].as_u64(), Some(4)));
    let kernel = serde_json::json!({"function": "schedule", "module": "[kernel]"});
    assert_eq!(rows[0]["kernel"][0], kernel);
    let without = serde_json::json!({"module": "/opt/<plug in>;.so", "offset": 42});
    assert_eq!(rows[1]["user"][1], without);
}

#[test]
fn a_run_without_absences_makes_every_output() {
    let nothing = RecordedStacks::new(
        example::run(),
        Absences::default(),
        Vec::new(),
        Stacks::default(),
        Vec::new(),
    );
    let waiting = nothing.sum_up(&Selection::default());
    let text = text::render(&waiting, 10, false);
    assert_eq!(text, "No thread of the target was away from the CPU for 1.00 ms or longer.\n");
    assert_eq!(folded::render(&waiting), "");
    let profile = firefox::render(&nothing, &Selection::default()).expect("JSON");
    let profile: Value = serde_json::from_str(&profile).expect("JSON");
    assert_eq!(profile["threads"], serde_json::json!([]));
    let page = page(Some(waiting), true);
    assert!(page.contains("<p>No thread of the target was away"));
}

#[test]
fn a_directory_says_where_threads_waited() {
    let root = tempfile::tempdir().expect("a directory");
    let directory = example::directory(&root.path().join("run"));
    let run = directory.read_run().expect("run.json");
    let recorded = RecordedStacks::read(&directory, &run, None).expect("read").expect("stacks");
    assert!(recorded.damage().is_empty(), "{:?}", recorded.damage());
    let waiting = recorded.sum_up(&Selection::default());
    assert_eq!(waiting.notes, ["parts of the stacks are not known: stack gone 3"]);
    assert_eq!(waiting.rows, all().rows);
    let answer = Answer::load(&directory).expect("an answer");
    assert_eq!(answer.waiting, Some(waiting));
    let text = words(&terminal::render(&answer, false));
    for wanted in [
        "Where the threads waited The threads of the target were away",
        "Why: lock_wait 42 %, most of all in __lll_lock_wait (libc.so.6); unexplained 42 %",
        "/run` shows their stacks.",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
}

#[test]
fn a_killed_run_has_the_times_and_a_run_without_the_probe_has_nothing() {
    let root = tempfile::tempdir().expect("a directory");
    let path = root.path().join("run");
    let directory = example::directory(&path);
    std::fs::remove_file(path.join(files::STACKS)).expect("removed");
    let mut run = directory.read_run().expect("run.json");
    assert!(RecordedStacks::read(&directory, &run, None).expect("read").is_none());
    run.streams.insert("stack.arrows".into(), 4);
    if let Some(coverage) = run.coverage.get_mut("sleep") {
        coverage.state = ProbeState::NotAsked;
    }
    let recorded = RecordedStacks::read(&directory, &run, None).expect("read").expect("stacks");
    let waiting = recorded.sum_up(&Selection::default());
    assert_eq!(waiting.shown_ns(), 12 * MS);
    for wanted in [
        "it is not known what threads slept for: probe sleep is not_asked",
        "stacks.json is missing",
    ] {
        assert!(waiting.notes.iter().any(|note| note.contains(wanted)), "{:?}", waiting.notes);
    }
    assert!(text::render(&waiting, 1, false).contains("[user stack not kept]"));
}

fn page(waiting: Option<WaitingStacks>, names_causes: bool) -> String {
    let mut summary = runs::attributed();
    for row in &mut summary.causes {
        row.named &= names_causes;
    }
    let mut answer =
        Answer::new(Path::new("/tmp/<run>"), runs::run(), Some(summary), Vec::new(), &[]);
    answer.waiting = waiting;
    html::render(&answer)
}

#[test]
fn the_page_shows_the_stacks_of_named_causes_and_escapes_names() {
    // Named are reclaim_memcg, which has no stack here, and runqueue_other.
    let named = page(Some(all()), true);
    assert!(named.contains("<h2>Where the threads waited</h2>"));
    assert!(
        named.contains("<b>runqueue_other: waiting for a CPU that others had, 1.00 ms (8.3 %)</b>")
    );
    assert_eq!(named.matches("<pre>").count(), 1);
    assert!(named.contains("Pool&lt;a, b&gt;::take(int; char) (service (deleted))\n"));
    let unnamed = page(Some(all()), false);
    assert_eq!(unnamed.matches("<pre>").count(), 4);
    assert!(unnamed.contains("&lt;/b&gt;&lt;i&gt;?[31m (b&gt;&lt;i&gt;?[31m)\n"));
    for page in [named, unnamed] {
        assert!(page.contains("`observer stacks /tmp/&lt;run&gt;` shows their stacks."));
        for forbidden in ["<i>", "\u{1b}", "<plug", "<run>"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
    }
}

#[test]
fn deep_stacks_with_long_names_make_a_small_page() {
    let mut waiting = all();
    waiting.rows.clear();
    for (number, cause) in Cause::all().flat_map(|cause| (0..20).map(move |n| (n, cause))) {
        let place = |depth: u64| Place {
            function: Some("&".repeat(500)),
            module: format!("/{number}/{depth}/{}", "<".repeat(500)),
            offset: None,
        };
        waiting.rows.push(StackRow {
            cause,
            thread: "x".into(),
            user: (0..127).map(place).collect(),
            kernel: (0..127).map(place).collect(),
            count: 1,
            time_ns: MS,
        });
    }
    let with = |named: bool| {
        let mut summary = runs::attributed();
        let template = summary.causes[0].clone();
        summary.causes = Cause::all()
            .map(|cause| crate::model::CauseSummary { cause, named, ..template.clone() })
            .collect();
        let mut answer = Answer::new(Path::new("/"), runs::run(), Some(summary), Vec::new(), &[]);
        answer.waiting = Some(waiting.clone());
        html::render(&answer).len()
    };
    // Six causes, five stacks, forty places of 200 characters each twice, of which each takes five bytes.
    assert!(with(true) < 6 * 5 * 40 * (200 + 200) * 5 + 200_000, "{}", with(true));
    assert!(with(false) < with(true));
}
