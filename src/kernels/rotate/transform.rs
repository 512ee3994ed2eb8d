//! The fast transform: signs, Sylvester's matrix by butterflies, Paley's by sums of four, Williamson's by sums of quaternions.
//!
//! Written once over [`Lanes`], so that the same additions are done in the same order with AVX2, NEON and plain
//! floats: results are the same bits everywhere. Against exact arithmetic they are off by at most about
//! 10⁻⁷·(log₂ p + m/4) of the row's root mean square.
//!
//! Bytes of a block, of K elements: 8·K are read with the signs and 4·K written by the first six levels (NEON: five), then 4·K read
//! and written by every three more, in the level-1 cache. Paley's part reads m/4 sums an output, m bytes, and is
//! bound by that: at the 32 bytes a cycle of Cortex-A76, 140·64 takes 4.4 cycles an element, and as much again for its
//! tables. Williamson's reads m bytes an output, too, but has no tables, and is bound by its m/4 + 2 additions: of 8 a cycle
//! 1.4 cycles an element for 576 = 36·16, 0.6 for 768 = 12·64.

use std::mem::MaybeUninit;

use super::factor::{order_of, Factor, ORDER_MAX};
use super::paley::{Paley, PATTERNS};
#[cfg(target_arch = "x86_64")]
use crate::kernels::lanes::Avx2;
use crate::kernels::lanes::Lanes;
#[cfg(target_arch = "aarch64")]
use crate::kernels::lanes::Neon;

/// Floats of the power dimension that Paley's part takes at once.
pub const STRIP: usize = 16;
/// Vectors that are held in registers: three levels of butterflies for one load and store.
const RADIX: usize = 8;

/// What [`apply`] needs of a block of a rotation.
#[derive(Clone, Copy)]
pub struct Shape<'a> {
    /// The factors that are no power of two, the outermost first: none, one or two.
    pub factors: &'a [Factor],
    /// The power of two.
    pub power: usize,
    /// A factor for each element that goes in.
    pub signs: &'a [f32],
}

