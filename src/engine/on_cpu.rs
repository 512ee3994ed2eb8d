//! Products of few rows by our kernels on the CPU, over the bytes that the NPU would read.
//!
//! Rows are scaled and rounded as for the NPU, and results scaled in the same order, so that integer pipelines give
//! the same bits. Rows lie as in A and sums as in C, a segment after the other, in plain memory.

use std::time::Instant;

use rknn_sys::Element;

use super::pack::{Filling, Target};
use super::pair::Between;
use super::prepare::{Known, Prepared, Wish};
use super::product::{Activations, Product};
use super::results::read;
use super::route::{Few, ROWS_MAX};
use super::stream::Room;
use super::{Engine, Error, NpuWeight};
use crate::kernels::dot::{dot_f16, dot_i4, dot_i8, Dot};
use crate::kernels::Results;
use crate::observe::Stage;
use crate::plan::WeightPlan;
use crate::policy::Pipeline;
use crate::pool::Divided;

/// Generation of the rows and which of them, pipeline, segment, segments and rows.
type CpuKey = (u64, Option<(u64, usize)>, Pipeline, usize, usize, usize);

/// Room for a product on the CPU; kept from one to the next.
#[derive(Default)]
pub struct CpuRoom {
    /// What `a` holds.
    key: Option<CpuKey>,
    /// Rows as A of each segment, in 8-byte words for the sake of their alignment.
    a: Vec<u64>,
    /// Sums as C, by chunks of columns, and in each by segments.
    c: Vec<u64>,
    /// A scale a row and segment: those of a segment together.
    scales: Vec<f32>,
    targets: Vec<Target>,
}

/// Whether our kernels multiply by this weight: of its pipeline, and all in one memory.
pub(super) fn has_kernel(weight: &NpuWeight) -> bool {
    !matches!(weight.pipeline, Pipeline::W8A16 | Pipeline::W4A16) && weight.stack().is_some()
}

/// Whether the sums are integers, and so the same in any order.
pub fn is_exact(pipeline: Pipeline) -> bool {
    matches!(pipeline, Pipeline::W8A8 | Pipeline::W4A8 | Pipeline::W4A4)
}

impl Engine {
    /// Whether a product of so many rows is to be done here.
    pub(super) fn is_for_cpu(&mut self, weight: &NpuWeight, rows: usize) -> bool {
        if rows > ROWS_MAX || !has_kernel(weight) {
            return false;
        }
        let npu_ns = self.schedule(weight, rows).ns;
        let exact = is_exact(weight.pipeline);
        self.route.is_cpu(&weight.plan, &self.chip.timing, rows, npu_ns, exact)
    }

    /// Whether a product of so many rows is to be done by the host's kernels over its own copy of the weight, which has
    /// `bytes` bytes.
    pub fn is_for_host(&mut self, weight: &NpuWeight, rows: usize, bytes: usize) -> bool {
        if rows > ROWS_MAX {
            return false;
        }
        let npu_ns = self.schedule(weight, rows).ns;
        let cpu_can = has_kernel(weight);
        let exact = is_exact(weight.pipeline);
        let few = Few { plan: &weight.plan, timing: &self.chip.timing, rows, exact };
        self.route.is_host(&few, npu_ns, cpu_can, bytes)
    }

    /// Notes that the host took `ns` for such a product.
    pub fn host_took(&mut self, weight: &NpuWeight, rows: usize, bytes: usize, ns: f64) {
        self.route.host_took(&weight.plan, &self.chip.timing, rows, bytes, ns);
    }

    /// Does by our kernels what the NPU failed at, over the bytes that it would have read: for integer pipelines the
    /// results are the same bits. Marks what was done; weights that no kernel can read are left, and the product that is
    /// with what was to be made between two, which has no rows of its own.
    pub fn recover(&mut self, products: &mut [Option<Product>], between: Option<&Between>) {
        if let Some(fed) = between.filter(|between| !between.used).and_then(Between::fed) {
            products[fed] = None;
        }
        let done = between.map_or(0, Between::done);
        for product in products[done..].iter_mut().flatten() {
            if !product.routed && has_kernel(product.weight) {
                product.recovered = self.by_kernels(product.weight, &product.activations, &product.out);
            }
        }
    }

