//! Randomised Hadamard rotation: what spreads outliers over a row, or over each segment of one, before it is rounded.
//!
//! A row x of K elements becomes Q·x with Q = (H_m ⊗ H_p) · D / √K, where K = m·p, p is a power of two, H_p is
//! Sylvester's matrix, H_m Williamson's or Paley's of the smallest order that fits, or the product of two where
//! that is less work (8960 = 20·28·16 rather than 140·64), and D random signs. Q is
//! orthogonal, so (Q·w)·(Q·x) = w·x: weights are rotated once, activations on their way to the NPU, and results
//! need nothing. A K with no such factors is rotated in blocks of its largest power of two; or the row is padded
//! with zeros to a power of two, and Q has that many rows and K orthonormal columns.
//!
//! A long row is rotated in blocks, each as long as a segment, or as several make up one: that is less work, and a segment
//! needs its own elements only. Nothing is lost. An outlier of magnitude x in a segment of n elements that has a scale of its
//! own becomes about x/√n in each of them, and so adds about x² to the squared error, whatever n is.
//!
//! Cost of a row: K·(log₂ p + m/4 + 5) additions, m/4 + 5 for a Paley matrix, m/4 + 3 for one of Williamson's; it reads and
//! writes 4·K bytes a few times, in cache.
//! Sources: the ones of `paley` and `williamson`; QuIP (2307.13304) for the use on weights.

use std::fmt::Write as _;
use std::ops::Range;

use factor::{factors, order_of, Factor};

use crate::names::value_of;

mod factor;
mod paley;
mod transform;
mod williamson;

/// The shortest block of a long row, and the largest factor of one: beyond it other blocks are less work.
const BLOCK_MIN: usize = 256;
const BLOCK_ORDER_MAX: usize = 36;

/// What decides a rotation: the same recipe gives the same one in every process. Converted weights outlive the program that
/// made them; so a description stands for the same rotation for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Recipe {
    /// Elements of a row.
    pub k: usize,
    /// The layer that the rows belong to, where each has signs of its own; `None` for the signs of K alone.
    pub layer: Option<u32>,
    /// How the signs are laid over a row.
    pub signs: Signs,
    /// Whether rows are extended by zeros to a power of two, and rotated by Sylvester's matrix alone.
    pub padded: bool,
    /// Elements that are rotated together, a part of K; `None` for all of them.
    pub block: Option<usize>,
}

impl Recipe {
    /// The plain one for rows of `k` elements: of no layer, signs over the whole row, not padded, not in blocks.
    pub fn of(k: usize) -> Self {
        Self { k, layer: None, signs: Signs::Full, padded: false, block: None }
    }
}

/// How the random signs of a rotation are laid over a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signs {
    /// One for each element.
    Full,
    /// One for each element of a power-of-two block, the same in all blocks of the row.
    Shared,
}

impl Signs {
    /// The names of both, for error messages.
    pub const ALLOWED: &'static str = "full or shared";

    /// The value of that name, in any case.
    pub fn by_name(name: &str) -> Option<Self> {
        value_of(&[("full", Self::Full), ("shared", Self::Shared)], name)
    }
}

/// The rotation of rows of one length, by a [`Recipe`].
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    recipe: Recipe,
    /// Elements that come out.
    width: usize,
    /// The factors that are no power of two, the outermost first, two at most; none when a power of two is rotated.
    factors: Vec<Factor>,
    /// The power of two.
    power: usize,
    /// ±1/√(order·power), one an element of the row that goes in.
    signs: Vec<f32>,
}

impl Rotation {
    /// The rotation of `recipe`; `None` for fewer than two elements, for an odd number that is not padded, and for blocks that
    /// are no part of the width.
    pub fn new(recipe: &Recipe) -> Option<Self> {
        let k = recipe.k;
        if k < 2 || (k % 2 != 0 && !recipe.padded) {
            return None;
        }
        let width = if recipe.padded { k.checked_next_power_of_two()? } else { k };
        let block = recipe.block.unwrap_or(width);
        if block < 2 || block % 2 != 0 || width % block != 0 || (recipe.padded && block < width) {
            return None;
        }
        let factors = factors(block);
        let order = order_of(&factors);
        let power = if order > 1 { block / order } else { 1 << block.trailing_zeros() };
        let norm = 1.0 / ((order * power) as f32).sqrt();
        let random: Vec<bool> = negatives(recipe).take(k).collect();
        let period = if recipe.signs == Signs::Shared { power } else { width };
        let signs = (0..k).map(|i| if random[i % period] { -norm } else { norm }).collect();
        Some(Self { recipe: *recipe, width, factors, power, signs })
    }

    /// Elements of a row that goes in.
    pub fn k(&self) -> usize {
        self.recipe.k
    }

