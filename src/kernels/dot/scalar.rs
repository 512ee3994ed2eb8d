//! The products as plain loops over the index formulas: slow, and right by inspection.

use half::f16;

use super::super::int4::scalar::nibble;
use super::super::scalar::b_index;
use super::tile::CHUNK;
use super::Dot;

/// Halves in a chunk of K, and sums that they go to: see the module's words on the order.
pub const F16_CHUNK: usize = CHUNK * F16_LANES;
const F16_LANES: usize = 8;

/// See [`super::dot_i8`].
pub fn dot_i8(a: &[i8], b: &[i8], dot: &Dot, c: &mut [i32]) {
    for_each(dot, c, |row, column| {
        let product = |k| i32::from(a[a_index(dot, k, row)]) * i32::from(b[b_at(dot, k, column)]);
        (0..dot.k).map(product).fold(0, i32::wrapping_add)
    });
}

/// See [`super::dot_i4`].
pub fn dot_i4(a: &[u8], b: &[u8], dot: &Dot, c: &mut [i16]) {
    for_each(dot, c, |row, column| {
        let product =
            |k| i32::from(nibble(a, a_index(dot, k, row))) * i32::from(nibble(b, b_at(dot, k, column)));
        saturate((0..dot.k).map(product).fold(0, i32::wrapping_add))
    });
}

/// The nearest i16.
pub fn saturate(sum: i32) -> i16 {
    sum.clamp(i16::MIN.into(), i16::MAX.into()) as i16
}

/// See [`super::dot_f16`].
pub fn dot_f16(a: &[u16], b: &[u16], dot: &Dot, c: &mut [f32]) {
    let value = |bits| f16::from_bits(bits).to_f32();
    for_each(dot, c, |row, column| {
        let mut whole = 0.0;
        for chunk in (0..dot.k).step_by(F16_CHUNK) {
            let mut s = [0.0f32; F16_LANES];
            for k in chunk..dot.k.min(chunk + F16_CHUNK) {
                s[k % F16_LANES] += value(a[a_index(dot, k, row)]) * value(b[b_at(dot, k, column)]);
            }
            whole += ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
        }
        whole
    });
}

/// Puts `sum(row, column)` where it belongs in C.
fn for_each<T>(dot: &Dot, c: &mut [T], sum: impl Fn(usize, usize) -> T) {
    for row in dot.row_start..dot.row_start + dot.rows {
        for column in 0..c.len() / dot.m {
            let block = dot.c_block;
            c[(column / block) * dot.m * block + row * block + column % block] = sum(row, column);
        }
    }
}

/// Where (k, row) lies in native A.
fn a_index(dot: &Dot, k: usize, row: usize) -> usize {
    (k / dot.a_block) * dot.m * dot.a_block + row * dot.a_block + k % dot.a_block
}

fn b_at(dot: &Dot, k: usize, column: usize) -> usize {
    b_index(k, column, dot.k, dot.block_n, dot.block_k)
}
