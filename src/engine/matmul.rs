//! One product: rows of activations times a weight on the NPU.
//!
//! For each tile of rows and each K segment: pack the rows into A (all cores read the same), run one slice a
//! core, and add the slices' results, scaled, to the rows of the output. Scales of activations are per row and
//! segment: a segment with small values keeps its digits beside one with large ones.

use std::sync::atomic::Ordering::Relaxed;

use rknn_sys::{Element, MatmulSpec};

use super::core::Job;
use super::pack::{chunks, pack};
use super::prepare::Prepared;
use super::{Engine, Error, NpuWeight};
use crate::chip::CORES_MAX;
use crate::kernels::fast;
use crate::kernels::scalar::{scale_f16, scale_i8};
use crate::kernels::{int4, Results, Rows};
use crate::plan::{tiles, Segment, Slice, Tile, ROWS_MAX};
use crate::policy::Pipeline;

/// What a product needs beside the NPU's memories; kept from one to the next.
#[derive(Default)]
pub struct Room {
    /// One scale a row of the tile at work.
    scales: Vec<f32>,
    /// The rows at work, rotated.
    prepared: Prepared,
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

impl Activations<'_> {
    /// The same rows from row `first` on; what lies beyond stays counted.
    fn from(&self, first: usize) -> Self {
        Self { data: &self.data[first * self.stride..], stride: self.stride, rows: self.rows - first }
    }
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
        Room { scales, prepared }: &mut Room,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let n = weight.plan.n;
        for start in (0..activations.rows).step_by(ROWS_MAX) {
            let rows = activations.rows.min(start + ROWS_MAX) - start;
            let mut block = Activations { rows, ..activations.from(start) };
            if let Some(rotation) = &weight.rotation {
                block = prepared.rows(&self.pool, rotation, &block, &self.stats);
            }
            let out = &mut out[start * n..(start + rows) * n];
            for tile in tiles(rows, weight.plan.widest()) {
                let out = &mut out[tile.start * n..(tile.start + tile.len) * n];
                let rows = Activations { rows: tile.len, ..block.from(tile.start) };
                for (index, segment) in weight.plan.segments.iter().enumerate() {
                    let rows = Activations { data: &rows.data[segment.start..], ..rows };
                    self.scale_rows(weight.pipeline, rows, segment, scales);
                    self.pack(weight, rows, segment, &tile, scales)?;
                    self.run(weight, index, segment, &tile)?;
                    self.unpack(weight, index, &tile, scales, out)?;
                }
            }
        }
        Ok(())
    }

    /// One scale a row, over the segment's columns.
    fn scale_rows(&self, pipeline: Pipeline, rows: Activations, segment: &Segment, scales: &mut Vec<f32>) {
        let scale = |row: &[f32]| match pipeline {
            Pipeline::W8A8 => scale_i8(fast::amax(row)),
            Pipeline::W4A8 => int4::scale_planes(fast::amax(row)),
            Pipeline::W4A4 => int4::scale_row(row),
            Pipeline::W4A16 | Pipeline::W8A16 | Pipeline::W16A16 => scale_f16(fast::amax(row)),
        };
        scales.resize(rows.rows, 0.0);
        let elements = rows.rows * segment.len;
        self.chunks(elements, scales, rows.rows.div_ceil(self.threads()), |first, scales| {
            for (row, out) in scales.iter_mut().enumerate() {
                let start = (first + row) * rows.stride;
                *out = scale(&rows.data[start..start + segment.len]);
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
        let m = tile.rows * weight.pipeline.planes();
        let bytes = plan.dtype.a().bytes(m * segment.padded);
        let native_block = self.mode.native_ac.then_some(plan.limits.a_block);
        let memory = self.domains.get_mut(weight.share.domain).scratch.a(bytes)?;
        let a = &mut memory.as_mut_slice()[..bytes];
        let rows = Rows { data: rows.data, stride: rows.stride, rows: rows.rows, k: segment.len, scales };
        pack(&self.pool, weight.pipeline, &rows, m, native_block, a).ok_or_else(|| Error::Unsupported {
            chip: self.chip.title,
            what: format!("{} with A blocks of {native_block:?}", weight.pipeline.name()),
        })?;
        memory.sync_to_device()?;
        Ok(())
    }

    /// Runs the slices of one segment, each on its core.
    fn run(&mut self, weight: &NpuWeight, index: usize, segment: &Segment, tile: &Tile) -> Result<(), Error> {
        let plan = &weight.plan;
        let m = tile.rows * weight.pipeline.planes();
        let domain = self.domains.get_mut(weight.share.domain);
        let a = domain.scratch.a(plan.dtype.a().bytes(m * segment.padded))?.binding();
        let mut bindings = [const { None }; CORES_MAX];
        for slice in &plan.slices {
            let bytes = plan.dtype.c().bytes(m * slice.padded);
            bindings[slice.core] = Some(domain.scratch.c(slice.core, bytes)?.binding());
        }
        let jobs = plan.slices.iter().enumerate().filter_map(|(s, slice)| {
            let spec = MatmulSpec {
                dtype: plan.dtype,
                rows: m,
                k: segment.padded,
                n: slice.padded,
                b_layout: self.mode.b_layout(),
                ac_layout: self.mode.ac_layout(),
                domain: domain.id,
            };
            let b = weight.parts[plan.part(s, index)].binding();
            let c = bindings[slice.core].take()?;
            Some((slice.core, Job { spec, a: a.clone(), b, c }))
        });
        self.cores.run(jobs)?;
        self.stats.runs[weight.pipeline.index()].fetch_add(plan.slices.len() as u64, Relaxed);
        Ok(())
    }

    /// Scales the slices' results of segment `index` into the tile's rows of the output, or adds them to it.
    fn unpack(
        &mut self,
        weight: &NpuWeight,
        index: usize,
        tile: &Tile,
        scales: &[f32],
        out: &mut [f32],
    ) -> Result<(), Error> {
        let (plan, planes) = (&weight.plan, weight.pipeline.planes());
        let m = tile.rows * planes;
        let bytes = |slice: &Slice| plan.dtype.c().bytes(m * slice.padded);
        let scratch = &mut self.domains.get_mut(weight.share.domain).scratch;
        for slice in &plan.slices {
            scratch.c(slice.core, bytes(slice))?.sync_from_device()?;
        }
        let scratch = &self.domains.get(weight.share.domain).scratch;
        let column_scales = &weight.scales[index * plan.n..(index + 1) * plan.n];
        let block = self.mode.native_ac.then_some(plan.limits.c_block);
        // Whole cache lines of rows, as the kernel takes them.
        let rows_a_chunk = tile.len.div_ceil(self.threads()).next_multiple_of(16);
        chunks(&self.pool, tile.len * plan.n, out, rows_a_chunk * plan.n, |chunk, out| {
            let first = chunk * rows_a_chunk;
            let rows = out.len() / plan.n;
            for slice in &plan.slices {
                let c = scratch.results(slice.core, bytes(slice));
                let results = Results {
                    m,
                    row_start: first,
                    rows,
                    columns: slice.len,
                    row_scales: &scales[first..first + rows],
                    column_scales: &column_scales[slice.start..slice.start + slice.len],
                    accumulate: index > 0,
                    stride: plan.n,
                };
                unpack(plan.dtype.c(), block, planes, c, &results, &mut out[slice.start..]);
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

/// C, whose bytes are `c`, into rows of the output: in native blocks of `block` columns, or row-major.
fn unpack(
    element: Element,
    block: Option<usize>,
    planes: usize,
    c: &[u8],
    results: &Results,
    out: &mut [f32],
) {
    use bytemuck::cast_slice;
    match (element, block) {
        (Element::I32, Some(_)) => fast::unpack_c_i32(cast_slice(c), results, out),
        (Element::I32, None) => fast::unpack_rows_i32(cast_slice(c), results, out),
        (Element::I16, Some(8)) => int4::unpack_c::<8>(cast_slice(c), planes, results, out),
        (Element::I16, Some(_)) => int4::unpack_c::<4>(cast_slice(c), planes, results, out),
        (Element::I16, None) => int4::unpack_rows(cast_slice(c), planes, results, out),
        (_, Some(_)) => fast::unpack_c_f32(cast_slice(c), results, out),
        (_, None) => fast::unpack_rows_f32(cast_slice(c), results, out),
    }
}