/// `row`, times its signs, extended by zeros, transformed into `out`, with the best instructions that there are.
///
/// # Panics
/// When `row` and the signs, or `out` and `scratch`, are not of one length, `row` is longer than `out`, `out` is
/// not the orders times the power, or the power is none of two.
pub fn apply(shape: Shape, row: &[f32], out: &mut [f32], scratch: &mut [f32]) {
    if shape.power < STRIP {
        return plain(shape, row, out, scratch);
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        unsafe fn avx2(shape: Shape, row: &[f32], out: &mut [f32], scratch: &mut [f32]) {
            // SAFETY: the machine has AVX2 and FMA, says the caller; the power was compared with the strip.
            unsafe { transform::<Avx2, 2>(shape, row, out, scratch) }
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            // SAFETY: the CPU has what the function was built for.
            return unsafe { avx2(shape, row, out, scratch) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: NEON is part of the target; the power was compared with the strip.
    unsafe {
        transform::<Neon, 4>(shape, row, out, scratch)
    }
    #[cfg(not(target_arch = "aarch64"))]
    plain(shape, row, out, scratch)
}

/// The same, float by float: the oracle, and the way of lengths with a small power of two.
pub fn plain(shape: Shape, row: &[f32], out: &mut [f32], scratch: &mut [f32]) {
    // SAFETY: no instructions are asked for, and every power is whole strips of one.
    unsafe { transform::<f32, 1>(shape, row, out, scratch) }
}

/// See [`apply`].
///
/// # Safety
/// The machine has the instructions of `V`; `S` vectors are a strip, and the power is one at least, or `V` is `f32`
/// and `S` is 1.
#[inline(always)]
unsafe fn transform<V: Lanes, const S: usize>(
    shape: Shape,
    row: &[f32],
    out: &mut [f32],
    scratch: &mut [f32],
) {
    let Shape { factors, power, signs } = shape;
    assert!(row.len() == signs.len() && out.len() == scratch.len() && row.len() <= out.len());
    assert!(power.is_power_of_two() && factors.len() <= 2 && order_of(factors) * power == out.len());
    // Each factor goes from one to the other, the last one to `out`.
    let mixed = if factors.len() == 1 { &mut *scratch } else { &mut *out };
    // SAFETY: passed on; the lengths were checked just now.
    unsafe {
        let done = power.min(RADIX * V::N);
        match done / V::N {
            1 => first::<V, 1>(row, signs, mixed),
            2 => first::<V, 2>(row, signs, mixed),
            4 => first::<V, 4>(row, signs, mixed),
            _ => first::<V, RADIX>(row, signs, mixed),
        }
        wide::<V>(mixed, power, done);
        match factors {
            [one] => times::<V, S>(one, power, scratch, out),
            [outer, inner] => {
                let block = inner.order() * power;
                for (from, to) in out.chunks_exact(block).zip(scratch.chunks_exact_mut(block)) {
                    times::<V, S>(inner, power, from, to);
                }
                times::<V, S>(outer, block, scratch, out);
            }
            _ => (),
        }
    }
}

/// The factor times `source` (order × power) into `out`.
///
/// # Safety
/// As [`sums_of_four`].
#[inline(always)]
unsafe fn times<V: Lanes, const S: usize>(factor: &Factor, power: usize, source: &[f32], out: &mut [f32]) {
    // SAFETY: passed on; a power of whole strips is one of whole vectors.
    unsafe {
        match factor {
            Factor::Williamson(matrix) => matrix.times::<V>(power, source, out),
            Factor::Paley(matrix) => sums_of_four::<V, S>(matrix, power, source, out),
        }
    }
}

/// Signs, and Walsh–Hadamard transforms of `R` vectors each, which are held in registers.
///
/// # Safety
/// The machine has the instructions of `V`; `out` is whole `R` vectors, and as long
/// as `row` at least; `signs` is as long as `row`.
#[inline(always)]
unsafe fn first<V: Lanes, const R: usize>(row: &[f32], signs: &[f32], out: &mut [f32]) {
    let size = R * V::N;
    let whole = row.len() / size * size;
    for at in (0..whole).step_by(size) {
        // SAFETY: `size` floats from here are within the row, and so within the two others.
        unsafe {
            signed::<V, R>(row.as_ptr().add(at), signs.as_ptr().add(at), out.as_mut_ptr().add(at));
        }
    }
    // What is left of the row goes on as zeros, and zeros stay zeros.
    let (row, signs, out) = (&row[whole..], &signs[whole..], &mut out[whole..]);
    out[row.len()..].fill(0.0);
    if !row.is_empty() {
        let (mut values, mut factors) = ([0.0; 64], [0.0; 64]);
        values[..row.len()].copy_from_slice(row);
        factors[..row.len()].copy_from_slice(signs);
        // SAFETY: at most eight vectors of eight floats; `out` is whole groups and has begun one.
        unsafe { signed::<V, R>(values.as_ptr(), factors.as_ptr(), out.as_mut_ptr()) };
    }
}

/// The transform of `R` vectors of `row` times `signs`.
///
/// # Safety
/// The machine has the instructions of `V`; all three pointers are good for `R` vectors.
#[inline(always)]
unsafe fn signed<V: Lanes, const R: usize>(row: *const f32, signs: *const f32, out: *mut f32) {
    // SAFETY: says the caller.
    unsafe {
        let mut v = load::<V, R>(row, V::N);
        let signs = load::<V, R>(signs, V::N);
        for i in 0..R {
            v[i] = v[i].mul(signs[i]).sylvester();
        }
        butterflies(&mut v);
        store(&v, out, V::N);
    }
}

/// `R` vectors, `apart` floats from one to the next.
///
/// # Safety
/// They are readable, and the machine has the instructions of `V`.
#[inline(always)]
pub(super) unsafe fn load<V: Lanes, const R: usize>(from: *const f32, apart: usize) -> [V; R] {
    // SAFETY: says the caller. No closure: it would be built without the instructions, and called.
    unsafe {
        let mut v = [V::load(from); R];
        for (i, v) in v.iter_mut().enumerate() {
            *v = V::load(from.add(i * apart));
        }
        v
    }
}

/// Writes `R` vectors, `apart` floats from one to the next.
///
/// # Safety
/// They are writable.
#[inline(always)]
pub(super) unsafe fn store<V: Lanes, const R: usize>(v: &[V; R], to: *mut f32, apart: usize) {
    for (i, v) in v.iter().enumerate() {
        // SAFETY: says the caller.
        unsafe { v.store(to.add(i * apart)) };
    }
}

/// All levels of butterflies between whole vectors, neighbours first.
#[inline(always)]
fn butterflies<V: Lanes, const R: usize>(v: &mut [V; R]) {
    let mut half = 1;
    while half < R {
        for i in 0..R {
            if i & half == 0 {
                (v[i], v[i + half]) = (v[i].add(v[i + half]), v[i].sub(v[i + half]));
            }
        }
        half *= 2;
    }
}

/// The levels of butterflies of blocks of `power` elements that are at least `half` apart.
///
/// # Safety
/// The machine has the instructions of `V`; `half` is a multiple of `V::N`, and `data` of the power.
#[inline(always)]
unsafe fn wide<V: Lanes>(data: &mut [f32], power: usize, mut half: usize) {
    while half < power {
        // SAFETY: passed on; the radix is at most what is left of the power.
        unsafe {
            half *= match power / half {
                2 => level::<V, 2>(data, half),
                4 => level::<V, 4>(data, half),
                _ => level::<V, RADIX>(data, half),
            }
        }
    }
}

/// log₂ `R` levels: transforms of `R` elements, `half` apart. Returns `R`.
///
/// # Safety
/// The machine has the instructions of `V`; `half` is a multiple of `V::N`, and `data` of `R` halves.
#[inline(always)]
unsafe fn level<V: Lanes, const R: usize>(data: &mut [f32], half: usize) -> usize {
    for group in data.chunks_exact_mut(R * half) {
        let group = group.as_mut_ptr();
        for i in (0..half).step_by(V::N) {
            // SAFETY: vector i of each of the `R` parts of the group.
            unsafe {
                let mut v = load::<V, R>(group.add(i), half);
                butterflies(&mut v);
                store(&v, group.add(i), half);
            }
        }
    }
    R
}

/// Room for the sums of a strip. Aligned to cache lines: no vector lies across two.
#[repr(align(64))]
struct Table([MaybeUninit<f32>; ORDER_MAX / 4 * PATTERNS * STRIP]);

/// The Paley matrix times `source` (order × power) into `out`.
///
/// A row of the matrix meets four sources with one of 16 patterns of signs. So for a strip of the power dimension
/// all 16 sums of each four are put into a table, and an output adds up one of each four, in registers: m/4
/// additions an element instead of m, and 5 for the table (of 256·m bytes: 36 KiB for the order 140).
///
/// # Safety
/// The machine has the instructions of `V`; `S` vectors are at most a strip, and divide the power; `source` and
/// `out` are order × power.
#[inline(always)]
unsafe fn sums_of_four<V: Lanes, const S: usize>(
    paley: &Paley,
    power: usize,
    source: &[f32],
    out: &mut [f32],
) {
    let (order, strip) = (paley.order(), S * V::N);
    let mut table = Table([MaybeUninit::uninit(); ORDER_MAX / 4 * PATTERNS * STRIP]);
    let table = table.0.as_mut_ptr().cast::<f32>();
    assert!(order <= ORDER_MAX, "order {order}");
    for start in (0..power).step_by(strip) {
        for first in (0..order).step_by(4) {
            // SAFETY: four sources below the order, a strip within the power; each four has its part of the table.
            unsafe {
                let source = source.as_ptr().add(first * power + start);
                let entries = table.add(first / 4 * PATTERNS * strip);
                for i in (0..strip).step_by(V::N) {
                    let four = load::<V, 4>(source.add(i), power);
                    for (pattern, sum) in signed_sums(four).into_iter().enumerate() {
                        sum.store(entries.add(pattern * strip + i));
                        sum.neg().store(entries.add((PATTERNS - 1 - pattern) * strip + i));
                    }
                }
            }
        }
        for (block, patterns) in paley.patterns().chunks_exact(order).enumerate() {
            // SAFETY: four outputs below the order, a strip within the power; a pattern is the number of an entry
            // of its four, and the table was written for all of them.
            unsafe {
                let mut sums = [[V::load(table); S]; 4];
                for (four, patterns) in patterns.chunks_exact(4).enumerate() {
                    let entries = table.add(four * PATTERNS * strip);
                    for (sums, pattern) in sums.iter_mut().zip(patterns) {
                        let entry = entries.add(usize::from(*pattern) * strip);
                        for (s, sum) in sums.iter_mut().enumerate() {
                            let value = V::load(entry.add(s * V::N));
                            *sum = if four == 0 { value } else { sum.add(value) };
                        }
                    }
                }
                let out = out.as_mut_ptr().add(block * 4 * power + start);
                for (o, sums) in sums.iter().enumerate() {
                    store(sums, out.add(o * power), V::N);
                }
            }
        }
    }
}

/// The sums of four with the signs of the patterns below 8, which add `a`; the others are their negatives.
#[inline(always)]
fn signed_sums<V: Lanes>([a, b, c, d]: [V; 4]) -> [V; 8] {
    let (ab, cd) = ([a.add(b), a.sub(b)], [c.add(d), c.sub(d)]);
    [
        ab[0].add(cd[0]),
        ab[0].add(cd[1]),
        ab[0].sub(cd[1]),
        ab[0].sub(cd[0]),
        ab[1].add(cd[0]),
        ab[1].add(cd[1]),
        ab[1].sub(cd[1]),
        ab[1].sub(cd[0]),
    ]
}
