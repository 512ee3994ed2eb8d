//! Floats to halves and back, with the instructions that every 64-bit ARM and every x86-64 with F16C has.
//!
//! The `half` crate asks for ARM's half-precision arithmetic, which the conversion does not need and Cortex-A53 and
//! A72 (RK3562, RK3576) do not have: it would convert there bit by bit. A vector of eight costs two loads, two
//! products, one or two conversions and a store: 48 bytes in some 4 cycles on Cortex-A76.

use super::scalar;

/// Floats that a vector step takes.
const STEP: usize = 8;

/// `out[i]` = `values[i] · factor` as f16 bits, rounded to nearest, ties to even.
///
/// # Panics
/// When the lengths differ.
pub fn to_halves(values: &[f32], factor: f32, out: &mut [u16]) {
    assert_eq!(values.len(), out.len(), "as many halves as floats");
    let done = whole_steps(values, factor, out);
    for (out, value) in out[done..].iter_mut().zip(&values[done..]) {
        *out = scalar::to_f16(*value, factor);
    }
}

/// Converts whole steps by vectors, and tells how many floats that were: none on a machine without them.
#[cfg(target_arch = "x86_64")]
fn whole_steps(values: &[f32], factor: f32, out: &mut [u16]) -> usize {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx,f16c")]
    unsafe fn convert(values: &[f32], factor: f32, out: &mut [u16]) {
        // SAFETY: eight floats are read and eight halves written, on a machine with AVX and F16C, says the caller.
        unsafe {
            let factor = _mm256_set1_ps(factor);
            for (values, out) in values.chunks_exact(STEP).zip(out.chunks_exact_mut(STEP)) {
                let scaled = _mm256_mul_ps(_mm256_loadu_ps(values.as_ptr()), factor);
                let halves = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(scaled);
                _mm_storeu_si128(out.as_mut_ptr().cast(), halves);
            }
        }
    }
    if !(std::arch::is_x86_feature_detected!("avx") && std::arch::is_x86_feature_detected!("f16c")) {
        return 0;
    }
    // SAFETY: the CPU has what the function was built for.
    unsafe { convert(values, factor, out) };
    values.len() / STEP * STEP
}

/// As on x86-64.
#[cfg(target_arch = "aarch64")]
fn whole_steps(values: &[f32], factor: f32, out: &mut [u16]) -> usize {
    use std::arch::aarch64::*;
    use std::arch::asm;

    for (values, out) in values.chunks_exact(STEP).zip(out.chunks_exact_mut(STEP)) {
        // SAFETY: eight floats are read and eight halves written, NEON is part of the target, and the conversion
        // touches registers alone. Its intrinsic is not stable as of Rust 1.85.
        unsafe {
            let low = vmulq_n_f32(vld1q_f32(values.as_ptr()), factor);
            let high = vmulq_n_f32(vld1q_f32(values.as_ptr().add(4)), factor);
            let halves: uint16x8_t;
            asm!(
                "fcvtn {halves:v}.4h, {low:v}.4s",
                "fcvtn2 {halves:v}.8h, {high:v}.4s",
                halves = out(vreg) halves,
                low = in(vreg) low,
                high = in(vreg) high,
                options(pure, nomem, nostack, preserves_flags),
            );
            vst1q_u16(out.as_mut_ptr(), halves);
        }
    }
    values.len() / STEP * STEP
}

/// No vectors here.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn whole_steps(_: &[f32], _: f32, _: &mut [u16]) -> usize {
    0
}

/// `out[i]` = the f16 whose bits are `halves[i]`, exactly.
///
/// # Panics
/// When the lengths differ.
pub fn from_halves(halves: &[u16], out: &mut [f32]) {
    assert_eq!(halves.len(), out.len(), "as many floats as halves");
    let done = whole_steps_back(halves, out);
    for (out, half) in out[done..].iter_mut().zip(&halves[done..]) {
        *out = half::f16::from_bits(*half).to_f32();
    }
}

/// As [`whole_steps`], the other way.
#[cfg(target_arch = "x86_64")]
fn whole_steps_back(halves: &[u16], out: &mut [f32]) -> usize {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx,f16c")]
    unsafe fn convert(halves: &[u16], out: &mut [f32]) {
        for (halves, out) in halves.chunks_exact(STEP).zip(out.chunks_exact_mut(STEP)) {
            // SAFETY: eight halves are read and eight floats written, on a machine with AVX and F16C, says the caller.
            unsafe {
                let floats = _mm256_cvtph_ps(_mm_loadu_si128(halves.as_ptr().cast()));
                _mm256_storeu_ps(out.as_mut_ptr(), floats);
            }
        }
    }
    if !(std::arch::is_x86_feature_detected!("avx") && std::arch::is_x86_feature_detected!("f16c")) {
        return 0;
    }
    // SAFETY: the CPU has what the function was built for.
    unsafe { convert(halves, out) };
    halves.len() / STEP * STEP
}

/// As on x86-64.
#[cfg(target_arch = "aarch64")]
fn whole_steps_back(halves: &[u16], out: &mut [f32]) -> usize {
    use std::arch::aarch64::*;
    use std::arch::asm;

    for (halves, out) in halves.chunks_exact(STEP).zip(out.chunks_exact_mut(STEP)) {
        // SAFETY: eight halves are read and eight floats written, NEON is part of the target, and the conversion touches
        // registers alone.
        unsafe {
            let eight = vld1q_u16(halves.as_ptr());
            let (low, high): (float32x4_t, float32x4_t);
            asm!(
                "fcvtl {low:v}.4s, {eight:v}.4h",
                "fcvtl2 {high:v}.4s, {eight:v}.8h",
                low = out(vreg) low,
                high = lateout(vreg) high,
                eight = in(vreg) eight,
                options(pure, nomem, nostack, preserves_flags),
            );
            vst1q_f32(out.as_mut_ptr(), low);
            vst1q_f32(out.as_mut_ptr().add(4), high);
        }
    }
    halves.len() / STEP * STEP
}

/// No vectors here.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn whole_steps_back(_: &[u16], _: &mut [f32]) -> usize {
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use proptest::prelude::*;

    #[test]
    fn every_half_comes_back() {
        let halves: Vec<u16> = (0..=u16::MAX).collect();
        for len in [halves.len(), 13] {
            let mut floats = vec![7.0; len];
            from_halves(&halves[..len], &mut floats);
            for (half, float) in halves.iter().zip(floats) {
                let want = f16::from_bits(*half).to_f32();
                assert!(float.to_bits() == want.to_bits() || float.is_nan() && want.is_nan(), "{half:#x}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        /// Every kind of float: denormals of both, ties, overflow, infinities and NaNs.
        #[test]
        fn halves_are_the_oracles(
            values in proptest::collection::vec(
                prop_oneof![
                    any::<f32>(), -7e4f32..7e4, -1e-4f32..1e-4,
                    // Halfway between two halves.
                    (0u16..0x7c00).prop_map(|bits| f32::from_bits(f16::from_bits(bits).to_f32().to_bits() | 0x1000)),
                ],
                0..40,
            ),
            factor in prop_oneof![Just(1.0f32), (-20i32..20).prop_map(|power| 2f32.powi(power))],
        ) {
            let mut got = vec![0x7777; values.len()];
            to_halves(&values, factor, &mut got);
            for (value, got) in values.iter().zip(got) {
                let want = scalar::to_f16(*value, factor);
                let nan = f16::from_bits(got).is_nan() && f16::from_bits(want).is_nan();
                prop_assert!(got == want || nan, "{value} · {factor}: {got:#x}, not {want:#x}");
            }
        }
    }
}
