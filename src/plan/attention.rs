//! How attention is cut: rows of queries in tiles, positions in pieces.
//!
//! A tile of rows meets a piece of positions in two runs, scores = Q·Kᵀ and then P·V. The rows of a tile are all heads
//! that share a head of the cache, token by token.

use std::ops::Range;

use rknn_sys::MatmulType;

use super::rows::round_up_by_an_eighth;
use crate::chip::{Timing, TypeLimits};

/// Sizes of a piece: powers of two, so that contexts stay few whatever the lengths.
const PIECE_MIN: usize = 32;
const PIECE_MAX: usize = 2048;
/// What is left of the positions is rounded up to this, if there are more.
const PIECE_REST: usize = 128;
/// Rows of a tile to choose from.
const TILES: [usize; 4] = [64, 128, 256, 512];
/// Bytes that the CPU moves for each result of a piece: it is read, and added to what is read and written.
const RESULT_BYTES: f64 = 12.0;

/// What attention is asked of: extents of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AttentionShape {
    /// Elements of a query and of a key.
    pub head: usize,
    /// Elements of a value.
    pub value: usize,
    /// Queries of a head and sequence.
    pub tokens: usize,
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values, of which each serves as many heads of the queries.
    pub kv_heads: usize,
    /// Sequences, each with keys and values of its own.
    pub sequences: usize,
    /// Positions of the cache.
    pub positions: usize,
}

impl AttentionShape {
    /// Heads of the queries that share a head of the cache.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads.max(1)
    }

    /// Rows of one head of the cache.
    pub fn rows(&self) -> usize {
        self.tokens * self.group()
    }

    /// Multiplications and additions of both products.
    pub fn flops(&self) -> u64 {
        let pairs = (self.sequences * self.heads * self.tokens) as u64 * self.positions as u64;
        2 * pairs * (self.head + self.value) as u64
    }
}

/// How a node is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionPlan {
    /// Elements of a key, padded: K of the scores.
    pub head: usize,
    /// Elements of a value, padded: N of the results.
    pub value: usize,
    /// Tokens of a tile.
    pub tokens: usize,
    /// M of a tile: its tokens times the heads of a group, rounded up by less than an eighth.
    pub rows: usize,
    /// The longest piece, and the shortest one.
    longest: usize,
    shortest: usize,
}

/// Positions that a tile meets at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// The first of them.
    pub start: usize,
    /// How many.
    pub len: usize,
    /// N of the scores, K of the results.
    pub padded: usize,
}

impl Stretch {
    /// The positions.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

impl AttentionPlan {
    /// The fastest way of that shape on `cores` cores by the cost model, and the ns that it takes; what the CPU moves
    /// for the results of pieces counts too.
    pub fn best(shape: &AttentionShape, timing: &Timing, limits: &TypeLimits, cores: usize) -> (Self, f64) {
        let lengths = std::iter::successors(Some(PIECE_MAX), |length| Some(length / 2));
        let lengths = lengths.take_while(|length| *length >= PIECE_REST);
        let plans = lengths
            .flat_map(|longest| TILES.into_iter().map(move |rows| Self::of(shape, limits, rows, longest)));
        // Chosen for a rounded length: a cache that grows keeps its plan, and with it its contexts.
        let positions = shape.positions.next_power_of_two().clamp(PIECE_MIN, 2 * PIECE_MAX);
        let rounded = AttentionShape { positions, ..*shape };
        let timed = plans.map(|plan| (plan, plan.ns(&rounded, timing, cores)));
        let (plan, _) = timed.min_by(|a, b| a.1.total_cmp(&b.1)).expect("there are candidates");
        (plan, plan.ns(shape, timing, cores))
    }

    fn of(shape: &AttentionShape, limits: &TypeLimits, rows: usize, longest: usize) -> Self {
        let group = shape.group().max(1);
        let tokens = (rows / group).clamp(1, shape.tokens.max(1));
        // Tiles of one size as nearly as can be.
        let tiles = shape.tokens.div_ceil(tokens).max(1);
        let tokens = shape.tokens.div_ceil(tiles).max(1);
        let shortest = PIECE_MIN.next_multiple_of(limits.k_align).next_multiple_of(limits.n_align);
        Self {
            head: shape.head.next_multiple_of(limits.k_align),
            value: shape.value.next_multiple_of(limits.n_align),
            tokens,
            rows: round_up_by_an_eighth(tokens * group),
            longest: longest.max(shortest),
            shortest,
        }
    }

    /// Tiles of a head of the cache.
    pub fn tiles(&self, shape: &AttentionShape) -> usize {
        shape.tokens.div_ceil(self.tokens)
    }

