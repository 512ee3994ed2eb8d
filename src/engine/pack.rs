//! A tile's rows into A, spread over the CPU's threads when they are many.

use std::cell::RefCell;

use rayon::prelude::*;

use super::Activations;
use crate::kernels::fast::{self, F16Scratch};
use crate::kernels::rotate::Rotation;
use crate::kernels::Rows;
use crate::policy::Pipeline;

/// Below this many elements, waking the other threads costs more than they save.
const PARALLEL_MIN: usize = 32 * 1024;

thread_local! {
    /// A thread's room for a row on its way to f16.
    static SCRATCH: RefCell<F16Scratch> = RefCell::default();
    /// A thread's room for a row that is being rotated.
    static ROOM: RefCell<Vec<f32>> = RefCell::default();
}

/// The rows of a tile, rotated, one after the other into `out`.
pub fn rotate(pool: &rayon::ThreadPool, rotation: &Rotation, rows: &Activations, out: &mut [f32]) {
    let (k, width) = (rotation.k(), rotation.width());
    let rows_chunk = rows.rows.div_ceil(pool.current_num_threads().max(1));
    // A rotation is worth some ten passes over its row.
    chunks(pool, 8 * out.len(), out, rows_chunk * width, |chunk, out| {
        ROOM.with_borrow_mut(|room| {
            room.resize(width, 0.0);
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                let start = (chunk * rows_chunk + row) * rows.stride;
                rotation.apply(&rows.data[start..start + k], out, room);
            }
        });
    });
}

/// Packs `rows`, the rows of a tile over one K segment, into `a` (`m` × `padded` elements): in native blocks of
/// `native_block` elements, or row-major.
///
/// `None` for a block that there is no kernel for.
pub fn pack(
    pool: &rayon::ThreadPool,
    pipeline: Pipeline,
    rows: &Rows,
    m: usize,
    native_block: Option<usize>,
    a: &mut [u8],
) -> Option<()> {
    match (pipeline, native_block) {
        (Pipeline::W8A8, Some(16)) => blocks(pool, rows, m, 16, a, fast::pack_a_i8::<16>),
        (Pipeline::W8A8, Some(8)) => blocks(pool, rows, m, 8, a, fast::pack_a_i8::<8>),
        (Pipeline::W8A8, None) => whole_rows(pool, rows, m, a, fast::pack_rows_i8),
        (Pipeline::W16A16, Some(8)) => blocks(pool, rows, m, 8, a, with_scratch(fast::pack_a_f16::<8>)),
        (Pipeline::W16A16, Some(4)) => blocks(pool, rows, m, 4, a, with_scratch(fast::pack_a_f16::<4>)),
        (Pipeline::W16A16, None) => whole_rows(pool, rows, m, a, with_scratch(fast::pack_rows_f16)),
        _ => return None,
    }
    Some(())
}

/// Split along K: blocks of k are contiguous in native A, rows are not.
fn blocks<T: bytemuck::Pod + Send>(
    pool: &rayon::ThreadPool,
    rows: &Rows,
    m: usize,
    block: usize,
    a: &mut [u8],
    kernel: impl Fn(&Rows, usize, &mut [T]) + Sync,
) {
    let a: &mut [T] = bytemuck::cast_slice_mut(a);
    let k_blocks = a.len() / m / block;
    let k_chunk = k_blocks.div_ceil(pool.current_num_threads().max(1)) * block;
    chunks(pool, rows.rows * rows.k, a, k_chunk * m, |chunk, a| {
        let start = (chunk * k_chunk).min(rows.k);
        let k = k_chunk.min(rows.k - start);
        kernel(&Rows { data: &rows.data[start..], k, ..*rows }, m, a);
    });
}

/// Split by rows, which are contiguous in row-major A.
fn whole_rows<T: bytemuck::Pod + Send>(
    pool: &rayon::ThreadPool,
    rows: &Rows,
    m: usize,
    a: &mut [u8],
    kernel: impl Fn(&Rows, usize, &mut [T]) + Sync,
) {
    let a: &mut [T] = bytemuck::cast_slice_mut(a);
    let padded = a.len() / m;
    let rows_chunk = rows.rows.div_ceil(pool.current_num_threads().max(1));
    let a = &mut a[..rows.rows * padded];
    chunks(pool, rows.rows * rows.k, a, rows_chunk * padded, |chunk, a| {
        let first = chunk * rows_chunk;
        let count = a.len() / padded;
        let scales = &rows.scales[first..first + count];
        kernel(&Rows { data: &rows.data[first * rows.stride..], rows: count, scales, ..*rows }, padded, a);
    });
}

/// Gives a kernel its thread's room for a row.
fn with_scratch(
    kernel: impl Fn(&Rows, usize, &mut [u16], &mut F16Scratch) + Sync,
) -> impl Fn(&Rows, usize, &mut [u16]) + Sync {
    move |rows, m, a| SCRATCH.with_borrow_mut(|scratch| kernel(rows, m, a, scratch))
}

/// Calls `work(index, chunk)` for each chunk of `size` items, on the pool when there are `elements` enough.
pub fn chunks<T: Send>(
    pool: &rayon::ThreadPool,
    elements: usize,
    data: &mut [T],
    size: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    if elements >= PARALLEL_MIN && data.len() > size {
        pool.install(|| data.par_chunks_mut(size).enumerate().for_each(|(index, chunk)| work(index, chunk)));
    } else {
        data.chunks_mut(size).enumerate().for_each(|(index, chunk)| work(index, chunk));
    }
}
