//! How a weight matrix is cut: K segments of one length, N slices by the cores.
//!
//! Where native B may be seen through windows, all of it is one stack: segment after segment, each of all columns.
//! A slice of a segment, a whole segment, and any run of columns of the stack are then ranges of its bytes.

use std::ops::Range;

use rknn_sys::MatmulType;

use super::schedule::{Means, Schedule};
use super::ROWS_MAX;
use crate::chip::{Chip, TypeLimits};

/// No segment is cut shorter than this for speed.
const SEGMENT_MIN: usize = 256;
/// How much longer than the fastest a plan with fewer segments may take: the results of each are read by the CPU, which
/// has less time for that than the NPU for them.
const ABOUT_AS_FAST: f64 = 1.10;
/// The same where its segments are longer than [`TRUE_MAX`]: a scale for so many elements costs accuracy. (K = 1536 of
/// SmolLM2 in one segment instead of two: a divergence of 0.0043 instead of 0.0042.)
const ABOUT_AS_FAST_LONG: f64 = 1.03;
const TRUE_MAX: usize = 1280;
/// Columns of weights by which rows that are rotated in blocks are cut where several weights share them: of narrow ones, and,
/// where rows are no longer than a model's own width, of gate and up.
const TYPICAL_N: [usize; 2] = [2048, 14336];
const MODEL_WIDTH_MAX: usize = 5120;

/// A run of k: `start .. start + len`, zero-padded to `padded`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First k.
    pub start: usize,
    /// Elements of the matrix.
    pub len: usize,
    /// K of the context.
    pub padded: usize,
}

/// A run of columns (output channels) that one core computes: `start .. start + len`, padded to `padded`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// The core.
    pub core: usize,
    /// First column.
    pub start: usize,
    /// Columns of the matrix.
    pub len: usize,
    /// N of the context.
    pub padded: usize,
}

/// Segments whose rows are stacked in A: `count` of them, `first` and those after it; after the last one comes segment 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stacked {
    /// The first.
    pub first: usize,
    /// How many.
    pub count: usize,
}

impl Stacked {
    /// One alone.
    pub fn one(segment: usize) -> Self {
        Self { first: segment, count: 1 }
    }

    /// The place of a segment among them, of `segments` that there are.
    pub fn place(&self, segment: usize, segments: usize) -> usize {
        (segment + segments - self.first) % segments
    }
}

/// The cutting of one K×N weight. It holds for any number of rows.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightPlan {
    /// Element type on the NPU.
    pub dtype: MatmulType,
    /// Alignments and native blocks.
    pub limits: TypeLimits,
    /// K of the matrix.
    pub k: usize,
    /// N of the matrix.
    pub n: usize,
    /// Ascending, disjoint, all of K; `padded` is the same for all.
    pub segments: Vec<Segment>,
    /// Ascending, disjoint, all of N; at most one a core.
    pub slices: Vec<Slice>,
    /// N, padded.
    pub columns: usize,
    /// The columns of each weight, where it is the plan of several [`Self::together`].
    stacks: Vec<usize>,
    /// The NPU's time of a prompt by its fastest schedule, over the shortest for segments of any lengths; 1 if nobody looked.
    pub lag: f64,
}

impl WeightPlan {
    /// Plans a `k`×`n` weight for `cores` cores, numbered from 0, in segments of at most `segment_max` k, if the chip
    /// has no lower limit; `None` when it does not run `dtype`, or a number is zero.
    pub fn new(
        chip: &Chip,
        cores: usize,
        dtype: MatmulType,
        (k, n): (usize, usize),
        segment_max: usize,
    ) -> Option<Self> {
        let limits = *chip.limits(dtype)?;
        if segment_max == 0 {
            return None;
        }
        let segment_max = segment_max.clamp(limits.k_align, chip.k_max) / limits.k_align * limits.k_align;
        let pieces = k.div_ceil(segment_max).max(1);
        Self::cut(chip, cores, dtype, (k, n), k.div_ceil(pieces).next_multiple_of(limits.k_align))
    }

