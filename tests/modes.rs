//! The engine in every mode, against an f64 oracle: whatever a board cannot do costs speed and leaves results right.

use std::path::PathBuf;
use std::sync::Arc;

use ggml_rknpu::chip::Chip;
use ggml_rknpu::engine::{Activations, Engine, Request, Wanted};
use ggml_rknpu::mode::Mode;
use ggml_rknpu::observe::Stats;
use ggml_rknpu::policy::scheme::{Rotate, Scheme};
use ggml_rknpu::policy::Pipeline;
use ggml_rknpu::weights::Source;
use ggml_sys::RowReader;
use rknn_sys::{Library, MatmulType};

/// The emulator: the one that `cargo xtask test` built, or the one beside this test.
fn emulator() -> Library {
    let beside = || {
        let here = std::env::current_exe().expect("a test has a path");
        here.parent().expect("in a folder").join("libnpu_emulator.so")
    };
    let path = std::env::var_os("GGML_RKNPU_TEST_EMULATOR").map_or_else(beside, PathBuf::from);
    Library::open(Some(&path)).expect("the emulator opens")
}

const W8A8: Scheme = Scheme { pipeline: Pipeline::W8A8, rotate: Rotate::Auto };

fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// The NMSE of a product in `mode` to the oracle, and the file descriptors that it held.
fn error_of(
    library: &Library,
    mode: Mode,
    scheme: Scheme,
    (k, n): (usize, usize),
    rows: usize,
) -> (f64, u64) {
    let chip = Chip::by_name(library.emulated_soc().unwrap()).unwrap();
    let stats = Arc::new(Stats::default());
    let mut engine = Engine::open(library, chip, &[0], |_| mode, &stats).unwrap();
    let (weight, x) = (numbers(1, k * n), numbers(2, k * rows));
    let data: Vec<u8> = weight.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let source = Source { data: &data, reader: RowReader::f32(), k, n, row_stride: k * 4 };
    let npu = engine
        .upload(&source, &Request { wanted: Wanted::Scheme(scheme), layer: Some(3), signs: None })
        .unwrap();
    let mut out = vec![f32::NAN; rows * n];
    engine.matmul(&npu, Activations { data: &x, stride: k, rows }, &mut out).unwrap();
    let (mut error, mut power) = (0.0, 0.0);
    for (row, out) in x.chunks(k).zip(out.chunks(n)) {
        for (column, got) in weight.chunks(k).zip(out) {
            let want: f64 = row.iter().zip(column).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            error += (f64::from(*got) - want).powi(2);
            power += want * want;
        }
    }
    (error / power, stats.fds.peak())
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
