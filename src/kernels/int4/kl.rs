//! Scales of four bits by the Kullback-Leibler divergence of what is stored from what it stands for: the calibration
//! of rk-llama.cpp (after 2411.02530), here a channel at a time. Kept to be compared with least squares, which is
//! better: see `docs/quantisation.md`.

use super::super::fast::amax;
use super::scalar::quantize;
use super::scale::signum_of;

/// Bins of a histogram of magnitudes.
const BINS: usize = 128;
/// Steps tried: these shares of the one at which the largest magnitude meets −8.
const STEPS: usize = 16;
const SMALLEST: f32 = 0.4;

/// The scale whose stored values have the distribution most like the values'; 1 for zeros, NaN when one is not finite.
pub fn scale(values: &[f32]) -> f32 {
    let peak = amax(values);
    if peak.is_nan() {
        return f32::NAN;
    }
    if peak < f32::MIN_POSITIVE * 256.0 {
        return 1.0;
    }
    let sign = -signum_of(values, peak);
    let share = |step: usize| 1.0 - (1.0 - SMALLEST) * step as f32 / (STEPS - 1) as f32;
    let scales = (0..STEPS).map(|step| sign * share(step) * peak / 8.0);
    let divergences = scales.map(|scale| (divergence(values, peak, scale), scale));
    divergences.min_by(|(a, _), (b, _)| a.total_cmp(b)).map_or(1.0, |(_, scale)| scale)
}

/// Σ p·ln(p/q) over the bins of the values' magnitudes: p counts the values, q spreads each level's values evenly over
/// the bins that it stands for and that are not empty.
fn divergence(values: &[f32], peak: f32, scale: f32) -> f64 {
    let bin = |value: f32| ((value.abs() / peak * BINS as f32) as usize).min(BINS - 1);
    let mut p = [0.0f64; BINS];
    for value in values {
        p[bin(*value)] += 1.0;
    }
    let level = |bin: usize| {
        let middle = (bin as f32 + 0.5) / BINS as f32 * peak;
        usize::from(quantize(-middle, 1.0 / scale.abs()).unsigned_abs())
    };
    let (mut counts, mut filled) = ([0.0f64; 9], [0.0f64; 9]);
    for (index, count) in p.iter().enumerate().filter(|(_, count)| **count > 0.0) {
        counts[level(index)] += count;
        filled[level(index)] += 1.0;
    }
    // What is clamped is not where it was: the bins past the last level count as missing.
    let clipped = 8.5 * scale.abs();
    let total = values.len() as f64;
    let mut sum = 0.0;
    for (index, count) in p.iter().enumerate().filter(|(_, count)| **count > 0.0) {
        let q = if (index as f32 + 0.5) / BINS as f32 * peak > clipped {
            1e-3
        } else {
            counts[level(index)] / filled[level(index)]
        };
        sum += count / total * (count / q).ln();
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_that_hold_all_values_diverge_least() {
        // Multiples of a step: with it nothing is moved.
        let values: Vec<f32> = (0..800).map(|i| ((i * 7) % 16) as f32 - 8.0).collect();
        assert_eq!(scale(&values).abs(), 1.0);
        assert_eq!(scale(&[0.0; 8]), 1.0);
        assert!(scale(&[1.0, f32::NAN]).is_nan());
    }
}
