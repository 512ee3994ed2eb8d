//! The exponential and what is made of it, in the form that vectorises; the same bits on every machine.
//!
//! exp(x) = 2ⁿ · exp(x − n·ln 2) with n = x/ln 2 to the nearest, where ln 2 is taken in two parts, the first of so few
//! bits that n times it is exact. Source: W. J. Cody, W. Waite, "Software Manual for the Elementary Functions", 1980.
//!
//! The steps of one element are a chain, each of which waits for the one before, and a CPU looks only a few vectors ahead. So
//! the chain is short: products and sums are fused, which rounds once on every machine (an x86-64 without FMA calls a function
//! for it, and is slow), and the polynomial is taken in pairs of terms. Source: G. Estrin, "Organization of Computer Systems:
//! The Fixed Plus Variable Structure Computer", 1960.

use super::fast::ROUND;

/// log₂ e.
const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in nine bits, and the rest of it.
const LN_2: [f32; 2] = [355.0 / 512.0, -2.121_944_4e-4];
/// The polynomial through exp at the seven Chebyshev nodes of ±½·ln 2, in f32: what rounds to 1, 1 and ½ is 1/n! too.
const SERIES: [f32; 7] = [1.0, 1.0, 0.5, 0.166_664_15, 0.041_666_35, 0.008_375_126, 0.001_394_110_8];

/// exp(`x`) within 2·10⁻⁷ of itself for −87 ≤ x ≤ 88; 0 below −88, for −∞ too, and ∞ above 88.4. NaN gives some number.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // In this order, so that a NaN becomes the bound.
    let x = if x > -88.2 { x } else { -88.2 };
    let x = if x < 88.7 { x } else { 88.7 };
    let whole = x.mul_add(LOG2_E, ROUND);
    let n = whole - ROUND;
    let rest = (-n).mul_add(LN_2[1], (-n).mul_add(LN_2[0], x));
    let square = rest * rest;
    let pair = |at: usize| rest.mul_add(SERIES[at + 1], SERIES[at]);
    let low = square.mul_add(pair(2), pair(0));
    let power = (square * square).mul_add(square.mul_add(SERIES[6], pair(4)), low);
    // The low bits of `whole` are the integer; its other bits are shifted out. −127 gives a factor of 0, 128 one of ∞.
    power * f32::from_bits(whole.to_bits().wrapping_add(127) << 23)
}

/// tanh(`x`) within 10⁻⁶.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// `x` / (1 + exp(−`y`)): `x` times the logistic function of `y`. A NaN in `x` stays one.
#[inline(always)]
pub fn times_logistic(x: f32, y: f32) -> f32 {
    x / (1.0 + exp(-y))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]
        #[test]
        fn exponentials_are_exponentials(x in prop_oneof![-200f32..88.0, -1f32..1.0]) {
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            prop_assert!((got - want).abs() <= want * 2e-7 + 2e-38, "exp({x}) is {want}, not {got}");
        }

        #[test]
        fn hyperbolic_tangents_are(x in -100f32..100.0) {
            prop_assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() <= 1e-6);
        }
    }

    #[test]
    fn the_ends_are_numbers() {
        assert_eq!((exp(f32::NEG_INFINITY), exp(-1e30), exp(0.0)), (0.0, 0.0, 1.0));
        assert_eq!((exp(f32::INFINITY), exp(1e30)), (f32::INFINITY, f32::INFINITY));
        assert!(!exp(f32::NAN).is_nan());
        assert!(times_logistic(f32::NAN, f32::NAN).is_nan());
    }
}
