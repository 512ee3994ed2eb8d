//! The CPU's share of a matmul: rows of activations into native A, native C into rows of results, and rows of
//! weights into native B. Slices in, slices out; nothing here knows the host or the NPU.
//!
//! * [`scalar`]: what each kernel computes, written plainly; the oracle of the tests.
//! * [`fast`]: the same, in a form that the compiler turns into vector code, built once for the baseline of the
//!   target (NEON on aarch64) and once for AVX2 on x86-64, chosen at run time.
//! * [`int4`]: both for four-bit numbers.
//! * [`attention`]: what is between attention's two products, and its keys and values as B.
//! * [`glu`]: an activation times a gate; [`exp`]: the exponential of both.
//! * [`norm`]: the norm of rows that comes between products.
//! * [`dot`]: what one run of the NPU computes, for few rows.
//! * [`rotate`]: the rotation that spreads outliers before rounding.
//! * `strips`: rows of native A, as one thread of several sees them.
//! * `halves` and `lanes`: what compilers do not make vector code of by themselves, for AVX2 and NEON.
//!
//! Rounding is to nearest, ties to even, everywhere. A non-finite value never gives a number: the scale of its
//! row is NaN, and so is each result of the row.

pub mod attention;
pub mod dot;
pub mod exp;
pub mod fast;
pub mod glu;
mod halves;
pub mod int4;
mod lanes;
pub mod norm;
pub mod rotate;
pub mod scalar;
mod strips;

pub use strips::Strips;

/// Rows of activations, or a run of columns of them, with their scales.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// From the first element of row 0 to the last of the last row.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub k: usize,
    /// One scale a row: what is stored is the element divided by it.
    pub scales: &'a [f32],
}

impl Rows<'_> {
    /// The elements of a row.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &[f32] {
        &self.data[row * self.stride..row * self.stride + self.k]
    }
}

/// Which part of native C goes into which rows of results, and with what scales.
///
/// Rows `row_start .. row_start + rows` of C, whose M is `m`, become rows 0 .. `rows` of the output, which are
/// `stride` apart; the first `columns` columns of each, times the row's and the column's scale.
#[derive(Clone, Copy)]
pub struct Results<'a> {
    /// M of C.
    pub m: usize,
    /// First row taken.
    pub row_start: usize,
    /// Rows taken.
    pub rows: usize,
    /// Columns taken.
    pub columns: usize,
    /// One scale a row taken.
    pub row_scales: &'a [f32],
    /// One scale a column taken.
    pub column_scales: &'a [f32],
    /// Add to what is there, instead of replacing it.
    pub accumulate: bool,
    /// Elements from one row of the output to the next.
    pub stride: usize,
}

/// An element of C: the sum that the NPU computed.
pub trait Sum: bytemuck::Pod {
    /// The nearest f32 of a sum, or of that of two planes: 16 times this one plus `low`. Without planes `low` is the
    /// sum itself, and not looked at.
    fn to_f32<const PLANES: usize>(self, low: Self) -> f32;
}

impl Sum for f32 {
    #[inline(always)]
    fn to_f32<const PLANES: usize>(self, _low: Self) -> f32 {
        self
    }
}

impl Sum for i32 {
    #[inline(always)]
    fn to_f32<const PLANES: usize>(self, _low: Self) -> f32 {
        self as f32
    }
}

impl Sum for i16 {
    #[inline(always)]
    fn to_f32<const PLANES: usize>(self, low: Self) -> f32 {
        let high = i32::from(self);
        (if PLANES == 2 { 16 * high + i32::from(low) } else { high }) as f32
    }
}
