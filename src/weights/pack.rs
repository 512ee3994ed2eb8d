//! Rows of a weight into the parts of native B.

use half::f16;
use rayon::prelude::*;
use rknn_sys::Layout;

use super::Source;
use crate::kernels::fast::{amax, place_column, quantize, F16Scratch};
use crate::kernels::rotate::Rotation;
use crate::kernels::scalar::{scale_f16, scale_i8};
use crate::plan::{Segment, Slice, WeightPlan};
use crate::policy::Pipeline;

/// Why a weight has no form on the NPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Infinities or NaNs: only the CPU's arithmetic is defined for them.
    #[error("it holds infinities or NaNs")]
    NotFinite,
}

/// One thread's room for a row.
#[derive(Default)]
struct Scratch {
    row: Vec<f32>,
    rotated: Vec<f32>,
    rotation: Vec<f32>,
    quantized: Vec<i8>,
    halves: F16Scratch,
}

/// A converted column of B, along k.
enum Column<'a> {
    I8(&'a [i8]),
    F16(&'a [u16]),
}

impl Scratch {
    /// Reads row `n` of the source, rotates it and converts the segment's part of it; the scale is the whole row's.
    fn column(&mut self, source: &Source, n: usize, part: &Part) -> Result<(f32, Column<'_>), PackError> {
        let segment = part.segment;
        self.row.resize(source.k, 0.0);
        source.reader.read(source.row(n), &mut self.row);
        let mut row = &self.row;
        if let Some(rotation) = part.rotation {
            self.rotated.resize(rotation.width(), 0.0);
            self.rotation.resize(rotation.width(), 0.0);
            // An infinity or a NaN spreads, so that it is found below all the same.
            rotation.apply(row, &mut self.rotated, &mut self.rotation);
            row = &self.rotated;
        }
        let largest = amax(row);
        if largest.is_nan() {
            return Err(PackError::NotFinite);
        }
        let values = &row[segment.start..segment.start + segment.len];
        Ok(match part.pipeline {
            Pipeline::W8A8 => {
                let scale = scale_i8(largest);
                self.quantized.resize(values.len(), 0);
                quantize(values, 1.0 / scale, &mut self.quantized);
                (scale, Column::I8(&self.quantized))
            }
            Pipeline::W16A16 => {
                let scale = if exact_in_f16(largest) { 1.0 } else { scale_f16(largest) };
                (scale, Column::F16(self.halves.convert(values, 1.0 / scale)))
            }
        })
    }
}

/// Which part of a weight is converted, and how it is to lie.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// How the weight was cut.
    pub plan: &'a WeightPlan,
    /// Its representation.
    pub pipeline: Pipeline,
    /// What its rows, and those of its activations, are rotated by.
    pub rotation: Option<&'a Rotation>,
    /// Native or row-major (K×N).
    pub layout: Layout,
    /// The part's columns.
    pub slice: &'a Slice,
    /// The part's k.
    pub segment: &'a Segment,
}

/// Converts one part into `out` and the scales of its columns.
///
/// `out` is `plan.part_bytes(slice, segment)` bytes, aligned to 2; `scales` gets `slice.len` values, the same for
/// each segment, with weight ≈ scale · stored; padding is zero. Blocks of native columns are spread over the
/// current rayon pool; a row-major part, whose columns interleave, is done by the caller.
///
/// # Errors
/// [`PackError::NotFinite`]; `out` is then unspecified.
pub fn pack(source: &Source, part: Part, out: &mut [u8], scales: &mut [f32]) -> Result<(), PackError> {
    match part.layout {
        Layout::Native => pack_native(source, part, out, scales),
        Layout::Norm => pack_rows(source, part, out, scales),
    }
}

fn pack_native(source: &Source, part: Part, out: &mut [u8], scales: &mut [f32]) -> Result<(), PackError> {
    let Part { plan, slice, segment, .. } = part;
    let (block_n, block_k) = (plan.limits.b_block_n, plan.limits.b_block_k);
    let group_bytes = segment.padded * block_n * plan.element_bytes();
    // The last group or groups may have no column of the matrix: they get zeros and no scales.
    let mut scale_blocks: Vec<&mut [f32]> = scales.chunks_mut(block_n).collect();
    scale_blocks.resize_with(slice.padded / block_n, Default::default);
    let groups = out.par_chunks_exact_mut(group_bytes).zip(scale_blocks).enumerate();
    groups.try_for_each_init(Scratch::default, |scratch, (index, (group, scales))| {
        if scales.len() < block_n {
            group.fill(0);
        }
        for (column, scale) in scales.iter_mut().enumerate() {
            let n = slice.start + index * block_n + column;
            let (found, values) = scratch.column(source, n, &part)?;
            *scale = found;
            match values {
                Column::I8(values) => {
                    place_column(values, column, block_n, block_k, bytemuck::cast_slice_mut(group));
                }
                Column::F16(values) => {
                    place_column(values, column, block_n, block_k, bytemuck::cast_slice_mut(group));
                }
            }
        }
        Ok(())
    })
}

fn pack_rows(source: &Source, part: Part, out: &mut [u8], scales: &mut [f32]) -> Result<(), PackError> {
    let mut scratch = Scratch::default();
    out.fill(0);
    for (column, scale) in scales.iter_mut().enumerate() {
        let n = part.slice.start + column;
        let (found, values) = scratch.column(source, n, &part)?;
        *scale = found;
        match values {
            Column::I8(values) => {
                place_row_major(values, column, part.slice.padded, bytemuck::cast_slice_mut(out));
            }
            Column::F16(values) => {
                place_row_major(values, column, part.slice.padded, bytemuck::cast_slice_mut(out));
            }
        }
    }
    Ok(())
}

