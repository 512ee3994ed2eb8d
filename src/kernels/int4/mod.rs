//! Four-bit numbers: scales that use all sixteen levels, nibbles packed two to a byte, and sums of 16 bits.
//!
//! A stored value q is −8..=7 and stands for scale · q. The scale may be negative: its sign is chosen so that the
//! largest magnitude of a row meets −8, the level that has no positive twin.
//!
//! An 8-bit activation q = 16·high + low is two planes of nibbles, with low in −8..=7; |q| is at most
//! [`Q8_MAX`], so that high stays in −7..=7. The planes are rows of one product: the high ones first, the low ones
//! from half of M on.
//!
//! Bytes: packing one row of K elements reads 4·K and writes K/2 a plane; a search for a scale reads the row, from
//! the cache, once a candidate.

mod kl;
pub mod scalar;
mod scale;

pub use scale::scale_row;

use super::fast::{round_within, vectorised};
use super::{Results, Rows};

/// The largest magnitude of an activation that is split into two planes.
pub const Q8_MAX: f32 = Q8_LEVEL as f32;
const Q8_LEVEL: i32 = 119;
/// The most that the magnitudes of a column's weights may add up to in one run: times 8, the largest magnitude of an
/// activation's nibble, it stays within the 16 bits of the sums. (source: `docs/facts.md`, type 10 saturates)
pub const WEIGHT_SUM_MAX: u32 = i16::MAX as u32 / 8;

/// How the scale of a weight's channel is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Calibration {
    /// The least squared error.
    #[default]
    LeastSquares,
    /// The least divergence of the distributions.
    KlDivergence,
}

impl Calibration {
    /// The names of both, for error messages.
    pub const ALLOWED: &'static str = "ls or kl";

    /// The value of that name, in any case.
    pub fn by_name(name: &str) -> Option<Self> {
        [("ls", Self::LeastSquares), ("kl", Self::KlDivergence)]
            .into_iter()
            .find_map(|(known, value)| known.eq_ignore_ascii_case(name).then_some(value))
    }

    /// The scale of a weight's channel: its sign is such that the largest magnitude meets −8. 1 for zeros, NaN when a
    /// value is not finite.
    pub fn scale(self, values: &[f32]) -> f32 {
        match self {
            Self::LeastSquares => scale::scale_weight(values),
            Self::KlDivergence => kl::scale(values),
        }
    }
}

/// The scale of a row in two planes: `value ≈ scale · q` with q in −119..=119. 1 for a row of zeros, NaN for NaN.
pub fn scale_planes(amax: f32) -> f32 {
    super::scalar::scale_to(amax, Q8_MAX)
}

vectorised! {
    /// Quantises `values` by `inverse_scale` to −8..=7, one value a byte.
    pub fn quantize(values: &[f32], inverse_scale: f32, out: &mut [i8]) = quantize_body
}

#[inline(always)]
fn quantize_body(values: &[f32], inverse_scale: f32, out: &mut [i8]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = round_within(value * inverse_scale, -8, 7) as i8;
    }
}

vectorised! {
    /// Packs values of −8..=7, two to a byte, the even one in the low nibble; a last odd one has 0 beside it.
    pub fn pack_nibbles(values: &[i8], out: &mut [u8]) = pack_nibbles_body
}

#[inline(always)]
fn pack_nibbles_body(values: &[i8], out: &mut [u8]) {
    for (out, pair) in out.iter_mut().zip(values.chunks(2)) {
        *out = nibbles(pair[0], pair.get(1).copied().unwrap_or(0));
    }
}

#[inline(always)]
fn nibbles(even: i8, odd: i8) -> u8 {
    (even as u8 & 15) | (odd as u8) << 4
}

vectorised! {
    /// The sum of the magnitudes of `values`.
    pub fn sum_of_magnitudes(values: &[i8]) -> u32 = sum_body
}

#[inline(always)]
fn sum_body(values: &[i8]) -> u32 {
    values.iter().map(|value| u32::from(value.unsigned_abs())).sum()
}

/// Elements of k in one block of native A: 16 bytes a plane.
const A_BLOCK: usize = 32;

vectorised! {
    /// Packs rows into consecutive blocks of native A, (K/32, M, 32) nibbles, see [`scalar::pack_a`].
    ///
    /// `a` is whole (`m`, 32) blocks, 16 bytes a row of each. With two planes row r is split over rows r and m/2 + r.
    pub fn pack_a<const PLANES: usize>(rows: &Rows, m: usize, a: &mut [u8]) = pack_a_body::<PLANES>
}

#[inline(always)]
fn pack_a_body<const PLANES: usize>(rows: &Rows, m: usize, a: &mut [u8]) {
    const BYTES: usize = A_BLOCK / 2;
    let low_plane = m / 2 * BYTES;
    for row in 0..rows.rows {
        let inverse = 1.0 / rows.scales[row];
        let mut blocks = rows.row(row).chunks(A_BLOCK);
        for place in a.chunks_exact_mut(m * BYTES) {
            let mut values = [0.0f32; A_BLOCK];
            if let Some(block) = blocks.next() {
                values[..block.len()].copy_from_slice(block);
            }
            if PLANES == 1 {
                put_block(&split::<1>(&values, inverse).0, &mut place[(rows.first + row) * BYTES..]);
            } else {
                let (high, low) = split::<2>(&values, inverse);
                put_block(&high, &mut place[(rows.first + row) * BYTES..]);
                put_block(&low, &mut place[low_plane + (rows.first + row) * BYTES..]);
            }
        }
    }
}

