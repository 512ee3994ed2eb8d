//! What one run of the NPU computes, on the CPU: few rows of native A times the same bytes of native B, into native C.
//!
//! A decode step has so few rows that it is bound by reading B, which a CPU does as fast as the NPU does. Operands
//! and results are the bytes that the NPU would read and write, so that a product may take either way.
//!
//! * `scalar`: plain loops over the index formulas, for any blocks; the oracle of the tests.
//! * `tile`: the way through A, B and C, written once over the instructions of one step.
//! * `avx2`, `neon`: those steps. With NEON there are two for integers: with `sdot` where the CPU has it (Cortex-A55
//!   and A76: RK3588, RK3566, RK3568), and without (Cortex-A53 and A72: RK3562, RK3576).
//!
//! Sums of integers are exact, so they are the NPU's. Sums of halves have one order, which is the same for every
//! machine, for any number of rows together and any columns given: the bits of a result depend on its row, its column
//! and K alone. That order is: K is cut into chunks of 256; in a chunk, eight sums of f32 begin at zero, and element k
//! goes to sum k mod 8, one after the other (a product of halves is exact in f32, so it is rounded once, with or
//! without FMA); a chunk's sum is ((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7)), and chunks are added to zero in
//! turn. The NPU's order is not known: halves are close to its results, not equal.
//!
//! Bytes: B is read once for each four rows, from its first byte to its last but for the columns of a block, which are
//! taken a few at a time over at most 32 blocks. `cargo bench --bench kernels` measures it beside memcpy.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod tile;

use tile::Tiling;

/// Which part of a run, and how its operands lie.
///
/// A is (K/`a_block`, M, `a_block`), B is (N/`block_n`, K/`block_k`, `block_n`, `block_k`) and C is (N/`c_block`, M,
/// `c_block`), innermost last. N is the number of columns whose B is given. All figures are elements.
///
/// Fast are the blocks of the chips that there are (`chip.rs`): runs of 8 or 16 bytes in A, columns of 32 bytes (i8), 16
/// (i4), 32 or 64 (f16), and 8 to 64 of them, whole blocks of C. All others are computed by plain loops.
#[derive(Debug, Clone, Copy)]
pub struct Dot {
    /// M of A and C.
    pub m: usize,
    /// First row taken.
    pub row_start: usize,
    /// Rows taken. The others of C stay as they are.
    pub rows: usize,
    /// K with its padding: whole blocks of A and B.
    pub k: usize,
    /// Elements of k in a row's run of A.
    pub a_block: usize,
    /// Columns of a block of B.
    pub block_n: usize,
    /// Elements of k in a block of B.
    pub block_k: usize,
    /// Columns in a row's run of C.
    pub c_block: usize,
}

impl Dot {
    /// Panics unless the operands, in elements, are what the blocks say.
    fn check(&self, a: usize, b: usize, c: usize) {
        let Self { m, row_start, rows, k, a_block, block_n, block_k, c_block } = *self;
        assert!(row_start.checked_add(rows).is_some_and(|end| end <= m), "rows of M: {self:?}");
        let whole = |of: usize, block: usize| block > 0 && of % block == 0;
        assert!(k > 0 && whole(k, a_block) && whole(k, block_k), "whole blocks of K: {self:?}");
        assert!(Some(a) == m.checked_mul(k), "A has M·K elements, not {a}: {self:?}");
        assert!(block_n > 0 && whole(b, k) && whole(b / k, block_n), "B has whole blocks, not {b}: {self:?}");
        assert!(
            whole(b / k, c_block) && Some(c) == (b / k).checked_mul(m),
            "C has M·N sums, not {c}: {self:?}"
        );
    }
}

/// The instructions that a product is computed with. A value is the proof that this machine has them: it is made by
/// [`Machine::best`] and [`Machine::all`] alone.
#[derive(Debug, Clone, Copy)]
enum Machine {
    /// Those of every machine.
    #[cfg_attr(
        all(target_arch = "aarch64", not(test)),
        allow(dead_code, reason = "there, NEON is always had")
    )]
    Scalar,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What is part of every aarch64.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// And `sdot`.
    #[cfg(target_arch = "aarch64")]
    NeonDotprod,
}

