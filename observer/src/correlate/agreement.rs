//! How many samples agree on a difference of the clocks and on the length of both ways, in steps.

use super::trips::Trip;

/// A step of the length of both ways, and one of the difference. Agreement is counted in two by two steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    pub(super) row: i64,
    pub(super) step: i64,
}

impl Cell {
    /// Whether it is one of the two by two that begin with another one.
    pub(super) fn is_around(self, first: Self) -> bool {
        (0..=1).contains(&(self.row - first.row)) && (0..=1).contains(&(self.step - first.step))
    }
}

/// Samples by cell.
pub(super) struct Counts {
    /// In order.
    cells: Vec<(Cell, usize)>,
    /// The steps of the difference that are possible.
    steps: i64,
}

impl Counts {
    /// The trips of each sample; it counts once in a cell.
    pub(super) fn new(
        trips: &[Vec<Trip>],
        steps: i64,
        cell: impl Fn(&Trip) -> Option<Cell>,
    ) -> Self {
        let mut all: Vec<Cell> = Vec::new();
        let mut own: Vec<Cell> = Vec::new();
        for trips in trips {
            own.clear();
            own.extend(trips.iter().filter_map(&cell));
            own.sort_unstable();
            own.dedup();
            all.extend_from_slice(&own);
        }
        all.sort_unstable();
        let cells = all.chunk_by(|one, other| one == other).map(|same| (same[0], same.len()));
        Self { cells: cells.collect(), steps }
    }

    fn between(&self, from: Cell, until: Cell) -> usize {
        let at = |cell: Cell| self.cells.partition_point(|(other, _)| *other < cell);
        self.cells[at(from)..at(until)].iter().map(|(_, count)| count).sum()
    }

    /// The samples in the two by two cells that begin with this one.
    pub(super) fn around(&self, Cell { row, step }: Cell) -> usize {
        let of = |row| self.between(Cell { row, step }, Cell { row, step: step + 2 });
        of(row) + of(row + 1)
    }

    /// How many would be there by chance: as many as elsewhere, where both ways take as long.
    fn by_chance(&self, at: Cell) -> f64 {
        let (from, until) = (i64::MIN, i64::MIN);
        let first = Cell { row: at.row, step: from };
        let all = self.between(first, Cell { row: at.row + 2, step: until });
        2.0 * (all - self.around(at)) as f64 / (self.steps - 2).max(1) as f64
    }

    /// The samples that are there beyond chance.
    pub(super) fn above_chance(&self, at: Cell) -> f64 {
        self.around(at) as f64 - self.by_chance(at)
    }

    /// Where samples agree most clearly, and how many deviations that is above chance.
    pub(super) fn clearest(&self, is_near: impl Fn(&Cell) -> bool) -> Option<(Cell, f64)> {
        // Few are so full that they can be it.
        let most = self.cells.iter().map(|(_, count)| *count).max()?;
        let full = self.cells.iter().filter(|(_, count)| *count * 4 >= most);
        let places = full.flat_map(|(Cell { row, step }, _)| {
            [(0, 0), (0, 1), (1, 0), (1, 1)]
                .map(|(up, back)| Cell { row: row - up, step: step - back })
        });
        let clear = |at: Cell| self.above_chance(at) / (self.by_chance(at) + 1.0).sqrt();
        let all = places.filter(|at| is_near(at)).map(|at| (at, clear(at)));
        all.max_by(|one, other| one.1.total_cmp(&other.1))
    }

    /// Where two by two cells with samples begin, in a row.
    pub(super) fn in_row(&self, row: i64) -> impl Iterator<Item = Cell> + '_ {
        let is_in = move |cell: &Cell| (0..=1).contains(&(cell.row - row));
        let cells = self.cells.iter().map(|(cell, _)| *cell).filter(move |cell| is_in(cell));
        cells.flat_map(move |cell| [cell.step - 1, cell.step].map(|step| Cell { row, step }))
    }
}
