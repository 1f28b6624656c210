//! The rows of the cgroup histograms: assigning them, reading them, and reclaiming them from
//! cgroups that were removed.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use observer_ebpf::wire::{
    CGROUP_ENTRIES, CGROUP_FREE_PLACES, CGROUP_ROW_MASK, CGROUP_ROW_OTHER, CGROUP_TICKET_PENDING,
    CgroupEntry, CgroupHistogram, CgroupTable, SERIES, Series, next_ticket,
};

use super::live::wait_for_running_programs;
use super::load::Shape;
use super::mapped::MappedWords;
use super::series::read_series;
use crate::aggregate::{CgroupCounts, CgroupDistributions, Octaves};
use crate::host::cgroups::CgroupNames;

const OTHER_TICKET: usize = offset_of!(CgroupTable, other_ticket) / 8;
const TAKEN: usize = offset_of!(CgroupTable, taken) / 8;
const GIVEN: usize = offset_of!(CgroupTable, given) / 8;
const FREE: usize = offset_of!(CgroupTable, free) / 8;
const ENTRIES: usize = offset_of!(CgroupTable, entries) / 8;
const ENTRY_WORDS: usize = size_of::<CgroupEntry>() / 8;
const ENTRY_TICKET: usize = offset_of!(CgroupEntry, ticket) / 8;
const HISTOGRAM_WORDS: usize = size_of::<CgroupHistogram>() / 8;
const HISTOGRAM_TICKET: usize = offset_of!(CgroupHistogram, ticket) / 8;
const HISTOGRAM_SUM: usize = offset_of!(CgroupHistogram, sum_ns) / 8;
const HISTOGRAM_OCTAVES: usize = offset_of!(CgroupHistogram, octaves) / 8;

/// Name of the row of all cgroups that have none of their own. It cannot be a path, because paths
/// begin with a slash.
const OTHER: &str = "other";

/// How long a row stays closed before another cgroup gets it. A program that checked the ticket
/// just before it became invalid has mostly ended by then: it takes microseconds, but where the kernel
/// can preempt it, its thread may wait for a CPU in between. So the running ones are waited for too.
const GRACE: Duration = Duration::from_secs(1);

/// Pause between two looks for cgroups that were removed, while rows are short: doubled after each
/// look that found none, up to the second one.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(32);

/// A row that belongs to no cgroup for a while.
struct Closed {
    since: Instant,
    row: usize,
    ticket: u64,
}

/// The two maps, and the known data about the cgroups in them.
pub(super) struct CgroupRows {
    table: MappedWords,
    histograms: MappedWords,
    names: Option<CgroupNames>,
    rows: usize,
    stripes: usize,
    closed: Vec<Closed>,
    looked: Option<Instant>,
    pause: Duration,
    recycled: u64,
}

impl CgroupRows {
    /// Fills the ring of free rows; the programs are not attached yet.
    pub(super) fn new(
        table: MappedWords,
        histograms: MappedWords,
        names: Option<CgroupNames>,
        shape: Shape,
    ) -> Self {
        let rows = Self {
            table,
            histograms,
            names,
            rows: shape.cgroup_rows,
            stripes: shape.cgroup_stripes(),
            closed: Vec::new(),
            looked: None,
            pause: LOOK_INTERVAL,
            recycled: 0,
        };
        rows.open_other();
        for row in 1..rows.rows {
            rows.give(row, next_ticket(row as u64));
        }
        rows
    }

    /// Where the histograms of a series in a row begin, in words, stripe by stripe.
    fn histograms_of_series(
        &self,
        row: usize,
        series: usize,
    ) -> impl Iterator<Item = usize> + use<> {
        let rows = self.rows;
        (0..self.stripes)
            .map(move |stripe| ((stripe * rows + row) * SERIES + series) * HISTOGRAM_WORDS)
    }

    /// Where all histograms of a row begin.
    fn histograms_of(&self, row: usize) -> impl Iterator<Item = usize> {
        (0..SERIES).flat_map(move |series| self.histograms_of_series(row, series))
    }

    /// Makes a ticket the valid one; 0 closes the row.
    fn validate(&self, row: usize, ticket: u64) {
        for at in self.histograms_of(row) {
            self.histograms.set(at + HISTOGRAM_TICKET, ticket);
        }
    }

    /// Makes the threads of cgroups without a row ask again.
    fn open_other(&self) {
        let ticket = next_ticket(self.table.get(OTHER_TICKET));
        self.validate(CGROUP_ROW_OTHER as usize, ticket);
        self.table.set(OTHER_TICKET, ticket);
    }

    /// Puts a row into the ring of free ones.
    fn give(&self, row: usize, ticket: u64) {
        self.validate(row, ticket);
        let given = self.table.get(GIVEN);
        self.table.set(FREE + given as usize % CGROUP_FREE_PLACES, ticket);
        if let Some(word) = self.table.words().get(GIVEN) {
            // A CPU that sees the new number sees the ticket as well.
            word.store(given.wrapping_add(1), Ordering::Release);
        }
    }

    fn free(&self) -> usize {
        self.table.get(GIVEN).wrapping_sub(self.table.get(TAKEN)) as usize
    }

