//! Rows into A, spread over the CPU's threads when they are many.

use std::cell::RefCell;

use rknn_sys::Element;

use super::prepare::{chunk, PARALLEL_MIN};
use super::Activations;
use crate::kernels::fast::{self, F16Scratch};
use crate::kernels::int4;
use crate::kernels::scalar::{scale_f16, scale_i8};
use crate::kernels::Rows;
use crate::policy::Pipeline;
use crate::pool::Pool;

thread_local! {
    /// A thread's room for a row on its way to f16.
    static SCRATCH: RefCell<F16Scratch> = RefCell::default();
}

/// One scale a row, over `k` columns of the rows from the first element on.
fn scale(pool: &Pool, pipeline: Pipeline, rows: &Activations, k: usize, scales: &mut [f32]) {
    let scale = |row: &[f32]| match pipeline {
        Pipeline::W8A8 => scale_i8(fast::amax(row)),
        Pipeline::W4A8 => int4::scale_planes(fast::amax(row)),
        Pipeline::W4A4 => int4::scale_row(row),
        Pipeline::W4A16 | Pipeline::W8A16 | Pipeline::W16A16 => scale_f16(fast::amax(row)),
    };
    let size = chunk(rows.rows, pool.threads());
    chunks(pool, rows.rows * k, scales, size, |index, scales| {
        for (row, out) in scales.iter_mut().enumerate() {
            let start = (index * size + row) * rows.stride;
            *out = scale(&rows.data[start..start + k]);
        }
    });
}

/// Where a segment's rows go in A, and how they lie there.
pub struct Place {
    /// M of A, each plane's rows counted.
    pub m: usize,
    /// The row of A that the first of them becomes.
    pub first: usize,
    /// Elements of a native block; `None` for row-major A.
    pub block: Option<usize>,
}

/// Scales rows over one K segment, and packs them into `a`; `rows` begin at the segment's first column.
///
/// `None` for a block that there is no kernel for.
pub fn segment(
    pool: &Pool,
    pipeline: Pipeline,
    rows: &Activations,
    k: usize,
    scales: &mut [f32],
    place: &Place,
    a: &mut [u8],
) -> Option<()> {
    scale(pool, pipeline, rows, k, scales);
    let rows = Rows { data: rows.data, stride: rows.stride, rows: rows.rows, k, scales, first: place.first };
    pack(pool, pipeline, &rows, place.m, place.block, a)
}

/// Packs `rows`, over the columns of one K segment, into `a` (`m` × the segment's padded K, `m` counting each plane's
/// rows): in native blocks of `native_block` elements, or row-major.
///
/// `None` for a block that there is no kernel for.
fn pack(
    pool: &Pool,
    pipeline: Pipeline,
    rows: &Rows,
    m: usize,
    native_block: Option<usize>,
    a: &mut [u8],
) -> Option<()> {
    match (pipeline.dtype().a(), native_block, pipeline.planes()) {
        (Element::I8, Some(16), _) => blocks(pool, rows, m, (16, 16), a, fast::pack_a_i8::<16>),
        (Element::I8, Some(8), _) => blocks(pool, rows, m, (8, 8), a, fast::pack_a_i8::<8>),
        (Element::I8, None, _) => whole_rows(pool, rows, m, a, fast::pack_rows_i8),
        (Element::F16, Some(8), _) => blocks(pool, rows, m, (8, 8), a, with_scratch(fast::pack_a_f16::<8>)),
        (Element::F16, Some(4), _) => blocks(pool, rows, m, (4, 4), a, with_scratch(fast::pack_a_f16::<4>)),
        (Element::F16, None, _) => whole_rows(pool, rows, m, a, with_scratch(fast::pack_rows_f16)),
        // Two elements to each byte of A.
        (Element::I4, Some(32), 1) => blocks(pool, rows, m, (32, 16), a, int4::pack_a::<1>),
        (Element::I4, Some(32), _) => blocks(pool, rows, m, (32, 16), a, int4::pack_a::<2>),
        (Element::I4, None, planes) => {
            let bytes = a.len() / m;
            if planes == 1 {
                int4::pack_rows::<1>(rows, bytes, a);
            } else {
                int4::pack_rows::<2>(rows, bytes, a);
            }
        }
        _ => return None,
    }
    Some(())
}

/// Split along K: blocks of k are contiguous in native A, rows are not. A block of a row is `block` elements in
/// `stored` of `T`.
fn blocks<T: bytemuck::Pod + Send>(
    pool: &Pool,
    rows: &Rows,
    m: usize,
    (block, stored): (usize, usize),
    a: &mut [u8],
    kernel: impl Fn(&Rows, usize, &mut [T]) + Sync,
) {
    let a: &mut [T] = bytemuck::cast_slice_mut(a);
    let k_blocks = a.len() / m / stored;
    let blocks_chunk = chunk(k_blocks, pool.threads());
    let k_chunk = blocks_chunk * block;
    chunks(pool, rows.rows * rows.k, a, blocks_chunk * stored * m, |index, a| {
        let start = (index * k_chunk).min(rows.k);
        let k = k_chunk.min(rows.k - start);
        kernel(&Rows { data: &rows.data[start..], k, ..*rows }, m, a);
    });
}

/// Split by rows, which are contiguous in row-major A.
fn whole_rows<T: bytemuck::Pod + Send>(
    pool: &Pool,
    rows: &Rows,
    m: usize,
    a: &mut [u8],
    kernel: impl Fn(&Rows, usize, &mut [T]) + Sync,
) {
    let a: &mut [T] = bytemuck::cast_slice_mut(a);
    let padded = a.len() / m;
    let rows_chunk = chunk(rows.rows, pool.threads());
    let a = &mut a[..rows.rows * padded];
    chunks(pool, rows.rows * rows.k, a, rows_chunk * padded, |index, a| {
        let first = index * rows_chunk;
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
    pool: &Pool,
    elements: usize,
    data: &mut [T],
    size: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    if elements >= PARALLEL_MIN && data.len() > size {
        pool.chunks(data, size, work);
    } else {
        data.chunks_mut(size).enumerate().for_each(|(index, chunk)| work(index, chunk));
    }
}
