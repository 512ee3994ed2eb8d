//! Which pipeline and rotation a weight takes: the cheapest that this NPU runs whose error is allowed.

use std::sync::Arc;

use super::{Engine, Error};
use crate::kernels::int4::Calibration;
use crate::kernels::rotate::{Recipe, Rotation, Signs};
use crate::plan::WeightPlan;
use crate::policy::choice::{activation_error, preference, File};
use crate::policy::goal::Goal;
use crate::policy::scheme::{Rotate, Scheme};
use crate::policy::Pipeline;
use crate::weights::{relative_error, PackError, Source};

/// A weight stays as it is when that costs at most this share of the rotated rows' error: such rows, ternary or
/// uniform ones, were made for it, and so are the activations that they are multiplied with.
const CLEARLY_LESS: f64 = 0.5;

/// Rows of up to as many elements are rotated as a whole, longer ones in blocks; or what a segment has at most. (K = 1536 of
/// SmolLM2's Q8_0 in two blocks: a divergence of 0.0055 instead of 0.0056, and by W4A8 of 0.59 instead of 0.65, by Paley's
/// matrices.)
const WHOLE_MAX: usize = 1280;

/// What is wanted of a weight that the NPU is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// This.
    Scheme(Scheme),
    /// What is best by this goal.
    Best(Goal),
}

/// How a weight is to be converted.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// The user's word, or what to choose by.
    pub wanted: Wanted,
    /// The layer that the weight is of, for the rotation's signs.
    pub layer: Option<u32>,
    /// No other weight has the same rows: they are cut for its own columns.
    pub is_alone: bool,
    /// How far the rotation's signs reach; `None` for the pipeline's own.
    pub signs: Option<Signs>,
    /// How four-bit scales are found.
    pub calibration: Calibration,
    /// Whether its converted copy is worth keeping on disk: the host's bytes stay as they are.
    pub keep: bool,
    /// Bytes of the models that it and others are of, as far as that is known: how much memory is still to be asked for.
    pub models: usize,
}

/// Long rows that are rotated: the pipeline, K, and N if it is that of all their weights.
pub(super) type BlocksKey = (Pipeline, usize, Option<usize>);

/// What was chosen.
pub struct Chosen {
    pub pipeline: Pipeline,
    pub rotation: Option<Arc<Rotation>>,
    pub plan: WeightPlan,
    /// The estimated squared error of products, relative to their power.
    pub error: f64,
    /// The largest error that is at the level of the host's CPU.
    pub level: f64,
}

fn file_of(source: &Source) -> File {
    File { quantized: source.reader.is_quantized(), bits_per_weight: source.bits_per_weight() }
}

impl Engine {
    /// Chooses for `source`.
    ///
    /// # Errors
    /// Nothing that this NPU runs is true enough, or the weight is not finite.
    pub(super) fn choose(&mut self, source: &Source, request: &Request) -> Result<Chosen, Error> {
        let file = file_of(source);
        let (goal, wanted) = match request.wanted {
            Wanted::Scheme(Scheme { pipeline, rotate }) => {
                let pipeline =
                    self.mode.pipeline(pipeline).ok_or_else(|| self.unsupported(source, pipeline))?;
                return self.represent(source, request, pipeline, rotate);
            }
            Wanted::Best(goal) => (goal, Pipeline::of(file.quantized)),
        };
        let mut best: Option<Chosen> = None;
        for pipeline in self.candidates(&file, goal) {
            let chosen = self.represent(source, request, pipeline, Rotate::Auto)?;
            if file.takes(goal, pipeline) || chosen.error <= file.allowed(goal, pipeline) {
                return Ok(chosen);
            }
            if best.as_ref().is_none_or(|best| chosen.error < best.error) {
                best = Some(chosen);
            }
        }
        // The truest that there is, if it has the bits that the file's kind asks for.
        best.filter(|best| best.pipeline.is_as_true_as(wanted))
            .ok_or_else(|| self.unsupported(source, wanted))
    }

    /// The pipelines that this NPU runs, in the order in which they are preferred.
    fn candidates(&self, file: &File, goal: Goal) -> Vec<Pipeline> {
        let hopeless = |pipeline: &Pipeline| {
            // Their activations alone lose more, however short the segments.
            activation_error(*pipeline, true, 1) > file.allowed(goal, *pipeline)
                && !file.takes(goal, *pipeline)
        };
        let all = preference(self.mode.whole_activations_are_free);
        all.into_iter().filter(|pipeline| self.mode.runs(*pipeline) && !hopeless(pipeline)).collect()
    }

