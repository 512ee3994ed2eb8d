//! A weight on the NPU.

use std::ops::Range;
use std::sync::Arc;

use rknn_sys::{MatmulType, Memory};

use super::choose::{Chosen, Request};
use super::domains::Share;
use super::{Engine, Error};
use crate::kernels::int4::WEIGHT_SUM_MAX;
use crate::kernels::rotate::Rotation;
use crate::observe::Held;
use crate::plan::WeightPlan;
use crate::policy::Pipeline;
use crate::weights::{pack, Form, Source};

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
    /// One scale a segment and output channel: N of each segment, one segment after the other.
    pub scales: Vec<f32>,
    /// The estimated squared error of its products, relative to their power.
    pub error: f64,
    /// The largest error that is at the level of the host's CPU, as `error`.
    pub level: f64,
    /// Bytes of its parts.
    pub bytes: usize,
    /// Its domain.
    pub(super) share: Share,
    /// B by [`WeightPlan::part`].
    pub(super) parts: Vec<Memory>,
    _held: Vec<Held>,
}

impl Engine {
    /// Converts `source` and puts it into the NPU's memory, ready to be used by all cores that work.
    ///
    /// # Errors
    /// No memory, nothing that this NPU runs is true enough, or a weight that has no form on it.
    pub fn upload(&mut self, source: &Source, request: &Request) -> Result<NpuWeight, Error> {
        let Chosen { pipeline, rotation, mut plan, error, level } = self.choose(source, request)?;
        loop {
            let bytes = plan.all_part_bytes().sum();
            let share = self.domains.share(bytes)?;
            let (mut parts, held) = self.allocate_parts(&plan, share.domain)?;
            let mut scales = vec![1.0; plan.n * plan.segments.len()];
            let form = Form {
                plan: &plan,
                rotation: rotation.as_deref(),
                layout: self.mode.b_layout(),
                calibration: request.calibration,
            };
            let key = if request.keep { self.fingerprint(source, pipeline, form) } else { None };
            let known = match key {
                Some(key) => self.restore(key, &plan, &mut parts, &mut scales)?,
                None => false,
            };
            let largest = if known {
                0
            } else {
                self.pool.install(|| convert(source, form, &mut parts, &mut scales))?
            };
            if pipeline.dtype() == MatmulType::I4 && largest > WEIGHT_SUM_MAX {
                // Some column could leave the 16 bits of its sums: shorter segments, by as much as it is too long.
                let shorter = shorter_segment(plan.longest(), largest, plan.limits.k_align);
                plan = shorter
                    .and_then(|segment_max| self.plan(pipeline, (plan.k, plan.n), segment_max))
                    .ok_or_else(|| self.unsupported(source, pipeline))?;
                continue;
            }
            if let Some(key) = key.filter(|_| !known) {
                self.keep(key, &plan, &parts, &scales);
            }
            return Ok(NpuWeight {
                plan,
                pipeline,
                rotation,
                scales,
                error,
                level,
                bytes,
                share,
                parts,
                _held: held,
            });
        }
    }

    /// The memories of a weight's parts, in the order of [`WeightPlan::part`]: views of one allocation, or an
    /// allocation each where views are not to be trusted.
    fn allocate_parts(&self, plan: &WeightPlan, domain: usize) -> Result<(Vec<Memory>, Vec<Held>), Error> {
        let keeper = &self.domains.get(domain).keeper;
        let ranges = part_ranges(plan);
        let end = ranges.last().map_or(0, |last| last.end);
        if self.mode.views && ranges.len() > 1 {
            let memory = keeper.allocate(end)?;
            return Ok((memory.split(&ranges)?, vec![Held::allocation(&self.stats, end)]));
        }
        let mut parts = Vec::with_capacity(ranges.len());
        let mut held = Vec::with_capacity(ranges.len());
        for range in ranges {
            parts.push(keeper.allocate(range.len())?);
            held.push(Held::allocation(&self.stats, range.len()));
        }
        Ok((parts, held))
    }
}

/// Where each part lies in one allocation, in the order of [`WeightPlan::part`].
fn part_ranges(plan: &WeightPlan) -> Vec<Range<usize>> {
    let mut end = 0usize;
    let range = |bytes| {
        let start = end.next_multiple_of(PART_ALIGN);
        end = start + bytes;
        start..end
    };
    plan.all_part_bytes().map(range).collect()
}

/// Converts all slices into their parts and syncs them; gives the largest sum of a column's magnitudes.
fn convert(source: &Source, form: Form, parts: &mut [Memory], scales: &mut [f32]) -> Result<u32, Error> {
    let (plan, segments) = (form.plan, form.plan.segments.len());
    let mut largest = 0;
    // Parts are ordered by slice, then by segment.
    for (slice, parts) in plan.slices.iter().zip(parts.chunks_mut(segments)) {
        let mut bytes: Vec<&mut [u8]> = parts.iter_mut().map(Memory::as_mut_slice).collect();
        let mut scales: Vec<&mut [f32]> = scales
            .chunks_mut(plan.n)
            .map(|scales| &mut scales[slice.start..slice.start + slice.len])
            .collect();
        largest = largest.max(pack(source, form, slice, &mut bytes, &mut scales)?);
        for part in parts {
            part.sync_to_device()?;
        }
    }
    Ok(largest)
}

/// The longest segment with which a column whose magnitudes add up to `sum` in `segment` elements is expected to
/// stay below [`WEIGHT_SUM_MAX`]; always shorter, `None` when there is no shorter one.
fn shorter_segment(segment: usize, sum: u32, align: usize) -> Option<usize> {
    let fitting = segment as u64 * u64::from(WEIGHT_SUM_MAX) / u64::from(sum.max(1));
    let shorter = (fitting as usize).min(segment.saturating_sub(1)) / align * align;
    (shorter >= align).then_some(shorter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_shrink_until_even_the_worst_column_fits() {
        // Every weight of magnitude 8: 511 of them fit, so 480 do in steps of 32.
        assert_eq!(shorter_segment(4096, 8 * 4096, 32), Some(480));
        // Just too long: one step down.
        assert_eq!(shorter_segment(1024, WEIGHT_SUM_MAX + 1, 32), Some(992));
        assert_eq!(shorter_segment(32, 8 * 32, 32), None, "such a sum fits, so it is never asked");
    }
}
