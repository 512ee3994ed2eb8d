//! The engine in every mode, against an f64 oracle: whatever a board cannot do costs speed and leaves results right.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use ggml_rknpu::chip::Chip;
use ggml_rknpu::engine::{Activations, Engine, Request};
use ggml_rknpu::mode::Mode;
use ggml_rknpu::observe::Stats;
use ggml_rknpu::policy::scheme::{Rotate, Scheme};
use ggml_rknpu::policy::Pipeline;
use ggml_rknpu::weights::Source;
use ggml_sys::RowReader;
use rknn_sys::{Library, MatmulType};

mod common;
use common::emulated::{emulator, numbers, request};

const W8A8: Scheme = Scheme { pipeline: Pipeline::W8A8, rotate: Rotate::Auto };

/// The NMSE of a product in `mode` to the oracle, and the file descriptors that it held.
fn error_of(library: &Library, mode: Mode, scheme: Scheme, shape: (usize, usize), rows: usize) -> (f64, u64) {
    let (error, stats) = product(library, mode, &request(scheme, Some(3)), shape, rows);
    (error, stats.fds.peak())
}

/// The NMSE of a product with a weight that is asked for so, and what was counted.
fn product(
    library: &Library,
    mode: Mode,
    request: &Request,
    (k, n): (usize, usize),
    rows: usize,
) -> (f64, Arc<Stats>) {
    let chip = Chip::by_name(library.emulated_soc().unwrap()).unwrap();
    let stats = Arc::new(Stats::default());
    let mut engine = Engine::open(library, chip, &[0], |_| mode, &stats).unwrap();
    let (weight, x) = (numbers(1, k * n), numbers(2, k * rows));
    let data: Vec<u8> = weight.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let source = Source { data: &data, reader: RowReader::f32(), k, n, row_stride: k * 4 };
    let npu = engine.upload(&source, request).unwrap();
    let mut out = vec![f32::NAN; rows * n];
    engine.matmul(&npu, Activations::new(&x, k, rows), &mut out).unwrap();
    let (mut error, mut power) = (0.0, 0.0);
    for (row, out) in x.chunks(k).zip(out.chunks(n)) {
        for (column, got) in weight.chunks(k).zip(out) {
            let want: f64 = row.iter().zip(column).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            error += (f64::from(*got) - want).powi(2);
            power += want * want;
        }
    }
    (error / power, stats)
}

#[test]
fn every_mode_gives_right_results() {
    let library = emulator();
    let all = Mode::believed(Chip::by_name(library.emulated_soc().unwrap()).unwrap());
    let modes = [
        all,
        Mode { native_b: false, ..all },
        Mode { native_ac: false, ..all },
        Mode { native_b: false, native_ac: false, ..all },
        Mode { views: false, ..all },
        Mode { cores: [false, true, false], ..all },
        Mode { cores: [true, false, true], ..all },
        all.with(MatmulType::I8, false),
        Mode { native_b: false, native_ac: false, views: false, cores: [false, false, true], ..all },
    ];
    for mode in modes {
        for (pipeline, limit) in [
            (Pipeline::W16A16, 1e-6),
            (Pipeline::W8A8, 2e-4),
            (Pipeline::W4A8, 0.015),
            (Pipeline::W4A4, 0.03),
        ] {
            // Odd sizes; enough rows and elements for the threaded paths; K above one segment.
            for (k, n, rows) in [(70, 50, 3), (600, 200, 130), (8300, 40, 9)] {
                for rotate in [Rotate::Auto, Rotate::Full, Rotate::Off, Rotate::Padded] {
                    let (error, _) = error_of(&library, mode, Scheme { pipeline, rotate }, (k, n), rows);
                    assert!(
                        error < limit,
                        "{mode:?}, {pipeline:?} {rotate:?}, K={k}, N={n}, {rows} rows: NMSE {error}"
                    );
                }
            }
        }
    }
}

/// SmolLM2's down: a segment for each of three cores, where rows that weights of any width share come in two.
#[test]
fn rows_that_one_weight_has_are_cut_for_its_columns() {
    let library = emulator();
    let mode = Mode::believed(Chip::by_name(library.emulated_soc().unwrap()).unwrap());
    for (is_alone, runs) in [(true, 3), (false, 2)] {
        let rotated = Scheme { rotate: Rotate::Full, ..W8A8 };
        let request = Request { is_alone, ..request(rotated, Some(3)) };
        let (error, stats) = product(&library, mode, &request, (1536, 576), 512);
        assert!(error < 2e-4, "alone: {is_alone}, NMSE {error}");
        assert_eq!(stats.runs[Pipeline::W8A8.index()].load(Relaxed), runs, "alone: {is_alone}");
    }
}

#[test]
fn a_missing_8_bit_type_is_made_up_for_by_16_bits() {
    let library = emulator();
    let all = Mode::believed(Chip::by_name(library.emulated_soc().unwrap()).unwrap());
    let (error, _) = error_of(&library, all.with(MatmulType::I8, false), W8A8, (64, 64), 4);
    assert!(error < 1e-6, "NMSE {error} is not that of 16 bits");
}

#[test]
fn without_views_each_part_has_its_own_descriptor() {
    let library = emulator();
    let all = Mode::believed(Chip::by_name(library.emulated_soc().unwrap()).unwrap());
    let (_, with) = error_of(&library, all, W8A8, (64, 96), 1);
    let (_, without) = error_of(&library, Mode { views: false, ..all }, W8A8, (64, 96), 1);
    assert_eq!(without, with + 2, "three parts instead of one allocation");
}