    /// Does a product of any number of rows by our kernels, a few at a time; whether that could be done.
    pub(super) fn by_kernels(&mut self, weight: &NpuWeight, all: &Activations, out: &Divided<f32>) -> bool {
        let mut room = std::mem::take(&mut self.room);
        let Room { prepared, cpu, .. } = &mut room;
        let done = (0..all.rows).step_by(ROWS_MAX).all(|first| {
            let rows = Activations { rows: ROWS_MAX.min(all.rows - first), ..all.from(first) };
            // Picks say where their rows go, and are from the same rows each time.
            let (out, same) = match all.picks {
                Some(_) => (out.after(0), first > 0),
                None => (out.after(first * weight.plan.n), false),
            };
            self.multiply_on_cpu(weight, &rows, same, &mut prepared[0], cpu, &out).is_ok()
        });
        self.room = room;
        done
    }

    /// Does a product of few rows.
    ///
    /// # Errors
    /// No kernel for the chip's layout.
    pub(super) fn multiply_on_cpu(
        &mut self,
        weight: &NpuWeight,
        activations: &Activations,
        same: bool,
        prepared: &mut Prepared,
        room: &mut CpuRoom,
        out: &Divided<f32>,
    ) -> Result<(), Error> {
        let started = Instant::now();
        let (plan, rows, stats) = (&weight.plan, activations.rows, self.stats.clone());
        let stack = weight.stack().ok_or(Error::Lost { what: "weight in one piece" })?;
        let (m, segments) = (rows * weight.pipeline.planes(), plan.segments.len());
        let (rotation, known) = (weight.rotation.as_ref(), Known::same(same));
        let wish = Wish { rotation, shared: &weight.shared, known, again: false };
        let generation = prepared.take_up(&self.pool, &wish, activations, &stats);
        let a_bytes = plan.dtype.a().bytes(m * plan.longest());
        let picks = activations.picks;
        let key =
            (generation, picks.map(|picks| picks.key()), weight.pipeline, plan.longest(), segments, rows);
        grow(&mut room.a, a_bytes * segments);
        if room.key != Some(key) {
            room.key = None;
            room.scales.resize(segments * rows, 0.0);
            room.targets.clear();
            room.targets.extend((0..segments).map(|segment| Target {
                segment,
                rows: 0..rows,
                bytes: segment * a_bytes..(segment + 1) * a_bytes,
                m,
                first: 0,
            }));
            let filling = Filling {
                pipeline: weight.pipeline,
                block: Some(plan.limits.a_block),
                segments: &plan.segments,
                rows: 0..rows,
                all_rows: rows,
                targets: &room.targets,
            };
            let a: &mut [u8] = bytemuck::cast_slice_mut(&mut room.a);
            let packed = stats.stage(Stage::Pack, || {
                let source = prepared.source(activations, &filling.rows, filling.columns(), &stats);
                filling.fill(&self.pool, &source, &mut room.scales, a)
            });
            if packed.is_none() {
                return Err(Error::Unsupported {
                    chip: self.chip.title,
                    what: format!("{} on the CPU", weight.pipeline.name()),
                });
            }
            room.key = Some(key);
        }

        // Some more pieces than threads, since these are not alike; whole blocks of B and C.
        let unit = plan.limits.n_align.max(16);
        let columns = plan.columns.div_ceil(self.pool.threads() * 4).next_multiple_of(unit);
        let c_bytes = plan.dtype.c().bytes(columns * m) * segments;
        let chunks = plan.columns.div_ceil(columns);
        grow(&mut room.c, c_bytes * chunks);
        let CpuRoom { a, c, scales, .. } = room;
        let a: &[u8] = bytemuck::cast_slice(a);
        let work = Work { weight, plan, rows, m, a, a_bytes, stack, scales, columns };
        let words = c_bytes / 8;
        let c = &mut c[..words * chunks];
        let to = picks.map(|picks| picks.to(0..rows));
        let place = |row: usize| {
            let at = to.map_or(row, |to| to[row] as usize) * plan.n;
            // SAFETY: no two rows become the same one, and each is asked for once.
            unsafe { out.part(at..at + plan.n) }
        };
        stats.stage(Stage::Multiply, || {
            if rows == 1 {
                // One row's results are as contiguous as its sums.
                self.pool.zip_chunks(c, words, place(0), columns, |index, c, out| {
                    work.multiply(index, c);
                    work.read(index, c, 0..1, out, out.len());
                });
            } else {
                self.pool.chunks(c, words, |index, c| work.multiply(index, c));
                let c: &[u64] = &*c;
                self.pool.run(rows, |row| {
                    let out = place(row);
                    for (index, c) in c.chunks(words).enumerate() {
                        let at = (index * columns).min(plan.n);
                        work.read(index, c, row..row + 1, &mut out[at..], plan.n);
                    }
                });
            }
        });
        let ns = started.elapsed().as_nanos() as f64;
        self.route.cpu_took(plan, &self.chip.timing, rows, ns);
        Ok(())
    }
}

