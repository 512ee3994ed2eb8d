//! How much of a weight its representation loses, by the weight's own numbers.

use rknn_sys::Element;

use super::rows::RowRoom;
use super::Source;
use crate::kernels::int4::Calibration;
use crate::kernels::rotate::Rotation;
use crate::plan::Segment;

/// Rows looked at, spread over the weight.
const ROWS_MAX: usize = 32;

/// The relative squared error of `source` stored as `element`s with a scale a row and segment: Σ(w − ŵ)² / Σw² over
/// some of its rows, on the rotated basis. It is the relative squared error of a product with activations that are as
/// large in every direction. 0 for a weight of zeros; `None` when a row is not finite.
pub fn relative_error(
    source: &Source,
    element: Element,
    rotation: Option<&Rotation>,
    segments: &[Segment],
    calibration: Calibration,
) -> Option<f64> {
    let mut room = RowRoom::new(calibration);
    let (mut error, mut power) = (0.0, 0.0);
    for n in (0..source.n).step_by(source.n.div_ceil(ROWS_MAX)) {
        room.load(source, n, rotation).ok()?;
        for segment in segments {
            let (of_segment, whole) = room.error(segment, element);
            error += of_segment;
            power += whole;
        }
    }
    Some(if power > 0.0 { error / power } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::rotate::Recipe;
    use ggml_sys::RowReader;

    fn error(element: Element, rotated: bool, value: impl Fn(usize) -> f32) -> f64 {
        let k = 576;
        let data: Vec<u8> = (0..k * 100).flat_map(|i| value(i).to_ne_bytes()).collect();
        let source = Source { data: &data, reader: RowReader::f32(), k, n: 100, row_stride: k * 4 };
        let rotation = rotated.then(|| Rotation::new(&Recipe::of(k)).unwrap());
        let segments = [Segment { start: 0, len: k, padded: k }];
        relative_error(&source, element, rotation.as_ref(), &segments, Calibration::default()).unwrap()
    }

    fn uniform(i: usize) -> f32 {
        let mut bits = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits >> 40) as f32 / 8_388_608.0 - 1.0
    }

    fn gaussian(i: usize) -> f32 {
        (0..12).map(|j| uniform(i * 12 + j)).sum()
    }

    #[test]
    fn errors_are_those_of_the_books() {
        // The best uniform quantiser of 16 levels for a Gaussian has 0.01154 (J. Max, 1960).
        let four_bits = error(Element::I4, false, gaussian);
        assert!((0.009..0.013).contains(&four_bits), "{four_bits}");
        // A step of a 127th of the largest of 576 (about 3.3 σ): 3.3²/(12·127²).
        let eight_bits = error(Element::I8, true, gaussian);
        assert!((3e-5..9e-5).contains(&eight_bits), "{eight_bits}");
        assert!(error(Element::F16, false, gaussian) < 1e-7);
        assert!(error(Element::I4, false, |i| (uniform(i) * 1.4).round()) < 1e-12, "ternary");
        assert_eq!(error(Element::I8, true, |_| 0.0), 0.0);
    }

    #[test]
    fn an_outlier_costs_less_when_it_is_rotated() {
        let outlier = |i: usize| if i % 576 == 3 { 50.0 } else { uniform(i) };
        // Relative to the row's power, most of which is the outlier's, so relative to the rest it is far more.
        assert!(error(Element::I8, true, outlier) < error(Element::I8, false, outlier) * 2.0);
        let flat = error(Element::I8, false, uniform);
        assert!(flat < error(Element::I8, true, uniform), "a flat row is better as it is");
    }

    #[test]
    fn a_nan_is_told() {
        let mut data: Vec<u8> = [1.0f32; 64].iter().flat_map(|value| value.to_ne_bytes()).collect();
        data[0..4].copy_from_slice(&f32::NAN.to_ne_bytes());
        let source = Source { data: &data, reader: RowReader::f32(), k: 32, n: 2, row_stride: 128 };
        let segments = [Segment { start: 0, len: 32, padded: 32 }];
        assert_eq!(relative_error(&source, Element::I8, None, &segments, Calibration::default()), None);
    }
}
