//! Activations into native A, and native C into results, cut for the threads as the engine does: by rows.

use criterion::Criterion;
use ggml_rknpu::kernels::fast::{amax, pack_a_f16, pack_a_i8, unpack_c_f32, unpack_c_i32, F16Scratch};
use ggml_rknpu::kernels::int4::{self, scale_planes, scale_row};
use ggml_rknpu::kernels::rotate::{Recipe, Rotation};
use ggml_rknpu::kernels::scalar::{scale_f16, scale_i8};
use ggml_rknpu::kernels::{Results, Rows, Strips};
use rayon::prelude::*;
use rayon::ThreadPool;

use crate::numbers;
use crate::table::Table;

/// Row lengths of real models: 36·16, 12·128, two powers of two, 20·28·16.
const LENGTHS: [usize; 5] = [576, 1536, 2048, 4096, 8960];
/// Floats of a tile, about: 4 MiB.
const TILE: usize = 1 << 20;

/// Rows of `k`, as many as a tile of the engine has at most.
fn rows_of(k: usize) -> usize {
    (TILE / k).min(512)
}

/// Rows that a thread takes at a time, as the engine has it.
const ROWS: usize = 4;
/// Rows and columns of a tile of C, as the engine has them.
const TILE_OF_C: [usize; 2] = [256, 64];

/// Rows of f32: rotated or not, one scale a row, then A.
pub fn into_native(criterion: &mut Criterion, table: &mut Table) {
    for k in LENGTHS {
        let rows = rows_of(k);
        let (bytes, plain) = (rows * k * 4, numbers(rows * k));
        let padded = k.next_multiple_of(32);
        let rotation = Rotation::new(&Recipe::of(k));
        // As long as the engine's, where rows are long.
        let block = [(4096, 1024), (8960, 1280)].into_iter().find(|(of, _)| *of == k).map(|(_, block)| block);
        let blocks = block.and_then(|block| Rotation::new(&Recipe { block: Some(block), ..Recipe::of(k) }));
        let whole = (rotation, " rotated", 1.5);
        let blocks = blocks.map(|blocks| (Some(blocks), " rotated in blocks", 1.5));
        for (rotation, how, goal) in [(None, "", 4.0), whole].into_iter().chain(blocks) {
            let mut a = vec![0i8; rows * padded];
            table.measure(criterion, &format!("{rows} rows of {k}{how} to i8"), bytes, Some(goal), |pool| {
                let scale = |row: &[f32]| scale_i8(amax(row));
                RowsIn { data: &plain, rows, k, rotation: rotation.as_ref() }.pack(
                    pool,
                    scale,
                    16,
                    &mut a,
                    |rows, [a]| pack_a_i8::<16>(rows, a),
                );
            });
        }
        let mut a = vec![0u16; rows * padded];
        table.measure(criterion, &format!("{rows} rows of {k} to f16"), bytes, Some(4.0), |pool| {
            let scale = |row: &[f32]| scale_f16(amax(row));
            RowsIn { data: &plain, rows, k, rotation: None }.pack(pool, scale, 8, &mut a, |rows, [a]| {
                pack_a_f16::<8>(rows, a, &mut F16Scratch::default());
            });
        });
        // Nibbles, two to a byte of A.
        let mut a = vec![0u8; rows * padded];
        table.measure(criterion, &format!("{rows} rows of {k} to i4"), bytes, None, |pool| {
            let half = rows * padded / 2;
            RowsIn { data: &plain, rows, k, rotation: None }.pack(
                pool,
                scale_row,
                16,
                &mut a[..half],
                int4::pack_a::<1>,
            );
        });
        table.measure(
            criterion,
            &format!("{rows} rows of {k} to two planes of i4"),
            bytes,
            Some(4.0),
            |pool| {
                let scale = |row: &[f32]| scale_planes(amax(row));
                RowsIn { data: &plain, rows, k, rotation: None }.pack(
                    pool,
                    scale,
                    16,
                    &mut a,
                    int4::pack_a::<2>,
                );
            },
        );
    }
}