    /// As [`Self::new`], in segments of `step` k each, but for the last, which is padded to as many.
    fn cut(
        chip: &Chip,
        cores: usize,
        dtype: MatmulType,
        (k, n): (usize, usize),
        step: usize,
    ) -> Option<Self> {
        let limits = *chip.limits(dtype)?;
        let fits = step > 0 && step <= chip.k_max && step % limits.k_align == 0;
        if k == 0 || n == 0 || cores == 0 || !fits {
            return None;
        }
        let segments = (0..k)
            .step_by(step)
            .map(|start| {
                // All alike, so that a run may take columns of several.
                Segment { start, len: step.min(k - start), padded: step }
            })
            .collect();

        Some(Self::of_segments(dtype, limits, (k, n), segments, cores))
    }

    fn of_segments(
        dtype: MatmulType,
        limits: TypeLimits,
        (k, n): (usize, usize),
        segments: Vec<Segment>,
        cores: usize,
    ) -> Self {
        let units = n.div_ceil(limits.n_align);
        let cores = cores.min(units);
        let columns = units * limits.n_align;
        let slices = (0..cores)
            .map(|core| {
                let share = share(columns, core, cores, limits.n_align);
                Slice { core, start: share.start, len: share.end.min(n) - share.start, padded: share.len() }
            })
            .collect();
        Self { dtype, limits, k, n, segments, slices, columns, stacks: vec![columns], lag: 1.0 }
    }