    /// The tokens of a tile.
    pub fn tokens_of(&self, shape: &AttentionShape, tile: usize) -> Range<usize> {
        tile * self.tokens..shape.tokens.min((tile + 1) * self.tokens)
    }

    /// N of the longest piece.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The pieces of so many positions: the longest first, then powers of two; only the last is padded.
    pub fn pieces(&self, positions: usize) -> impl Iterator<Item = Stretch> {
        let Self { longest, shortest, .. } = *self;
        let mut start = 0;
        std::iter::from_fn(move || {
            let left = positions - start;
            if left == 0 {
                return None;
            }
            let padded = match left {
                _ if left >= longest => longest,
                _ if left <= PIECE_REST => left.next_power_of_two().max(shortest),
                _ => {
                    let left = left.next_multiple_of(PIECE_REST);
                    1 << left.ilog2()
                }
            };
            let piece = Stretch { start, len: left.min(padded), padded };
            start += piece.len;
            Some(piece)
        })
    }

    /// ns of the NPU for all of it, and of the CPU for what the pieces' results cost.
    fn ns(&self, shape: &AttentionShape, timing: &Timing, cores: usize) -> f64 {
        let (m, dtype) = (self.rows, MatmulType::F16);
        let piece = |piece: Stretch| {
            let scores = timing.run_ns(dtype, (m, self.head, piece.padded), cores);
            let results = timing.run_ns(dtype, (m, piece.padded, self.value), cores);
            let moved = (m * self.value) as f64 * RESULT_BYTES / timing.cpu_rate;
            (scores + results) / cores.max(1) as f64 + moved
        };
        let tiles = shape.sequences * shape.kv_heads * self.tiles(shape);
        self.pieces(shape.positions).map(piece).sum::<f64>() * tiles as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::Chip;
    use proptest::prelude::*;

    fn shape(tokens: usize, heads: usize, kv_heads: usize, positions: usize) -> AttentionShape {
        AttentionShape { head: 80, value: 72, tokens, heads, kv_heads, sequences: 1, positions }
    }

    proptest! {
        #[test]
        fn tiles_and_pieces_are_all_there_is(
            tokens in 1usize..2000,
            kv_heads in 1usize..4,
            group in 1usize..70,
            positions in 1usize..40_000,
        ) {
            let shape = shape(tokens, kv_heads * group, kv_heads, positions);
            for chip in &crate::chip::CHIPS {
                let limits = chip.limits(MatmulType::F16).unwrap();
                let (plan, ns) = AttentionPlan::best(&shape, &chip.timing, limits, chip.cores);
                prop_assert!(ns > 0.0);
                let mut end = 0;
                for tile in 0..plan.tiles(&shape) {
                    let tokens = plan.tokens_of(&shape, tile);
                    prop_assert_eq!(tokens.start, end);
                    prop_assert!(!tokens.is_empty() && tokens.len() * group <= plan.rows);
                    end = tokens.end;
                }
                prop_assert_eq!(end, tokens);
                prop_assert!(plan.rows < 64.max(group) * 16 * 9 / 8);
                let mut end = 0;
                for piece in plan.pieces(positions) {
                    prop_assert_eq!(piece.start, end);
                    prop_assert!(0 < piece.len && piece.len <= piece.padded && piece.padded <= PIECE_MAX);
                    prop_assert!(piece.padded % limits.k_align == 0 && piece.padded % limits.n_align == 0);
                    end += piece.len;
                }
                prop_assert_eq!(end, positions);
            }
        }
    }

    #[test]
    fn few_sizes_of_pieces_serve_all_lengths() {
        let chip = Chip::by_name("rk3588").unwrap();
        let limits = chip.limits(MatmulType::F16).unwrap();
        let plan = AttentionPlan::of(&shape(512, 4, 1, 1), limits, 256, 2048);
        let sizes: std::collections::BTreeSet<usize> =
            (1..10_000).flat_map(|positions| plan.pieces(positions).map(|piece| piece.padded)).collect();
        assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [32, 64, 128, 256, 512, 1024, 2048]);
        let lengths = |positions| plan.pieces(positions).map(|piece| piece.padded).collect::<Vec<_>>();
        assert_eq!(lengths(4096 + 1536), [2048, 2048, 1024, 512]);
        assert_eq!(lengths(200), [256]);
        assert_eq!(lengths(113), [128]);
    }

    #[test]
    fn a_cache_that_grows_keeps_its_plan() {
        let chip = Chip::by_name("rk3588").unwrap();
        let limits = chip.limits(MatmulType::F16).unwrap();
        let plan = |positions| AttentionPlan::best(&shape(512, 8, 2, positions), &chip.timing, limits, 3).0;
        assert!((2049..40_000).step_by(97).all(|positions| plan(positions) == plan(2049)));
    }
}