/// `rows` rows of `k`.
struct RowsIn<'a> {
    data: &'a [f32],
    rows: usize,
    k: usize,
    rotation: Option<&'a Rotation>,
}

impl RowsIn<'_> {
    /// Each group of rows rotated, scaled and packed by one thread. A has `stored` elements of a row in a block of each
    /// plane.
    fn pack<T: Send, const PLANES: usize>(
        &self,
        pool: &ThreadPool,
        scale: impl Fn(&[f32]) -> f32 + Sync,
        stored: usize,
        a: &mut [T],
        kernel: impl Fn(&Rows, &mut [Strips<T>; PLANES]) + Sync,
    ) {
        let (k, block, len) = (self.k, self.rows * PLANES * stored, a.len());
        let base = a.as_mut_ptr() as usize;
        let groups = self.data.par_chunks(ROWS * k).enumerate();
        let work = |(room, scratch): &mut (Vec<f32>, Vec<f32>), (index, data): (usize, &[f32])| {
            let mut data = data;
            if let Some(rotation) = self.rotation {
                for (row, out) in data.chunks_exact(k).zip(room.chunks_exact_mut(k)) {
                    rotation.apply(row, out, scratch);
                }
                data = &room[..data.len()];
            }
            let mut scales = [0.0; ROWS];
            for (row, out) in data.chunks_exact(k).zip(&mut scales) {
                *out = scale(row);
            }
            let (first, rows) = (index * ROWS, data.len() / k);
            let mut a = std::array::from_fn(|plane| {
                let first = plane * self.rows + first;
                // SAFETY: A outlives this; each thread has other rows.
                unsafe { Strips::shared(base as *mut T, len, block, first * stored..(first + rows) * stored) }
            });
            kernel(&Rows { data, stride: k, rows, k, scales: &scales[..rows] }, &mut a);
        };
        pool.install(|| groups.for_each_init(|| (vec![0.0; ROWS * k], vec![0.0; k]), work));
    }
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

/// Sums of several segments, of rows as long as a feed-forward block's, tile by tile into a thread's room, as the engine reads
/// what it makes something of. The bytes are those of C: more than caches hold.
pub fn tiles_out_of_native(criterion: &mut Criterion, table: &mut Table) {
    let numbers = numbers(3 * TILED.0 * TILED.1);
    let integers: Vec<i32> = numbers.iter().map(|value| (value * 1e6) as i32).collect();
    by_tiles(criterion, table, "i32", &integers[..2 * TILED.0 * TILED.1], unpack_c_i32);
    let nibbles: Vec<i16> = numbers.iter().map(|value| (value * 3e4) as i16).collect();
    let kernel = |c: &[i16], results: &Results, out: &mut [f32]| int4::unpack_c::<8>(c, 1, results, out);
    by_tiles(criterion, table, "i16", &nibbles, kernel);
}

/// Rows and columns of what is read by tiles.
const TILED: (usize, usize) = (512, 8960);

fn by_tiles<T: Sync>(
    criterion: &mut Criterion,
    table: &mut Table,
    of: &str,
    c: &[T],
    kernel: fn(&[T], &Results, &mut [f32]),
) {
    let [height, width] = TILE_OF_C;
    let (m, n) = TILED;
    let (row_scales, column_scales) = (vec![0.5; m], vec![0.25; n]);
    let name = format!("{m}×{n} {of} results of {} segments by tiles", c.len() / m / n);
    table.measure(criterion, &name, size_of_val(c), Some(4.0), |pool| {
        let work = |room: &mut Vec<f32>, tile: usize| {
            let (row_start, column) = (tile % (m / height) * height, tile / (m / height) * width);
            for (segment, c) in c.chunks_exact(m * n).enumerate() {
                let results = Results {
                    m,
                    row_start,
                    rows: height,
                    columns: width,
                    row_scales: &row_scales[row_start..row_start + height],
                    column_scales: &column_scales[column..column + width],
                    accumulate: segment > 0,
                    stride: width,
                };
                kernel(&c[column * m..], &results, room);
            }
        };
        let room = || vec![0.0; height * width];
        pool.install(|| (0..m * n / height / width).into_par_iter().for_each_init(room, work));
    });
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
