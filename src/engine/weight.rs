//! A weight on the NPU.

use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;

use parking_lot::Mutex;
use rknn_sys::{Binding, MatmulType, Memory, Window};

use super::choose::{Chosen, Request};
use super::domains::Share;
use super::{means, Engine, Error};
use crate::kernels::int4::WEIGHT_SUM_MAX;
use crate::kernels::rotate::Rotation;
use crate::observe::Held;
use crate::plan::{CoreRun, WeightPlan};
use crate::policy::Pipeline;
use crate::weights::{pack, Form, Source};

/// A weight converted to B, with the scales of its output channels.
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
    /// Bytes of B.
    pub bytes: usize,
    /// Its domain.
    pub(super) share: Share,
    /// Whether other weights have been seen to ask for its rows.
    pub(super) shared: Arc<AtomicBool>,
    b: Parts,
}

/// The windows into a stack that runs have asked for so far, by their columns.
type Windows = Mutex<Vec<(Range<usize>, Window)>>;

/// Where B lies.
enum Parts {
    /// One stack, see [`WeightPlan`], in the arena of that number.
    Stack(Memory, u64, Windows),
    /// A memory for each part, in the order of [`WeightPlan::part`].
    Singly(Vec<(Memory, Held)>),
}

impl NpuWeight {
    /// Elements of a row of activations.
    pub fn k(&self) -> usize {
        self.rotation.as_ref().map_or(self.plan.k, |rotation| rotation.k())
    }

    /// Which of the I/O domains it is in; going from one to another concerns the whole NPU.
    pub fn domain(&self) -> usize {
        self.share.domain
    }

    /// Whether it is in one of the arenas of these numbers.
    pub fn is_in(&self, arenas: &[u64]) -> bool {
        matches!(&self.b, Parts::Stack(_, arena, _) if arenas.contains(arena))
    }

    /// What a context binds to read the columns of `run`, which begins in `segment`; of a stack they may go on in that of the next
    /// weight, if this one [is before](Self::is_before) it.
    pub(super) fn binding(&self, run: &CoreRun, segment: usize) -> Result<Binding, Error> {
        match &self.b {
            Parts::Stack(memory, _, windows) => {
                let mut windows = windows.lock();
                if let Some((_, window)) = windows.iter().find(|(columns, _)| *columns == run.columns) {
                    return Ok(window.binding());
                }
                let at = |column| self.plan.column_bytes(column);
                let window = memory.window_onwards(&(at(run.columns.start)..at(run.columns.end)))?;
                let binding = window.binding();
                windows.push((run.columns.clone(), window));
                Ok(binding)
            }
            Parts::Singly(parts) => {
                let part = parts.get(self.plan.part(run.core, segment));
                part.map(|(memory, _)| memory.binding()).ok_or(Error::Lost { what: "part of a weight" })
            }
        }
    }

    /// Whether its stack ends where that of `next` begins, so that one run may read columns of both.
    pub(super) fn is_before(&self, next: &Self) -> bool {
        match (&self.b, &next.b) {
            (Parts::Stack(memory, ..), Parts::Stack(next, ..)) => {
                memory.bytes() == self.plan.stack_bytes() && memory.is_followed_by(next)
            }
            _ => false,
        }
    }

    /// Whether a segment of A needs no more of a row than its own elements.
    pub(super) fn is_by_segments(&self) -> bool {
        self.rotation.as_ref().is_none_or(|rotation| self.plan.longest() % rotation.block() == 0)
    }

    /// B as one stack, if it is one.
    pub(super) fn stack(&self) -> Option<&[u8]> {
        match &self.b {
            Parts::Stack(memory, ..) => Some(&memory.as_slice()[..self.plan.stack_bytes()]),
            Parts::Singly(_) => None,
        }
    }
}

impl Parts {
    /// The bytes of the parts, in the order of [`WeightPlan::part`].
    fn bytes(&mut self, plan: &WeightPlan) -> Vec<&mut [u8]> {
        match self {
            Self::Stack(memory, ..) => {
                let mut rest = &mut memory.as_mut_slice()[..plan.stack_bytes()];
                let mut parts: Vec<&mut [u8]> = Vec::new();
                parts.resize_with(plan.slices.len() * plan.segments.len(), Default::default);
                for segment in 0..plan.segments.len() {
                    for (place, slice) in plan.slices.iter().enumerate() {
                        let bytes;
                        (bytes, rest) = rest.split_at_mut(plan.part_bytes(slice, &plan.segments[segment]));
                        parts[plan.part(place, segment)] = bytes;
                    }
                }
                parts
            }
            Self::Singly(parts) => {
                let bytes = parts.iter_mut().zip(plan.all_part_bytes());
                bytes.map(|((memory, _), bytes)| &mut memory.as_mut_slice()[..bytes]).collect()
            }
        }
    }