    /// All entries of the index that are in use: position, cgroup id, and ticket if there is one.
    fn entries(&self) -> impl Iterator<Item = (usize, u64, Option<u64>)> {
        (0..CGROUP_ENTRIES).filter_map(|entry| {
            let at = ENTRIES + entry * ENTRY_WORDS;
            let id = self.table.get(at);
            let ticket = self.table.get(at + ENTRY_TICKET);
            let ticket = (ticket > CGROUP_TICKET_PENDING).then_some(ticket);
            (id != 0).then_some((at, id, ticket))
        })
    }

    /// Adds what is counted in a row.
    fn read(&self, row: usize, series: &mut BTreeMap<Series, Octaves>) {
        let counted = read_series(|nth| self.octaves(row, nth));
        for (one, counted) in Series::ALL.into_iter().zip(&*counted) {
            if counted.count() > 0 {
                series.entry(one).or_default().merge(counted);
            }
        }
    }

    fn octaves(&self, row: usize, series: usize) -> Octaves {
        let mut all = Octaves::default();
        for at in self.histograms_of_series(row, series) {
            all.merge(&Octaves {
                sum_ns: self.histograms.get(at + HISTOGRAM_SUM),
                counts: std::array::from_fn(|nth| {
                    self.histograms.get(at + HISTOGRAM_OCTAVES + nth)
                }),
            });
        }
        all
    }

    /// The counts by cgroup. A cgroup that was removed and created again has another id but the
    /// same path: its rows are added up, because a scrape must not contain a series twice.
    pub(super) fn snapshot(&mut self) -> (Vec<CgroupDistributions>, CgroupCounts) {
        if self.rows == 0 {
            return Default::default();
        }
        if self.looked.is_none_or(|at| at.elapsed() >= LOOK_INTERVAL) {
            self.look();
        }
        let mut by_name: BTreeMap<String, BTreeMap<Series, Octaves>> = BTreeMap::new();
        let mut counts = CgroupCounts { removed: self.recycled, ..CgroupCounts::default() };
        let entries: Vec<_> = self.entries().collect();
        for (_, id, ticket) in entries {
            let Some(ticket) = ticket else {
                counts.without_row += 1;
                continue;
            };
            counts.with_row += 1;
            let name = self.names.as_mut().and_then(|names| names.name(id));
            let name = name.map_or_else(|| format!("cgroup:{id}"), str::to_owned);
            self.read((ticket & CGROUP_ROW_MASK) as usize, by_name.entry(name).or_default());
        }
        self.read(CGROUP_ROW_OTHER as usize, by_name.entry(OTHER.to_owned()).or_default());
        let cgroups =
            by_name.into_iter().map(|(name, series)| CgroupDistributions { name, series });
        (cgroups.collect(), counts)
    }

    /// Looks for cgroups that were removed where few rows are left. Call it once a second or so:
    /// most calls compare two numbers.
    pub(super) fn tend(&mut self) {
        let short = self.free() < self.rows / 4;
        let due = self.looked.is_none_or(|at| at.elapsed() >= self.pause);
        if self.rows > 0 && due && (short || !self.closed.is_empty()) {
            let before = self.recycled;
            self.look();
            let found = self.recycled > before || !self.closed.is_empty();
            self.pause =
                if found { LOOK_INTERVAL } else { (self.pause * 2).min(LOOK_INTERVAL_MAX) };
        }
    }

    fn look(&mut self) {
        self.looked = Some(Instant::now());
        self.reopen();
        let Some(mut names) = self.names.take() else { return };
        let entries: Vec<_> = self.entries().collect();
        for (at, id, ticket) in entries {
            if names.is_gone(id) {
                self.close(at, ticket);
            }
        }
        self.names = Some(names);
    }

    /// Frees the rows that have been closed for long enough.
    fn reopen(&mut self) {
        let (ripe, waiting) =
            self.closed.drain(..).partition::<Vec<_>, _>(|closed| closed.since.elapsed() >= GRACE);
        self.closed = waiting;
        if ripe.is_empty() {
            return;
        }
        wait_for_running_programs();
        for Closed { row, ticket, .. } in ripe {
            for at in self.histograms_of(row) {
                for word in HISTOGRAM_SUM..HISTOGRAM_WORDS {
                    self.histograms.set(at + word, 0);
                }
            }
            self.give(row, ticket);
        }
        if self.entries().any(|(_, _, ticket)| ticket.is_none()) {
            self.open_other();
        }
    }

    /// Takes an entry out of the index, and its row out of use.
    fn close(&mut self, at: usize, ticket: Option<u64>) {
        // The ticket first: the next owner of the entry must not find the ticket of another cgroup.
        // A late event of the removed cgroup may fetch a row meanwhile; that row then goes to the
        // next owner of the entry.
        let Some(word) = self.table.words().get(at + ENTRY_TICKET) else { return };
        let expected = ticket.unwrap_or_default();
        if word.compare_exchange(expected, 0, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            return;
        }
        self.table.set(at, 0);
        self.recycled += 1;
        if let Some(ticket) = ticket {
            let row = (ticket & CGROUP_ROW_MASK) as usize;
            self.validate(row, 0);
            let ticket = next_ticket(ticket);
            self.closed.push(Closed { since: Instant::now(), row, ticket });
        }
    }
}
