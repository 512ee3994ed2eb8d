//! A piece with AVX2, FMA and F16C: 16 bytes of K become one vector of 32 bytes.

use std::arch::x86_64::*;

use super::scalar::saturate;
use super::tile::{run, Step, Tiling, CHUNK, PIECE};

/// See [`super::dot_i8`], in bytes.
///
/// # Safety
/// As of [`run`], on a machine with AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn dot_i8(a: &[u8], b: &[u8], tiling: &Tiling, c: &mut [i32]) {
    // SAFETY: as the caller says; columns are 32 bytes a block, see `super`.
    unsafe { run::<Bytes, 32, 2, i32>(a, b, tiling, c, |sum| sum) }
}

/// See [`super::dot_i4`].
///
/// # Safety
/// As of [`run`], on a machine with AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn dot_i4(a: &[u8], b: &[u8], tiling: &Tiling, c: &mut [i16]) {
    // SAFETY: as the caller says; columns are 16 bytes a block, see `super`.
    unsafe { run::<Nibbles, 16, 2, i16>(a, b, tiling, c, saturate) }
}

/// See [`super::dot_f16`], in bytes.
///
/// # Safety
/// As of [`run`], on a machine with AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn dot_f16(a: &[u8], b: &[u8], tiling: &Tiling, c: &mut [f32]) {
    // SAFETY: as the caller says; columns are 32 or 64 bytes a block, see `super`.
    unsafe {
        match tiling.run {
            32 => run::<Halves, 32, 2, f32>(a, b, tiling, c, |sum| sum),
            _ => run::<Halves, 64, 2, f32>(a, b, tiling, c, |sum| sum),
        }
    }
}

/// Sixteen i8 as i16. Products are added in pairs: 2·128·128 fits the i32 that they go to, so that the sums are exact
/// for every i8. (Products of bytes, `maddubs`, would saturate, and take as many instructions.)
struct Bytes;

impl Step for Bytes {
    type Sum = i32;
    type Running = __m256i;
    type A = __m256i;
    type B = __m256i;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        // SAFETY: AVX2, says the caller.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn widen(piece: [u8; PIECE], start: __m256i, to: *mut u8) -> __m256i {
        // SAFETY: AVX2, 16 bytes at `piece`, and 32 aligned ones at `to`, says the caller.
        unsafe { _mm256_store_si256(to.cast(), Self::b(piece.as_ptr())) };
        start
    }

    #[inline(always)]
    unsafe fn a(from: *const u8) -> __m256i {
        // SAFETY: AVX2, and 32 aligned bytes, says the caller.
        unsafe { _mm256_load_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn b(from: *const u8) -> __m256i {
        // SAFETY: AVX2, and 16 bytes, says the caller.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn add(running: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: AVX2, says the caller.
        unsafe { _mm256_add_epi32(running, _mm256_madd_epi16(a, b)) }
    }

    #[inline(always)]
    unsafe fn total([one, other]: [__m256i; 2]) -> [i32; 2] {
        // SAFETY: AVX2, says the caller.
        let both = unsafe {
            let fours = _mm256_hadd_epi32(one, other);
            let halves = _mm256_hadd_epi32(fours, fours);
            let whole = _mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256::<1>(halves));
            _mm_cvtsi128_si64(whole)
        };
        [both as i32, (both >> 32) as i32]
    }

    #[inline(always)]
    fn join(before: i32, sum: i32) -> i32 {
        before.wrapping_add(sum)
    }
}

/// 32 nibbles as bytes, the even ones in the lower half of the vector. Those of B are 8 more than they stand for, since
/// `maddubs` multiplies unsigned by signed bytes; so a row's sums begin at −8 times the sum of the row.
struct Nibbles;

// What a lane of 16 bits holds of a chunk: two products a piece, and what it began with.
const _: () = assert!(CHUNK as i32 * 2 * 8 * (15 + 8) <= i16::MAX as i32);

impl Step for Nibbles {
    type Sum = i32;
    type Running = __m256i;
    type A = __m256i;
    type B = __m256i;

    #[inline(always)]
    unsafe fn zero() -> __m256i {
        // SAFETY: AVX2, says the caller.
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn widen(piece: [u8; PIECE], start: __m256i, to: *mut u8) -> __m256i {
        // SAFETY: AVX2, 16 bytes at `piece`, and 32 aligned ones at `to`, says the caller.
        unsafe {
            let eight = _mm256_set1_epi8(8);
            let signed = _mm256_sub_epi8(Self::b(piece.as_ptr()), eight);
            _mm256_store_si256(to.cast(), signed);
            _mm256_sub_epi16(start, _mm256_maddubs_epi16(eight, signed))
        }
    }

    #[inline(always)]
    unsafe fn a(from: *const u8) -> __m256i {
        // SAFETY: AVX2, and 32 aligned bytes, says the caller.
        unsafe { _mm256_load_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn b(from: *const u8) -> __m256i {
        // SAFETY: AVX2, and 16 bytes, says the caller.
        unsafe {
            let twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(from.cast()));
            let shifted = _mm256_srlv_epi32(twice, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
            _mm256_xor_si256(_mm256_and_si256(shifted, _mm256_set1_epi8(15)), _mm256_set1_epi8(8))
        }
    }

    #[inline(always)]
    unsafe fn add(running: __m256i, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: AVX2, says the caller.
        unsafe { _mm256_add_epi16(running, _mm256_maddubs_epi16(b, a)) }
    }

    #[inline(always)]
    unsafe fn total(two: [__m256i; 2]) -> [i32; 2] {
        // SAFETY: AVX2, says the caller.
        unsafe { Bytes::total(two.map(|sums| _mm256_madd_epi16(sums, _mm256_set1_epi16(1)))) }
    }

    #[inline(always)]
    fn join(before: i32, sum: i32) -> i32 {
        before.wrapping_add(sum)
    }
}

/// Eight f16 as f32.
struct Halves;

impl Step for Halves {
    type Sum = f32;
    type Running = __m256;
    type A = __m256;
    type B = __m256;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        // SAFETY: AVX, says the caller.
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn widen(piece: [u8; PIECE], start: __m256, to: *mut u8) -> __m256 {
        // SAFETY: F16C, 16 bytes at `piece`, and 32 aligned ones at `to`, says the caller.
        unsafe { _mm256_store_ps(to.cast(), Self::b(piece.as_ptr())) };
        start
    }

    #[inline(always)]
    unsafe fn a(from: *const u8) -> __m256 {
        // SAFETY: AVX, and 32 aligned bytes, says the caller.
        unsafe { _mm256_load_ps(from.cast()) }
    }

    #[inline(always)]
    unsafe fn b(from: *const u8) -> __m256 {
        // SAFETY: F16C, and 16 bytes, says the caller.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn add(running: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: FMA, says the caller.
        unsafe { _mm256_fmadd_ps(a, b, running) }
    }

    #[inline(always)]
    unsafe fn total([one, other]: [__m256; 2]) -> [f32; 2] {
        // SAFETY: AVX, says the caller.
        let both = unsafe {
            let twos = _mm256_hadd_ps(one, other);
            let fours = _mm256_hadd_ps(twos, twos);
            let whole = _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps::<1>(fours));
            _mm_cvtsi128_si64(_mm_castps_si128(whole))
        };
        [f32::from_bits(both as u32), f32::from_bits((both >> 32) as u32)]
    }

    #[inline(always)]
    fn join(before: f32, sum: f32) -> f32 {
        before + sum
    }
}
