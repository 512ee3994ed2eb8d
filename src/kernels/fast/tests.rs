//! Each kernel against the plain loops of `scalar`, over random shapes, strides and values.

use proptest::prelude::*;

use super::super::scalar;
use super::*;

/// Values of every magnitude that a network has, zeros included.
fn values(len: usize) -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec(
        prop_oneof![4 => -8.0f32..8.0, 1 => Just(0.0f32), 1 => -1e-6f32..1e-6, 1 => -3e4f32..3e4],
        len,
    )
}

/// (rows, k, stride slack, extra rows of M, padding blocks, values)
fn tile() -> impl Strategy<Value = (usize, usize, usize, usize, usize, Vec<f32>)> {
    (1usize..20, 1usize..150, 0usize..5, 0usize..4, 0usize..3).prop_flat_map(
        |(rows, k, slack, extra, pad)| {
            (Just(rows), Just(k), Just(k + slack), Just(extra), Just(pad), values(rows * (k + slack)))
        },
    )
}

fn row_scales(activations: &[f32], stride: usize, rows: usize, k: usize, of: fn(f32) -> f32) -> Vec<f32> {
    (0..rows).map(|row| of(scalar::amax(&activations[row * stride..][..k]))).collect()
}

proptest! {
    #[test]
    fn amax_is_the_oracles(row in values(77)) {
        for len in [0, 1, 15, 16, 17, 77] {
            prop_assert_eq!(amax(&row[..len]), scalar::amax(&row[..len]));
        }
    }

    #[test]
    fn packing_i8_is_the_oracles((rows, k, stride, extra, pad, x) in tile()) {
        fn check<const BLOCK: usize>(rows: usize, k: usize, stride: usize, m: usize, pad: usize, x: &[f32]) {
            let scales = row_scales(x, stride, rows, k, scalar::scale_i8);
            let rows = &Rows { data: x, stride, rows, k, scales: &scales };
            let padded = k.next_multiple_of(BLOCK) + pad * BLOCK;
            let (mut want, mut got) = (vec![77i8; padded * m], vec![77i8; padded * m]);
            let first = m - rows.rows;
            scalar::pack_a(rows, BLOCK, (m, first), &mut want, scalar::quantize);
            let mut strips = Strips::new(&mut got, m * BLOCK, first * BLOCK..m * BLOCK);
            pack_a_i8::<BLOCK>(rows, &mut strips);
            assert_eq!(got, want);
            // Row-major is one block as long as the row.
            scalar::pack_a(rows, padded, (m, 0), &mut want, scalar::quantize);
            got.fill(77);
            pack_rows_i8(rows, &mut got[..rows.rows * padded]);
            assert_eq!(got[..rows.rows * padded], want[..rows.rows * padded]);
        }
        check::<16>(rows, k, stride, rows + extra, pad, &x);
        check::<8>(rows, k, stride, rows + extra, pad, &x);
    }

    #[test]
    fn packing_f16_is_the_oracles((rows, k, stride, extra, pad, x) in tile()) {
        fn check<const BLOCK: usize>(rows: usize, k: usize, stride: usize, m: usize, pad: usize, x: &[f32]) {
            let scales = row_scales(x, stride, rows, k, scalar::scale_f16);
            let rows = &Rows { data: x, stride, rows, k, scales: &scales };
            let padded = k.next_multiple_of(BLOCK) + pad * BLOCK;
            let (mut want, mut got) = (vec![77u16; padded * m], vec![77u16; padded * m]);
            let first = m - rows.rows;
            scalar::pack_a(rows, BLOCK, (m, first), &mut want, scalar::to_f16);
            let mut strips = Strips::new(&mut got, m * BLOCK, first * BLOCK..m * BLOCK);
            pack_a_f16::<BLOCK>(rows, &mut strips, &mut F16Scratch::default());
            assert_eq!(got, want);
            scalar::pack_a(rows, padded, (m, 0), &mut want, scalar::to_f16);
            got.fill(77);
            pack_rows_f16(rows, &mut got[..rows.rows * padded], &mut F16Scratch::default());
            assert_eq!(got[..rows.rows * padded], want[..rows.rows * padded]);
        }
        check::<8>(rows, k, stride, rows + extra, pad, &x);
        check::<4>(rows, k, stride, rows + extra, pad, &x);
    }

    #[test]
    fn unpacking_is_the_oracles(
        rows in 1usize..40, before in 0usize..3, columns in 1usize..70, slack in 0usize..4, accumulate: bool, seed: u32,
    ) {
        let m = rows + before + 1;
        let stride = columns + slack;
        let mut state = seed;
        let mut next = || { state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223); (state >> 8) as i32 - (1 << 23) };
        let c: Vec<i32> = (0..columns.next_multiple_of(4) * m).map(|_| next()).collect();
        let floats: Vec<f32> = c.iter().map(|v| *v as f32 / 777.0).collect();
        let row_scales: Vec<f32> = (0..rows).map(|_| next() as f32 * 1e-9).collect();
        let column_scales: Vec<f32> = (0..columns).map(|_| next() as f32 * 1e-9).collect();
        let start: Vec<f32> = (0..rows * stride).map(|i| i as f32).collect();

        let results = Results {
            m, row_start: before, rows, columns, row_scales: &row_scales, column_scales: &column_scales, accumulate, stride,
        };
        let padded = columns.next_multiple_of(4);
        type Kernel<T> = fn(&[T], &Results, &mut [f32]);
        for (block, kernel) in [(4, unpack_c_i32 as Kernel<i32>), (padded, unpack_rows_i32)] {
            let (mut want, mut got) = (start.clone(), start.clone());
            scalar::unpack_c(&c, block, &results, &mut want);
            kernel(&c, &results, &mut got);
            prop_assert_eq!(&got, &want);
        }
        for (block, kernel) in [(4, unpack_c_f32 as Kernel<f32>), (padded, unpack_rows_f32)] {
            let (mut want, mut got) = (start.clone(), start.clone());
            scalar::unpack_c(&floats, block, &results, &mut want);
            kernel(&floats, &results, &mut got);
            prop_assert_eq!(got, want);
        }
    }

    #[test]
    fn columns_land_where_the_index_formula_says(k in 1usize..200, pad in 0usize..2, bn in 1usize..33, column_seed: usize) {
        let bk = 32;
        let column = column_seed % bn;
        let padded = k.next_multiple_of(bk) + pad * bk;
        let values: Vec<i16> = (0..k).map(|i| i as i16 + 1).collect();
        let mut group = vec![-1i16; padded * bn];
        place_column(&values, column, bn, bk, &mut group);
        let mut want = vec![-1i16; padded * bn];
        for i in 0..padded {
            want[scalar::b_index(i, column, padded, bn, bk)] = values.get(i).copied().unwrap_or(0);
        }
        prop_assert_eq!(group, want);
    }

    /// Whatever the scale: halves, numbers far out of range and infinities, too.
    #[test]
    fn quantising_is_the_oracles(
        row in proptest::collection::vec(
            prop_oneof![
                Just(0.0f32), Just(-0.0), Just(f32::INFINITY), Just(f32::NEG_INFINITY), (-300i32..300).prop_map(|i| i as f32 / 2.0),
                -2e10f32..2e10, -140.0f32..140.0, prop::num::f32::NORMAL | prop::num::f32::SUBNORMAL,
            ],
            33,
        ),
        inverse in prop_oneof![Just(1.0f32), 1e-3f32..1e3],
    ) {
        let mut got = [77i8; 33];
        quantize(&row, inverse, &mut got);
        for (value, got) in row.iter().zip(got) {
            prop_assert_eq!(got, scalar::quantize(*value, inverse), "{} · {}", value, inverse);
        }
    }

    #[test]
    fn a_quantised_value_is_off_by_half_a_step_at_most(row in values(64)) {
        let scale = scalar::scale_i8(scalar::amax(&row));
        let mut quantized = vec![0i8; 64];
        quantize(&row, 1.0 / scale, &mut quantized);
        for (value, q) in row.iter().zip(quantized) {
            prop_assert!((value - f32::from(q) * scale).abs() <= scale * 0.5001, "{value} as {q} · {scale}");
        }
    }

    #[test]
    fn an_f16_scale_is_a_power_of_two_that_keeps_rows_in_range(exponent in -110i32..127, mantissa in 1.0f32..2.0) {
        let amax = mantissa * 2f32.powi(exponent);
        let scale = scalar::scale_f16(amax);
        prop_assert_eq!(scale.to_bits() & 0x7f_ffff, 0, "no digits");
        prop_assert!((128.0..256.0).contains(&(amax / scale)), "{amax} / {scale}");
    }
}

#[test]
fn non_finite_rows_are_told() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0, 15, 16, 30] {
            let mut row = [1.0f32; 31];
            row[place] = bad;
            assert!(amax(&row).is_nan() && scalar::amax(&row).is_nan());
        }
    }
    assert!(scalar::scale_i8(f32::NAN).is_nan() && scalar::scale_f16(f32::NAN).is_nan());
}

#[test]
fn rows_of_zeros_and_of_dust_give_zeros() {
    for tiny in [0.0, 1e-44, f32::MIN_POSITIVE] {
        assert_eq!(scalar::scale_i8(tiny), 1.0);
        assert_eq!(scalar::scale_f16(tiny), 1.0);
    }
}
