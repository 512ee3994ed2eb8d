//! Once a product is known, nothing is allocated and nothing is made for it. A test of its own, since allocations are
//! counted for the whole process.

use std::sync::atomic::Ordering::Relaxed;

use ggml_rknpu::engine::{Activations, Attention, Cached, Decode, Engine, Mask, Queries};
use ggml_rknpu::plan::AttentionShape;
use ggml_rknpu::policy::Pipeline;
use ggml_sys::RowReader;

mod common;
use common::emulated::{emulator, engine, numbers, upload};

/// Attention of so many positions, each of which every token sees.
fn attend(engine: &mut Engine, positions: usize, x: &[f32], out: &mut [f32]) {
    let (head, tokens, heads, kv_heads) = (64, 100, 4, 2);
    let shape = AttentionShape { head, value: head, tokens, heads, kv_heads, sequences: 1, positions };
    let cached = Cached {
        data: bytemuck::cast_slice(&x[..positions * kv_heads * head]),
        reader: RowReader::f32(),
        width: head,
        strides: [kv_heads * head * 4, head * 4, 0],
        halves: false,
    };
    // Something that has to be looked at.
    let mask: &[u16] = &[0x8000; 3000];
    let mask = Mask { data: mask, strides: [0, 0, 0], extents: [1, 1] };
    let mut attention = Attention {
        shape,
        queries: Queries { data: x, strides: [heads * head, head, 0] },
        keys: cached,
        values: cached,
        mask: Some(mask),
        sinks: None,
        scale: 0.125,
        softcap: 0.0,
        max_bias: 0.0,
        out,
    };
    assert!(engine.attend(&mut attention).unwrap());
}

#[test]
fn nothing_is_allocated_or_made_once_a_product_is_known() {
    let library = emulator();
    let (mut engine, stats) = engine(&library, [true; 3], 2, Decode::Npu);
    let k = 1536;
    let weights = [Pipeline::W8A8, Pipeline::W4A8, Pipeline::W16A16]
        .map(|pipeline| upload(&mut engine, pipeline, &numbers(1, k * 96), k));
    let x = numbers(2, k * 300);
    let mut out = vec![0.0; 96 * 300];
    let (mut attended, mut warm) = (vec![0.0; 100 * 4 * 64], vec![0.0; 100 * 4 * 64]);
    let mut round = |engine: &mut Engine, seed: usize| {
        for rows in [1, 8, 300] {
            for weight in &weights {
                // Other rows each time.
                let data = &x[seed..];
                let rows = rows.min(data.len() / k);
                engine.matmul(weight, Activations::new(data, k, rows), &mut out[..96 * rows]).unwrap();
            }
        }
        attend(engine, 2100 + 41 * seed, &x, &mut attended);
    };
    // Pieces of a few sizes serve all lengths of a cache: after these, each size has come at each place.
    for positions in (2049..3000).step_by(64).chain((2049..3000).step_by(64)) {
        attend(&mut engine, positions, &x, &mut warm);
    }
    (0..8).for_each(|seed| round(&mut engine, seed));
    let made = (stats.contexts_created.load(Relaxed), stats.threads_created.load(Relaxed), stats.fds.now());
    let before = ggml_rknpu::allocations();
    (8..16).for_each(|seed| round(&mut engine, seed));
    assert_eq!(ggml_rknpu::allocations(), before, "allocations");
    let now = (stats.contexts_created.load(Relaxed), stats.threads_created.load(Relaxed), stats.fds.now());
    assert_eq!(made, now, "contexts, threads, descriptors");
}
