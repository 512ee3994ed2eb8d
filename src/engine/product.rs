//! What the engine is asked for: rows times a weight.

use super::experts::Picks;
use super::NpuWeight;
use crate::plan::ROWS_MAX;
use crate::pool::Divided;

/// As many products form a group at most.
pub const GROUP: usize = 4;

/// Rows of f32 activations.
#[derive(Clone, Copy)]
pub struct Activations<'a> {
    /// From the first element of row 0 to the last of the last row.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub stride: usize,
    /// Rows of the product.
    pub rows: usize,
    /// Which of the data's rows they are, `rows` of them; all, in their order, without.
    pub picks: Option<Picks<'a>>,
}

impl<'a> Activations<'a> {
    /// All rows of `data`.
    pub fn new(data: &'a [f32], stride: usize, rows: usize) -> Self {
        Self { data, stride, rows, picks: None }
    }

    /// The rows from `first` on.
    pub(super) fn from(&self, first: usize) -> Self {
        let rows = self.rows - first;
        match self.picks {
            Some(picks) => Self { rows, picks: Some(picks.after(first)), ..*self },
            None => Self { data: &self.data[first * self.stride..], rows, ..*self },
        }
    }

    /// Whether the block of rows from `first` on is prepared: by the product before if that had the `same` rows.
    pub(super) fn is_same(&self, same: bool, first: usize) -> bool {
        // Rows beyond the first block replace it, unless all are picked from the same ones.
        match self.picks {
            Some(_) => same || first > 0,
            None => same && self.rows <= ROWS_MAX,
        }
    }

    /// Rows of the data.
    pub(super) fn all(&self) -> usize {
        self.picks.map_or(self.rows, |picks| picks.of())
    }
}

/// `out` = `activations` (rows × K) · `weight` (K × N).
pub struct Product<'a> {
    /// The weight.
    pub weight: &'a NpuWeight,
    /// The rows; of the product that is with what is made of two others only how many and how long they are.
    pub activations: Activations<'a>,
    /// The rows are those of the product before in the group.
    pub same: bool,
    /// The results: rows of N, one after the other. The rows that the picks name, if there are any; several products may
    /// then have the same rows to pick from.
    pub out: Divided<'a, f32>,
    /// Set by the engine: our kernels on the CPU did it, as the cheaper way.
    pub routed: bool,
    /// Set by the engine: they did it, since the NPU had failed.
    pub recovered: bool,
}

/// Rows by as many as are prepared together, each with the first of them.
pub(super) fn blocks(activations: Activations) -> impl Iterator<Item = (usize, Activations)> {
    (0..activations.rows).step_by(ROWS_MAX).map(move |first| {
        let rows = ROWS_MAX.min(activations.rows - first);
        (first, Activations { rows, ..activations.from(first) })
    })
}
