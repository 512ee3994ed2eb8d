//! The choice of a pipeline by the error of its products.
//!
//! Errors are relative and squared: Σ(y − ŷ)² / Σy² of a product's outputs. That of a pipeline is its weights' error,
//! which is measured on the tensor, plus its activations', which is what a rounded Gaussian row loses, since a
//! rotated row nearly is one. It is held against what the host's own CPU product of the same file loses: its
//! activations' rounding to blocks of 8 bits, or to 16 bits for floats. What was rounded when the file was made is
//! lost on both, and excuses nothing but in [`Goal::Fast`].

use super::goal::Goal;
use super::Pipeline;

/// What the host's CPU loses by rounding activations to Q8_0 or Q8_K blocks.
///
/// Inferred: for SmolLM2 over 20 chunks the CPU's Q8_0 and rotated W8A8 of the F16 file have the same KL divergence
/// (0.0043, 0.0041; `cargo xtask accuracy`), the latter with errors of 1.5e-4 by this module's count, of which
/// Q8_0's weights account for 2.7e-5.
const CPU_LEVEL_8_BITS: f64 = 1.2e-4;
/// What the host's CPU loses with 16-bit activations, and more than f16 weights lose: eleven bits of mantissa.
const CPU_LEVEL_16_BITS: f64 = 1e-6;
/// At the level of the CPU: as much again as its own rounding, since both operands are rounded …
const LEVEL: f64 = 2.0;
/// … but no more than that for four bits, which are the CPU's level only for weights that they hold as they are.
const LEVEL_FOUR_BITS: f64 = 1.0;
/// The bound of [`Goal::Fast`]: four times the squared error of the file's own rounding, twice in amplitude.
pub const FAST_BOUND: f64 = 4.0;
/// [`Goal::Lean`] takes four bits for files of at most five and their scales.
const LEAN_BITS_MAX: f64 = 6.0;
/// How much more a row of activations loses that is not rotated: in W8A8 of SmolLM2 the KL divergence rises from
/// 0.0039 to 0.0346 without rotation.
const UNROTATED: f64 = 9.0;

/// What is known of a weight before it is converted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct File {
    /// Whether its type is a quantised one.
    pub quantized: bool,
    /// Bits of an element, scales and all.
    pub bits_per_weight: f64,
}

impl File {
    /// The squared error of the file's own rounding: what blocks of 32 Gaussian values lose at so many bits (their
    /// largest is about 2.3 σ, so a step is 2.3/2^(bits−1), with half a bit for the scale), at most all. 0 for floats.
    pub fn own_error(&self) -> f64 {
        if !self.quantized {
            return 0.0;
        }
        (2.3f64.powi(2) / 12.0 / 4f64.powf(self.bits_per_weight - 0.5 - 1.0)).min(1.0)
    }

    /// The largest error that `goal` lets `pipeline` have.
    pub fn allowed(&self, goal: Goal, pipeline: Pipeline) -> f64 {
        let level = if self.quantized { CPU_LEVEL_8_BITS } else { CPU_LEVEL_16_BITS };
        let accurate = level * if pipeline.bits().0 == 4 { LEVEL_FOUR_BITS } else { LEVEL };
        match goal {
            Goal::Accurate | Goal::Lean => accurate,
            Goal::Fast => accurate.max(FAST_BOUND * self.own_error()),
        }
    }

    /// Whether `goal` takes `pipeline` for the file whatever its error.
    pub fn takes(&self, goal: Goal, pipeline: Pipeline) -> bool {
        let four_bits = matches!(pipeline, Pipeline::W4A8 | Pipeline::W4A16);
        goal == Goal::Lean && four_bits && self.quantized && self.bits_per_weight < LEAN_BITS_MAX
    }
}

/// All pipelines, the one to be tried first first: the cheapest, but whole activations before rounded ones where the
/// probe measured that they take no longer.
pub fn preference(whole_activations_are_free: bool) -> [Pipeline; 6] {
    let mut all = Pipeline::ALL;
    if whole_activations_are_free {
        all.swap(Pipeline::W8A8.index(), Pipeline::W8A16.index());
    }
    all
}

/// The squared error that `pipeline`'s rounding of activations adds, for rows with a scale for each `segment`
/// elements; `mixed` when they are rotated, or need not be.
pub fn activation_error(pipeline: Pipeline, mixed: bool, segment: usize) -> f64 {
    // The largest of n Gaussian values, squared.
    let peak = 2.0 * (2.0 * segment.max(1) as f64).ln();
    let steps = |largest: f64| peak / (12.0 * largest * largest);
    let error = match pipeline {
        Pipeline::W16A16 | Pipeline::W8A16 | Pipeline::W4A16 => return 2f64.powi(-22) / 3.0,
        Pipeline::W8A8 => steps(127.0),
        Pipeline::W4A8 => steps(119.0),
        // The best uniform step for 16 levels (J. Max, 1960), and a little for a quick search.
        Pipeline::W4A4 => 0.0125,
    };
    if mixed {
        error
    } else {
        error * UNROTATED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const Q8_0: File = File { quantized: true, bits_per_weight: 8.5 };
    const Q4_0: File = File { quantized: true, bits_per_weight: 4.5 };
    const F16: File = File { quantized: false, bits_per_weight: 16.0 };

    /// The error of weights as rotated Gaussian rows have it.
    fn of(pipeline: Pipeline) -> f64 {
        let weights = match pipeline.bits().0 {
            4 => 0.0115,
            8 => 6e-5,
            _ => 0.0,
        };
        weights + activation_error(pipeline, true, 576)
    }

    fn first(file: File, goal: Goal) -> Pipeline {
        let fits = |pipeline: &Pipeline| {
            file.takes(goal, *pipeline) || of(*pipeline) <= file.allowed(goal, *pipeline)
        };
        Pipeline::ALL.into_iter().find(fits).unwrap()
    }

    #[test]
    fn the_default_stays_at_the_level_of_the_cpu() {
        assert_eq!(first(Q8_0, Goal::Accurate), Pipeline::W8A8);
        assert_eq!(first(Q4_0, Goal::Accurate), Pipeline::W8A8);
        assert_eq!(first(F16, Goal::Accurate), Pipeline::W16A16);
    }

    #[test]
    fn the_other_goals_take_four_bits_of_files_that_have_no_more() {
        assert_eq!(first(Q4_0, Goal::Lean), Pipeline::W4A8);
        assert_eq!(first(Q4_0, Goal::Fast), Pipeline::W4A4);
        for goal in [Goal::Lean, Goal::Fast] {
            assert_eq!(first(Q8_0, goal), Pipeline::W8A8);
            assert_eq!(first(F16, goal), Pipeline::W16A16);
        }
    }

    #[test]
    fn whole_activations_are_preferred_where_they_are_free() {
        let before = |free, a, b| {
            let place = |pipeline| preference(free).into_iter().position(|other| other == pipeline);
            place(a) < place(b)
        };
        assert!(before(false, Pipeline::W8A8, Pipeline::W8A16));
        assert!(before(true, Pipeline::W8A16, Pipeline::W8A8));
        assert!(before(true, Pipeline::W8A8, Pipeline::W16A16));
    }

    #[test]
    fn a_files_own_error_follows_its_bits() {
        assert!((2e-5..4e-5).contains(&Q8_0.own_error()), "{}", Q8_0.own_error());
        assert!((5e-3..9e-3).contains(&Q4_0.own_error()), "{}", Q4_0.own_error());
        assert_eq!(F16.own_error(), 0.0);
    }
}
