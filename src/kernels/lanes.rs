//! A vector of floats, as wide as the machine has them: the few operations that the rotation is built of.
//!
//! Each is exact or rounded once, lane by lane, so that an algorithm written over [`Lanes`] gives the same bits on
//! every machine. A value of a vector type is the proof that the machine has its instructions: it is made by
//! [`Lanes::load`] alone, which asks for that, and so everything else is safe.

use super::fast::SIGN_OFF;

/// `N` floats that are computed with at once.
pub trait Lanes: Copy {
    /// How many.
    const N: usize;

    /// The `N` floats at `from`.
    ///
    /// # Safety
    /// They are readable, and the machine has the type's instructions.
    unsafe fn load(from: *const f32) -> Self;

    /// Writes the floats to `to`.
    ///
    /// # Safety
    /// `to` is writable for `N` floats.
    unsafe fn store(self, to: *mut f32);

    /// Sums.
    fn add(self, other: Self) -> Self;

    /// Differences.
    fn sub(self, other: Self) -> Self;

    /// Products.
    fn mul(self, other: Self) -> Self;

    /// Sums with twice the other numbers, rounded once.
    fn add_twice(self, other: Self) -> Self;

    /// The same numbers with the other sign.
    fn neg(self) -> Self;

    /// Of each two the larger magnitude, without its sign: as integers compare, with infinities and NaNs above all numbers.
    fn larger(self, other: Self) -> Self;

    /// The Walsh–Hadamard transform of the floats: butterflies of neighbours first, then of elements 2 apart, and
    /// so on.
    fn sylvester(self) -> Self;
}

/// One float: the oracle of the others, and the way of machines and lengths that have no vectors.
impl Lanes for f32 {
    const N: usize = 1;

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: readable, says the caller.
        unsafe { from.read() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: writable, says the caller.
        unsafe { to.write(self) }
    }

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self + other
    }

    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self - other
    }

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self * other
    }

    #[inline(always)]
    fn add_twice(self, other: Self) -> Self {
        other.mul_add(2.0, self)
    }

    #[inline(always)]
    fn neg(self) -> Self {
        -self
    }

    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        let bits = |value: f32| value.to_bits() & SIGN_OFF;
        f32::from_bits(bits(self).max(bits(other)))
    }

    #[inline(always)]
    fn sylvester(self) -> Self {
        self
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::Avx2;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Lanes, SIGN_OFF};

    /// Eight floats of an x86-64 with AVX2 and FMA.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256);

    impl Lanes for Avx2 {
        const N: usize = 8;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: readable, on a machine with AVX2 and FMA, says the caller.
            Self(unsafe { _mm256_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: writable, says the caller; the value is the proof of AVX2 and FMA.
            unsafe { _mm256_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: the value is the proof of AVX2 and FMA.
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: the value is the proof of AVX2 and FMA.
            Self(unsafe { _mm256_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            // SAFETY: the value is the proof of AVX2 and FMA.
            Self(unsafe { _mm256_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn add_twice(self, other: Self) -> Self {
            // SAFETY: the value is the proof of AVX2 and FMA.
            Self(unsafe { _mm256_fmadd_ps(other.0, _mm256_set1_ps(2.0), self.0) })
        }

        #[inline(always)]
        fn neg(self) -> Self {
            // SAFETY: the value is the proof of AVX2 and FMA.
            Self(unsafe { _mm256_xor_ps(self.0, _mm256_set1_ps(-0.0)) })
        }

        #[inline(always)]
        fn larger(self, other: Self) -> Self {
            // SAFETY: the value is the proof of AVX2 and FMA.
            unsafe {
                let sign_off = _mm256_set1_epi32(SIGN_OFF as i32);
                let own = _mm256_and_si256(_mm256_castps_si256(self.0), sign_off);
                let other = _mm256_and_si256(_mm256_castps_si256(other.0), sign_off);
                Self(_mm256_castsi256_ps(_mm256_max_epu32(own, other)))
            }
        }

        #[inline(always)]
        fn sylvester(self) -> Self {
            // SAFETY: the value is the proof of AVX2 and FMA.
            unsafe {
                // A butterfly is the elements in exchanged places plus the elements, the upper ones with a minus;
                // a product with ±1 is exact, so this is rounded once, as a sum is.
                let x = self.0;
                let one = _mm256_setr_ps(1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0);
                let x = _mm256_fmadd_ps(x, one, _mm256_permute_ps::<0b10_11_00_01>(x));
                let two = _mm256_setr_ps(1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0);
                let x = _mm256_fmadd_ps(x, two, _mm256_permute_ps::<0b01_00_11_10>(x));
                let four = _mm256_setr_ps(1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0);
                Self(_mm256_fmadd_ps(x, four, _mm256_permute2f128_ps::<1>(x, x)))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::{Lanes, SIGN_OFF};

    /// Four floats of NEON, which every aarch64 has.
    #[derive(Clone, Copy)]
    pub struct Neon(float32x4_t);

    impl Lanes for Neon {
        const N: usize = 4;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: readable, says the caller.
            Self(unsafe { vld1q_f32(from) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: writable, says the caller.
            unsafe { vst1q_f32(to, self.0) }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: NEON is part of the target.
            Self(unsafe { vaddq_f32(self.0, other.0) })
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: NEON is part of the target.
            Self(unsafe { vsubq_f32(self.0, other.0) })
        }

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            // SAFETY: NEON is part of the target.
            Self(unsafe { vmulq_f32(self.0, other.0) })
        }

        #[inline(always)]
        fn add_twice(self, other: Self) -> Self {
            // SAFETY: NEON is part of the target.
            Self(unsafe { vfmaq_n_f32(self.0, other.0, 2.0) })
        }

        #[inline(always)]
        fn neg(self) -> Self {
            // SAFETY: NEON is part of the target.
            Self(unsafe { vnegq_f32(self.0) })
        }

        #[inline(always)]
        fn larger(self, other: Self) -> Self {
            // SAFETY: NEON is part of the target.
            unsafe {
                let sign_off = vdupq_n_u32(SIGN_OFF);
                let own = vandq_u32(vreinterpretq_u32_f32(self.0), sign_off);
                let other = vandq_u32(vreinterpretq_u32_f32(other.0), sign_off);
                Self(vreinterpretq_f32_u32(vmaxq_u32(own, other)))
            }
        }

        #[inline(always)]
        fn sylvester(self) -> Self {
            // SAFETY: NEON is part of the target; two constants of four floats are read.
            unsafe {
                // A butterfly is the elements in exchanged places plus the elements, the upper ones with a minus;
                // a product with ±1 is exact, so this is rounded once, as a sum is.
                let x = self.0;
                let one = vld1q_f32([1.0, -1.0, 1.0, -1.0].as_ptr());
                let x = vfmaq_f32(vrev64q_f32(x), x, one);
                let two = vld1q_f32([1.0, 1.0, -1.0, -1.0].as_ptr());
                Self(vfmaq_f32(vextq_f32::<2>(x, x), x, two))
            }
        }
    }
}