    /// The plan of several weights that are cut alike but for N, and whose stacks lie one after the other, as of one: its columns
    /// are those of all of them, with the columns of padding. Of several segments its stack is in another order than theirs
    /// are: only what takes all of it at once is the same. `None` if they are not cut alike.
    pub fn together<'a>(plans: impl Iterator<Item = &'a Self>, cores: usize) -> Option<Self> {
        let mut plans = plans.peekable();
        let first = *plans.peek()?;
        let mut stacks = Vec::new();
        for plan in plans {
            if plan.dtype != first.dtype || plan.segments != first.segments {
                return None;
            }
            stacks.push(plan.columns);
        }
        let shape = (first.k, stacks.iter().sum());
        Some(Self {
            stacks,
            ..Self::of_segments(first.dtype, first.limits, shape, first.segments.clone(), cores)
        })
    }

    /// The columns of each weight that it is the plan of.
    pub fn stacks(&self) -> &[usize] {
        &self.stacks
    }

    /// The segments that some columns of the stack are of. In the stack of several weights each one's segments come in their
    /// order, so that after a weight's last one the next one's first follows.
    pub fn stacked(&self, columns: &Range<usize>) -> Stacked {
        let segments = self.segments.len();
        // Counted on from weight to weight.
        let of = |column: usize| {
            let mut start = 0;
            for (at, width) in self.stacks.iter().enumerate() {
                let end = start + segments * width;
                if column < end {
                    return at * segments + (column - start) / width;
                }
                start = end;
            }
            self.stacks.len() * segments - 1
        };
        let (first, last) = (of(columns.start), of(columns.end.max(columns.start + 1) - 1));
        Stacked { first: first % segments, count: (last - first + 1).min(segments) }
    }

    /// The fastest plan for prompts of [`ROWS_MAX`] rows: segments as long as `segment_max` and the chip allow, or
    /// shorter ones where B then streams by fewer times. Of plans that are about as fast it is the one with the fewest
    /// segments, whose results are the fewest to add.
    ///
    /// Segments are part of what comes out: each has scales of its own. So they follow from the chip, and not from
    /// how many of its cores work or what else is made of `means`.
    pub fn fastest(
        chip: &Chip,
        means: Means,
        dtype: MatmulType,
        (k, n): (usize, usize),
        segment_max: usize,
    ) -> Option<Self> {
        let whole = Self::whole(chip, means);
        let plan = |segment_max| Self::new(chip, whole.cores, dtype, (k, n), segment_max);
        let longest = plan(segment_max)?;
        let most = k.div_ceil(SEGMENT_MIN).max(longest.segments.len());
        let plans = (longest.segments.len()..=most)
            .map_while(|pieces| plan(k.div_ceil(pieces).next_multiple_of(longest.limits.k_align)));
        let chosen = about_as_fast(plans.map(|plan| (plan.prompt_ns(chip, whole), plan)).collect())?;
        Self::in_segments(chip, means, dtype, (k, n), segment_max, chosen.longest())
    }

    /// The plan in segments of `step` k each, but for the last, which is padded to as many; `segment_max` as above.
    pub fn in_segments(
        chip: &Chip,
        means: Means,
        dtype: MatmulType,
        shape: (usize, usize),
        segment_max: usize,
        step: usize,
    ) -> Option<Self> {
        let whole = Self::whole(chip, means);
        let longest = Self::new(chip, whole.cores, dtype, shape, segment_max)?;
        let plan = |cores| Self::cut(chip, cores, dtype, shape, step);
        let least = Schedule::least_ns(&plan(whole.cores)?, &chip.timing, whole, ROWS_MAX);
        let lag = (least / Self::bound_ns(chip, whole, &longest)).max(1.0);
        Some(Self { lag, ..plan(means.cores)? })
    }

    /// How rows of `k` that are rotated in blocks are cut: the length of a segment, and of the blocks that it consists of.
    /// `block_within` knows the longest good block of so many k, if there is one. `None` where nothing fits.
    ///
    /// Weights of any N share the rows, and so their rotation: it is chosen as in [`Self::fastest`], by what it costs weights of
    /// all [`TYPICAL_N`]; or of `n` columns alone, if all that have these rows have as many.
    pub fn in_blocks(
        chip: &Chip,
        means: Means,
        dtype: MatmulType,
        (k, n): (usize, Option<usize>),
        segment_max: usize,
        block_within: impl Fn(usize) -> Option<usize>,
    ) -> Option<(usize, usize)> {
        let whole = Self::whole(chip, means);
        let limits = chip.limits(dtype)?;
        let block = |step: usize| block_within(gcd(k, step));
        let most = segment_max.min(chip.k_max).min(k) / limits.k_align;
        let steps = (1..=most).rev().map(|units| units * limits.k_align);
        let steps = steps.filter(|step| *step >= SEGMENT_MIN && block(*step).is_some()).collect::<Vec<_>>();
        // Of each step the worst part by which it is slower than the fastest one, and a plan.
        let mut plans: Vec<(f64, Self)> = Vec::new();
        let widths = match &n {
            Some(n) => std::slice::from_ref(n),
            None if k > MODEL_WIDTH_MAX => &TYPICAL_N[..1],
            None => &TYPICAL_N,
        };
        for &n in widths {
            let cut = |step: &usize| Self::cut(chip, whole.cores, dtype, (k, n), *step);
            let of = steps.iter().filter_map(cut).map(|plan| (plan.prompt_ns(chip, whole), plan));
            let of = of.collect::<Vec<_>>();
            let best = of.iter().map(|(ns, _)| *ns).fold(f64::INFINITY, f64::min);
            if plans.is_empty() {
                plans = of.into_iter().map(|(ns, plan)| (ns / best, plan)).collect();
            } else {
                plans.iter_mut().zip(of).for_each(|((worst, _), (ns, _))| *worst = worst.max(ns / best));
            }
        }
        let step = about_as_fast(plans)?.longest();
        block(step).map(|block| (step, block))
    }

    /// All that the chip has, whatever may be used of it now.
    fn whole(chip: &Chip, means: Means) -> Means {
        Means { cores: chip.cores, windows: true, ..means }
    }

    /// The NPU's shortest time of a prompt of [`ROWS_MAX`] rows, ns; longer by the part that is padding, which is streamed at
    /// every token.
    fn prompt_ns(&self, chip: &Chip, means: Means) -> f64 {
        let padding = (self.longest() * self.segments.len()) as f64 / self.k as f64;
        Schedule::least_ns(self, &chip.timing, means, ROWS_MAX) * padding
    }

    /// The NPU's time of a prompt of [`ROWS_MAX`] rows if segments needed not be of one length, ns: of the same number of
    /// K each but for the last, which is not padded, at most as long as those of `longest`.
    fn bound_ns(chip: &Chip, means: Means, longest: &Self) -> f64 {
        let (k, n, align) = (longest.k, longest.n, longest.limits.k_align);
        // Of a segment of so many units of K.
        let ns = |units: usize| {
            let (dtype, len) = (longest.dtype, units * align);
            let plan = Self::new(chip, means.cores, dtype, (len, n), len);
            plan.map_or(f64::INFINITY, |plan| Schedule::least_ns(&plan, &chip.timing, means, ROWS_MAX))
        };
        let (all, most) = (k.div_ceil(align), longest.longest() / align);
        let of = (0..=most).map(|units| if units == 0 { 0.0 } else { ns(units) }).collect::<Vec<_>>();
        (1..=most)
            .map(|units| (all / units) as f64 * of[units] + of[all % units])
            .fold(f64::INFINITY, f64::min)
    }

    /// The columns of `core` when `cores` share `columns` columns evenly.
    pub fn share(&self, columns: usize, core: usize, cores: usize) -> Range<usize> {
        share(columns, core, cores, self.limits.n_align)
    }

    /// Bytes of `columns` columns of a segment, or of the stack.
    pub fn column_bytes(&self, columns: usize) -> usize {
        self.dtype.b().bytes(columns * self.longest())
    }

    /// Bytes of the stack: all segments of all columns.
    pub fn stack_bytes(&self) -> usize {
        self.column_bytes(self.columns * self.segments.len())
    }

    /// Bytes of the part (`slice`, `segment`).
    pub fn part_bytes(&self, slice: &Slice, segment: &Segment) -> usize {
        self.dtype.b().bytes(slice.padded * segment.padded)
    }

    /// Bytes of each part, in the order in which parts are stored.
    pub fn all_part_bytes(&self) -> impl Iterator<Item = usize> + '_ {
        self.slices
            .iter()
            .flat_map(move |slice| self.segments.iter().map(move |segment| self.part_bytes(slice, segment)))
    }

    /// The segments' padded K.
    pub fn longest(&self) -> usize {
        self.segments.first().map_or(0, |segment| segment.padded)
    }

    /// The index of the part (`slice`, `segment`) in the order in which parts are stored.
    pub fn part(&self, slice: usize, segment: usize) -> usize {
        slice * self.segments.len() + segment
    }

    /// Columns of the widest slice.
    pub fn widest(&self) -> usize {
        self.slices.iter().map(|slice| slice.padded).max().unwrap_or(0)
    }
}

