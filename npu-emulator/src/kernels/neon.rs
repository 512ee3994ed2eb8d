//! NEON: each column of a sub-block is a run of K, so that a product is a dot of vectors along K.
//!
//! A tile of `M`×`C` accumulators stays in registers over all of K, as in AVX2's. Halves are converted by
//! instructions that every such machine has, written out because the intrinsics are newer than our compiler.

use std::arch::aarch64::*;
use std::arch::asm;

use super::Panel;

/// See [`super::i8_panel`].
///
/// # Safety
/// As there, on a machine with NEON; lengths are checked by the caller.
#[target_feature(enable = "neon")]
pub(super) unsafe fn i8_panel(a: &[i16], rows: usize, panel: &Panel<'_>, out: &mut [i32]) {
    tiles!(i8_tile, a, rows, panel, out, [4, 4, 4]);
}

/// See [`super::f16_panel`].
///
/// # Safety
/// As there, on a machine with NEON; lengths are checked by the caller.
#[target_feature(enable = "neon")]
pub(super) unsafe fn f16_panel(a: &[f32], rows: usize, panel: &Panel<'_>, out: &mut [f32]) {
    tiles!(f16_tile, a, rows, panel, out, [4, 4, 4]);
}

/// `M` rows of `a` (row length `k`) times columns `c` to `c + C` into `out` (row length `panel.columns`, at
/// column `c` already); returns `C`.
///
/// Bytes are widened to i16 and each product is added to an i32: the result is exact.
///
/// # Safety
/// `a`, the panel and `out` hold what the tile covers; the machine has NEON.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn i8_tile<const M: usize, const C: usize>(
    mut a: *const i16,
    k: usize,
    panel: &Panel<'_>,
    c: usize,
    out: *mut i32,
) -> usize {
    // SAFETY: 16 bytes of each column of each block lie within the segment, since block_k is a multiple of 16;
    // 16 elements of each row of A lie within it, since the blocks add up to k; the result holds M rows and C columns.
    unsafe {
        let mut sums = [[vdupq_n_s32(0); C]; M];
        for segment in panel.segments {
            for block in 0..segment.k_blocks {
                let block = segment.base.add((block * panel.columns + c) * panel.block_k).cast::<i8>();
                for inner in (0..panel.block_k).step_by(16) {
                    let mut b = [[vdupq_n_s16(0); 2]; C];
                    for (j, b) in b.iter_mut().enumerate() {
                        let bytes = vld1q_s8(block.add(j * panel.block_k + inner));
                        *b = [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)];
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let a = [vld1q_s16(a.add(i * k)), vld1q_s16(a.add(i * k + 8))];
                        for (sum, b) in sums.iter_mut().zip(b) {
                            for (a, b) in a.into_iter().zip(b) {
                                *sum = vmlal_s16(*sum, vget_low_s16(a), vget_low_s16(b));
                                *sum = vmlal_high_s16(*sum, a, b);
                            }
                        }
                    }
                    // Past the last block this is one past the row, and not read.
                    a = a.wrapping_add(16);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                out.add(i * panel.columns + j).write(vaddvq_s32(*sum));
            }
        }
    }
    C
}

/// As [`i8_tile`] for halves, eight of K at a time, in f32.
///
/// # Safety
/// As there.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn f16_tile<const M: usize, const C: usize>(
    mut a: *const f32,
    k: usize,
    panel: &Panel<'_>,
    c: usize,
    out: *mut f32,
) -> usize {
    // SAFETY: as in `i8_tile`, with eight elements of two bytes.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); C]; M];
        for segment in panel.segments {
            for block in 0..segment.k_blocks {
                let block = segment.base.add((block * panel.columns + c) * panel.block_k * 2);
                for inner in (0..panel.block_k).step_by(8) {
                    let mut b = [[vdupq_n_f32(0.0); 2]; C];
                    for (j, b) in b.iter_mut().enumerate() {
                        *b = widen(vld1q_u8(block.add((j * panel.block_k + inner) * 2)));
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let a = [vld1q_f32(a.add(i * k)), vld1q_f32(a.add(i * k + 4))];
                        for (sum, b) in sums.iter_mut().zip(b) {
                            *sum = vfmaq_f32(vfmaq_f32(*sum, a[0], b[0]), a[1], b[1]);
                        }
                    }
                    // Past the last block this is one past the row, and not read.
                    a = a.wrapping_add(8);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                out.add(i * panel.columns + j).write(vaddvq_f32(*sum));
            }
        }
    }
    C
}

