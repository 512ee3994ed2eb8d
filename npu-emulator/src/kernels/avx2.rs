//! AVX2: each column of a sub-block is a run of K, so that a product is a dot of vectors along K.
//!
//! A tile of `M`×`C` accumulators stays in registers over all of K: few rows of A take many columns at once
//! (the run is bound by reading B), four rows take two (bound by arithmetic).
//!
//! The inner loops use wrapping arithmetic and read through [`Unaligned`] because builds with debug assertions,
//! which the tests are, would check each step of the usual ways and run at half the speed.

use std::arch::x86_64::*;

use super::Panel;

/// A vector at any address: read in place, without the checks of a copy.
#[repr(C, packed)]
struct Unaligned<T>(T);

/// See [`super::i8_panel`].
///
/// # Safety
/// As there, on a machine with AVX2, FMA and F16C; lengths are checked by the caller.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn i8_panel(a: &[i16], rows: usize, panel: &Panel<'_>, out: &mut [i32]) {
    tiles!(i8_tile, a, rows, panel, out, [4, 2, 2]);
}

/// See [`super::f16_panel`].
///
/// # Safety
/// As there, on a machine with AVX2, FMA and F16C; lengths are checked by the caller.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn f16_panel(a: &[f32], rows: usize, panel: &Panel<'_>, out: &mut [f32]) {
    tiles!(f16_tile, a, rows, panel, out, [4, 2, 2]);
}

/// `M` rows of `a` (row length `k`) times columns `c` to `c + C` into `out` (row length `panel.columns`, at
/// column `c` already); returns `C`.
///
/// Bytes are widened to i16 and multiplied in pairs: 2·128·128 fits the i32 that a pair is summed in, so
/// that the result is exact.
///
/// # Safety
/// `a`, the panel and `out` hold what the tile covers; the machine has AVX2, FMA and F16C.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn i8_tile<const M: usize, const C: usize>(
    mut a: *const i16,
    k: usize,
    panel: &Panel<'_>,
    c: usize,
    out: *mut i32,
) -> usize {
    let stride = panel.columns * panel.block_k;
    // SAFETY: 16 bytes of each column of each block lie within the segment, since block_k is a multiple of 16;
    // 16 elements of each row of A lie within it, since the blocks add up to k; the result holds M rows and C columns.
    unsafe {
        let mut sums = [[_mm256_setzero_si256(); C]; M];
        for segment in panel.segments {
            let mut block = segment.base.wrapping_add(c * panel.block_k);
            for _ in 0..segment.k_blocks {
                let (mut column, end) = (block, block.wrapping_add(panel.block_k));
                while column != end {
                    let mut b = [_mm256_setzero_si256(); C];
                    for (j, b) in b.iter_mut().enumerate() {
                        let bytes =
                            column.wrapping_add(j.wrapping_mul(panel.block_k)).cast::<Unaligned<__m128i>>();
                        *b = _mm256_cvtepi8_epi16((*bytes).0);
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let a = (*a.wrapping_add(i.wrapping_mul(k)).cast::<Unaligned<__m256i>>()).0;
                        for (sum, b) in sums.iter_mut().zip(b) {
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a, b));
                        }
                    }
                    a = a.wrapping_add(16);
                    column = column.wrapping_add(16);
                }
                block = block.wrapping_add(stride);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &v) in sums.iter().enumerate() {
                let four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
                let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
                let one = _mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
                out.add(i * panel.columns + j).write(_mm_cvtsi128_si32(one));
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
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn f16_tile<const M: usize, const C: usize>(
    mut a: *const f32,
    k: usize,
    panel: &Panel<'_>,
    c: usize,
    out: *mut f32,
) -> usize {
    let stride = panel.columns * panel.block_k;
    // SAFETY: 8 halves of each column of each block lie within the segment, since block_k is a multiple of 8;
    // 8 elements of each row of A lie within it, since the blocks add up to k; the result holds M rows and C columns.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); C]; M];
        for segment in panel.segments {
            let mut block = segment.base.cast::<u16>().wrapping_add(c * panel.block_k);
            for _ in 0..segment.k_blocks {
                let (mut column, end) = (block, block.wrapping_add(panel.block_k));
                while column != end {
                    let mut b = [_mm256_setzero_ps(); C];
                    for (j, b) in b.iter_mut().enumerate() {
                        let halves =
                            column.wrapping_add(j.wrapping_mul(panel.block_k)).cast::<Unaligned<__m128i>>();
                        *b = _mm256_cvtph_ps((*halves).0);
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let a = (*a.wrapping_add(i.wrapping_mul(k)).cast::<Unaligned<__m256>>()).0;
                        for (sum, b) in sums.iter_mut().zip(b) {
                            *sum = _mm256_fmadd_ps(a, b, *sum);
                        }
                    }
                    a = a.wrapping_add(8);
                    column = column.wrapping_add(8);
                }
                block = block.wrapping_add(stride);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &v) in sums.iter().enumerate() {
                let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                let one = _mm_add_ss(two, _mm_movehdup_ps(two));
                out.add(i * panel.columns + j).write(_mm_cvtss_f32(one));
            }
        }
    }
    C
}

/// See [`super::unpack_i4`].
///
/// # Safety
/// As there, on a machine with AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn unpack_i4(source: *const u8, out: &mut [i8]) {
    let whole = out.len() / 32;
    // SAFETY: 16 bytes make 32 elements; `out` and the source hold `whole` times as many, and the rest.
    unsafe {
        let low = _mm256_set1_epi8(15);
        let signed = _mm256_broadcastsi128_si256(_mm_setr_epi8(
            0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1,
        ));
        for at in 0..whole {
            // Each byte alone in 16 bits: its low half stays, its high half goes to the byte above.
            let bytes = _mm256_cvtepu8_epi16(_mm_loadu_si128(source.add(at * 16).cast()));
            let halves = _mm256_and_si256(_mm256_or_si256(bytes, _mm256_slli_epi16::<4>(bytes)), low);
            _mm256_storeu_si256(out.as_mut_ptr().add(at * 32).cast(), _mm256_shuffle_epi8(signed, halves));
        }
        super::scalar::unpack_i4(source.add(whole * 16), &mut out[whole * 32..]);
    }
}

/// See [`super::widen_f16`].
///
/// # Safety
/// As there, on a machine with AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn widen_f16(source: *const u8, out: &mut [f32]) {
    let whole = out.len() / 8;
    // SAFETY: 8 halves in, 8 floats out, `whole` times, and the rest.
    unsafe {
        for at in 0..whole {
            let halves = _mm_loadu_si128(source.add(at * 16).cast());
            _mm256_storeu_ps(out.as_mut_ptr().add(at * 8), _mm256_cvtph_ps(halves));
        }
        super::scalar::widen_f16(source.add(whole * 16), &mut out[whole * 8..]);
    }
}

/// See [`super::halve_i8`].
///
/// # Safety
/// As there, on a machine with AVX2 and F16C.
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn halve_i8(source: *const i8, out: &mut [u16]) {
    let whole = out.len() / 8;
    // SAFETY: 8 bytes in, 8 halves out, `whole` times, and the rest.
    unsafe {
        for at in 0..whole {
            let wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(source.add(at * 8).cast()));
            // Every i8 is a half: nothing is rounded.
            let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_cvtepi32_ps(wide));
            _mm_storeu_si128(out.as_mut_ptr().add(at * 8).cast(), halves);
        }
        super::scalar::halve_i8(source.add(whole * 8), &mut out[whole * 8..]);
    }
}
