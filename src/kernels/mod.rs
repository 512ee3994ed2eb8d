//! The CPU's share of a matmul: rows of activations into native A, native C into rows of results, and rows of
//! weights into native B. Slices in, slices out; nothing here knows the host or the NPU.
//!
//! * [`scalar`]: what each kernel computes, written plainly; the oracle of the tests.
//! * [`fast`]: the same, in a form that the compiler turns into vector code, built once for the baseline of the
//!   target (NEON on aarch64) and once for AVX2 on x86-64, chosen at run time.
//!
//! Rounding is to nearest, ties to even, everywhere. A non-finite value never gives a number: the scale of its
//! row is NaN, and so is each result of the row.

pub mod fast;
pub mod scalar;
