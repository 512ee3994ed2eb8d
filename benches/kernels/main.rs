//! The CPU's share of a product in GB/s, beside memcpy of as many bytes in the same run, on one and two threads.
//!
//! `cargo bench --bench kernels` ends with a table of all of them; a part of a name after `--` chooses some. Bytes
//! are those of the larger end: f32 rows going in or out, the weight's file, or the B of a product. Times are the best
//! of many, which on a machine that others use says more than their mean; criterion's own figures are the means.

mod dot;
mod rows;
mod table;
mod weights;

use criterion::Criterion;

use crate::table::Table;

fn main() {
    let mut criterion = Criterion::default().configure_from_args().without_plots();
    let mut table = Table::default();
    rows::into_native(&mut criterion, &mut table);
    rows::out_of_native(&mut criterion, &mut table);
    rows::tiles_out_of_native(&mut criterion, &mut table);
    weights::convert(&mut criterion, &mut table);
    dot::products(&mut criterion, &mut table);
    criterion.final_summary();
    print!("{table}");
}

/// Numbers in −1..1, the same in every run.
fn numbers(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0).collect()
}
