//! Few rows times native B: how fast B is read, where it is larger than the caches next to a core.
//!
//! Bytes are those of B. Each four rows take a pass over it, so that sixteen rows are at best a quarter as fast. The
//! columns are cut for the threads.

use criterion::Criterion;
use ggml_rknpu::kernels::dot::{dot_f16, dot_i4, dot_i8, Dot};
use half::f16;
use rayon::prelude::*;
use rayon::ThreadPool;

use crate::numbers;
use crate::table::Table;

/// Bytes of B.
const BYTES: usize = 16 << 20;

/// Products of each type, in the blocks of RK3588 and with K as weights are cut.
pub fn products(criterion: &mut Criterion, table: &mut Table) {
    let integers: Vec<u8> = (0..BYTES as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let bytes: Vec<i8> = integers.iter().map(|byte| *byte as i8).collect();
    let halves: Vec<u16> = numbers(BYTES / 2).iter().map(|value| f16::from_f32(*value).to_bits()).collect();
    for m in [1, 4, 16] {
        let rows = if m == 1 { "1 row".to_owned() } else { format!("{m} rows") };
        // As long as what an NPU takes in a run, and as a segment of 4-bit weights.
        let (k, segment) = (4096, 512);
        let dot = Dot { m, row_start: 0, rows: m, k, a_block: 16, block_n: 32, block_k: 32, c_block: 4 };
        let n = BYTES / k;
        table.measure(criterion, &format!("{rows} times i8 B, {k}×{n}"), BYTES, None, |pool| {
            columns(pool, &bytes[..m * k], &bytes, n, &dot, dot_i8);
        });
        let n = BYTES * 2 / segment;
        let dot = Dot { k: segment, a_block: 32, block_n: 64, c_block: 8, ..dot };
        table.measure(criterion, &format!("{rows} times i4 B, {segment}×{n}"), BYTES, None, |pool| {
            columns(pool, &integers[..m * segment / 2], &integers, n, &dot, dot_i4);
        });
        let n = BYTES / 2 / k;
        let dot = Dot { k, a_block: 8, block_n: 16, c_block: 4, ..dot };
        table.measure(criterion, &format!("{rows} times f16 B, {k}×{n}"), BYTES, None, |pool| {
            columns(pool, &halves[..m * k], &halves, n, &dot, dot_f16);
        });
    }
}

fn columns<T: Sync, S: Default + Clone + Send>(
    pool: &ThreadPool,
    a: &[T],
    b: &[T],
    n: usize,
    dot: &Dot,
    kernel: fn(&[T], &[T], &Dot, &mut [S]),
) {
    let threads = pool.current_num_threads();
    let mut c = vec![S::default(); n * dot.m];
    pool.install(|| {
        let parts = b.par_chunks(b.len() / threads).zip(c.par_chunks_mut(n * dot.m / threads));
        parts.for_each(|(b, c)| kernel(a, b, dot, c));
    });
    std::hint::black_box(c);
}