/// A product that is shared out by chunks of columns.
struct Work<'a> {
    weight: &'a NpuWeight,
    plan: &'a WeightPlan,
    rows: usize,
    m: usize,
    a: &'a [u8],
    a_bytes: usize,
    stack: &'a [u8],
    scales: &'a [f32],
    /// Columns of a chunk.
    columns: usize,
}

impl Work<'_> {
    /// The padded columns of a chunk.
    fn range(&self, index: usize) -> std::ops::Range<usize> {
        let end = ((index + 1) * self.columns).min(self.plan.columns);
        (index * self.columns).min(end)..end
    }

    /// The sums of a chunk of columns, all segments, into `c`.
    fn multiply(&self, index: usize, c: &mut [u64]) {
        let (plan, limits, range) = (self.plan, &self.plan.limits, self.range(index));
        let dot = Dot {
            m: self.m,
            row_start: 0,
            rows: self.m,
            k: plan.longest(),
            a_block: limits.a_block,
            block_n: limits.b_block_n,
            block_k: limits.b_block_k,
            c_block: limits.c_block,
        };
        let c: &mut [u8] = bytemuck::cast_slice_mut(c);
        let bytes = plan.dtype.c().bytes(range.len() * self.m);
        for segment in 0..plan.segments.len() {
            let base = segment * plan.columns;
            let at = |column: usize| plan.column_bytes(base + column);
            let b = &self.stack[at(range.start)..at(range.end)];
            let a = &self.a[segment * self.a_bytes..][..self.a_bytes];
            let c = &mut c[segment * bytes..][..bytes];
            use bytemuck::{cast_slice, cast_slice_mut};
            match plan.dtype.b() {
                Element::I8 => dot_i8(cast_slice(a), cast_slice(b), &dot, cast_slice_mut(c)),
                Element::I4 => dot_i4(a, b, &dot, cast_slice_mut(c)),
                _ => dot_f16(cast_slice(a), cast_slice(b), &dot, cast_slice_mut(c)),
            }
        }
    }

    /// The results of some rows and a chunk of columns, from the chunk's first column on.
    fn read(&self, index: usize, c: &[u64], rows: std::ops::Range<usize>, out: &mut [f32], stride: usize) {
        let (plan, range) = (self.plan, self.range(index));
        let columns = range.start..range.end.min(plan.n);
        if columns.is_empty() {
            return;
        }
        let c: &[u8] = bytemuck::cast_slice(c);
        let bytes = plan.dtype.c().bytes(range.len() * self.m);
        for segment in 0..plan.segments.len() {
            let results = Results {
                m: self.m,
                row_start: rows.start,
                rows: rows.len(),
                columns: columns.len(),
                row_scales: &self.scales[segment * self.rows..][rows.clone()],
                column_scales: &self.weight.scales[segment * plan.n..][columns.clone()],
                accumulate: segment > 0,
                stride,
            };
            let (c, planes) = (&c[segment * bytes..][..bytes], self.weight.pipeline.planes());
            read(plan.dtype.c(), Some(plan.limits.c_block), planes, c, &results, out);
        }
    }
}

/// At least `bytes` bytes.
fn grow(words: &mut Vec<u64>, bytes: usize) {
    if words.len() * 8 < bytes {
        words.resize(bytes.div_ceil(8), 0);
    }
}
