//! The emulator, opened in the test's own process.

use std::path::PathBuf;

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
