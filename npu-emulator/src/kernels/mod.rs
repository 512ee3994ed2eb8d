//! The products: all rows of A times one row of B's sub-blocks (up to 64 columns), straight from native B.
//!
//! A comes converted and row-major (`M`×`K`), the result goes to a row-major `M`×`columns` tile. Integer
//! kernels take A as i16 and are exact; the f16 ones take A as f32 and accumulate in f32 in an order of their
//! own. B is read through raw pointers because the device memory that it lies in is shared.

/// Walks all rows and columns of a panel in the tiles that suit the rows left; the last three numbers are the
/// columns of a tile of two, three and four rows, as many as the registers hold (one row takes eight).
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! tiles {
    ($tile:ident, $a:expr, $rows:expr, $panel:expr, $out:expr, [$two:literal, $three:literal, $four:literal]) => {{
        let (a, rows, panel, out) = ($a.as_ptr(), $rows, $panel, $out.as_mut_ptr());
        let k = panel.k();
        let mut m = 0;
        while m < rows {
            let step = (rows - m).min(4);
            let mut c = 0;
            while c < panel.columns {
                // SAFETY: the rows and columns of the tile lie within A and the result, whose lengths the caller
                // checked, and columns come in multiples of 8; the panel is readable by contract.
                c += unsafe {
                    let (a, out) = (a.add(m * k), out.add(m * panel.columns + c));
                    match step {
                        1 => $tile::<1, 8>(a, k, panel, c, out),
                        2 => $tile::<2, $two>(a, k, panel, c, out),
                        3 => $tile::<3, $three>(a, k, panel, c, out),
                        _ => $tile::<4, $four>(a, k, panel, c, out),
                    }
                };
            }
            m += step;
        }
    }};
}
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

/// Calls the kernel of `$isa`, or the reference where the machine lacks it. Lengths are checked before.
macro_rules! dispatch {
    ($isa:expr, $kernel:ident($($argument:expr),*)) => {{
        let isa = if $isa == Isa::best() { $isa } else { Isa::Scalar };
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the instructions are there, the lengths were checked, the source is readable by contract.
            Isa::Avx2 => unsafe { avx2::$kernel($($argument),*) },
            #[cfg(target_arch = "aarch64")]
            // SAFETY: the instructions are there, the lengths were checked, the source is readable by contract.
            Isa::Neon => unsafe { neon::$kernel($($argument),*) },
            // SAFETY: the lengths were checked, the source is readable by contract.
            _ => unsafe { scalar::$kernel($($argument),*) },
        }
    }};
}

/// One run of K within a [`Panel`]: `k_blocks` sub-blocks (columns, k), contiguous in memory.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// Its first byte.
    pub base: *const u8,
    /// Sub-blocks.
    pub k_blocks: usize,
}

/// The sub-blocks of B that make up `columns` neighbouring columns, in ascending K.
#[derive(Debug, Clone, Copy)]
pub struct Panel<'a> {
    /// The K segments.
    pub segments: &'a [Segment],
    /// Columns of a sub-block: a multiple of 8.
    pub columns: usize,
    /// K of a sub-block: a multiple of 16, for integers of 32.
    pub block_k: usize,
}

impl Panel<'_> {
    /// K in all.
    pub fn k(&self) -> usize {
        self.segments.iter().map(|segment| segment.k_blocks * self.block_k).sum()
    }

    fn check(&self, a: usize, rows: usize, out: usize) {
        assert!(self.columns % 8 == 0 && self.block_k % 16 == 0, "a sub-block that no chip has");
        assert!(a >= rows * self.k() && out >= rows * self.columns, "A or the result is too short");
    }
}

/// The instructions that a kernel uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust: the reference.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// AArch64 with NEON.
    Neon,
}

impl Isa {
    /// The best that this machine has; asked once by the standard library, cheap to repeat.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2")
            && std::arch::is_x86_feature_detected!("fma")
            && std::arch::is_x86_feature_detected!("f16c")
        {
            return Self::Avx2;
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return Self::Neon;
        }
        Self::Scalar
    }
}

/// `out[m][c] = Σk a[m][k] · b[k][c]` in i32, exact while K·128·128 fits, that is to K = 131071.
///
/// B is bytes, signed. Falls back to the reference when the machine lacks `isa`.
///
/// # Safety
/// Every segment of `panel` is readable for `k_blocks · columns · block_k` bytes and not written meanwhile.
///
/// # Panics
/// When `a` or `out` is shorter than `rows` rows, or the sub-block is of a shape that no chip has.
pub unsafe fn i8_panel(isa: Isa, a: &[i16], rows: usize, panel: &Panel<'_>, out: &mut [i32]) {
    panel.check(a.len(), rows, out.len());
    assert!(panel.block_k % 32 == 0, "integer sub-blocks hold 32 of K");
    dispatch!(isa, i8_panel(a, rows, panel, out))
}

/// `out[m][c] = Σk a[m][k] · b[k][c]` in f32; B is IEEE half, denormals, infinities and NaN included.
///
/// # Safety
/// Every segment of `panel` is readable for `k_blocks · columns · block_k · 2` bytes and not written meanwhile.
///
/// # Panics
/// As [`i8_panel`].
pub unsafe fn f16_panel(isa: Isa, a: &[f32], rows: usize, panel: &Panel<'_>, out: &mut [f32]) {
    panel.check(a.len(), rows, out.len());
    dispatch!(isa, f16_panel(a, rows, panel, out))
}

/// Spreads packed four-bit integers to bytes, even element first; `out` holds two for each byte of `source`.
///
/// # Safety
/// `source` is readable for `out.len() / 2` bytes and not written meanwhile.
pub unsafe fn unpack_i4(isa: Isa, source: *const u8, out: &mut [i8]) {
    dispatch!(isa, unpack_i4(source, out))
}

/// Halves to f32: `out[i] = source[i]`, exact.
///
/// # Safety
/// `source` is readable for `out.len() · 2` bytes, aligned or not, and not written meanwhile.
pub unsafe fn widen_f16(isa: Isa, source: *const u8, out: &mut [f32]) {
    dispatch!(isa, widen_f16(source, out))
}

/// Bytes to halves of the same value, exact: `out[i] = source[i]`, as IEEE bits.
///
/// # Safety
/// `source` is readable for `out.len()` bytes and not written meanwhile.
pub unsafe fn halve_i8(isa: Isa, source: *const i8, out: &mut [u16]) {
    dispatch!(isa, halve_i8(source, out))
}
