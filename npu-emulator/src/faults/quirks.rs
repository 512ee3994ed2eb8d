//! Quirks: what boards are said to do, or what we may believe wrongly of them, switched on for good.

use crate::memory::View;
use crate::operand::{BoundB, Product};

/// The switches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quirks {
    /// A run on a context that is pinned to a core other than 0, while other contexts exist, reads a NATIVE B that
    /// was bound as a view with an offset from offset 0 of its allocation. (As reported it happens when two threads
    /// run at once; this rule does not depend on chance.)
    pub views: bool,
    /// The sub-blocks of NATIVE B are (k, n) inside, not (n, k).
    pub native_b: bool,
    /// NATIVE A and C have blocks half as wide as believed. One row is the same either way.
    pub native_ac: bool,
    /// Cores that no context can be pinned to.
    pub cores: Vec<usize>,
    /// Bytes of addresses that a domain serves, fewer than the chip's.
    pub domain: Option<u64>,
    /// Types that a create refuses, and the code.
    pub types: Vec<(i32, i32)>,
}

/// A run as the quirks have it.
pub struct Altered {
    /// The product to compute.
    pub product: Product,
    b: Option<BoundB>,
}

impl Altered {
    /// What the quirks make of a run of `product`, whose B has elements of `bits`, on a context pinned to `core`,
    /// others existing if `crowded`; `None` when they change nothing.
    pub fn new(
        product: &Product,
        bits: usize,
        b: &BoundB,
        core: Option<usize>,
        crowded: bool,
    ) -> Option<Self> {
        let plan = super::plan();
        let quirks = &plan.quirks;
        let mut product = *product;
        let native = product.c_block != product.b.n;
        if quirks.native_ac && native {
            product.a_block /= 2;
            product.c_block /= 2;
        }
        let mut bound = None;
        if let Some(view) = b.native() {
            let moved = quirks.views && crowded && core.is_some_and(|core| core > 0) && view.offset > 0;
            let mut from = view.clone();
            if moved {
                from.offset = 0;
            }
            if quirks.native_b {
                bound = Some(BoundB::Converted(transposed(&product, bits, &from), from));
            } else if moved {
                bound = Some(BoundB::Native(from));
            }
        }
        (bound.is_some() || quirks.native_ac && native).then_some(Self { product, b: bound })
    }

    /// The B to read instead of `original`.
    pub fn b<'a>(&'a self, original: &'a BoundB) -> &'a BoundB {
        self.b.as_ref().unwrap_or(original)
    }
}

/// A native B as the chip sees it when its sub-blocks are (k, n) inside: element (n, k) of a block of ours, at
/// `n·bk + k`, is what lies at `k·bn + n`.
fn transposed(product: &Product, bits: usize, view: &View) -> Vec<u8> {
    let (bn, bk) = product.b.block;
    let bytes = product.b.k * product.b.n * bits / 8;
    let mut out = vec![0; bytes];
    let block_bytes = bn * bk * bits / 8;
    let mut block = vec![0u8; block_bytes];
    for first in (0..bytes).step_by(block_bytes) {
        // SAFETY: the view holds B, a whole number of blocks; as for every run, the caller orders writes.
        unsafe { std::ptr::copy_nonoverlapping(view.device().add(first), block.as_mut_ptr(), block_bytes) };
        let out = &mut out[first..first + block_bytes];
        for n in 0..bn {
            for k in 0..bk {
                let (to, from) = (n * bk + k, k * bn + n);
                match bits {
                    4 => out[to / 2] |= (block[from / 2] >> (from % 2 * 4) & 15) << (to % 2 * 4),
                    8 => out[to] = block[from],
                    _ => out[2 * to..2 * to + 2].copy_from_slice(&block[2 * from..2 * from + 2]),
                }
            }
        }
    }
    out
}
