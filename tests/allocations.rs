//! Once a product is known, nothing is allocated and nothing is made for it. A test of its own, since allocations are
//! counted for the whole process.

use std::sync::atomic::Ordering::Relaxed;

use ggml_rknpu::engine::{Activations, Decode, Engine};
use ggml_rknpu::policy::Pipeline;

mod common;
use common::emulated::{emulator, engine, numbers, upload};

#[test]
fn nothing_is_allocated_or_made_once_a_product_is_known() {
    let library = emulator();
    let (mut engine, stats) = engine(&library, [true; 3], 2, Decode::Npu);
    let k = 1536;
    let weights = [Pipeline::W8A8, Pipeline::W4A8, Pipeline::W16A16]
        .map(|pipeline| upload(&mut engine, pipeline, &numbers(1, k * 96), k));
    let x = numbers(2, k * 300);
    let mut out = vec![0.0; 96 * 300];
    let mut round = |engine: &mut Engine, seed: usize| {
        for rows in [1, 8, 300] {
            for weight in &weights {
                // Other rows each time.
                let data = &x[seed..];
                let rows = rows.min(data.len() / k);
                engine.matmul(weight, Activations::new(data, k, rows), &mut out[..96 * rows]).unwrap();
            }
        }
    };
    (0..4).for_each(|seed| round(&mut engine, seed));
    let made = (stats.contexts_created.load(Relaxed), stats.threads_created.load(Relaxed), stats.fds.now());
    let before = ggml_rknpu::allocations();
    (4..12).for_each(|seed| round(&mut engine, seed));
    assert_eq!(ggml_rknpu::allocations(), before, "allocations");
    let now = (stats.contexts_created.load(Relaxed), stats.threads_created.load(Relaxed), stats.fds.now());
    assert_eq!(made, now, "contexts, threads, descriptors");
}
