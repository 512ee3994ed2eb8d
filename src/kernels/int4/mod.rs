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

use super::fast::{inverses, round_within, rows_a_line, unpack_blocks, unpack_whole_rows, vectorised};
use super::{Results, Rows, Strips};
use crate::names::value_of;

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
        value_of(&[("ls", Self::LeastSquares), ("kl", Self::KlDivergence)], name)
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
    /// Packs rows into blocks of native A, (K/32, M, 32) nibbles, see [`scalar::pack_a`]: strips of 16 bytes a row, of
    /// the one plane, or of the high and of the low one.
    pub fn pack_a<const PLANES: usize>(rows: &Rows, a: &mut [Strips<u8>; PLANES]) = pack_a_body::<PLANES>
}

#[inline(always)]
fn pack_a_body<const PLANES: usize>(rows: &Rows, a: &mut [Strips<u8>; PLANES]) {
    const BYTES: usize = A_BLOCK / 2;
    let step = const { rows_a_line(BYTES) };
    for first in (0..rows.rows).step_by(step) {
        let group = first..rows.rows.min(first + step);
        let inverses = inverses(&rows.scales[group.clone()]);
        for index in 0..a[0].count() {
            let start = (index * A_BLOCK).min(rows.k);
            for (row, inverse) in group.clone().zip(inverses) {
                let values = &rows.row(row)[start..];
                let planes = match values.first_chunk() {
                    Some(values) => split::<PLANES>(values, inverse),
                    None => {
                        let mut padded = [0.0; A_BLOCK];
                        padded[..values.len()].copy_from_slice(values);
                        split::<PLANES>(&padded, inverse)
                    }
                };
                for (plane, strips) in planes.iter().zip(&mut *a) {
                    put_block(plane, &mut strips.get(index)[row * BYTES..]);
                }
            }
        }
    }
}

/// The values of a block as nibbles of one plane, or of the high and the low one.
#[inline(always)]
fn split<const PLANES: usize>(values: &[f32; A_BLOCK], inverse: f32) -> [[i8; A_BLOCK]; PLANES] {
    let mut planes = [[0; A_BLOCK]; PLANES];
    for i in 0..A_BLOCK {
        if PLANES == 1 {
            planes[0][i] = round_within(values[i] * inverse, -8, 7) as i8;
        } else {
            let whole = round_within(values[i] * inverse, -Q8_LEVEL, Q8_LEVEL);
            planes[0][i] = ((whole + 8) >> 4) as i8;
            // Only the low four bits are stored, and those are the low plane's.
            planes[PLANES - 1][i] = whole as i8;
        }
    }
    planes
}

#[inline(always)]
fn put_block(values: &[i8; A_BLOCK], place: &mut [u8]) {
    let place: &mut [u8; A_BLOCK / 2] = (&mut place[..A_BLOCK / 2]).try_into().expect("a whole block");
    for i in 0..A_BLOCK / 2 {
        place[i] = nibbles(values[2 * i], values[2 * i + 1]);
    }
}

vectorised! {
    /// Packs rows into these rows of row-major A, all of the one plane, or of the high and of the low one; zeros are
    /// put beyond a row's elements.
    pub fn pack_rows<const PLANES: usize>(rows: &Rows, a: [&mut [u8]; PLANES]) = pack_rows_body::<PLANES>
}

#[inline(always)]
fn pack_rows_body<const PLANES: usize>(rows: &Rows, mut a: [&mut [u8]; PLANES]) {
    let bytes = a[0].len() / rows.rows;
    for row in 0..rows.rows {
        let inverse = 1.0 / rows.scales[row];
        let mut blocks = rows.row(row).chunks(A_BLOCK);
        for start in (row * bytes..(row + 1) * bytes).step_by(A_BLOCK / 2) {
            let mut values = [0.0f32; A_BLOCK];
            if let Some(block) = blocks.next() {
                values[..block.len()].copy_from_slice(block);
            }
            for (plane, a) in split::<PLANES>(&values, inverse).iter().zip(&mut a) {
                put_block(plane, &mut a[start..]);
            }
        }
    }
}

/// Rows of results out of native C (N/`BLOCK`, M, `BLOCK`) of 16-bit sums of one plane, or of two, see
/// [`scalar::unpack_c`].
pub fn unpack_c<const BLOCK: usize>(c: &[i16], planes: usize, results: &Results, out: &mut [f32]) {
    if planes == 2 {
        unpack_planes::<BLOCK>(c, results, out);
    } else {
        unpack_sums::<BLOCK>(c, results, out);
    }
}

vectorised! {
    fn unpack_planes<const BLOCK: usize>(c: &[i16], results: &Results, out: &mut [f32]) = unpack_blocks::<i16, BLOCK, 2>
}

vectorised! {
    fn unpack_sums<const BLOCK: usize>(c: &[i16], results: &Results, out: &mut [f32]) = unpack_blocks::<i16, BLOCK, 1>
}

/// Rows of results out of row-major C of 16-bit sums; otherwise as [`unpack_c`].
pub fn unpack_rows(c: &[i16], planes: usize, results: &Results, out: &mut [f32]) {
    if planes == 2 {
        unpack_rows_of_planes(c, results, out);
    } else {
        unpack_rows_of_sums(c, results, out);
    }
}

vectorised! {
    fn unpack_rows_of_planes(c: &[i16], results: &Results, out: &mut [f32]) = unpack_whole_rows::<i16, 2>
}

vectorised! {
    fn unpack_rows_of_sums(c: &[i16], results: &Results, out: &mut [f32]) = unpack_whole_rows::<i16, 1>
}

#[cfg(test)]
mod tests;
