//! Where each element of A, B and C lies, as formulas, and the conversion of B.
//!
//! Indices count elements, not bytes. Elements of four bits lie two to a byte, the even index in the low nibble.

use crate::chip::TypeRow;
use crate::dtype::Element;

/// An operand's layout (source: the ABI facts, "Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Row-major.
    Norm,
    /// The chip's sub-blocks.
    Native,
    /// B only: its transpose, N×K, row-major.
    TpNorm,
}

impl Layout {
    /// The layout of the vendor's code.
    pub fn from_code(code: i16) -> Option<Self> {
        match code {
            0 => Some(Self::Norm),
            1 => Some(Self::Native),
            2 => Some(Self::TpNorm),
            _ => None,
        }
    }
}

/// Element (`row`, `column`) of a matrix of `rows` rows laid out (columns/`block`, rows, `block`):
/// `⌊column/block⌋·rows·block + row·block + column mod block`.
///
/// It is the native layout of A and C, and with `block` = all columns their row-major one.
pub fn blocked(rows: usize, block: usize, row: usize, column: usize) -> usize {
    column / block * rows * block + row * block + column % block
}

/// The shape of a B: K×N on one chip, with `segment` its longest K run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BShape {
    /// K, in all.
    pub k: usize,
    /// N.
    pub n: usize,
    /// Sub-block (n, k).
    pub block: (usize, usize),
    /// K of every segment but the last.
    pub segment: usize,
}

impl BShape {
    /// The B of a checked shape.
    pub fn new(row: &TypeRow, segment: usize, k: usize, n: usize) -> Self {
        Self { k, n, block: row.b_block, segment }
    }

    /// K of segment `index`: `min(segment, K − index·segment)`.
    pub fn segment_k(&self, index: usize) -> usize {
        self.segment.min(self.k - index * self.segment)
    }

    /// How many segments: `⌈K/segment⌉`.
    pub fn segments(&self) -> usize {
        self.k.div_ceil(self.segment)
    }

    /// Element of native B where sub-block row `n_block` of segment `index` begins:
    /// `index·segment·N + n_block·segment_k·bn`, for the segment's (N/bn, segment_k/bk, bn, bk).
    pub fn panel(&self, index: usize, n_block: usize) -> usize {
        index * self.segment * self.n + n_block * self.segment_k(index) * self.block.0
    }

    /// Element (k, n) in the given layout: `k·N + n`, `n·K + k`, or native
    /// `panel + ⌊k'/bk⌋·bn·bk + (n mod bn)·bk + k' mod bk` with k' = k within its segment.
    pub fn index(&self, layout: Layout, k: usize, n: usize) -> usize {
        match layout {
            Layout::Norm => k * self.n + n,
            Layout::TpNorm => n * self.k + k,
            Layout::Native => {
                let (bn, bk) = self.block;
                let inner = k % self.segment;
                self.panel(k / self.segment, n / bn) + inner / bk * bn * bk + n % bn * bk + inner % bk
            }
        }
    }

    /// Calls `visit(k, n)` for every element in the order in which native B holds them.
    pub fn for_each_native(&self, mut visit: impl FnMut(usize, usize)) {
        let (bn, bk) = self.block;
        for segment in 0..self.segments() {
            let first = segment * self.segment;
            for n_block in (0..self.n).step_by(bn) {
                for k_block in (first..first + self.segment_k(segment)).step_by(bk) {
                    for n in n_block..n_block + bn {
                        for k in k_block..k_block + bk {
                            visit(k, n);
                        }
                    }
                }
            }
        }
    }
}

/// Rewrites B from layout `from` to native into `out`.
///
/// `packed` says whether four-bit elements of `source` lie two to a byte (as in memory) or one (as the vendor's
/// conversion function takes them); `out` is always packed.
///
/// # Safety
/// `source` is readable for the K·N elements of `kind`, and nothing writes there meanwhile.
pub unsafe fn b_to_native(
    kind: Element,
    shape: &BShape,
    from: Layout,
    packed: bool,
    source: *const u8,
    out: &mut [u8],
) {
    let mut at = 0;
    match kind {
        Element::F16 => shape.for_each_native(|k, n| {
            let from = 2 * shape.index(from, k, n);
            // SAFETY: the index is below K·N, readable by contract.
            let pair = unsafe { [source.add(from).read(), source.add(from + 1).read()] };
            out[at..at + 2].copy_from_slice(&pair);
            at += 2;
        }),
        Element::I8 => shape.for_each_native(|k, n| {
            // SAFETY: the index is below K·N, readable by contract.
            out[at] = unsafe { source.add(shape.index(from, k, n)).read() };
            at += 1;
        }),
        Element::I4 => shape.for_each_native(|k, n| {
            let index = shape.index(from, k, n);
            // SAFETY: the byte of an index below K·N, readable by contract in either packing.
            let nibble = unsafe {
                if packed {
                    source.add(index / 2).read() >> (index % 2 * 4)
                } else {
                    source.add(index).read()
                }
            } & 15;
            // Even elements come first and overwrite whatever the byte held.
            out[at / 2] = if at % 2 == 0 { nibble } else { out[at / 2] | nibble << 4 };
            at += 1;
        }),
        Element::F32 | Element::I16 | Element::I32 => unreachable!("no B holds {kind:?}"),
    }
}