/// The values of a block as nibbles of one plane, or of the high and the low one.
#[inline(always)]
fn split<const PLANES: usize>(values: &[f32; A_BLOCK], inverse: f32) -> ([i8; A_BLOCK], [i8; A_BLOCK]) {
    let (mut high, mut low) = ([0; A_BLOCK], [0; A_BLOCK]);
    for i in 0..A_BLOCK {
        if PLANES == 1 {
            high[i] = round_within(values[i] * inverse, -8, 7) as i8;
        } else {
            let whole = round_within(values[i] * inverse, -Q8_LEVEL, Q8_LEVEL);
            high[i] = ((whole + 8) >> 4) as i8;
            // Only the low four bits are stored, and those are the low plane's.
            low[i] = whole as i8;
        }
    }
    (high, low)
}

#[inline(always)]
fn put_block(values: &[i8; A_BLOCK], place: &mut [u8]) {
    let place: &mut [u8; A_BLOCK / 2] = (&mut place[..A_BLOCK / 2]).try_into().expect("a whole block");
    for i in 0..A_BLOCK / 2 {
        place[i] = nibbles(values[2 * i], values[2 * i + 1]);
    }
}

vectorised! {
    /// Packs rows into row-major A, whose rows are `bytes` long; zeros are put beyond a row's elements. `a` is all of
    /// A: with two planes the low ones begin at half of it.
    pub fn pack_rows<const PLANES: usize>(rows: &Rows, bytes: usize, a: &mut [u8]) = pack_rows_body::<PLANES>
}

#[inline(always)]
fn pack_rows_body<const PLANES: usize>(rows: &Rows, bytes: usize, a: &mut [u8]) {
    let half = a.len() / PLANES;
    let (high, low) = a.split_at_mut(half);
    for row in 0..rows.rows {
        let inverse = 1.0 / rows.scales[row];
        let mut blocks = rows.row(row).chunks(A_BLOCK);
        for start in (row * bytes..(row + 1) * bytes).step_by(A_BLOCK / 2) {
            let mut values = [0.0f32; A_BLOCK];
            if let Some(block) = blocks.next() {
                values[..block.len()].copy_from_slice(block);
            }
            let planes = split::<PLANES>(&values, inverse);
            put_block(&planes.0, &mut high[start..]);
            if PLANES == 2 {
                put_block(&planes.1, &mut low[start..]);
            }
        }
    }
}

vectorised! {
    /// Rows of results out of native C (N/`BLOCK`, M, `BLOCK`) of 16-bit sums of one plane, or of two, see
    /// [`scalar::unpack_c`].
    pub fn unpack_c<const BLOCK: usize>(c: &[i16], planes: usize, results: &Results, out: &mut [f32])
        = unpack_c_body::<BLOCK>
}

#[inline(always)]
fn unpack_c_body<const BLOCK: usize>(c: &[i16], planes: usize, results: &Results, out: &mut [f32]) {
    let Results { m, row_start, rows, columns, row_scales, column_scales, accumulate, stride } = *results;
    let (weight, low) = low_plane(planes, m, BLOCK);
    // Eight rows at a time: their pieces of one column block share cache lines.
    for first in (0..rows).step_by(8) {
        let group = first..rows.min(first + 8);
        for block in 0..columns.div_ceil(BLOCK) {
            let start = block * BLOCK;
            let width = BLOCK.min(columns - start);
            for row in group.clone() {
                let at = block * m * BLOCK + (row_start + row) * BLOCK;
                let high: &[i16; BLOCK] = c[at..at + BLOCK].try_into().expect("a whole block");
                let low: &[i16; BLOCK] = c[at + low..at + low + BLOCK].try_into().expect("a whole block");
                let mut sums = [0.0; BLOCK];
                for i in 0..BLOCK {
                    sums[i] = combine(high[i], low[i], weight);
                }
                let out = &mut out[row * stride + start..][..width];
                for (i, out) in out.iter_mut().enumerate() {
                    let scaled = sums[i] * column_scales[start + i] * row_scales[row];
                    *out = if accumulate { *out + scaled } else { scaled };
                }
            }
        }
    }
}

/// The factors of a sum and of the one beside it, and how far from it that lies: half of M rows of `width`, or 0.
#[inline(always)]
fn low_plane(planes: usize, m: usize, width: usize) -> ((i32, i32), usize) {
    if planes == 2 {
        ((16, 1), m / 2 * width)
    } else {
        ((1, 0), 0)
    }
}

#[inline(always)]
fn combine(high: i16, low: i16, (of_high, of_low): (i32, i32)) -> f32 {
    (i32::from(high) * of_high + i32::from(low) * of_low) as f32
}

vectorised! {
    /// Rows of results out of row-major C of 16-bit sums; otherwise as [`unpack_c`].
    pub fn unpack_rows(c: &[i16], planes: usize, results: &Results, out: &mut [f32]) = unpack_rows_body
}

#[inline(always)]
fn unpack_rows_body(c: &[i16], planes: usize, results: &Results, out: &mut [f32]) {
    let Results { m, row_start, rows, columns, row_scales, column_scales, accumulate, stride } = *results;
    let padded = c.len() / m;
    let (weight, low) = low_plane(planes, m, padded);
    for row in 0..rows {
        let at = (row_start + row) * padded;
        let (high, low) = (&c[at..at + columns], &c[at + low..at + low + columns]);
        let out = &mut out[row * stride..][..columns];
        for i in 0..columns {
            let scaled = combine(high[i], low[i], weight) * column_scales[i] * row_scales[row];
            out[i] = if accumulate { out[i] + scaled } else { scaled };
        }
    }
}

#[cfg(test)]
mod tests;
