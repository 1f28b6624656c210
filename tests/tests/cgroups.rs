//! More cgroups than there are histogram rows for, and cgroups that come and go.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::time::{Duration, Instant};

use observer::host::cgroups::Cgroups;
use observer::model::Tgid;
use observer_ebpf::wire::CGROUP_ROWS_MAX;
use observer_tests::cgroup::MemoryCgroup;
use observer_tests::daemon::{Daemon, Metrics};
use observer_tests::kernel_counters::Flat;
use observer_tests::mapping::{Mapping, PAGE_BYTES};
use observer_tests::privileged;
use observer_tests::results::{Held, case_held};
use observer_tests::trial;

const BY_CGROUP: &str = "observer_fault_latency_seconds_count";
const HOST: &str = "observer_host_fault_latency_seconds_count";

/// Pages that are touched in each cgroup: more than whatever else this process does there.
const PAGES: usize = 200;

/// Cgroups that must have histograms of their own at the same time.
const PROMISED: usize = 1_000;

/// Rows that are freed and given away again.
const RECYCLED: usize = 600;

/// This process, which goes from cgroup to cgroup, and back where it was when dropped.
struct Visitor {
    home: File,
    pages: Mapping,
}

impl Visitor {
    fn new() -> Self {
        let cgroups = Cgroups::read();
        let hierarchy = cgroups.memory().expect("a memory hierarchy");
        let name = cgroups.memory_cgroup_of(Tgid(std::process::id())).expect("a cgroup");
        let home = hierarchy.directory(&name).expect("a directory").join("cgroup.procs");
        let home = OpenOptions::new().write(true).open(home).expect("cgroup.procs");
        let mut pages = Mapping::anonymous(PAGES * PAGE_BYTES).expect("a mapping");
        pages.advise_small().expect("no huge pages");
        pages.write_every_page();
        Self { home, pages }
    }

    fn visit(&mut self, cgroup: &MemoryCgroup) {
        let entered = cgroup
            .entrance()
            .and_then(|mut entrance| entrance.write_all(b"0").map_err(|error| error.to_string()));
        entered.unwrap_or_else(|error| panic!("{}: {error}", cgroup.directory().display()));
        self.pages.discard().expect("madvise");
        self.pages.write_every_page();
    }

    fn go_home(&mut self) {
        if let Err(error) = self.home.write_all(b"0") {
            eprintln!("cannot go back to the first cgroup: {error}");
        }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        self.go_home();
    }
}

fn create(kind: &str, count: usize) -> Vec<MemoryCgroup> {
    let prefix = trial::unique(kind);
    let create = |nth| MemoryCgroup::create(&format!("{prefix}-{nth}")).expect("a cgroup");
    (0..count).map(create).collect()
}

/// Faults by cgroup.
fn rows(metrics: &Metrics) -> HashMap<String, u64> {
    let mut rows = HashMap::new();
    for line in metrics.text().lines().filter(|line| line.starts_with(BY_CGROUP)) {
        let label = line.split_once("cgroup=\"").and_then(|(_, rest)| rest.split_once('"'));
        let (name, _) = label.expect("a cgroup label");
        let count = line.rsplit(' ').next().and_then(|count| count.parse::<u64>().ok());
        *rows.entry(name.to_owned()).or_default() += count.expect("a count");
    }
    rows
}

/// Name of a cgroup's row.
fn row_of(cgroup: &MemoryCgroup) -> String {
    let name = cgroup.directory().file_name().expect("a name");
    format!("/{}", name.to_string_lossy())
}

/// How many of these cgroups have a row, with all that was done in them and nothing besides.
fn exact(rows: &HashMap<String, u64>, cgroups: &[MemoryCgroup]) -> usize {
    let own = cgroups.iter().filter_map(|cgroup| rows.get(&row_of(cgroup)));
    own.inspect(|&&count| {
        // The few others are this program's own: its stack, its heap, copies of shared pages.
        let expected = PAGES as u64..PAGES as u64 * 3 / 2;
        assert!(expected.contains(&count), "{count} faults in a cgroup, {PAGES} pages touched");
    })
    .count()
}