/// Eight halves, as they lie in memory, to two vectors of f32.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn widen(halves: uint8x16_t) -> [float32x4_t; 2] {
    let (low, high): (float32x4_t, float32x4_t);
    // SAFETY: two conversions between registers, part of NEON.
    unsafe {
        asm!(
            "fcvtl {low:v}.4s, {halves:v}.4h",
            "fcvtl2 {high:v}.4s, {halves:v}.8h",
            halves = in(vreg) halves,
            low = out(vreg) low,
            high = lateout(vreg) high,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    [low, high]
}

/// Two vectors of f32 to eight halves.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn narrow([low, high]: [float32x4_t; 2]) -> uint8x16_t {
    let halves: uint8x16_t;
    // SAFETY: two conversions between registers, part of NEON.
    unsafe {
        asm!(
            "fcvtn {halves:v}.4h, {low:v}.4s",
            "fcvtn2 {halves:v}.8h, {high:v}.4s",
            low = in(vreg) low,
            high = in(vreg) high,
            halves = out(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    halves
}

/// See [`super::unpack_i4`].
///
/// # Safety
/// As there, on a machine with NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn unpack_i4(source: *const u8, out: &mut [i8]) {
    let whole = out.len() / 32;
    // SAFETY: 16 bytes make 32 elements; `out` and the source hold `whole` times as many, and the rest.
    unsafe {
        for at in 0..whole {
            let bytes = vreinterpretq_s8_u8(vld1q_u8(source.add(at * 16)));
            // Shifts to the right extend the sign.
            let (even, odd) = (vshrq_n_s8::<4>(vshlq_n_s8::<4>(bytes)), vshrq_n_s8::<4>(bytes));
            let to = out.as_mut_ptr().add(at * 32);
            vst1q_s8(to, vzip1q_s8(even, odd));
            vst1q_s8(to.add(16), vzip2q_s8(even, odd));
        }
        super::scalar::unpack_i4(source.add(whole * 16), &mut out[whole * 32..]);
    }
}

/// See [`super::widen_f16`].
///
/// # Safety
/// As there, on a machine with NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn widen_f16(source: *const u8, out: &mut [f32]) {
    let whole = out.len() / 8;
    // SAFETY: 8 halves in, 8 floats out, `whole` times, and the rest.
    unsafe {
        for at in 0..whole {
            let [low, high] = widen(vld1q_u8(source.add(at * 16)));
            let to = out.as_mut_ptr().add(at * 8);
            vst1q_f32(to, low);
            vst1q_f32(to.add(4), high);
        }
        super::scalar::widen_f16(source.add(whole * 16), &mut out[whole * 8..]);
    }
}

/// See [`super::halve_i8`].
///
/// # Safety
/// As there, on a machine with NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn halve_i8(source: *const i8, out: &mut [u16]) {
    let whole = out.len() / 8;
    // SAFETY: 8 bytes in, 8 halves out, `whole` times, and the rest.
    unsafe {
        for at in 0..whole {
            let wide = vmovl_s8(vld1_s8(source.add(at * 8)));
            let low = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
            let high = vcvtq_f32_s32(vmovl_high_s16(wide));
            // Every i8 is a half: nothing is rounded.
            vst1q_u8(out.as_mut_ptr().add(at * 8).cast(), narrow([low, high]));
        }
        super::scalar::halve_i8(source.add(whole * 8), &mut out[whole * 8..]);
    }
}
