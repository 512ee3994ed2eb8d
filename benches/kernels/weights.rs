//! A weight's way from Q8_0 to rotated 8 or 4 bits in native B.
//!
//! Without a host there is no dequantiser of its, and [`RowReader`] takes no other; so the weight is spread to f32
//! by a loop here, and read as such. What is measured is both, one after the other: a little more than the way of a
//! weight that is dequantised row by row.

use criterion::Criterion;
use ggml_rknpu::chip::Chip;
use ggml_rknpu::kernels::int4::Calibration;
use ggml_rknpu::kernels::rotate::{Recipe, Rotation};
use ggml_rknpu::plan::WeightPlan;
use ggml_rknpu::policy::Pipeline;
use ggml_rknpu::weights::{pack, Form, Source};
use ggml_sys::RowReader;
use half::f16;
use rayon::prelude::*;
use rknn_sys::Layout;

use crate::table::Table;

/// Bytes of a block of 32 elements: an f16 scale, then the elements.
const Q8_0: usize = 34;

/// (K, N) of weights of real models.
const SHAPES: [(usize, usize); 3] = [(576, 1536), (2048, 1024), (8960, 256)];

/// Weights from the file's bytes to B.
pub fn convert(criterion: &mut Criterion, table: &mut Table) {
    for (k, n) in SHAPES {
        let mut file = vec![0u8; k / 32 * n * Q8_0];
        for (index, block) in file.chunks_exact_mut(Q8_0).enumerate() {
            block[..2].copy_from_slice(&f16::from_f32(0.01 + index as f32 % 7.0).to_le_bytes());
            block[2..].iter_mut().enumerate().for_each(|(i, q)| *q = (index * 31 + i * 89) as u8);
        }
        let chip = Chip::by_name("rk3588").expect("a chip of ours");
        for (pipeline, goal) in [(Pipeline::W8A8, Some(0.3)), (Pipeline::W4A8, None)] {
            let dtype = pipeline.dtype();
            let plan = WeightPlan::new(chip, chip.cores, dtype, (k, n), pipeline.segment_max());
            let plan = plan.expect("a plan");
            let rotation = Rotation::new(&Recipe::of(k));
            let form = Form {
                plan: &plan,
                rotation: rotation.as_ref(),
                layout: Layout::Native,
                calibration: Calibration::default(),
            };
            let mut parts: Vec<Vec<Vec<u8>>> = Vec::new();
            for slice in &plan.slices {
                let segments = plan.segments.iter();
                parts.push(segments.map(|segment| vec![0u8; plan.part_bytes(slice, segment)]).collect());
            }
            let (mut rows, mut scales) = (vec![0u8; k * n * 4], vec![0.0; n * plan.segments.len()]);
            let name = format!("Q8_0 weight {k}×{n} to {}", pipeline.name());
            table.measure(criterion, &name, file.len(), goal, |pool| {
                pool.install(|| {
                    let blocks = rows.par_chunks_exact_mut(128).zip(file.par_chunks_exact(Q8_0));
                    blocks.with_min_len(1024).for_each(|(out, block)| dequantize(block, out));
                    let source = Source { data: &rows, reader: RowReader::f32(), k, n, row_stride: k * 4 };
                    for (slice, parts) in plan.slices.iter().zip(&mut parts) {
                        let mut parts: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
                        let columns = slice.start..slice.start + slice.len;
                        let mut scales: Vec<&mut [f32]> =
                            scales.chunks_mut(n).map(|scales| &mut scales[columns.clone()]).collect();
                        pack(&source, form, slice, &mut parts, &mut scales).expect("finite numbers");
                    }
                });
            });
        }
    }
}

/// A block of Q8_0 as native-endian f32.
fn dequantize(block: &[u8], out: &mut [u8]) {
    let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
    for (out, q) in out.chunks_exact_mut(4).zip(&block[2..]) {
        out.copy_from_slice(&(f32::from(*q as i8) * scale).to_ne_bytes());
    }
}