impl Machine {
    #[cfg(target_arch = "x86_64")]
    #[inline]
    fn best() -> Self {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx2") && has!("fma") && has!("f16c") {
            Self::Avx2
        } else {
            Self::Scalar
        }
    }

    #[cfg(target_arch = "aarch64")]
    #[inline]
    fn best() -> Self {
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            Self::NeonDotprod
        } else {
            Self::Neon
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn best() -> Self {
        Self::Scalar
    }

    /// All that this machine has.
    #[cfg(test)]
    fn all() -> Vec<Self> {
        vec![
            Self::Scalar,
            #[cfg(target_arch = "aarch64")]
            Self::Neon,
            Self::best(),
        ]
    }

    fn dot_i8(self, a: &[i8], b: &[i8], dot: &Dot, c: &mut [i32]) {
        dot.check(a.len(), b.len(), c.len());
        let Some(tiling) = Tiling::new(dot, 8, &[32]) else { return scalar::dot_i8(a, b, dot, c) };
        let (a, b) = (bytemuck::cast_slice(a), bytemuck::cast_slice(b));
        // SAFETY: the value is the proof of the instructions; lengths are checked above, and blocks by the tiling.
        unsafe {
            match self {
                Self::Scalar => scalar::dot_i8(bytemuck::cast_slice(a), bytemuck::cast_slice(b), dot, c),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2::dot_i8(a, b, &tiling, c),
                #[cfg(target_arch = "aarch64")]
                Self::Neon => neon::dot_i8(a, b, &tiling, c),
                #[cfg(target_arch = "aarch64")]
                Self::NeonDotprod => neon::dot_i8_dotprod(a, b, &tiling, c),
            }
        }
    }

    fn dot_i4(self, a: &[u8], b: &[u8], dot: &Dot, c: &mut [i16]) {
        dot.check(2 * a.len(), 2 * b.len(), c.len());
        assert!(dot.a_block % 2 == 0 && dot.block_k % 2 == 0, "whole bytes of nibbles: {dot:?}");
        let Some(tiling) = Tiling::new(dot, 4, &[16]) else { return scalar::dot_i4(a, b, dot, c) };
        // SAFETY: the value is the proof of the instructions; lengths are checked above, and blocks by the tiling.
        unsafe {
            match self {
                Self::Scalar => scalar::dot_i4(a, b, dot, c),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2::dot_i4(a, b, &tiling, c),
                #[cfg(target_arch = "aarch64")]
                Self::Neon => neon::dot_i4(a, b, &tiling, c),
                #[cfg(target_arch = "aarch64")]
                Self::NeonDotprod => neon::dot_i4_dotprod(a, b, &tiling, c),
            }
        }
    }

    fn dot_f16(self, a: &[u16], b: &[u16], dot: &Dot, c: &mut [f32]) {
        dot.check(a.len(), b.len(), c.len());
        let Some(tiling) = Tiling::new(dot, 16, &[32, 64]) else { return scalar::dot_f16(a, b, dot, c) };
        // SAFETY: the value is the proof of the instructions; lengths are checked above, and blocks by the tiling.
        unsafe {
            match self {
                Self::Scalar => scalar::dot_f16(a, b, dot, c),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => avx2::dot_f16(bytemuck::cast_slice(a), bytemuck::cast_slice(b), &tiling, c),
                #[cfg(target_arch = "aarch64")]
                Self::Neon | Self::NeonDotprod => {
                    neon::dot_f16(bytemuck::cast_slice(a), bytemuck::cast_slice(b), &tiling, c);
                }
            }
        }
    }
}

/// The sums of i8 · i8 in i32: exact for a K below 2¹⁷, and modulo 2³² beyond.
///
/// # Panics
/// When lengths or rows are not what `dot` says.
pub fn dot_i8(a: &[i8], b: &[i8], dot: &Dot, c: &mut [i32]) {
    Machine::best().dot_i8(a, b, dot, c);
}

/// The sums of i4 · i4, two elements to a byte of A and B and the one of even k in the low nibble. Exact where they fit
/// i16; others become the nearest that does, once all of K is added up.
///
/// # Panics
/// When lengths or rows are not what `dot` says, or blocks are no whole bytes.
pub fn dot_i4(a: &[u8], b: &[u8], dot: &Dot, c: &mut [i16]) {
    Machine::best().dot_i4(a, b, dot, c);
}

/// The sums of f16 · f16, both given as bits, in f32 and in the order that the [module](self) tells.
///
/// # Panics
/// When lengths or rows are not what `dot` says.
pub fn dot_f16(a: &[u16], b: &[u16], dot: &Dot, c: &mut [f32]) {
    Machine::best().dot_f16(a, b, dot, c);
}

#[cfg(test)]
mod tests;
