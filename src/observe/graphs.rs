//! Graphs that were computed, and what was allocated for them: nothing, once all of a model is known.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts graphs, and keeps how many allocations there had been after the first, the second, the fourth, the eighth of them
/// and so on.
#[derive(Debug, Default)]
pub struct Graphs {
    count: AtomicU64,
    marks: [AtomicU64; 32],
    last: AtomicU64,
}

impl Graphs {
    /// A graph was computed, up to whose end there had been so many allocations.
    pub fn done(&self, allocations: u64) {
        let count = self.count.fetch_add(1, Relaxed) + 1;
        if let (true, Some(mark)) = (count.is_power_of_two(), self.marks.get(count.ilog2() as usize)) {
            mark.store(allocations, Relaxed);
        }
        self.last.store(allocations, Relaxed);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// How many the later ones are, at least half of them, and the allocations that were made since the others: what
    /// is made once, for the first ones, is not among them.
    pub fn late(&self) -> (u64, u64) {
        let count = self.count();
        let Some(half) = (count / 2).checked_ilog2() else { return (0, 0) };
        let Some(mark) = self.marks.get(half as usize) else { return (0, 0) };
        (count - (1 << half), self.last.load(Relaxed).saturating_sub(mark.load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_ones_are_half_of_them_or_more() {
        let graphs = Graphs::default();
        let mut late = vec![graphs.late()];
        for allocations in [100, 110, 110, 111, 111, 113] {
            graphs.done(allocations);
            late.push(graphs.late());
        }
        assert_eq!(late, [(0, 0), (0, 0), (1, 10), (2, 10), (2, 1), (3, 1), (4, 3)]);
        assert_eq!(graphs.count(), 6);
    }
}