/// Scrapes until so many of these cgroups have a row under their name: the daemon does not look for
/// new names at every scrape.
fn scrape_names(daemon: &Daemon, cgroups: &[MemoryCgroup], least: usize) -> Metrics {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let metrics = daemon.scrape();
        if exact(&rows(&metrics), cgroups) >= least || Instant::now() > deadline {
            return metrics;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_thousand_cgroups_have_rows_and_the_rows_of_removed_ones_are_used_again() {
    let Some(_guard) = privileged::ready("many cgroups") else { return };
    let test = "more cgroups than rows";
    let daemon = Daemon::start(&[]);
    // First, so that its interval contains that of observer's numbers: others have faults all the time.
    let vmstat = Flat::vmstat().expect("/proc/vmstat");
    let before = daemon.scrape();
    let held = Held::of_tier(test, "fault", &before.tier("fault"));
    let mut visitor = Visitor::new();

    let mut first = create("first", CGROUP_ROWS_MAX + 100);
    first.iter().for_each(|cgroup| visitor.visit(cgroup));
    visitor.go_home();
    let full = scrape_names(&daemon, &first, PROMISED);
    let next = daemon.scrape();
    let vmstat = Flat::vmstat().expect("/proc/vmstat").since(&vmstat);
    let by_cgroup = rows(&full);
    let with_row = exact(&by_cgroup, &first);
    assert!(with_row >= PROMISED, "{with_row} of {} cgroups have rows of their own", first.len());
    let without = full.count("observer_cgroups", &["histograms=\"other\""]);
    assert!(without >= 100, "one number says how many have none: {without}");
    let other = by_cgroup.get("other").copied().unwrap_or_default();
    let left_out = (first.len() - with_row) as u64 * PAGES as u64;
    assert!(other >= left_out, "{other} faults of others, {left_out} of those here");

    // The host is read before the cgroups, which no process removes now.
    let host = |metrics: &Metrics| metrics.count(HOST, &[]);
    let sum: u64 = by_cgroup.values().sum();
    assert!(host(&full) <= sum, "host {}, all cgroups {sum}", host(&full));
    assert!(sum <= host(&next), "all cgroups {sum}, host a moment later {}", host(&next));
    let since = host(&next) - host(&before);
    let touched = (first.len() * PAGES) as u64;
    held.at_least("minor + major, host", "the pages touched here", since, touched, 0.0);
    let pgfault = vmstat.get("pgfault").expect("pgfault");
    held.at_most("minor + major, host", "/proc/vmstat pgfault", since, pgfault, 0.01);

    let removed = |metrics: &Metrics| metrics.count("observer_cgroups_removed_total", &[]);
    let kept = first.split_off(RECYCLED);
    let wanted = removed(&next) + RECYCLED as u64;
    drop(first);
    let deadline = Instant::now() + Duration::from_secs(300);
    while removed(&daemon.scrape()) < wanted {
        assert!(Instant::now() < deadline, "the daemon notices that cgroups are gone");
        std::thread::sleep(Duration::from_millis(200));
    }
    // A row that was taken back stays closed for a second, and is given away at the next look, which is
    // late on a busy host: those who come too early get none.
    let mut attempt = 0;
    let again = loop {
        std::thread::sleep(Duration::from_secs(3));
        let freed = daemon.scrape();
        assert!(host(&freed) >= host(&next), "the host's count never goes back");
        let still = rows(&freed);
        exact(&still, &kept);
        let lost = kept
            .iter()
            .map(row_of)
            .find(|row| by_cgroup.contains_key(row) && by_cgroup.get(row) != still.get(row));
        assert_eq!(lost, None, "the others keep theirs");

        let second = create(&format!("second-{attempt}"), RECYCLED);
        second.iter().for_each(|cgroup| visitor.visit(cgroup));
        visitor.go_home();
        let reused = scrape_names(&daemon, &second, RECYCLED - 100);
        assert!(host(&reused) >= host(&freed) + (RECYCLED * PAGES) as u64);
        let again = exact(&rows(&reused), &second);
        // Some rows may have gone to other cgroups of this host meanwhile.
        if again >= RECYCLED - 100 {
            break again;
        }
        attempt += 1;
        assert!(attempt < 3, "{again} of {RECYCLED} new cgroups have rows");
    };
    let text = format!(
        "{with_row} of {} cgroups with rows, {without} without; {again} of {RECYCLED} rows used again",
        CGROUP_ROWS_MAX + 100
    );
    case_held(test, "fault", &text);
    daemon.end();
}
