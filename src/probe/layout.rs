//! Where each element of A, B and C lies, as formulas written from the facts and not from our kernels.

use rknn_sys::MatmulType;

use crate::chip::Chip;

/// How the elements of one operand lie. Indices count elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Row after row.
    RowMajor,
    /// Native A and C: (columns/`0`, rows, `0`).
    Blocked(usize),
    /// Native B of K rows and N columns: (N/`n`, K/`k`, `n`, `k`).
    Tiled {
        /// Columns of a block.
        n: usize,
        /// Depth of a block.
        k: usize,
    },
}

impl Place {
    /// The index of element (`row`, `column`) of a `rows`×`columns` matrix.
    pub fn index(self, rows: usize, columns: usize, row: usize, column: usize) -> usize {
        match self {
            Self::RowMajor => row * columns + column,
            Self::Blocked(block) => {
                let (outer, inner) = (column / block, column % block);
                (outer * rows + row) * block + inner
            }
            Self::Tiled { n, k } => {
                let (block_n, block_k) = (column / n, row / k);
                let (inner_n, inner_k) = (column % n, row % k);
                ((block_n * (rows / k) + block_k) * n + inner_n) * k + inner_k
            }
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RowMajor => write!(f, "row-major"),
            Self::Blocked(block) => write!(f, "(columns/{block}, rows, {block})"),
            Self::Tiled { n, k } => write!(f, "(N/{n}, K/{k}, {n}, {k})"),
        }
    }
}

/// What is believed of one element type on one chip. All figures are elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Believed {
    /// K is a multiple of this.
    pub k_align: usize,
    /// N is a multiple of this.
    pub n_align: usize,
    /// Native A.
    pub a: Place,
    /// Native B.
    pub b: Place,
    /// Native C.
    pub c: Place,
}

impl Believed {
    /// The beliefs of `dtype` on `chip`; `None` when the chip is not believed to have the type.
    pub fn of(chip: &Chip, dtype: MatmulType) -> Option<Self> {
        let limits = chip.limits(dtype)?;
        Some(Self {
            k_align: limits.k_align,
            n_align: limits.n_align,
            a: Place::Blocked(limits.a_block),
            b: Place::Tiled { n: limits.b_block_n, k: limits.b_block_k },
            c: Place::Blocked(limits.c_block),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each place is a permutation, and the innermost runs are where the facts have them.
    #[test]
    fn places_are_permutations() {
        for place in [Place::RowMajor, Place::Blocked(4), Place::Tiled { n: 16, k: 32 }] {
            let (rows, columns) = (64, 48);
            let mut seen = vec![false; rows * columns];
            for row in 0..rows {
                for column in 0..columns {
                    let index = place.index(rows, columns, row, column);
                    assert!(!std::mem::replace(&mut seen[index], true), "{place}");
                }
            }
        }
        assert_eq!(Place::Blocked(4).index(5, 8, 2, 5), 5 * 4 + 2 * 4 + 1);
        assert_eq!(Place::Tiled { n: 16, k: 32 }.index(64, 48, 33, 17), (2 + 1) * 16 * 32 + 32 + 1);
    }

    #[test]
    fn i4_is_believed_where_reports_have_it() {
        let of = |name| Believed::of(Chip::by_name(name).unwrap(), MatmulType::I4);
        assert_eq!(of("rk3588").unwrap().c, Place::Blocked(8));
        assert_eq!(of("rk3576").unwrap().c, Place::Blocked(4));
        assert_eq!(of("rk3566"), None);
    }
}
