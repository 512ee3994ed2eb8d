//! A piece with NEON, for integers with `sdot` and without.
//!
//! `sdot` and the conversions of halves are written out because their intrinsics are not stable as of Rust 1.85. On
//! Cortex-A76 a tile of four rows and four columns takes 16 `sdot` (i8; i4 twice as many) in 8 cycles, and reads 64
//! bytes of B in them.

use std::arch::aarch64::*;
use std::arch::asm;
use std::marker::PhantomData;

use super::scalar::saturate;
use super::tile::{run, Step, Tiling, PIECE};

/// See [`super::dot_i8`], in bytes.
///
/// # Safety
/// As of [`run`].
pub unsafe fn dot_i8(a: &[u8], b: &[u8], tiling: &Tiling, c: &mut [i32]) {
    // SAFETY: as the caller says; columns are 32 bytes a block, see `super`.
    unsafe { run::<Bytes<Widening>, 32, 4, i32>(a, b, tiling, c, |sum| sum) }
}

/// The same with `sdot`.
///
/// # Safety
/// As of [`run`], on a machine with the dot product instructions.
#[target_feature(enable = "dotprod")]
pub unsafe fn dot_i8_dotprod(a: &[u8], b: &[u8], tiling: &Tiling, c: &mut [i32]) {
    // SAFETY: as the caller says; columns are 32 bytes a block, see `super`.
    unsafe { run::<Bytes<Dotprod>, 32, 4, i32>(a, b, tiling, c, |sum| sum) }
}

/// See [`super::dot_i4`].
///
/// # Safety
/// As of [`run`].
pub unsafe fn dot_i4(a: &[u8], b: &[u8], tiling: &Tiling, c: &mut [i16]) {
    // SAFETY: as the caller says; columns are 16 bytes a block, see `super`.
    unsafe { run::<Nibbles<Widening>, 16, 4, i16>(a, b, tiling, c, saturate) }
}

/// The same with `sdot`.
///
/// # Safety
/// As of [`run`], on a machine with the dot product instructions.
#[target_feature(enable = "dotprod")]
pub unsafe fn dot_i4_dotprod(a: &[u8], b: &[u8], tiling: &Tiling, c: &mut [i16]) {
    // SAFETY: as the caller says; columns are 16 bytes a block, see `super`.
    unsafe { run::<Nibbles<Dotprod>, 16, 4, i16>(a, b, tiling, c, saturate) }
}

/// See [`super::dot_f16`], in bytes.
///
/// # Safety
/// As of [`run`].
pub unsafe fn dot_f16(a: &[u8], b: &[u8], tiling: &Tiling, c: &mut [f32]) {
    // SAFETY: as the caller says; columns are 32 or 64 bytes a block, see `super`.
    unsafe {
        match tiling.run {
            32 => run::<Halves, 32, 2, f32>(a, b, tiling, c, |sum| sum),
            _ => run::<Halves, 64, 2, f32>(a, b, tiling, c, |sum| sum),
        }
    }
}