#[test]
fn a_mode_that_cannot_run_anything_is_refused() {
    let library = emulator();
    let chip = Chip::by_name(library.emulated_soc().unwrap()).unwrap();
    let mode = Mode { types: Mode::NONE.types, ..Mode::believed(chip) };
    let error = Engine::open(&library, chip, &[0], |_| mode, &Arc::new(Stats::default())).err().unwrap();
    assert!(error.to_string().contains("no product came out right"), "{error}");
}

/// Four-bit sums have 16 bits, and the emulator saturates them as the chip does: no weight and no activation may get
/// there. Here nearly every weight has the magnitude 8, and so have nearly all nibbles of activations: the sums of
/// 512 products are at 32 736 of 32 767, and an element more would be too much.
#[test]
fn no_sum_saturates_at_the_worst() {
    let library = emulator();
    let chip = Chip::by_name(library.emulated_soc().unwrap()).unwrap();
    let mut engine =
        Engine::open(&library, chip, &[0], |_| Mode::believed(chip), &Arc::new(Stats::default())).unwrap();
    let (k, n) = (4096, 70);
    // A few sevens of the other sign: with them only one scale holds all values as they are.
    let levels = |i: usize| if i % 128 == 5 { -7.0f32 } else { 8.0 };
    // Columns of either sign.
    let weight: Vec<f32> =
        (0..k * n).map(|i| levels(i % k) / if i / k % 2 == 0 { 16.0 } else { -16.0 }).collect();
    let data: Vec<u8> = weight.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let source = Source { data: &data, reader: RowReader::f32(), k, n, row_stride: k * 4 };
    // The low nibble of 8 is −8; 119 is the largest magnitude, and each segment must hold one to set its scale.
    let low = |i: usize| if i % 512 == 7 { 119.0 } else { 8.0 };
    for (pipeline, x) in [
        (Pipeline::W4A4, (0..k).map(|i| 3.0 * levels(i + 64)).collect::<Vec<_>>()),
        (Pipeline::W4A4, (0..k).map(levels).collect()),
        (Pipeline::W4A8, (0..k).map(low).collect()),
        (Pipeline::W4A8, (0..k).map(|i| -low(i)).collect()),
    ] {
        let scheme = Scheme { pipeline, rotate: Rotate::Off };
        let npu = engine.upload(&source, &request(scheme, None)).unwrap();
        let mut out = vec![f32::NAN; n];
        engine.matmul(&npu, Activations::new(&x, k, 1), &mut out).unwrap();
        for (column, got) in weight.chunks(k).zip(&out) {
            let want: f64 = x.iter().zip(column).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let off = (f64::from(*got) - want).abs();
            assert!(off < want.abs() * 1e-5, "{pipeline:?}: {got}, not {want}");
        }
    }
}

/// Q, K and V have the same rows: they are rotated once. Other rows in the same place are not taken for them.
#[test]
fn rows_are_rotated_once_for_all_weights_that_share_them() {
    let library = emulator();
    let chip = Chip::by_name(library.emulated_soc().unwrap()).unwrap();
    let stats = Arc::new(Stats::default());
    let mut engine = Engine::open(&library, chip, &[0], |_| Mode::believed(chip), &stats).unwrap();
    let (k, n, rows) = (576, 64, 7);
    let data: Vec<u8> = numbers(1, k * n).iter().flat_map(|value| value.to_ne_bytes()).collect();
    let source = Source { data: &data, reader: RowReader::f32(), k, n, row_stride: k * 4 };
    let full = Scheme { pipeline: Pipeline::W8A8, rotate: Rotate::Full };
    let mut weight = |layer| engine.upload(&source, &request(full, Some(layer))).unwrap();
    let (q, v, of_next_layer) = (weight(0), weight(0), weight(1));
    let mut x = numbers(2, k * rows);
    let counted = |engine: &mut Engine, weight, x: &[f32]| {
        let mut out = vec![0.0; rows * n];
        engine.matmul(weight, Activations::new(x, k, rows), &mut out).unwrap();
        (stats.rows_rotated.load(Relaxed), stats.rows_shared.load(Relaxed), out)
    };
    let (rotated, shared, first) = counted(&mut engine, &q, &x);
    assert_eq!((rotated, shared), (7, 0));
    let (rotated, shared, second) = counted(&mut engine, &v, &x);
    assert_eq!((rotated, shared), (7, 7));
    assert_eq!(first, second);
    x[k] += 1.0;
    let (rotated, shared, third) = counted(&mut engine, &q, &x);
    assert_eq!((rotated, shared), (14, 7), "the host wrote other rows to the same place");
    assert_ne!(first, third);
    assert_eq!(counted(&mut engine, &of_next_layer, &x).0, 21, "a layer has signs of its own");
}

/// A product is right in whichever domain its weight lies.
#[test]
fn weights_of_another_domain_give_right_products() {
    let library = emulator();
    let chip = Chip::by_name(library.emulated_soc().unwrap()).unwrap();
    let mode = Mode::believed(chip);
    let mut engine = Engine::open(&library, chip, &[3], |_| mode, &Arc::new(Stats::default())).unwrap();
    let (k, n) = (64, 64);
    let weight = numbers(1, k * n);
    let data: Vec<u8> = weight.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let source = Source { data: &data, reader: RowReader::f32(), k, n, row_stride: k * 4 };
    let npu = engine.upload(&source, &request(Pipeline::W16A16, None)).unwrap();
    let x = numbers(2, k);
    let mut out = vec![f32::NAN; n];
    engine.matmul(&npu, Activations::new(&x, k, 1), &mut out).unwrap();
    for (column, got) in weight.chunks(k).zip(&out) {
        let want: f32 = x.iter().zip(column).map(|(a, b)| a * b).sum();
        assert!((got - want).abs() < 0.05, "{got}, not {want}");
    }
}
