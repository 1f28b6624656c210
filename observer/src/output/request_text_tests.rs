use super::*;
use crate::output::example;

fn request(number: u64, matched: Matched) -> (SlowRequest, Sample) {
    let mut sample = example::samples().remove(number as usize);
    sample.local_port = (number % 2 == 1).then_some(40_001);
    (SlowRequest { matched: Some(matched), ..SlowRequest::new(&sample) }, sample)
}

fn list(requests: Vec<SlowRequest>, selection: RequestSelection) -> RequestList {
    RequestList {
        schema: 2,
        selection,
        in_run: 3_000,
        outside_run: 2,
        total: requests.len() as u64 + 4,
        listed: requests.len() as u64,
        notes: vec!["fault.arrows is \u{1b}[2Jdamaged".to_owned()],
        requests,
    }
}

const TEN: RequestSelection = RequestSelection { requests: 10, slower_than_ns: None, at_ns: None };

#[test]
fn every_way_of_matching_has_its_words_and_nothing_can_rewrite_the_terminal() {
    let ways = [
        (Matched::Connection, "  matched by its connection (port 40001)\n"),
        (Matched::Time, "  matched by its time\n"),
        (Matched::SameThreads, "  matched with one of several requests that the same threads"),
        (Matched::Ambiguous, "  not matched: it may be one of several requests"),
        (Matched::Unmatched, "fits its time and port 40001;"),
        (Matched::Multiplexed, "its connection (port 40001) carried several requests at a time"),
        (Matched::NotRecorded, "only those of some blocks of time"),
        (Matched::NoRequests, "  not matched: no request of the target was recorded"),
        (Matched::Unknown, "  it is not known how it was matched"),
    ];
    for (matched, wanted) in ways {
        let (request, mut sample) = request(951, matched);
        sample.error = Some("\u{1b}[2Jgone".to_owned());
        let list = list(vec![request], TEN);
        let text = render(&example::run(), &list, &[sample], &Details::default(), false);
        assert!(text.contains(wanted), "{wanted:?} is missing in\n{text}");
        assert!(text.contains("    no stall of the target during it\n"), "{text}");
        assert!(text.contains("status 200, request 951, ?[2Jgone\n") && !text.contains('\u{1b}'));
        assert!(text.starts_with("The slowest 1 of 3,000 requests\n"), "{text}");
        assert!(text.contains("  ! 2 requests began before the run or ended after it"), "{text}");
        assert!(text.contains("  ! fault.arrows is ?[2Jdamaged\n"), "{text}");
        assert!(text.lines().all(|line| line.trim_end() == line), "no blanks at line ends");
    }
}

#[test]
fn the_heading_says_what_was_asked_for_and_how_many_more_there_are() {
    let run = example::run();
    let at = MonoNanos(run.start_ns.0 + 12_500_000_000);
    let selection = RequestSelection { slower_than_ns: Some(50_000_000), at_ns: Some(at), ..TEN };
    let (one, sample) = request(7, Matched::Time);
    let list = list(vec![one], selection);
    let text = render(&run, &list, &[sample], &Details::default(), false);
    let wanted = "5 of 3,000 requests took 50.0 ms or longer and were in flight 12.500000 s into the \
                  run (2023-11-14 22:13:32.500000 UTC), the slowest first\n  ! the list ends \
                  after the slowest 1; 4 more are not in it";
    assert!(text.starts_with(wanted), "{text}");
    let none = RequestList { total: 0, listed: 0, requests: Vec::new(), ..list };
    let text = render(&run, &none, &[], &Details::default(), false);
    assert!(text.starts_with("None of 3,000 requests took 50.0 ms or longer"), "{text}");
    let none = RequestList { selection: TEN, ..none };
    let text = render(&run, &none, &[], &Details::default(), true);
    assert!(text.contains("No request was watched from begin to end"), "{text}");
}
