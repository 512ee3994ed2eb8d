//! The root-mean-square norm of rows (B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv 1910.07467), with
//! the bits of llama.cpp's kernel: squares in f32, added up in f64 one after the other. There each sum waits for the one before;
//! here those of several rows go on side by side.
//!
//! Bytes of an element: 4 read for the sum; 4 read and 4 written, in the cache, for what it becomes.

use super::fast::vectorised;

/// Rows whose sums go on side by side: as many as an addition takes cycles, and more.
const SIDE_BY_SIDE: usize = 8;

vectorised! {
    /// Of each row of `k` elements, which are `stride` apart, 1 / √(mean of squares + `epsilon`), as many as there are `scales`.
    ///
    /// # Panics
    /// When there are fewer rows.
    pub fn rms_scales(rows: &[f32], stride: usize, k: usize, epsilon: f32, scales: &mut [f32]) = rms_scales_body
}

#[inline(always)]
fn rms_scales_body(rows: &[f32], stride: usize, k: usize, epsilon: f32, scales: &mut [f32]) {
    let mut groups = scales.chunks_exact_mut(SIDE_BY_SIDE);
    let mut first = 0;
    for scales in &mut groups {
        some_scales::<SIDE_BY_SIDE>(&rows[first * stride..], stride, k, epsilon, scales);
        first += SIDE_BY_SIDE;
    }
    for (index, scale) in groups.into_remainder().chunks_mut(1).enumerate() {
        some_scales::<1>(&rows[(first + index) * stride..], stride, k, epsilon, scale);
    }
}

/// The scales of the first rows, side by side.
#[inline(always)]
fn some_scales<const ROWS: usize>(rows: &[f32], stride: usize, k: usize, epsilon: f32, scales: &mut [f32]) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|index| &rows[index * stride..][..k]);
    let mut sums = [0.0; ROWS];
    for i in 0..k {
        for (sum, row) in sums.iter_mut().zip(&rows) {
            *sum += f64::from(row[i] * row[i]);
        }
    }
    for (scale, sum) in scales.iter_mut().zip(sums) {
        *scale = 1.0 / ((sum / k as f64) as f32 + epsilon).sqrt();
    }
}

vectorised! {
    /// `out` = each row, which are `stride` apart, times its scale, and times a factor for each column if there are any; rows of
    /// `out` have `k` elements, as many as there are `scales`.
    pub fn scale_rows(
        rows: &[f32],
        stride: usize,
        k: usize,
        scales: &[f32],
        factors: Option<&[f32]>,
        out: &mut [f32],
    ) = |rows: &[f32], stride: usize, k: usize, scales: &[f32], factors: Option<&[f32]>, out: &mut [f32]| {
        for ((index, scale), out) in scales.iter().enumerate().zip(out.chunks_exact_mut(k)) {
            let values = out.iter_mut().zip(&rows[index * stride..][..k]);
            match factors {
                Some(factors) => {
                    values.zip(factors).for_each(|((out, value), factor)| *out = value * scale * factor);
                }
                None => values.for_each(|(out, value)| *out = value * scale),
            }
        }
    }
}

vectorised! {
    /// The same of rows of `k` elements, one after the other, in their place.
    pub fn scale_in_place(rows: &mut [f32], k: usize, scales: &[f32], factors: Option<&[f32]>) =
        |rows: &mut [f32], k: usize, scales: &[f32], factors: Option<&[f32]>| {
            for (row, scale) in rows.chunks_exact_mut(k).zip(scales) {
                match factors {
                    Some(factors) => {
                        row.iter_mut().zip(factors).for_each(|(value, factor)| *value = *value * scale * factor);
                    }
                    None => row.iter_mut().for_each(|value| *value *= scale),
                }
            }
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_row_is_the_definitions_to_the_bit(
            k in 1usize..70, rows in 1usize..20, gap in 0usize..5, epsilon in 1e-6f32..1e-3,
            values in proptest::collection::vec(-1e3f32..1e3, 75 * 20),
        ) {
            let stride = k + gap;
            let values = &values[..(rows - 1) * stride + k];
            let mut scales = vec![0.0; rows];
            rms_scales(values, stride, k, epsilon, &mut scales);
            let (mut normed, mut product) = (vec![0.0; rows * k], vec![0.0; rows * k]);
            let factors: Vec<f32> = (0..k).map(|i| i as f32 - 3.5).collect();
            scale_rows(values, stride, k, &scales, None, &mut normed);
            scale_rows(values, stride, k, &scales, Some(&factors), &mut product);
            for row in 0..rows {
                let of = &values[row * stride..][..k];
                let mut sum = 0f64;
                for value in of {
                    sum += f64::from(value * value);
                }
                let scale = 1.0 / ((sum / k as f64) as f32 + epsilon).sqrt();
                for i in 0..k {
                    prop_assert_eq!(normed[row * k + i], of[i] * scale);
                    prop_assert_eq!(product[row * k + i], of[i] * scale * factors[i]);
                }
            }
            if gap == 0 {
                for (factors, want) in [(None, &normed), (Some(&factors[..]), &product)] {
                    let mut rows = values.to_vec();
                    scale_in_place(&mut rows, k, &scales, factors);
                    prop_assert_eq!(&rows, want);
                }
            }
        }
    }

    #[test]
    fn a_row_without_a_number_has_no_scale() {
        let mut scales = [0.0; 2];
        rms_scales(&[1.0, f32::NAN, 3.0, 4.0], 2, 2, 0.0, &mut scales);
        assert!(scales[0].is_nan());
        assert_eq!(scales[1], 1.0 / 12.5f32.sqrt());
    }
}
