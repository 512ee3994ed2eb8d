//! Whether a weight gains from being rotated, by its own numbers.
//!
//! Rounding a row to 8 bits with one scale costs, relative to its power, crest²/(12·127²), where crest is the
//! ratio of its largest element to its root mean square. A rotated row is nearly Gaussian (crest² about 10 for 500
//! elements). Rows that are flatter than that, such as ternary or uniform ones, hold their values better as they
//! are; all others are rotated, if only for the sake of their activations, whose outliers are not known here.

use super::Source;
use crate::kernels::rotate::Rotation;

/// Rows looked at, spread over the weight.
const ROWS_MAX: usize = 64;
/// A weight stays unrotated when that costs at most this share of the rotated rows' error.
const CLEARLY_LESS: f64 = 0.5;

/// Whether `source` is rounded with less error, or not clearly with more, after `rotation`.
pub fn gains_from(source: &Source, rotation: &Rotation) -> bool {
    let mut row = vec![0.0; source.k];
    let (mut out, mut room) = (vec![0.0; rotation.width()], vec![0.0; rotation.width()]);
    let (mut plain, mut rotated) = (0.0, 0.0);
    for n in (0..source.n).step_by(source.n.div_ceil(ROWS_MAX)) {
        source.reader.read(source.row(n), &mut row);
        plain += crest_squared(&row);
        rotation.apply(&row, &mut out, &mut room);
        rotated += crest_squared(&out);
    }
    // With a NaN neither comparison holds, and the conversion will say so.
    plain >= CLEARLY_LESS * rotated
}

/// Largest square over mean square; 0 for a row of zeros.
fn crest_squared(row: &[f32]) -> f64 {
    let square = |value: &f32| f64::from(*value) * f64::from(*value);
    let sum: f64 = row.iter().map(square).sum();
    let largest = row.iter().map(square).fold(0.0, f64::max);
    if sum > 0.0 {
        largest * row.len() as f64 / sum
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::rotate::{Recipe, Signs};
    use ggml_sys::RowReader;

    fn gains(k: usize, value: impl Fn(usize) -> f32) -> bool {
        let data: Vec<u8> = (0..k * 100).flat_map(|i| value(i).to_ne_bytes()).collect();
        let source = Source { data: &data, reader: RowReader::f32(), k, n: 100, row_stride: k * 4 };
        let recipe = Recipe { k, layer: None, signs: Signs::Full, padded: false };
        gains_from(&source, &Rotation::new(&recipe).unwrap())
    }

    fn uniform(i: usize) -> f32 {
        ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0
    }

    #[test]
    fn flat_rows_stay_and_others_are_rotated() {
        assert!(!gains(576, uniform), "uniform");
        assert!(!gains(576, |i| (uniform(i) * 1.5).round()), "ternary");
        // The sum of twelve uniform numbers is nearly Gaussian, as trained weights are.
        assert!(gains(576, |i| (0..12).map(|j| uniform(i * 12 + j)).sum()), "Gaussian");
        assert!(gains(576, |i| if i % 576 == 3 { 50.0 } else { uniform(i) }), "an outlier");
    }
}
