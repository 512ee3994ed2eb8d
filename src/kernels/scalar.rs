//! The kernels as plain loops over the index formulas: slow, and right by inspection.

use half::f16;

use super::{Results, Rows, Sum};

/// The magnitude that a scaled f16 row's largest element stays below: far from overflow and from the denormals.
const F16_TARGET_EXPONENT: i32 = 8;

/// The largest magnitude of `row`; NaN when one of its elements is not finite.
pub fn amax(row: &[f32]) -> f32 {
    row.iter().fold(
        0.0,
        |max, value| if value.is_finite() { f32::max(max, value.abs()) + max * 0.0 } else { f32::NAN },
    )
}

/// The scale of an i8 row: `value ≈ scale · q` with q in −127..=127. 1 for a row of zeros, NaN for NaN.
pub fn scale_i8(amax: f32) -> f32 {
    scale_to(amax, 127.0)
}

/// The scale of a row whose largest magnitude becomes `largest`. 1 for a row of zeros, NaN for NaN.
pub fn scale_to(amax: f32, largest: f32) -> f32 {
    // Below the normal range, the reciprocal overflows: such a row is zero for all that follows.
    if amax < f32::MIN_POSITIVE * 256.0 {
        1.0
    } else {
        amax / largest
    }
}

/// The scale of an f16 row: the power of two with `amax / scale` in [128, 256). 1 for zeros, NaN for NaN.
///
/// A power of two changes no digit, so a row that f16 holds exactly stays exact.
pub fn scale_f16(amax: f32) -> f32 {
    if amax.is_nan() {
        return f32::NAN;
    }
    if amax < f32::MIN_POSITIVE * 256.0 {
        return 1.0;
    }
    let exponent = (amax.to_bits() >> 23) as i32 - 127;
    f32::from_bits(((exponent + 1 - F16_TARGET_EXPONENT + 127).max(1) as u32) << 23)
}

/// `value / scale`, rounded and clamped to −127..=127. NaN gives 0.
pub fn quantize(value: f32, inverse_scale: f32) -> i8 {
    (value * inverse_scale).clamp(-127.0, 127.0).round_ties_even() as i8
}

/// Puts rows of activations into A of `m` rows, from row `first` on: a[(k/block, row, k%block)]. With the whole of K as
/// the block, A is row-major. The padding of each row, up to the length that `a` has for it, is zero.
pub fn pack_a<T: Copy + Default>(
    rows: &Rows,
    block: usize,
    (m, first): (usize, usize),
    a: &mut [T],
    convert: impl Fn(f32, f32) -> T,
) {
    let padded = a.len() / m;
    for row in 0..rows.rows {
        for i in 0..padded {
            let value = rows.row(row).get(i).map(|value| convert(*value, 1.0 / rows.scales[row]));
            a[(i / block) * m * block + (first + row) * block + i % block] = value.unwrap_or_default();
        }
    }
}

/// As f16 bits.
pub fn to_f16(value: f32, inverse_scale: f32) -> u16 {
    f16::from_f32(value * inverse_scale).to_bits()
}

/// C (n/block, m, block) into rows of results: each element times its row's and its column's scale.
///
/// `block` is 4 for native C; with the whole of n, C is row-major.
pub fn unpack_c<T: Sum>(c: &[T], block: usize, results: &Results, out: &mut [f32]) {
    for row in 0..results.rows {
        for column in 0..results.columns {
            let row_in_c = results.row_start + row;
            let sum = c[(column / block) * results.m * block + row_in_c * block + column % block];
            let sum = sum.to_f32::<1>(sum);
            let scaled = sum * results.column_scales[column] * results.row_scales[row];
            let out = &mut out[row * results.stride + column];
            *out = if results.accumulate { *out + scaled } else { scaled };
        }
    }
}

/// Where (k, n) lies in native B (N/bn, K/bk, bn, bk).
pub fn b_index(k: usize, n: usize, padded_k: usize, bn: usize, bk: usize) -> usize {
    ((n / bn) * (padded_k / bk) + k / bk) * bn * bk + (n % bn) * bk + k % bk
}
