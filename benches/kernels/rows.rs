//! Activations into native A, and native C into results, cut for the threads as the engine does: scales and
//! rotations by rows, A by its blocks of K, results by rows.

use criterion::Criterion;
use ggml_rknpu::kernels::fast::{amax, pack_a_f16, pack_a_i8, unpack_c_f32, unpack_c_i32, F16Scratch};
use ggml_rknpu::kernels::rotate::{Recipe, Rotation, Signs};
use ggml_rknpu::kernels::scalar::{scale_f16, scale_i8};
use ggml_rknpu::kernels::{Results, Rows};
use rayon::prelude::*;
use rayon::ThreadPool;

use crate::numbers;
use crate::table::Table;

/// Row lengths of real models: 36·16, 12·128, two powers of two, 140·64.
const LENGTHS: [usize; 5] = [576, 1536, 2048, 4096, 8960];
/// Floats of a tile, about: 4 MiB.
const TILE: usize = 1 << 20;

/// Rows of `k`, as many as a tile of the engine has at most.
fn rows_of(k: usize) -> usize {
    (TILE / k).min(512)
}

/// Rows of f32: one scale a row, then A.
pub fn into_native(criterion: &mut Criterion, table: &mut Table) {
    for k in LENGTHS {
        let rows = rows_of(k);
        let (bytes, plain) = (rows * k * 4, numbers(rows * k));
        let mut a = vec![0i8; rows * k.next_multiple_of(32)];
        table.measure(criterion, &format!("{rows} rows of {k} to i8"), bytes, Some(4.0), |pool| {
            quantize(pool, &plain, rows, k, &mut a);
        });
        let rotation = Rotation::new(&Recipe { k, layer: None, signs: Signs::Full, padded: false });
        let (rotation, mut rotated) = (rotation.expect("an even length"), vec![0.0; rows * k]);
        table.measure(criterion, &format!("{rows} rows of {k} rotated to i8"), bytes, Some(1.5), |pool| {
            let chunk = rows.div_ceil(pool.current_num_threads()) * k;
            pool.install(|| {
                rotated.par_chunks_mut(chunk).zip(plain.par_chunks(chunk)).for_each(|(out, rows)| {
                    let mut room = vec![0.0; k];
                    for (out, row) in out.chunks_exact_mut(k).zip(rows.chunks_exact(k)) {
                        rotation.apply(row, out, &mut room);
                    }
                });
            });
            quantize(pool, &rotated, rows, k, &mut a);
        });
        let mut a = vec![0u16; rows * k.next_multiple_of(32)];
        table.measure(criterion, &format!("{rows} rows of {k} to f16"), bytes, Some(4.0), |pool| {
            let scales = scale(pool, &plain, rows, k, scale_f16);
            blocks(pool, &plain, rows, k, &scales, &mut a, |rows, m, a| {
                pack_a_f16::<8>(rows, m, a, &mut F16Scratch::default());
            });
        });
    }
}

fn quantize(pool: &ThreadPool, data: &[f32], rows: usize, k: usize, a: &mut [i8]) {
    let scales = scale(pool, data, rows, k, scale_i8);
    blocks(pool, data, rows, k, &scales, a, pack_a_i8::<16>);
}

fn scale(pool: &ThreadPool, data: &[f32], rows: usize, k: usize, of: fn(f32) -> f32) -> Vec<f32> {
    let mut scales = vec![0.0; rows];
    let chunk = rows.div_ceil(pool.current_num_threads());
    pool.install(|| {
        scales.par_chunks_mut(chunk).zip(data.par_chunks(chunk * k)).for_each(|(scales, rows)| {
            for (scale, row) in scales.iter_mut().zip(rows.chunks_exact(k)) {
                *scale = of(amax(row));
            }
        });
    });
    scales
}

fn blocks<T: Send>(
    pool: &ThreadPool,
    data: &[f32],
    rows: usize,
    k: usize,
    scales: &[f32],
    a: &mut [T],
    kernel: impl Fn(&Rows, usize, &mut [T]) + Sync,
) {
    let chunk = k.div_ceil(pool.current_num_threads()).next_multiple_of(32);
    pool.install(|| {
        a.par_chunks_mut(chunk * rows).enumerate().for_each(|(index, a)| {
            let start = (index * chunk).min(k);
            let data = &data[start..];
            kernel(&Rows { data, stride: k, rows, k: chunk.min(k - start), scales, first: 0 }, rows, a);
        });
    });
}

/// Sums of the NPU, times both scales, into rows.
pub fn out_of_native(criterion: &mut Criterion, table: &mut Table) {
    for n in LENGTHS {
        let m = rows_of(n);
        let floats = numbers(m * n);
        let integers: Vec<i32> = floats.iter().map(|value| (value * 1e6) as i32).collect();
        let mut out = vec![0.0; m * n];
        for accumulate in [false, true] {
            let adding = if accumulate { ", added up" } else { "" };
            let name = format!("{m}×{n} i32 results{adding}");
            table.measure(criterion, &name, m * n * 4, Some(4.0), |pool| {
                unpack(pool, &integers, m, n, accumulate, &mut out, unpack_c_i32);
            });
        }
        table.measure(criterion, &format!("{m}×{n} f32 results"), m * n * 4, Some(4.0), |pool| {
            unpack(pool, &floats, m, n, false, &mut out, unpack_c_f32);
        });
    }
}

fn unpack<T: Sync>(
    pool: &ThreadPool,
    c: &[T],
    m: usize,
    n: usize,
    accumulate: bool,
    out: &mut [f32],
    kernel: fn(&[T], &Results, &mut [f32]),
) {
    let (row_scales, column_scales) = (vec![0.5; m], vec![0.25; n]);
    let chunk = m.div_ceil(pool.current_num_threads()).next_multiple_of(8);
    pool.install(|| {
        out.par_chunks_mut(chunk * n).enumerate().for_each(|(index, out)| {
            let (row_start, rows) = (index * chunk, out.len() / n);
            let row_scales = &row_scales[row_start..row_start + rows];
            let column_scales = &column_scales;
            let results =
                Results { m, row_start, rows, columns: n, row_scales, column_scales, accumulate, stride: n };
            kernel(c, &results, out);
        });
    });
}
