//! One product: rows of activations times a weight on the NPU.
//!
//! For each tile of rows and each K segment: pack the rows into A (all cores read the same), run one slice a
//! core, and add the slices' results, scaled, to the rows of the output. Scales of activations are per row and
//! segment: a segment with small values keeps its digits beside one with large ones.

use std::sync::atomic::Ordering::Relaxed;

use rknn_sys::MatmulSpec;

use super::core::Job;
use super::pack::{chunks, pack, rotate};
use super::{Engine, Error, NpuWeight};
use crate::chip::CORES_MAX;
use crate::kernels::fast;
use crate::kernels::scalar::{scale_f16, scale_i8};
use crate::kernels::{Results, Rows};
use crate::plan::{tiles, Segment, Tile, WeightPlan};
use crate::policy::Pipeline;

/// What a product needs beside the NPU's memories; kept from one to the next.
#[derive(Default)]
pub struct Room {
    /// One scale a row of the tile at work.
    scales: Vec<f32>,
    /// The tile's rows, rotated.
    rotated: Vec<f32>,
}

/// Rows of f32 activations.
#[derive(Clone, Copy)]
pub struct Activations<'a> {
    /// From the first element of row 0 to the last of the last row.
    pub data: &'a [f32],
    /// Elements from one row to the next.
    pub stride: usize,
    /// Rows.
    pub rows: usize,
}

impl Engine {
    /// `out` (rows × N, rows one after the other) = `activations` (rows × K) · `weight` (K × N).
    ///
    /// A row with an infinity or a NaN gives a row of NaNs.
    ///
    /// # Errors
    /// The NPU's failure; `out` is then unspecified.
    pub fn matmul(
        &mut self,
        weight: &NpuWeight,
        activations: Activations,
        out: &mut [f32],
    ) -> Result<(), Error> {
        // Taken for the time of the product, so that it grows once and is never allocated again.
        let mut room = std::mem::take(&mut self.room);
        let result = self.tiles(weight, activations, &mut room, out);
        self.room = room;
        result
    }

    fn tiles(
        &mut self,
        weight: &NpuWeight,
        activations: Activations,
        Room { scales, rotated }: &mut Room,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let WeightPlan { k, n, .. } = weight.plan;
        for tile in tiles(activations.rows, weight.plan.widest()) {
            let out = &mut out[tile.start * n..(tile.start + tile.len) * n];
            let mut rows = Activations {
                data: &activations.data[tile.start * activations.stride..],
                stride: activations.stride,
                rows: tile.len,
            };
            if let Some(rotation) = &weight.rotation {
                rotated.resize(tile.len * k, 0.0);
                rotate(&self.pool, rotation, &rows, rotated);
                rows = Activations { data: rotated, stride: k, rows: tile.len };
            }
            for (index, segment) in weight.plan.segments.iter().enumerate() {
                let rows = Activations { data: &rows.data[segment.start..], ..rows };
                self.scale_rows(weight.pipeline, rows, segment, scales);
                self.pack(weight, rows, segment, &tile, scales)?;
                self.run(weight, index, segment, &tile)?;
                self.unpack(weight, &tile, scales, index > 0, out)?;
            }
        }
        Ok(())
    }

    /// One scale a row, over the segment's columns.
    fn scale_rows(&self, pipeline: Pipeline, rows: Activations, segment: &Segment, scales: &mut Vec<f32>) {
        let scale = match pipeline {
            Pipeline::W8A8 => scale_i8,
            Pipeline::W16A16 => scale_f16,
        };
        scales.resize(rows.rows, 0.0);
        let elements = rows.rows * segment.len;
        self.chunks(elements, scales, rows.rows.div_ceil(self.threads()), |first, scales| {
            for (row, out) in scales.iter_mut().enumerate() {
                let start = (first + row) * rows.stride;
                *out = scale(fast::amax(&rows.data[start..start + segment.len]));
            }
        });
    }

