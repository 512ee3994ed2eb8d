//! An activation times a gate (GLU), as between a feed-forward block's gate and up and its down.
//!
//! Source: N. Shazeer, "GLU Variants Improve Transformer", 2020 (arXiv 2002.05202); GELU is the approximation by tanh
//! (D. Hendrycks, K. Gimpel, 2016, arXiv 1606.08415), which ½·(1 + tanh u) = 1 / (1 + exp(−2u)) makes a logistic one.
//!
//! Bytes of an element: 8 read and 4 written, in the level-2 cache where the products' results were just scaled.

use super::exp::times_logistic;
use super::fast::vectorised;

/// What the gate is put through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// The larger of x and 0.
    Relu,
    /// ½·x·(1 + tanh(√(2/π)·(x + 0.044715·x³))).
    Gelu,
    /// x / (1 + exp(−x)).
    Silu,
}

/// 2·√(2/π) and that times 0.044715.
const GELU: [f32; 2] = [1.595_769_2, 0.071_354_82];

/// `out[i]` = activation(`gate[i]`) · `up[i]`, within 10⁻⁶ of itself; NaN where either is. The shortest of the three says
/// how many.
pub fn glu(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    match activation {
        Activation::Relu => reglu(gate, up, out),
        Activation::Gelu => geglu(gate, up, out),
        Activation::Silu => swiglu(gate, up, out),
    }
}

vectorised! {
    fn reglu(gate: &[f32], up: &[f32], out: &mut [f32]) =
        |gate, up, out| each(gate, up, out, #[inline(always)] |x| if x < 0.0 { 0.0 } else { x })
}

vectorised! {
    fn geglu(gate: &[f32], up: &[f32], out: &mut [f32]) =
        |gate, up, out| each(gate, up, out, #[inline(always)] |x| times_logistic(x, x * (GELU[0] + GELU[1] * x * x)))
}

vectorised! {
    fn swiglu(gate: &[f32], up: &[f32], out: &mut [f32]) =
        |gate, up, out| each(gate, up, out, #[inline(always)] |x| times_logistic(x, x))
}

#[inline(always)]
fn each(gate: &[f32], up: &[f32], out: &mut [f32], activation: impl Fn(f32) -> f32) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = activation(*gate) * up;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By the definition, in f64.
    fn oracle(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::Relu => x.max(0.0),
            Activation::Gelu => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + u.tanh())
            }
            Activation::Silu => x / (1.0 + (-x).exp()),
        }
    }

    const ALL: [Activation; 3] = [Activation::Relu, Activation::Gelu, Activation::Silu];

    proptest! {
        #[test]
        fn each_element_is_the_definitions(
            values in proptest::collection::vec((-40f32..40.0, -1e3f32..1e3), 0..70),
        ) {
            let (gate, up): (Vec<f32>, Vec<f32>) = values.into_iter().unzip();
            for activation in ALL {
                let mut out = vec![f32::NAN; gate.len()];
                glu(activation, &gate, &up, &mut out);
                for ((x, up), got) in gate.iter().zip(&up).zip(out) {
                    let want = oracle(activation, f64::from(*x)) * f64::from(*up);
                    // Where the logistic function is next to nothing, 1 + tanh has no digits left for the oracle.
                    let bound = want.abs() * 2e-6 + 1e-9;
                    prop_assert!((f64::from(got) - want).abs() <= bound, "{activation:?} of {x}, {up}: {got}, {want}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_so_and_ends_are_the_limits() {
        for activation in ALL {
            let gate = [f32::NAN, 1.0, f32::INFINITY, 1e30, -1e30];
            let mut out = [0.0; 5];
            glu(activation, &gate, &[1.0, f32::NAN, 1.0, 1.0, 1.0], &mut out);
            assert!(out[0].is_nan() && out[1].is_nan(), "{activation:?}: {out:?}");
            assert_eq!((out[2], out[3]), (f32::INFINITY, 1e30), "{activation:?}");
            assert!(out[4] == 0.0, "{activation:?}: {out:?}");
        }
    }
}
