//! A vector of floats, as wide as the machine has them: the few operations that the rotation is built of.
//!
//! Each is exact or rounded once, lane by lane, so that an algorithm written over [`Lanes`] gives the same bits on
//! every machine. A value of a vector type is the proof that the machine has its instructions: it is made by
//! [`Lanes::load`] alone, which asks for that, and so everything else is safe.

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

    /// The same numbers with the other sign.
    fn neg(self) -> Self;

    /// Walsh–Hadamard transforms of `a` and of `b`, each by itself: butterflies of neighbours first, then of
    /// elements 2 apart, and so on.
    fn sylvester(a: Self, b: Self) -> (Self, Self);
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
    fn neg(self) -> Self {
        -self
    }

    #[inline(always)]
    fn sylvester(a: Self, b: Self) -> (Self, Self) {
        (a, b)
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::Avx2;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Lanes;

    /// Eight floats of an x86-64 with AVX2.
    #[derive(Clone, Copy)]
    pub struct Avx2(__m256);

    impl Lanes for Avx2 {
        const N: usize = 8;

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: readable, on a machine with AVX2, says the caller.
            Self(unsafe { _mm256_loadu_ps(from) })
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: writable, says the caller; the value is the proof of AVX2.
            unsafe { _mm256_storeu_ps(to, self.0) }
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            // SAFETY: the value is the proof of AVX2.
            Self(unsafe { _mm256_add_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            // SAFETY: the value is the proof of AVX2.
            Self(unsafe { _mm256_sub_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            // SAFETY: the value is the proof of AVX2.
            Self(unsafe { _mm256_mul_ps(self.0, other.0) })
        }

        #[inline(always)]
        fn neg(self) -> Self {
            // SAFETY: the value is the proof of AVX2.
            Self(unsafe { _mm256_xor_ps(self.0, _mm256_set1_ps(-0.0)) })
        }

        #[inline(always)]
        fn sylvester(a: Self, b: Self) -> (Self, Self) {
            // SAFETY: the values are the proof of AVX2.
            unsafe {
                // In each half of the vectors: even and odd elements, twice, leave sums and differences of both
                // in turns; the third time puts them back in order.
                let (mut a, mut b) = (a.0, b.0);
                for _ in 0..2 {
                    let (even, odd) = (_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b));
                    (a, b) = (_mm256_add_ps(even, odd), _mm256_sub_ps(even, odd));
                }
                (a, b) = (_mm256_shuffle_ps::<0x88>(a, b), _mm256_shuffle_ps::<0xdd>(a, b));
                // Then the halves.
                let (low, high) =
                    (_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
                (a, b) = (_mm256_add_ps(low, high), _mm256_sub_ps(low, high));
                (Self(_mm256_permute2f128_ps::<0x20>(a, b)), Self(_mm256_permute2f128_ps::<0x31>(a, b)))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::Lanes;

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
        fn neg(self) -> Self {
            // SAFETY: NEON is part of the target.
            Self(unsafe { vnegq_f32(self.0) })
        }

        #[inline(always)]
        fn sylvester(a: Self, b: Self) -> (Self, Self) {
            // SAFETY: NEON is part of the target.
            unsafe {
                // Even and odd elements, twice, leave sums and differences of both vectors in turns; the third
                // time puts them back in order.
                let (mut a, mut b) = (a.0, b.0);
                for _ in 0..2 {
                    let (even, odd) = (vuzp1q_f32(a, b), vuzp2q_f32(a, b));
                    (a, b) = (vaddq_f32(even, odd), vsubq_f32(even, odd));
                }
                (Self(vuzp1q_f32(a, b)), Self(vuzp2q_f32(a, b)))
            }
        }
    }
}