/// Puts a column into row-major B with rows of `padded` elements.
fn place_row_major<T: Copy>(values: &[T], column: usize, padded: usize, out: &mut [T]) {
    for (row, value) in out.chunks_exact_mut(padded).zip(values) {
        row[column] = *value;
    }
}

/// Whether a row whose largest magnitude is `amax` needs no scale: f16 weights then keep their very bits.
///
/// Values of such rows below 2⁻¹⁴ lose digits only if they were no f16 to begin with, and those are below
/// 2⁻¹⁰ of the largest one.
fn exact_in_f16(amax: f32) -> bool {
    (f32::powi(2.0, -4)..=f16::MAX.to_f32()).contains(&amax)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::CHIPS;
    use crate::kernels::rotate::{Recipe, Signs};
    use crate::kernels::scalar::b_index;
    use ggml_sys::RowReader;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Every element of the matrix is found where the index formula says, times its column's scale, within
        /// half a step; everything else is zero.
        #[test]
        fn parts_hold_the_matrix(
            chip in 0..CHIPS.len(), wide: bool, native: bool, rotated: bool, k in 1usize..300, n in 1usize..150, slack in 0usize..3, seed: u32,
            magnitude in -30i32..30,
        ) {
            let mut chip = CHIPS[chip].clone();
            chip.k_max = 128;
            let pipeline = if wide { Pipeline::W16A16 } else { Pipeline::W8A8 };
            let plan = WeightPlan::new(&chip, chip.cores, pipeline.dtype(), k, n).unwrap();
            let mut state = seed;
            let stride = k + slack;
            let matrix: Vec<f32> = (0..n * stride).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((state >> 8) as f32 / 8388608.0 - 1.0) * 2f32.powi(magnitude)
            }).collect();
            let data: Vec<u8> = matrix.iter().flat_map(|value| value.to_ne_bytes()).collect();
            let recipe = Recipe { k, layer: None, signs: Signs::Full, padded: false };
            let rotation = if rotated { Rotation::new(&recipe) } else { None };
            // What is stored is the rotated matrix; the rotation has tests of its own.
            let mut matrix = matrix;
            if let Some(rotation) = &rotation {
                for row in matrix.chunks_mut(stride) {
                    let plain = row[..k].to_vec();
                    rotation.apply(&plain, &mut row[..k], &mut vec![0.0; k]);
                }
            }
            let source = Source { data: &data, reader: RowReader::f32(), k, n, row_stride: stride * 4 };
            let layout = if native { Layout::Native } else { Layout::Norm };
            for slice in &plan.slices {
                for segment in &plan.segments {
                    let mut halves = vec![0xaaaau16; plan.part_bytes(slice, segment) / 2];
                    let part: &mut [u8] = bytemuck::cast_slice_mut(&mut halves);
                    let mut scales = vec![f32::NAN; slice.len];
                    pack(&source, Part { plan: &plan, pipeline, rotation: rotation.as_ref(), layout, slice, segment }, part, &mut scales).unwrap();
                    for column in 0..slice.padded {
                        let limits = &plan.limits;
                        let row = (column < slice.len)
                            .then(|| &matrix[(slice.start + column) * stride..][segment.start..segment.start + segment.len]);
                        for i in 0..segment.padded {
                            let at = if native { b_index(i, column, segment.padded, limits.b_block_n, limits.b_block_k) } else { i * slice.padded + column };
                            let stored = match pipeline {
                                Pipeline::W8A8 => f32::from(part[at] as i8),
                                Pipeline::W16A16 => f16::from_ne_bytes([part[at * 2], part[at * 2 + 1]]).to_f32(),
                            };
                            match row.and_then(|row| row.get(i)) {
                                None => prop_assert_eq!(stored, 0.0, "padding"),
                                Some(value) => {
                                    let scale = scales[column];
                                    let half_step = match pipeline {
                                        Pipeline::W8A8 => scale * 0.5001,
                                        Pipeline::W16A16 => (value.abs() / 2048.0).max(scale * 2f32.powi(-25)) * 1.0001,
                                    };
                                    prop_assert!((stored * scale - value).abs() <= half_step, "{value} as {stored} · {scale}");
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_weight_with_a_nan_is_refused() {
        let mut data: Vec<u8> = [1.0f32; 64].iter().flat_map(|value| value.to_ne_bytes()).collect();
        data[40..44].copy_from_slice(&f32::NAN.to_ne_bytes());
        let source = Source { data: &data, reader: RowReader::f32(), k: 32, n: 2, row_stride: 128 };
        for pipeline in Pipeline::ALL {
            let plan = WeightPlan::new(&CHIPS[0], 3, pipeline.dtype(), 32, 2).unwrap();
            let (slice, segment) = (plan.slices[0], plan.segments[0]);
            let mut halves = vec![0u16; plan.part_bytes(&slice, &segment) / 2];
            let part: &mut [u8] = bytemuck::cast_slice_mut(&mut halves);
            let mut scales = [0.0; 2];
            for layout in [Layout::Native, Layout::Norm] {
                let rotation: Option<Rotation> = None;
                let which = Part {
                    plan: &plan,
                    pipeline,
                    rotation: rotation.as_ref(),
                    layout,
                    slice: &slice,
                    segment: &segment,
                };
                assert_eq!(pack(&source, which, part, &mut scales), Err(PackError::NotFinite));
            }
        }
    }
}
