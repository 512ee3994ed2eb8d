//! A weight on the NPU.

use rknn_sys::Memory;

use super::{Engine, Error};
use crate::observe::Held;
use crate::plan::WeightPlan;
use crate::policy::Pipeline;
use crate::weights::{pack, Source};

/// Parts of an allocation begin at multiples of this: a page, so that no two share a cache line or a mapping.
const PART_ALIGN: usize = 4096;

/// A weight converted to native B, cut for the cores, with the scales of its output channels.
pub struct NpuWeight {
    /// How it was cut.
    pub plan: WeightPlan,
    /// How it was represented.
    pub pipeline: Pipeline,
    /// One scale an output channel.
    pub scales: Vec<f32>,
    /// Native B by [`WeightPlan::part`]; views of one allocation.
    pub(super) parts: Vec<Memory>,
    _held: Held,
}

impl Engine {
    /// Converts `source` and puts it into the NPU's memory, ready to be used by all cores.
    ///
    /// # Errors
    /// No memory, or a weight that has no form on the NPU.
    pub fn upload(&self, source: &Source, pipeline: Pipeline) -> Result<NpuWeight, Error> {
        let plan = WeightPlan::new(self.chip, pipeline.dtype(), source.k, source.n).ok_or_else(|| {
            let what = format!("{} with K={}, N={}", pipeline.name(), source.k, source.n);
            Error::Unsupported { chip: self.chip.title, what }
        })?;
        let mut ranges = Vec::with_capacity(plan.slices.len() * plan.segments.len());
        let mut end = 0usize;
        for slice in &plan.slices {
            for segment in &plan.segments {
                let start = end.next_multiple_of(PART_ALIGN);
                end = start + plan.part_bytes(slice, segment);
                ranges.push(start..end);
            }
        }
        let memory = self.keeper.allocate(end)?;
        let held = Held::allocation(&self.stats, end);
        let mut parts = if ranges.len() == 1 { vec![memory] } else { memory.split(&ranges)? };
        let mut scales = vec![1.0; plan.n];
        let packed: Result<(), Error> = self.pool.install(|| {
            for (s, slice) in plan.slices.iter().enumerate() {
                for (g, segment) in plan.segments.iter().enumerate() {
                    let part = &mut parts[plan.part(s, g)];
                    let scales = &mut scales[slice.start..slice.start + slice.len];
                    pack(source, &plan, pipeline, slice, segment, part.as_mut_slice(), scales)?;
                    part.sync_to_device()?;
                }
            }
            Ok(())
        });
        packed?;
        Ok(NpuWeight { plan, pipeline, scales, parts, _held: held })
    }
}
