//! A weight on the NPU.

use std::sync::Arc;

use rknn_sys::Memory;

use super::{Engine, Error};
use crate::kernels::rotate::{Recipe, Rotation, Signs};
use crate::observe::Held;
use crate::plan::WeightPlan;
use crate::policy::Pipeline;
use crate::weights::{gains_from, pack, Part, Source};

/// Parts of an allocation begin at multiples of this: a page, so that no two share a cache line or a mapping.
const PART_ALIGN: usize = 4096;

/// A weight converted to B, cut for the cores, with the scales of its output channels.
pub struct NpuWeight {
    /// How it was cut.
    pub plan: WeightPlan,
    /// How it was represented.
    pub pipeline: Pipeline,
    /// What its rows were, and its activations are to be, rotated by.
    pub rotation: Option<Arc<Rotation>>,
    /// One scale an output channel.
    pub scales: Vec<f32>,
    /// B by [`WeightPlan::part`].
    pub(super) parts: Vec<Memory>,
    _held: Vec<Held>,
}

impl Engine {
    /// Converts `source` and puts it into the NPU's memory, ready to be used by all cores that work.
    ///
    /// # Errors
    /// No memory, a type that this NPU does not run, or a weight that has no form on it.
    pub fn upload(&mut self, source: &Source, wanted: Pipeline) -> Result<NpuWeight, Error> {
        let unsupported = || {
            let what = format!("{} with K={}, N={}", wanted.name(), source.k, source.n);
            Error::Unsupported { chip: self.chip.title, what }
        };
        let pipeline = self.mode.pipeline(wanted).ok_or_else(unsupported)?;
        let plan = WeightPlan::new(self.chip, self.cores.count(), pipeline.dtype(), source.k, source.n)
            .ok_or_else(unsupported)?;
        let rotation = if pipeline.rotates() { self.rotation(source.k) } else { None };
        let rotation = rotation.filter(|rotation| gains_from(source, rotation));
        let (mut parts, held) = self.allocate_parts(&plan)?;
        let mut scales = vec![1.0; plan.n];
        let layout = self.mode.b_layout();
        let packed: Result<(), Error> = self.pool.install(|| {
            for (s, slice) in plan.slices.iter().enumerate() {
                for (g, segment) in plan.segments.iter().enumerate() {
                    let memory = &mut parts[plan.part(s, g)];
                    let scales = &mut scales[slice.start..slice.start + slice.len];
                    let part =
                        Part { plan: &plan, pipeline, rotation: rotation.as_deref(), layout, slice, segment };
                    pack(source, part, memory.as_mut_slice(), scales)?;
                    memory.sync_to_device()?;
                }
            }
            Ok(())
        });
        packed?;
        Ok(NpuWeight { plan, pipeline, rotation, scales, parts, _held: held })
    }

    /// The rotation of rows of `k` elements, made once.
    fn rotation(&mut self, k: usize) -> Option<Arc<Rotation>> {
        let recipe = Recipe { k, layer: None, signs: Signs::Full, padded: false };
        self.rotations.entry(k).or_insert_with(|| Rotation::new(&recipe).map(Arc::new)).clone()
    }

    /// The memories of a weight's parts, in the order of [`WeightPlan::part`]: views of one allocation, or an
    /// allocation each where views are not to be trusted.
    fn allocate_parts(&self, plan: &WeightPlan) -> Result<(Vec<Memory>, Vec<Held>), Error> {
        let mut ranges = Vec::with_capacity(plan.slices.len() * plan.segments.len());
        let mut end = 0usize;
        for slice in &plan.slices {
            for segment in &plan.segments {
                let start = end.next_multiple_of(PART_ALIGN);
                end = start + plan.part_bytes(slice, segment);
                ranges.push(start..end);
            }
        }
        if self.mode.views && ranges.len() > 1 {
            let memory = self.keeper.allocate(end)?;
            return Ok((memory.split(&ranges)?, vec![Held::allocation(&self.stats, end)]));
        }
        let mut parts = Vec::with_capacity(ranges.len());
        let mut held = Vec::with_capacity(ranges.len());
        for range in ranges {
            parts.push(self.keeper.allocate(range.len())?);
            held.push(Held::allocation(&self.stats, range.len()));
        }
        Ok((parts, held))
    }
}
