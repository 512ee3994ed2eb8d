//! Activations into native A, and native C into results, cut for the threads as the engine does: scales and
//! rotations by rows, A by its blocks of K, results by rows.

use criterion::Criterion;
use ggml_rknpu::kernels::fast::{amax, pack_a_f16, pack_a_i8, unpack_c_f32, unpack_c_i32, F16Scratch};
use ggml_rknpu::kernels::int4::{self, scale_planes, scale_row};
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
            let scales = scale(pool, &plain, rows, k, |row| scale_f16(amax(row)));
            blocks(pool, &plain, rows, k, &scales, &mut a, |rows, m, a| {
                pack_a_f16::<8>(rows, m, a, &mut F16Scratch::default());
            });
        });
        for (planes, goal) in [(1, None), (2, Some(4.0))] {
            // Nibbles, two to a byte of A.
            let mut a = vec![0u8; rows * planes * k.next_multiple_of(32) / 2];
            let to = if planes == 1 { "i4" } else { "two planes of i4" };
            table.measure(criterion, &format!("{rows} rows of {k} to {to}"), bytes, goal, |pool| {
                if planes == 1 {
                    let scales = scale(pool, &plain, rows, k, scale_row);
                    blocks(pool, &plain, rows, k, &scales, &mut a, int4::pack_a::<1>);
                } else {
                    let scales = scale(pool, &plain, rows, k, |row| scale_planes(amax(row)));
                    blocks(pool, &plain, rows, k, &scales, &mut a, |rows, m, a| {
                        int4::pack_a::<2>(rows, 2 * m, a)
                    });
                }
            });
        }
    }
}

fn quantize(pool: &ThreadPool, data: &[f32], rows: usize, k: usize, a: &mut [i8]) {
    let scales = scale(pool, data, rows, k, |row| scale_i8(amax(row)));
    blocks(pool, data, rows, k, &scales, a, pack_a_i8::<16>);
}

fn scale(pool: &ThreadPool, data: &[f32], rows: usize, k: usize, of: fn(&[f32]) -> f32) -> Vec<f32> {
    let mut scales = vec![0.0; rows];
    let chunk = rows.div_ceil(pool.current_num_threads());
    pool.install(|| {
        scales.par_chunks_mut(chunk).zip(data.par_chunks(chunk * k)).for_each(|(scales, rows)| {
            for (scale, row) in scales.iter_mut().zip(rows.chunks_exact(k)) {
                *scale = of(row);
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
    // What A has of 32 columns of all rows: a block or more of every type.
    let stored = a.len() / k.div_ceil(32);
    let chunk = k.div_ceil(pool.current_num_threads()).next_multiple_of(32);
    pool.install(|| {
        a.par_chunks_mut(chunk / 32 * stored).enumerate().for_each(|(index, a)| {
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
        let nibbles: Vec<i16> = floats.iter().chain(&floats).map(|value| (value * 3e4) as i16).collect();
        table.measure(criterion, &format!("{m}×{n} i16 results"), m * n * 4, Some(4.0), |pool| {
            let kernel =
                |c: &[i16], results: &Results, out: &mut [f32]| int4::unpack_c::<8>(c, 1, results, out);
            unpack(pool, &nibbles[..m * n], m, n, false, &mut out, kernel);
        });
        // Two rows of C make one of the results.
        table.measure(criterion, &format!("{m}×{n} results of two planes of i16"), m * n * 4, None, |pool| {
            let kernel = |c: &[i16], results: &Results, out: &mut [f32]| {
                int4::unpack_c::<8>(c, 2, &Results { m: 2 * results.m, ..*results }, out);
            };
            unpack(pool, &nibbles, m, n, false, &mut out, kernel);
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
