//! Scales of four bits by least squares.
//!
//! For a step s the values are rounded to q = v/s in −8..=7. The scale that fits those q best is Σv·q / Σq², and with
//! it the squared error is Σv² − (Σv·q)² / Σq²: a step is judged by one pass over the values. Steps tried are
//! fractions of the one that reaches the largest magnitude, and multiples of the root mean square near the best
//! uniform step of a Gaussian (0.335 for 16 levels: J. Max, "Quantizing for Minimum Distortion", 1960), which a
//! rotated row nearly is. A fit never makes the error larger, so that it may be repeated.

use super::super::fast::{amax, round_within_as_float, vectorised};

/// Fractions of the step at which −8 meets the largest magnitude.
const OF_PEAK: [f32; 5] = [1.0, 0.87, 0.75, 0.65, 0.56];
/// Multiples of the root mean square.
const OF_RMS: [f32; 3] = [0.30, 0.335, 0.37];
/// How often the best step of a weight is fitted again.
const FITS: usize = 2;
/// A row of activations is searched on its way to the NPU: fewer steps, each a pass.
const OF_PEAK_QUICK: [f32; 2] = [1.0, 0.8];
const OF_RMS_QUICK: [f32; 1] = [0.335];

/// The scale of a weight's channel with the least squared error that was found; 1 for zeros, NaN when a value is not
/// finite. Its sign is such that the largest magnitude meets −8.
pub fn scale_weight(values: &[f32]) -> f32 {
    search(values, &OF_PEAK, &OF_RMS, FITS)
}

/// The same for a row of activations, by fewer passes.
pub fn scale_row(values: &[f32]) -> f32 {
    search(values, &OF_PEAK_QUICK, &OF_RMS_QUICK, 1)
}

fn search(values: &[f32], of_peak: &[f32], of_rms: &[f32], fits: usize) -> f32 {
    let peak = amax(values);
    if peak.is_nan() {
        return f32::NAN;
    }
    if peak < f32::MIN_POSITIVE * 256.0 {
        return 1.0;
    }
    // Divided by the peak first: squares of f32 values must not overflow or vanish.
    let rms = peak * (squares(values, 1.0 / peak) / values.len() as f32).sqrt();
    let sign = -signum_of(values, peak);
    let steps = of_peak.iter().map(|f| f * peak / 8.0).chain(of_rms.iter().map(|f| f * rms));
    let mut best = Fit { gain: 0.0, scale: sign * peak / 8.0 };
    for step in steps {
        best = best.better(fit(values, sign * step));
    }
    for _ in 0..fits {
        best = best.better(fit(values, best.scale));
    }
    best.scale
}

/// What a step's rounding explains of the values, and the scale that fits it.
#[derive(Clone, Copy)]
struct Fit {
    /// (Σv·q)² / Σq², in units of the step squared … of the values squared.
    gain: f32,
    scale: f32,
}

impl Fit {
    fn better(self, other: Self) -> Self {
        if other.gain > self.gain {
            other
        } else {
            self
        }
    }
}

/// Rounds with `step` and fits the scale to what came out.
fn fit(values: &[f32], step: f32) -> Fit {
    let (product, square) = products(values, 1.0 / step);
    if square == 0.0 {
        return Fit { gain: 0.0, scale: step };
    }
    // `product` is Σ(v/step)·q.
    let ratio = product / square;
    Fit { gain: product * ratio * step * step, scale: step * ratio }
}

vectorised! {
    /// Σ(v·inverse)·q and Σq² for q = v·inverse rounded to −8..=7.
    fn products(values: &[f32], inverse: f32) -> (f32, f32) = products_body
}

#[inline(always)]
fn products_body(values: &[f32], inverse: f32) -> (f32, f32) {
    let (mut products, mut squares) = ([0.0f32; 16], [0.0f32; 16]);
    let mut blocks = values.chunks_exact(16);
    for block in &mut blocks {
        for i in 0..16 {
            let value = block[i] * inverse;
            let q = round_within_as_float(value, -8, 7);
            products[i] += value * q;
            squares[i] += q * q;
        }
    }
    for (i, value) in blocks.remainder().iter().enumerate() {
        let value = value * inverse;
        let q = round_within_as_float(value, -8, 7);
        products[i] += value * q;
        squares[i] += q * q;
    }
    (products.iter().sum(), squares.iter().sum())
}

vectorised! {
    /// Σ(v·factor)².
    fn squares(values: &[f32], factor: f32) -> f32 = squares_body
}

#[inline(always)]
fn squares_body(values: &[f32], factor: f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    let mut blocks = values.chunks_exact(16);
    for block in &mut blocks {
        for i in 0..16 {
            lanes[i] += (block[i] * factor) * (block[i] * factor);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(blocks.remainder()) {
        *lane += (value * factor) * (value * factor);
    }
    lanes.iter().sum()
}

vectorised! {
    /// The sign of the first value of magnitude `peak`, of those that are there.
    pub(super) fn signum_of(values: &[f32], peak: f32) -> f32 = signum_of_body
}

#[inline(always)]
fn signum_of_body(values: &[f32], peak: f32) -> f32 {
    for block in values.chunks(16) {
        // All of a block at once, and only then which it is.
        let mut found = 0;
        for value in block {
            found |= u32::from(value.abs() == peak);
        }
        if found > 0 {
            return block.iter().find(|value| value.abs() == peak).map_or(1.0, |value| value.signum());
        }
    }
    1.0
}
