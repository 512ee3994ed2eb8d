//! Each four-bit kernel against the plain loops of `scalar`, over random shapes, strides and values.

use proptest::prelude::*;

use super::scale::scale_weight;
use super::*;

fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 8_388_608.0 - 1.0
    };
    // The sum of six uniform numbers is nearly Gaussian, as rotated rows are.
    (0..len).map(|_| (0..6).map(|_| uniform()).sum()).collect()
}

proptest! {
    #[test]
    fn packing_a_is_the_oracles(
        rows in 1usize..20, k in 1usize..200, slack in 0usize..5, extra in 0usize..4, pad in 0usize..3, split: bool, seed: u32,
    ) {
        let (stride, planes) = (k + slack, if split { 2 } else { 1 });
        let m = (rows + extra) * planes;
        let x = numbers(seed, rows * stride);
        let scales: Vec<f32> = (0..rows).map(|row| {
            let row = &x[row * stride..][..k];
            if split { scale_planes(super::super::scalar::amax(row)) } else { scale_row(row) }
        }).collect();
        let padded = k.next_multiple_of(32) + pad * 32;
        // The rows beyond those asked for are not written.
        let start = vec![0x77u8; padded * m / 2];
        for native in [true, false] {
            let (mut want, mut got) = (start.clone(), start.clone());
            let view = Rows { data: &x, stride, rows, k, scales: &scales };
            scalar::pack_a(&view, planes, if native { 32 } else { padded }, (m, extra), &mut want);
            // A row's bytes of a block, and from a block to the next.
            let row = if native { 16 } else { padded / 2 };
            let base = got.as_mut_ptr();
            // SAFETY: nobody else has the bytes; the planes' rows are not the same.
            let plane = |low: usize| unsafe {
                Strips::shared(base, got.len(), m * row, (low + extra) * row..(low + extra + rows) * row)
            };
            match (native, planes) {
                (true, 1) => pack_a::<1>(&view, &mut [plane(0)]),
                (true, _) => pack_a::<2>(&view, &mut [plane(0), plane(m / 2)]),
                (false, 1) => pack_rows::<1>(&view, [plane(0).get(0)]),
                (false, _) => pack_rows::<2>(&view, [plane(0).get(0), plane(m / 2).get(0)]),
            }
            prop_assert_eq!(got, want, "native {}", native);
        }
    }

    #[test]
    fn unpacking_is_the_oracles(
        rows in 1usize..20, before in 0usize..3, columns in 1usize..70, slack in 0usize..4, accumulate: bool, split: bool, seed: u32,
    ) {
        let planes = if split { 2 } else { 1 };
        let m = (rows + before + 1) * planes;
        let stride = columns + slack;
        let mut state = seed;
        let mut next = || { state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223); (state >> 16) as i16 };
        let c: Vec<i16> = (0..columns.next_multiple_of(8) * m).map(|_| next()).collect();
        let row_scales: Vec<f32> = (0..rows).map(|_| f32::from(next()) * 1e-6).collect();
        let column_scales: Vec<f32> = (0..columns).map(|_| f32::from(next()) * 1e-6).collect();
        let start: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();
        let results = Results {
            m, row_start: before, rows, columns, row_scales: &row_scales, column_scales: &column_scales, accumulate, stride,
        };
        type Kernel = fn(&[i16], usize, &Results, &mut [f32]);
        let padded = columns.next_multiple_of(8);
        for (block, kernel) in [(8, unpack_c::<8> as Kernel), (4, unpack_c::<4>), (padded, unpack_rows)] {
            let (mut want, mut got) = (start.clone(), start.clone());
            scalar::unpack_c(&c, planes, block, &results, &mut want);
            kernel(&c, planes, &results, &mut got);
            prop_assert_eq!(got, want, "blocks of {}", block);
        }
    }

    #[test]
    fn nibbles_are_what_was_quantised(len in 1usize..100, seed: u32, scale in 0.01f32..2.0) {
        let x = numbers(seed, len);
        let mut values = vec![0i8; len];
        quantize(&x, 1.0 / scale, &mut values);
        let want: Vec<i8> = x.iter().map(|value| scalar::quantize(*value, 1.0 / scale)).collect();
        prop_assert_eq!(&values, &want);
        let mut bytes = vec![0u8; len.div_ceil(2)];
        pack_nibbles(&values, &mut bytes);
        for (i, value) in want.iter().enumerate() {
            prop_assert_eq!(scalar::nibble(&bytes, i), *value);
        }
        prop_assert_eq!(sum_of_magnitudes(&values), want.iter().map(|value| u32::from(value.unsigned_abs())).sum::<u32>());
    }

    #[test]
    fn planes_are_the_whole_number(value in -200.0f32..200.0) {
        let (high, low) = scalar::split(value, 1.0);
        let whole = 16 * i32::from(high) + i32::from(low);
        prop_assert!((-7..=7).contains(&high) && (-8..=7).contains(&low));
        prop_assert!((whole as f32 - value.clamp(-Q8_MAX, Q8_MAX)).abs() <= 0.5);
    }

    /// No step of a fine grid is clearly better than the one found; of few values one may be by luck, a little.
    #[test]
    fn scales_are_near_the_best_of_a_grid(len in 32usize..600, seed: u32, magnitude in -30i32..30, heavy: bool) {
        let mut x = numbers(seed, len);
        x.iter_mut().for_each(|value| *value *= 2f32.powi(magnitude) * if heavy { value.abs() } else { 1.0 });
        let peak = super::super::scalar::amax(&x);
        let grid = (1..=200).flat_map(|i| [1.0, -1.0].map(|sign| sign * peak / 8.0 * i as f32 / 160.0));
        let best = grid.map(|scale| scalar::error(&x, scale)).fold(f64::INFINITY, f64::min);
        let power: f64 = x.iter().map(|value| f64::from(*value).powi(2)).sum();
        let found = scalar::error(&x, scale_weight(&x));
        prop_assert!(found <= best * 1.25 + power * 2e-3, "{found} where {best} is possible, of {power}");
        let quick = scalar::error(&x, scale_row(&x));
        prop_assert!(quick <= best * 1.6 + power * 2e-3, "{quick} where {best} is possible, of {power}");
    }
}

#[test]
fn all_sixteen_levels_are_used() {
    // Multiples of −8..=7 have no error at all, with either sign.
    for sign in [1.0, -1.0] {
        let x: Vec<f32> = (-8..=7).map(|q| sign * 0.37 * q as f32).collect();
        assert!(scalar::error(&x, scale_weight(&x)) < 1e-9, "sign {sign}");
    }
}

#[test]
fn rows_without_a_scale_are_told() {
    assert_eq!((scale_weight(&[0.0; 40]), scale_row(&[1e-44; 40])), (1.0, 1.0));
    for bad in [f32::NAN, f32::INFINITY] {
        let mut row = [1.0f32; 40];
        row[17] = bad;
        assert!(scale_weight(&row).is_nan() && scale_row(&row).is_nan());
    }
    assert!(scale_planes(f32::NAN).is_nan());
}

#[test]
fn the_largest_sums_fit_sixteen_bits() {
    // The worst that the bound lets through, against the worst nibbles of an activation.
    let weights = WEIGHT_SUM_MAX as i32;
    assert!(weights * 8 <= i32::from(i16::MAX) && -weights * 8 >= i32::from(i16::MIN));
    assert!((weights + 1) * 8 > i32::from(i16::MAX), "the bound is as wide as it can be");
}
