//! The four-bit kernels as plain loops over the index formulas: slow, and right by inspection.

use super::super::{Results, Rows};
use super::Q8_MAX;

/// `value / scale`, rounded and clamped to −8..=7.
pub fn quantize(value: f32, inverse_scale: f32) -> i8 {
    (value * inverse_scale).clamp(-8.0, 7.0).round_ties_even() as i8
}

/// `value / scale` rounded and clamped to −119..=119, as its high and its low nibble: 16·high + low.
pub fn split(value: f32, inverse_scale: f32) -> (i8, i8) {
    let whole = (value * inverse_scale).clamp(-Q8_MAX, Q8_MAX).round_ties_even() as i32;
    let high = (whole + 8).div_euclid(16);
    (high as i8, (whole - 16 * high) as i8)
}

/// Nibble `index` of `bytes`.
pub fn nibble(bytes: &[u8], index: usize) -> i8 {
    let bits = bytes[index / 2] >> (index % 2 * 4);
    ((bits << 4) as i8) >> 4
}

/// Sets nibble `index` of `bytes`.
pub fn set_nibble(bytes: &mut [u8], index: usize, value: i8) {
    let shift = index % 2 * 4;
    bytes[index / 2] = bytes[index / 2] & !(15 << shift) | (value as u8 & 15) << shift;
}

/// Puts rows of activations into A of `m` rows, from row `first` on: a[(k/block, row, k%block)] in nibbles, `block` the
/// whole of K for a row-major A. With two planes row r becomes rows r (high) and m/2 + r (low). Padding is zero.
pub fn pack_a(rows: &Rows, planes: usize, block: usize, (m, first): (usize, usize), a: &mut [u8]) {
    let padded = a.len() * 2 / m;
    for row in 0..rows.rows {
        for i in 0..padded {
            let value = rows.row(row).get(i).copied().unwrap_or(0.0);
            let at = |row: usize| (i / block) * m * block + (first + row) * block + i % block;
            if planes == 2 {
                let (high, low) = split(value, 1.0 / rows.scales[row]);
                set_nibble(a, at(row), high);
                set_nibble(a, at(m / 2 + row), low);
            } else {
                set_nibble(a, at(row), quantize(value, 1.0 / rows.scales[row]));
            }
        }
    }
}

/// C (n/block, m, block) of 16-bit sums into rows of results: 16·high + low, or the one plane's sum, times its column's
/// and its row's scale. `block` is the whole of N for a row-major C.
pub fn unpack_c(c: &[i16], planes: usize, block: usize, results: &Results, out: &mut [f32]) {
    for row in 0..results.rows {
        for column in 0..results.columns {
            let sum = |row: usize| {
                i32::from(c[(column / block) * results.m * block + row * block + column % block])
            };
            let row_in_c = results.row_start + row;
            let whole = match planes {
                2 => 16 * sum(row_in_c) + sum(results.m / 2 + row_in_c),
                _ => sum(row_in_c),
            };
            let scaled = whole as f32 * results.column_scales[column] * results.row_scales[row];
            let out = &mut out[row * results.stride + column];
            *out = if results.accumulate { *out + scaled } else { scaled };
        }
    }
}

/// The squared error of `values` quantised with `scale`, in f64.
pub fn error(values: &[f32], scale: f32) -> f64 {
    let off = |value: &f32| f64::from(*value) - f64::from(quantize(*value, 1.0 / scale)) * f64::from(scale);
    values.iter().map(|value| off(value).powi(2)).sum()
}
