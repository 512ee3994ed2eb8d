//! What attention is asked for: queries, keys, values and what becomes of scores, as plain slices.

use std::ops::Range;

use ggml_sys::RowReader;

use crate::plan::AttentionShape;

/// Rows of queries, f32.
#[derive(Clone, Copy)]
pub struct Queries<'a> {
    /// From the first element of the first row to the last of the last.
    pub data: &'a [f32],
    /// Elements from one token, head and sequence to the next.
    pub strides: [usize; 3],
}

/// Keys or values: a row for each position.
#[derive(Clone, Copy)]
pub struct Cached<'a> {
    /// From the first byte of the first row to the last of the last.
    pub data: &'a [u8],
    /// Reads a row.
    pub reader: RowReader,
    /// Elements of a row.
    pub width: usize,
    /// Bytes from one position, head and sequence to the next.
    pub strides: [usize; 3],
    /// Whether rows are f16, whose bits are used as they are.
    pub halves: bool,
}

/// What is added to scores: f16 bits, a row of all positions for each token.
#[derive(Clone, Copy)]
pub struct Mask<'a> {
    /// From the first element of the first row to the last of the last.
    pub data: &'a [u16],
    /// Elements from one token, head and sequence to the next.
    pub strides: [usize; 3],
    /// Heads and sequences that it has; others begin anew.
    pub extents: [usize; 2],
}

impl<'a> Mask<'a> {
    /// A token's row for some positions.
    pub(super) fn row(
        &self,
        sequence: usize,
        head: usize,
        token: usize,
        positions: Range<usize>,
    ) -> &'a [u16] {
        let [heads, sequences] = self.extents;
        let [of_token, of_head, of_sequence] = self.strides;
        let at = token * of_token + head % heads * of_head + sequence % sequences * of_sequence;
        &self.data[at + positions.start..at + positions.end]
    }
}

/// softmax(`scale` · Q·Kᵀ, capped, + mask) · V of all heads and sequences.
pub struct Attention<'a> {
    /// Extents.
    pub shape: AttentionShape,
    /// Q.
    pub queries: Queries<'a>,
    /// K.
    pub keys: Cached<'a>,
    /// V.
    pub values: Cached<'a>,
    /// What is added to the scores.
    pub mask: Option<Mask<'a>>,
    /// A score for each head that has no value.
    pub sinks: Option<&'a [f32]>,
    /// The scores' factor.
    pub scale: f32,
    /// Scores are cap · tanh(score / cap), unless it is 0.
    pub softcap: f32,
    /// The largest slope of ALiBi's, or 0 where the mask is added as it is.
    pub max_bias: f32,
    /// Results: a row of `shape.value` elements for each head, those of a token together.
    pub out: &'a mut [f32],
}

impl Attention<'_> {
    /// Puts zeros for tokens of which all is masked.
    pub(super) fn clear(&mut self, sequence: usize, tokens: Range<usize>) {
        let AttentionShape { tokens: all, heads, value, .. } = self.shape;
        let row = |token: usize| (sequence * all + token) * heads * value;
        self.out[row(tokens.start)..row(tokens.end)].fill(0.0);
    }

    /// A head's factor of the mask, as the host defines it: powers of 2^(−max / heads).
    pub(super) fn slope(&self, head: usize) -> f32 {
        if self.max_bias <= 0.0 {
            return 1.0;
        }
        let whole = 1usize << self.shape.heads.max(1).ilog2();
        let base = |bias: f32| 2f32.powf(-bias / whole as f32);
        if head < whole {
            base(self.max_bias).powi(head as i32 + 1)
        } else {
            base(self.max_bias / 2.0).powi(2 * (head - whole) as i32 + 1)
        }
    }
}