/// How products of bytes are added up.
trait Products {
    /// Adds the products of two times sixteen bytes to four sums, exactly.
    ///
    /// # Safety
    /// The machine is the one that the implementation names.
    unsafe fn add(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t;
}

/// With `sdot`: of machines that have it.
struct Dotprod;

impl Products for Dotprod {
    #[inline(always)]
    unsafe fn add(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        let mut sums = sums;
        // SAFETY: the machine has the instruction, says the caller; it touches registers alone.
        unsafe {
            asm!(
                "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
                sums = inout(vreg) sums,
                a = in(vreg) a,
                b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sums
    }
}

/// By products of 16 bits, of every machine. One fits for every i8, two might not, so each is added to 32 bits.
struct Widening;

impl Products for Widening {
    #[inline(always)]
    unsafe fn add(sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: NEON is part of the target.
        unsafe {
            let low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
            let high = vmull_high_s8(a, b);
            vpadalq_s16(vpadalq_s16(sums, low), high)
        }
    }
}

/// Sixteen i8.
struct Bytes<P>(PhantomData<P>);

impl<P: Products> Step for Bytes<P> {
    type Sum = i32;
    type Running = int32x4_t;
    type A = int8x16_t;
    type B = int8x16_t;

    #[inline(always)]
    unsafe fn zero() -> int32x4_t {
        // SAFETY: NEON is part of the target.
        unsafe { vdupq_n_s32(0) }
    }

    #[inline(always)]
    unsafe fn widen(piece: [u8; PIECE], start: int32x4_t, to: *mut u8) -> int32x4_t {
        // SAFETY: 16 bytes at `piece` and at `to`. They stay as they are.
        unsafe { vst1q_s8(to.cast(), vld1q_s8(piece.as_ptr().cast())) };
        start
    }

    #[inline(always)]
    unsafe fn a(from: *const u8) -> int8x16_t {
        // SAFETY: 16 bytes, says the caller.
        unsafe { vld1q_s8(from.cast()) }
    }

    #[inline(always)]
    unsafe fn b(from: *const u8) -> int8x16_t {
        // SAFETY: 16 bytes, says the caller.
        unsafe { vld1q_s8(from.cast()) }
    }

    #[inline(always)]
    unsafe fn add(running: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
        // SAFETY: the machine is the one of `P`, says the caller.
        unsafe { P::add(running, a, b) }
    }

    #[inline(always)]
    unsafe fn total([one, other]: [int32x4_t; 2]) -> [i32; 2] {
        // SAFETY: NEON is part of the target; eight bytes are written to as many.
        unsafe {
            let twos = vpaddq_s32(one, other);
            let mut sums = [0; 2];
            vst1_s32(sums.as_mut_ptr(), vget_low_s32(vpaddq_s32(twos, twos)));
            sums
        }
    }

    #[inline(always)]
    fn join(before: i32, sum: i32) -> i32 {
        before.wrapping_add(sum)
    }
}

/// 32 nibbles, the even ones and the odd ones in a vector each. Those of B are times 16, the upper half of a byte, which
/// saves a shift each; so the sums are.
struct Nibbles<P>(PhantomData<P>);

impl<P: Products> Step for Nibbles<P> {
    type Sum = i32;
    type Running = int32x4_t;
    type A = [int8x16_t; 2];
    type B = [int8x16_t; 2];

    #[inline(always)]
    unsafe fn zero() -> int32x4_t {
        // SAFETY: NEON is part of the target.
        unsafe { vdupq_n_s32(0) }
    }

    #[inline(always)]
    unsafe fn widen(piece: [u8; PIECE], start: int32x4_t, to: *mut u8) -> int32x4_t {
        // SAFETY: 16 bytes at `piece` and 32 at `to`, says the caller.
        unsafe {
            let [even, odd] = Self::b(piece.as_ptr());
            vst1q_s8(to.cast(), vshrq_n_s8::<4>(even));
            vst1q_s8(to.add(PIECE).cast(), vshrq_n_s8::<4>(odd));
        }
        start
    }

    #[inline(always)]
    unsafe fn a(from: *const u8) -> [int8x16_t; 2] {
        // SAFETY: 32 bytes, says the caller.
        unsafe { [vld1q_s8(from.cast()), vld1q_s8(from.add(PIECE).cast())] }
    }

    #[inline(always)]
    unsafe fn b(from: *const u8) -> [int8x16_t; 2] {
        // SAFETY: 16 bytes, says the caller.
        unsafe {
            let bytes = vld1q_s8(from.cast());
            [vshlq_n_s8::<4>(bytes), vandq_s8(bytes, vdupq_n_s8(-16))]
        }
    }

    #[inline(always)]
    unsafe fn add(running: int32x4_t, a: [int8x16_t; 2], b: [int8x16_t; 2]) -> int32x4_t {
        // SAFETY: the machine is the one of `P`, says the caller.
        unsafe { P::add(P::add(running, a[0], b[0]), a[1], b[1]) }
    }

    #[inline(always)]
    unsafe fn total(two: [int32x4_t; 2]) -> [i32; 2] {
        // SAFETY: NEON is part of the target.
        unsafe { Bytes::<P>::total(two).map(|sum| sum >> 4) }
    }

    #[inline(always)]
    fn join(before: i32, sum: i32) -> i32 {
        before.wrapping_add(sum)
    }
}

/// Eight f16 as f32, four to a vector.
struct Halves;

impl Step for Halves {
    type Sum = f32;
    type Running = [float32x4_t; 2];
    type A = [float32x4_t; 2];
    type B = [float32x4_t; 2];

    #[inline(always)]
    unsafe fn zero() -> [float32x4_t; 2] {
        // SAFETY: NEON is part of the target.
        unsafe { [vdupq_n_f32(0.0); 2] }
    }

    #[inline(always)]
    unsafe fn widen(piece: [u8; PIECE], start: [float32x4_t; 2], to: *mut u8) -> [float32x4_t; 2] {
        // SAFETY: 16 bytes at `piece`, and 32 aligned ones at `to`, says the caller.
        unsafe {
            let [low, high] = Self::b(piece.as_ptr());
            vst1q_f32(to.cast(), low);
            vst1q_f32(to.add(PIECE).cast(), high);
        }
        start
    }

    #[inline(always)]
    unsafe fn a(from: *const u8) -> [float32x4_t; 2] {
        // SAFETY: 32 aligned bytes, says the caller.
        unsafe { [vld1q_f32(from.cast()), vld1q_f32(from.add(PIECE).cast())] }
    }

    #[inline(always)]
    unsafe fn b(from: *const u8) -> [float32x4_t; 2] {
        let (low, high): (float32x4_t, float32x4_t);
        // SAFETY: 16 bytes, says the caller; the conversions, part of NEON, touch registers alone.
        unsafe {
            asm!(
                "fcvtl {low:v}.4s, {halves:v}.4h",
                "fcvtl2 {high:v}.4s, {halves:v}.8h",
                halves = in(vreg) vld1q_u8(from),
                low = out(vreg) low,
                high = lateout(vreg) high,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        [low, high]
    }

    #[inline(always)]
    unsafe fn add(running: [float32x4_t; 2], a: [float32x4_t; 2], b: [float32x4_t; 2]) -> [float32x4_t; 2] {
        // SAFETY: NEON is part of the target.
        unsafe { [vfmaq_f32(running[0], a[0], b[0]), vfmaq_f32(running[1], a[1], b[1])] }
    }

    #[inline(always)]
    unsafe fn total([one, other]: [[float32x4_t; 2]; 2]) -> [f32; 2] {
        // SAFETY: NEON is part of the target; eight bytes are written to as many.
        unsafe {
            let low = vpaddq_f32(one[0], other[0]);
            let high = vpaddq_f32(one[1], other[1]);
            let whole = vaddq_f32(vpaddq_f32(low, low), vpaddq_f32(high, high));
            let mut sums = [0.0; 2];
            vst1_f32(sums.as_mut_ptr(), vget_low_f32(whole));
            sums
        }
    }

    #[inline(always)]
    fn join(before: f32, sum: f32) -> f32 {
        before + sum
    }
}