    /// The weight's form in `pipeline`, with the rotation that `rotate` asks for, and its error.
    fn represent(
        &mut self,
        source: &Source,
        request: &Request,
        pipeline: Pipeline,
        rotate: Rotate,
    ) -> Result<Chosen, Error> {
        let signs = request.signs.unwrap_or(pipeline.signs());
        let padded = rotate == Rotate::Padded;
        let cut =
            if padded { None } else { self.blocks(pipeline, source.k, request.is_alone.then_some(source.n)) };
        let block = cut.map(|(_, block)| block);
        let recipe = Recipe { k: source.k, layer: request.layer, signs, padded, block };
        let rotation = match rotate {
            Rotate::Off => None,
            Rotate::Auto if !pipeline.rotates() => None,
            _ => self.rotation(recipe),
        };
        let mut form = |rotation: Option<Arc<Rotation>>| {
            let width = rotation.as_ref().map_or(source.k, |rotation| rotation.width());
            let segment = cut.filter(|_| rotation.is_some()).map(|(segment, _)| segment);
            let plan = self
                .plan(pipeline, (width, source.n), pipeline.segment_max(), segment)
                .ok_or_else(|| self.unsupported(source, pipeline))?;
            let error = relative_error(
                source,
                pipeline.dtype().b(),
                rotation.as_deref(),
                &plan.segments,
                request.calibration,
            )
            .ok_or(PackError::NotFinite)?;
            Ok::<_, Error>((rotation, plan, error))
        };
        let (mut rotation, mut plan, mut weights) = form(rotation)?;
        // Rows that are flat as they are need no rotation, and count as if they had it.
        let mixed = rotation.is_some();
        if rotate == Rotate::Auto && mixed {
            let flat = form(None)?;
            if flat.2 < CLEARLY_LESS * weights {
                (rotation, plan, weights) = flat;
            }
        }
        let error = weights + activation_error(pipeline, mixed, plan.longest());
        let level = file_of(source).allowed(Goal::Accurate, Pipeline::W8A8);
        Ok(Chosen { pipeline, rotation, plan, error, level })
    }

    /// How a weight is cut for the cores that work, in segments of `segment` elements if that is given; searched once for each
    /// shape.
    pub(super) fn plan(
        &mut self,
        pipeline: Pipeline,
        shape: (usize, usize),
        segment_max: usize,
        segment: Option<usize>,
    ) -> Option<WeightPlan> {
        let (chip, means, dtype) = (self.chip, self.means(pipeline), pipeline.dtype());
        let plan = || match segment {
            Some(segment) => WeightPlan::in_segments(chip, means, dtype, shape, segment_max, segment),
            None => WeightPlan::fastest(chip, means, dtype, shape, segment_max),
        };
        self.plans.entry((pipeline, shape, segment_max, segment)).or_insert_with(plan).clone()
    }

    /// The segments and blocks of rows that are rotated in blocks, of weights of `n` columns or of any; searched once for each
    /// shape.
    fn blocks(&mut self, pipeline: Pipeline, k: usize, n: Option<usize>) -> Option<(usize, usize)> {
        let (chip, means, dtype) = (self.chip, self.means(pipeline), pipeline.dtype());
        let blocks = || {
            let within = Rotation::block_within;
            WeightPlan::in_blocks(chip, means, dtype, (k, n), pipeline.segment_max(), within)
        };
        if k <= pipeline.segment_max().min(WHOLE_MAX) || !pipeline.rotates() {
            return None;
        }
        *self.blocks.entry((pipeline, k, n)).or_insert_with(blocks)
    }

    pub(super) fn unsupported(&self, source: &Source, pipeline: Pipeline) -> Error {
        let what = format!("{} with K={}, N={}", pipeline.name(), source.k, source.n);
        Error::Unsupported { chip: self.chip.title, what }
    }

    /// The rotation of a recipe, made once; `None` where there is none.
    fn rotation(&mut self, recipe: Recipe) -> Option<Arc<Rotation>> {
        self.rotations.entry(recipe).or_insert_with(|| Rotation::new(&recipe).map(Arc::new)).clone()
    }
}
