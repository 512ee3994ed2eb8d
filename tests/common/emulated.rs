//! The emulator, opened in the test's own process.

use std::path::PathBuf;
use std::sync::Arc;

use ggml_rknpu::chip::Chip;
use ggml_rknpu::engine::{Decode, Engine, NpuWeight, Request, Route, Wanted};
use ggml_rknpu::kernels::int4::Calibration;
use ggml_rknpu::mode::Mode;
use ggml_rknpu::observe::Stats;
use ggml_rknpu::policy::scheme::Scheme;
use ggml_rknpu::policy::Pipeline;
use ggml_rknpu::weights::Source;
use ggml_sys::RowReader;
use rknn_sys::Library;

/// The emulator: the one that `cargo xtask test` built, or the one beside this test.
pub fn emulator() -> Library {
    let beside = || {
        let here = std::env::current_exe().expect("a test has a path");
        here.parent().expect("in a folder").join("libnpu_emulator.so")
    };
    let path = std::env::var_os("GGML_RKNPU_TEST_EMULATOR").map_or_else(beside, PathBuf::from);
    Library::open(Some(&path)).expect("the emulator opens")
}

/// Numbers in −1..1, the same in every run.
pub fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

/// An engine with `cores` and so many threads.
pub fn engine(library: &Library, cores: [bool; 3], threads: usize, decode: Decode) -> (Engine, Arc<Stats>) {
    let chip = Chip::by_name(library.emulated_soc().unwrap()).unwrap();
    let mode = Mode { cores, ..Mode::believed(chip) };
    let stats = Arc::new(Stats::default());
    let mut engine = Engine::open(library, chip, &[0], |_| mode, &stats).unwrap();
    engine.set_threads(threads).unwrap();
    engine.set_route(Route::new(decode, false));
    (engine, stats)
}

/// How tests ask for a weight.
pub fn request(scheme: impl Into<Scheme>, layer: Option<u32>) -> Request {
    Request {
        wanted: Wanted::Scheme(scheme.into()),
        layer,
        is_alone: false,
        signs: None,
        calibration: Calibration::default(),
        keep: false,
        models: 0,
    }
}

/// A weight of rows of `k` elements, on the NPU as `pipeline`.
pub fn upload(engine: &mut Engine, pipeline: Pipeline, weight: &[f32], k: usize) -> NpuWeight {
    upload_of(engine, pipeline, weight, k, 0)
}

/// The same, of a model of so many bytes.
#[allow(dead_code)]
pub fn upload_of(
    engine: &mut Engine,
    pipeline: Pipeline,
    weight: &[f32],
    k: usize,
    models: usize,
) -> NpuWeight {
    let data: Vec<u8> = weight.iter().flat_map(|value| value.to_ne_bytes()).collect();
    let (n, reader) = (weight.len() / k, RowReader::f32());
    let request = Request { models, ..request(pipeline, Some(3)) };
    engine.upload(&Source { data: &data, reader, k, n, row_stride: k * 4 }, &request).unwrap()
}