    /// Elements that come out: [`Self::k`], or, padded, the next power of two.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The order of all factors together, or 1.
    fn order(&self) -> usize {
        order_of(&self.factors)
    }

    /// Elements that are rotated together: all, or each of as many by itself.
    pub fn block(&self) -> usize {
        self.order() * self.power
    }

    /// The longest part of `len` elements that is a good block of a long row: of which there is a matrix, by a factor of
    /// little work. `None` where none is long enough.
    pub fn block_within(len: usize) -> Option<usize> {
        let is_good = |block: &usize| {
            let twos = 1 << block.trailing_zeros();
            let order = || order_of(&factors(*block));
            *block == twos || (2..=BLOCK_ORDER_MAX).contains(&order()) && block / order() >= transform::STRIP
        };
        let blocks = (1..=len / BLOCK_MIN).filter(|parts| len % parts == 0).map(|parts| len / parts);
        blocks.into_iter().find(is_good)
    }

    /// All that decides the result, in one line that stays the same for ever, for the keys of caches:
    /// `hadamard k=576 order=w36 power=16 layer=3 signs=full`, or `order=w20xw28` of two factors ([`Factor::name`]). A padded rotation is told by its
    /// order of 1 and a power above K, blocks by an order times power below it.
    pub fn describe(&self) -> String {
        let Self { recipe, power, .. } = self;
        let orders: Vec<String> = self.factors.iter().map(Factor::name).collect();
        let orders = if orders.is_empty() { "1".to_owned() } else { orders.join("x") };
        let mut text = format!("hadamard k={} order={orders} power={power} layer=", recipe.k);
        // Writing to a string never fails.
        let _ = match recipe.layer {
            Some(layer) => write!(text, "{layer}"),
            None => write!(text, "none"),
        };
        text + match recipe.signs {
            Signs::Full => " signs=full",
            Signs::Shared => " signs=shared",
        }
    }

    /// Rotates `row` ([`Self::k`] elements) into `out` ([`Self::width`] elements); `scratch` has room for a block.
    ///
    /// # Panics
    /// When a length is another.
    pub fn apply(&self, row: &[f32], out: &mut [f32], scratch: &mut [f32]) {
        self.apply_part(row, 0..self.width, out, scratch);
    }

    /// As [`Self::apply`], only the elements `part` of what comes out, whole blocks, into `out`; of `row` these blocks are all there
    /// is.
    ///
    /// # Panics
    /// When a length is another, or the part is not whole blocks.
    pub fn apply_part(&self, row: &[f32], part: Range<usize>, out: &mut [f32], scratch: &mut [f32]) {
        let (size, k) = (self.block(), self.k());
        let whole = part.start % size == 0 && part.end % size == 0 && part.end <= self.width;
        assert!(whole, "blocks of {size}, {part:?} of {}", self.width);
        let lengths = (k.min(part.end) - part.start, part.len());
        assert_eq!((row.len(), out.len()), lengths, "{part:?} of rows of {k} elements");
        // Block by block, each of which stays in the innermost cache.
        let blocks = row.chunks(size).zip(out.chunks_exact_mut(size));
        for (block, (row, out)) in (part.start / size..).zip(blocks) {
            transform::apply(self.shape(block), row, out, &mut scratch[..size]);
        }
    }

    fn shape(&self, block: usize) -> transform::Shape<'_> {
        let (start, len) = (block * self.block(), self.block());
        let signs = &self.signs[start..self.signs.len().min(start + len)];
        transform::Shape { factors: &self.factors, power: self.power, signs }
    }

    /// The element (i, j) of Q, by definition, i below [`Self::width`], j below [`Self::k`]; for tests.
    pub fn element(&self, i: usize, j: usize) -> f32 {
        let (mut block_i, mut block_j) = (i / self.power, j / self.power);
        let mut outer = 1.0;
        for factor in self.factors.iter().rev() {
            outer *= factor.element(block_i % factor.order(), block_j % factor.order());
            (block_i, block_j) = (block_i / factor.order(), block_j / factor.order());
        }
        if block_i != block_j {
            outer = 0.0;
        }
        let sylvester = if ((i % self.power) & (j % self.power)).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
        outer * sylvester * self.signs[j]
    }
}

/// Random bits, one a sign: true for −. A generator of its own (SplitMix64), so that no dependency can change the
/// signs of files on disk. Seeded by K, and by the layer if there is one.
fn negatives(recipe: &Recipe) -> impl Iterator<Item = bool> {
    let mix = |mut bits: u64| {
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    };
    let mut state = recipe.k as u64;
    if let Some(layer) = recipe.layer {
        // Mixed, so that the sequences of neighbouring layers are not the same one shifted.
        state = mix(state ^ ((u64::from(layer) + 1) << 32));
    }
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(state) & 1 != 0
    })
}

#[cfg(test)]
mod tests;