    /// Packs the tile's rows into A and shows it to the NPU.
    fn pack(
        &mut self,
        weight: &NpuWeight,
        rows: Activations,
        segment: &Segment,
        tile: &Tile,
        scales: &[f32],
    ) -> Result<(), Error> {
        let plan = &weight.plan;
        let bytes = tile.rows * segment.padded * plan.element_bytes();
        let native_block = self.mode.native_ac.then_some(plan.limits.a_block);
        let memory = self.scratch.a(bytes)?;
        let a = &mut memory.as_mut_slice()[..bytes];
        let rows = Rows { data: rows.data, stride: rows.stride, rows: rows.rows, k: segment.len, scales };
        pack(&self.pool, weight.pipeline, &rows, tile.rows, native_block, a).ok_or_else(|| {
            Error::Unsupported {
                chip: self.chip.title,
                what: format!("{} with A blocks of {native_block:?}", weight.pipeline.name()),
            }
        })?;
        memory.sync_to_device()?;
        Ok(())
    }

    /// Runs the slices of one segment, each on its core.
    fn run(&mut self, weight: &NpuWeight, index: usize, segment: &Segment, tile: &Tile) -> Result<(), Error> {
        let plan = &weight.plan;
        let a = self.scratch.a(tile.rows * segment.padded * plan.element_bytes())?.binding();
        let mut bindings = [const { None }; CORES_MAX];
        for slice in &plan.slices {
            bindings[slice.core] = Some(self.scratch.c(slice.core, tile.rows * slice.padded * 4)?.binding());
        }
        let jobs = plan.slices.iter().enumerate().filter_map(|(s, slice)| {
            let spec = MatmulSpec {
                dtype: plan.dtype,
                rows: tile.rows,
                k: segment.padded,
                n: slice.padded,
                b_layout: self.mode.b_layout(),
                ac_layout: self.mode.ac_layout(),
                domain: 0,
            };
            let b = weight.parts[plan.part(s, index)].binding();
            let c = bindings[slice.core].take()?;
            Some((slice.core, Job { spec, a: a.clone(), b, c }))
        });
        self.cores.run(jobs)?;
        self.stats.runs[weight.pipeline.index()].fetch_add(plan.slices.len() as u64, Relaxed);
        Ok(())
    }

    /// Scales the slices' results into the tile's rows of the output.
    fn unpack(
        &mut self,
        weight: &NpuWeight,
        tile: &Tile,
        scales: &[f32],
        accumulate: bool,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let plan = &weight.plan;
        for slice in &plan.slices {
            self.scratch.c(slice.core, tile.rows * slice.padded * 4)?.sync_from_device()?;
        }
        let (scratch, native) = (&self.scratch, self.mode.native_ac);
        // Whole groups of eight rows, as the kernel takes them.
        let rows_a_chunk = tile.len.div_ceil(self.threads()).next_multiple_of(8);
        chunks(&self.pool, tile.len * plan.n, out, rows_a_chunk * plan.n, |chunk, out| {
            let first = chunk * rows_a_chunk;
            let rows = out.len() / plan.n;
            for slice in &plan.slices {
                let c = scratch.results(slice.core, tile.rows * slice.padded * 4);
                let results = Results {
                    m: tile.rows,
                    row_start: first,
                    rows,
                    columns: slice.len,
                    row_scales: &scales[first..first + rows],
                    column_scales: &weight.scales[slice.start..slice.start + slice.len],
                    accumulate,
                    stride: plan.n,
                };
                let out = &mut out[slice.start..];
                match (weight.pipeline, native) {
                    (Pipeline::W8A8, true) => fast::unpack_c_i32(bytemuck::cast_slice(c), &results, out),
                    (Pipeline::W8A8, false) => fast::unpack_rows_i32(bytemuck::cast_slice(c), &results, out),
                    (Pipeline::W16A16, true) => fast::unpack_c_f32(bytemuck::cast_slice(c), &results, out),
                    (Pipeline::W16A16, false) => {
                        fast::unpack_rows_f32(bytemuck::cast_slice(c), &results, out);
                    }
                }
            }
        });
        Ok(())
    }

    fn threads(&self) -> usize {
        self.pool.current_num_threads().max(1)
    }

    fn chunks<T: Send>(
        &self,
        elements: usize,
        data: &mut [T],
        size: usize,
        work: impl Fn(usize, &mut [T]) + Sync,
    ) {
        chunks(&self.pool, elements, data, size, |index, chunk| work(index * size, chunk));
    }
}