    fn sync(&self) -> Result<(), Error> {
        match self {
            Self::Stack(memory, ..) => Ok(memory.sync_to_device()?),
            Self::Singly(parts) => Ok(parts.iter().try_for_each(|(memory, _)| memory.sync_to_device())?),
        }
    }
}

impl Engine {
    /// Converts `source` and puts it into the NPU's memory, ready to be used by all cores that work.
    ///
    /// # Errors
    /// No memory, nothing that this NPU runs is true enough, or a weight that has no form on it.
    pub fn upload(&mut self, source: &Source, request: &Request) -> Result<NpuWeight, Error> {
        let Chosen { pipeline, rotation, mut plan, error, level } = self.choose(source, request)?;
        loop {
            let (share, mut b) = self.allocate(&plan, pipeline, source.data.len(), request.models)?;
            let mut scales = vec![1.0; plan.n * plan.segments.len()];
            let form = Form {
                plan: &plan,
                rotation: rotation.as_deref(),
                layout: self.mode.b_layout(),
                calibration: request.calibration,
            };
            let key = if request.keep { self.fingerprint(source, pipeline, form) } else { None };
            let mut parts = b.bytes(&plan);
            let known = key.is_some_and(|key| self.restore(key, &mut parts, &mut scales));
            let largest = if known {
                0
            } else {
                self.converter.install(|| convert(source, form, &mut parts, &mut scales))?
            };
            if pipeline.dtype() == MatmulType::I4 && largest > WEIGHT_SUM_MAX {
                // Some column could leave the 16 bits of its sums: shorter segments, by as much as it is too long.
                let shorter = shorter_segment(plan.longest(), largest, plan.limits.k_align);
                plan = shorter
                    .and_then(|segment_max| self.plan(pipeline, (plan.k, plan.n), segment_max, None))
                    .ok_or_else(|| self.unsupported(source, pipeline))?;
                continue;
            }
            if let Some(key) = key.filter(|_| !known) {
                self.keep(key, &parts, &scales);
            }
            b.sync()?;
            let bytes = plan.stack_bytes();
            // Until it is known better.
            let shared = Arc::new(AtomicBool::new(true));
            return Ok(NpuWeight { plan, pipeline, rotation, scales, error, level, bytes, share, shared, b });
        }
    }

    /// Memory for B, which is made of `source` bytes: a piece of an arena, or an allocation a part where pieces cannot be
    /// bound.
    fn allocate(
        &mut self,
        plan: &WeightPlan,
        pipeline: Pipeline,
        source: usize,
        models: usize,
    ) -> Result<(Share, Parts), Error> {
        let windows = means(&self.mode, pipeline, self.cores.count()).windows;
        let stats = &self.stats;
        self.domains.place(plan.stack_bytes(), source, |domains, share| {
            if windows {
                let (memory, arena) = domains.take(share, models)?;
                return Ok(Parts::Stack(memory, arena, Windows::default()));
            }
            let keeper = &domains.get(share.domain).keeper;
            let part = |bytes| Ok((keeper.allocate(bytes)?, Held::allocation(stats, bytes)));
            Ok(Parts::Singly(plan.all_part_bytes().map(part).collect::<Result<_, Error>>()?))
        })
    }
}

/// Converts all slices into their parts; gives the largest sum of a column's magnitudes.
fn convert(source: &Source, form: Form, parts: &mut [&mut [u8]], scales: &mut [f32]) -> Result<u32, Error> {
    let (plan, segments) = (form.plan, form.plan.segments.len());
    let mut largest = 0;
    // Parts are ordered by slice, then by segment.
    for (slice, parts) in plan.slices.iter().zip(parts.chunks_mut(segments)) {
        let mut scales: Vec<&mut [f32]> = scales
            .chunks_mut(plan.n)
            .map(|scales| &mut scales[slice.start..slice.start + slice.len])
            .collect();
        largest = largest.max(pack(source, form, slice, parts, &mut scales)?);
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