/// Of plans of one matrix and what they cost, of those that are about as fast as the fastest, the one with the fewest segments.
fn about_as_fast(plans: Vec<(f64, WeightPlan)>) -> Option<WeightPlan> {
    let best = plans.iter().map(|(cost, _)| *cost).fold(f64::INFINITY, f64::min);
    let allowed =
        |plan: &WeightPlan| if plan.longest() > TRUE_MAX { ABOUT_AS_FAST_LONG } else { ABOUT_AS_FAST };
    let near = plans.into_iter().filter(|(cost, plan)| *cost <= best * allowed(plan));
    let fewer = |one: &(f64, WeightPlan), other: &(f64, WeightPlan)| {
        one.1.segments.len().cmp(&other.1.segments.len()).then(one.0.total_cmp(&other.0))
    };
    near.min_by(fewer).map(|(_, plan)| plan)
}

/// The greatest common divisor.
fn gcd(one: usize, other: usize) -> usize {
    if other == 0 {
        one
    } else {
        gcd(other, one % other)
    }
}

/// The part of `core` when `cores` share `columns` columns, a multiple of `align`, evenly.
fn share(columns: usize, core: usize, cores: usize, align: usize) -> Range<usize> {
    let at = |core: usize| columns / align * core / cores * align;
    at(core)..at(core + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::CHIPS;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_weight_is_covered_once_within_the_chips_limits(
            chip in 0..CHIPS.len(), dtype in 0..MatmulType::ALL.len(), k in 1usize..40_000, n in 1usize..60_000,
            segment_max in 1usize..20_000,
        ) {
            let (chip, dtype) = (&CHIPS[chip], MatmulType::ALL[dtype]);
            let plan = WeightPlan::new(chip, chip.cores, dtype, (k, n), segment_max);
            prop_assert_eq!(plan.is_some(), chip.limits(dtype).is_some());
            let Some(plan) = plan else { return Ok(()) };
            prop_assert!(plan.longest() <= segment_max.max(plan.limits.k_align));
            let mut at = 0;
            for segment in &plan.segments {
                prop_assert_eq!(segment.start, at);
                prop_assert!(segment.len > 0 && segment.padded <= chip.k_max);
                prop_assert_eq!(segment.padded % plan.limits.k_align, 0);
                prop_assert_eq!(segment.padded, plan.longest());
                at += segment.len;
            }
            prop_assert_eq!(at, k);
            prop_assert!(plan.longest() * plan.segments.len() - k < plan.segments.len() * plan.limits.k_align);
            at = 0;
            for (core, slice) in plan.slices.iter().enumerate() {
                prop_assert_eq!((slice.core, slice.start), (core, at));
                prop_assert!(slice.len > 0 && slice.padded - slice.len < plan.limits.n_align);
                prop_assert_eq!(slice.padded % plan.limits.n_align, 0);
                at += slice.len;
            }
            prop_assert_eq!(at, n);
            prop_assert_eq!(plan.slices.iter().map(|slice| slice.padded).sum::<usize>(), plan.columns);
            prop_assert_eq!(plan.all_part_bytes().sum::<usize>(), plan.stack_bytes());
            prop_assert!(plan.slices.len() <= chip.cores);
        }
    }

    /// Whatever is chosen, blocks are whole parts of K and of segments.
    #[test]
    fn long_rows_are_cut_in_whole_blocks() {
        let chip = Chip::by_name("rk3588").unwrap();
        let means = Means { cores: 3, planes: 1, windows: true };
        let within =
            |len: usize| (1..=4).map(|parts| len / parts).find(|block| block % 128 == 0 && *block > 0);
        for k in [4096, 5120, 6912, 8960, 9728, 13824, 18944] {
            let (step, block) =
                WeightPlan::in_blocks(chip, means, MatmulType::I8, (k, None), usize::MAX, within).unwrap();
            assert_eq!((k % block, step % block), (0, 0), "K = {k}: {step}, {block}");
            for n in [256, 1536, 14336] {
                let shape = (k, n);
                let plan =
                    WeightPlan::in_segments(chip, means, MatmulType::I8, shape, usize::MAX, step).unwrap();
                assert_eq!((plan.longest(), plan.segments.len()), (step, k.div_ceil(step)));
                assert_eq!(plan.segments.iter().map(|segment| segment.len).sum::<usize>(), k);
                let fastest = WeightPlan::fastest(chip, means, MatmulType::I8, shape, usize::MAX).unwrap();
                assert!(n < 1536 || plan.lag <= 1.15 * fastest.lag, "K = {k}: {} {}", plan.lag, fastest.lag);
            }
        }
        assert!(
            WeightPlan::in_blocks(chip, means, MatmulType::I8, (4096, None), usize::MAX, |_| None).is_none()
        );
    }

    /// SmolLM2's down: a segment for each core.
    #[test]
    fn rows_of_one_weight_alone_are_cut_for_its_columns() {
        let chip = Chip::by_name("rk3588").unwrap();
        let means = Means { cores: 3, planes: 1, windows: true };
        let step =
            |n| WeightPlan::in_blocks(chip, means, MatmulType::I8, (1536, n), usize::MAX, Some).unwrap().0;
        assert_eq!((step(Some(576)), step(None)), (512, 768));
        let ns = |step| {
            let plan = WeightPlan::cut(chip, 3, MatmulType::I8, (1536, 576), step).unwrap();
            Schedule::least_ns(&plan, &chip.timing, means, ROWS_MAX)
        };
        assert!(ns(768) > 1.1 * ns(512), "{} {}", ns(768), ns(512));
    }

    #[test]
    fn a_vocabulary_is_split_evenly_and_a_long_k_is_cut() {
        let chip = Chip::by_name("rk3588").unwrap();
        let plan = |k, n| WeightPlan::new(chip, 3, MatmulType::I8, (k, n), usize::MAX);
        let vocabulary = plan(576, 49152).unwrap();
        assert_eq!(vocabulary.slices.iter().map(|slice| slice.len).collect::<Vec<_>>(), [16384; 3]);
        assert_eq!(vocabulary.segments, [Segment { start: 0, len: 576, padded: 576 }]);
        assert_eq!(plan(18944, 3584).unwrap().segments.len(), 3);
        assert!(plan(0, 32).is_none() && plan(32, 0).is_none());
        assert!(WeightPlan::new(chip, 3, MatmulType::F16I4, (32, 32), 32).is_none(), "not on this chip");
        assert!(WeightPlan::new(chip, 0, MatmulType::I8, (32, 32), 32).is_none());
        let nibbles = WeightPlan::new(chip, 3, MatmulType::I4, (576, 576), 512).unwrap();
        assert_eq!(nibbles.segments.iter().map(|segment| segment.len).collect::<Vec<_>>(), [288; 2]);
        assert_eq!(nibbles.part_bytes(&nibbles.slices[0], &nibbles.segments[0]), 192 * 288 / 2);
    }
}
