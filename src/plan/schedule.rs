//! How a product is run: what each core takes, in how many steps.
//!
//! A *step* is one run on each core. Two ways to cut it:
//!
//! * [`Cut::Columns`]: all cores read the same rows, each has its share of the columns;
//! * [`Cut::Rows`]: each core has rows of its own, and all columns: for weights too narrow to share.
//!
//! A step by columns may take a *group* of segments at once. B is then read as one stack of these segments' columns,
//! with the rows' pieces of each segment stacked as rows of A: a run multiplies each piece with each segment's columns,
//! and only the products that belong together are read back. Few rows are bound by B's bytes, so that what is
//! computed in vain costs little, and a run costs as much as half a megabyte of B.
//!
//! A *batch* is the steps of some rows whose results are read together: each row of the output is then written once for
//! all of their segments. While the NPU runs a batch, the CPU packs the next one and reads the one before. Wide outputs
//! are computed in *parts*, columns after columns: B is read once all the same, more segments fit into a batch, and
//! fewer results are still to be read when the NPU is done.
//!
//! What is best is searched under the time that [`Timing`] gives.

use std::ops::Range;

use rknn_sys::Element;

use super::rows::{round_down_by_an_eighth, round_up_by_an_eighth};
use super::{WeightPlan, ROWS_MAX};
use crate::chip::{Timing, CORES_MAX};

/// The most bytes of C of a core's batch: a wide output (a vocabulary) gets shorter steps.
const C_BYTES_MAX: usize = 8 << 20;
/// The most rows of A of a stacked run.
const STACK_ROWS_MAX: usize = 512;

/// How much longer than the fastest a schedule may keep the NPU if its results are there sooner. Products of 16 bits have
/// more segments, whose results are worth more of the NPU's time where they then are read together.
const NEARLY: f64 = 1.06;
const NEARLY_16_BITS: f64 = 1.10;
/// Bytes of f32 rows that the CPU rotates and packs, and of results that it reads and writes, in a ns: a guess for four
/// big cores. Results come from memory, since the NPU does not write to the CPU's caches.
const PACK_RATE: f64 = 6.0;
const SCALE_RATE: f64 = 12.0;
/// The most parts of the columns, the fewest of them for a core, and the fewest rows where that is worth a look.
const PARTS_MAX: usize = 8;
const PART_COLUMNS_MIN: usize = 256;
const PARTED_ROWS_MIN: usize = 64;
/// The most steps of a batch.
pub const BATCH_MAX: usize = 8;

/// What the cores share out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cut {
    /// Columns of this many segments at once.
    Columns(usize),
    /// Rows.
    Rows,
}

/// What may be done with a weight's memory, and how many cores there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Means {
    /// Cores that work.
    pub cores: usize,
    /// Rows of A for a row of activations.
    pub planes: usize,
    /// Any range of columns of the stack can be bound; otherwise the plan's parts alone.
    pub windows: bool,
}

/// What is asked of a schedule.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// The most bytes of C, and steps, of a core's batch.
    c_bytes: usize,
    steps: usize,
    /// All segments are to be in one batch, and the results are read with another product's and not written.
    joint: bool,
}

impl Wanted {
    /// Of one product.
    const ALONE: Self = Self { c_bytes: C_BYTES_MAX, steps: BATCH_MAX, joint: false };
}

/// How a product of some number of rows is run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// What the cores share out.
    pub cut: Cut,
    /// Rows of a step, of all cores together.
    pub tile: usize,
    /// Parts of the columns, one after the other; 1 unless columns are shared out, a segment at a time.
    pub parts: usize,
    /// Steps of a batch, at most.
    pub batch: usize,
    /// The modelled time of all of its runs, ns.
    pub ns: f64,
}

/// One run on each core that takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its rows.
    pub rows: Range<usize>,
    /// Its segments: one, or a group.
    pub segments: Range<usize>,
    /// Its columns of each segment, those of padding counted.
    pub columns: Range<usize>,
    /// Its place among the product's steps of the same columns; all that have the same one read the same rows of A.
    pub index: usize,
}

/// Steps of the same rows, whose results are read together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its rows.
    pub rows: Range<usize>,
    /// Its segments.
    pub segments: Range<usize>,
    /// Its columns of each segment, those of padding counted.
    pub columns: Range<usize>,
    /// The place of its first step, see [`Step::index`].
    pub first: usize,
    /// Segments of a step.
    group: usize,
}

impl Batch {
    /// Its steps, in the order in which they are run.
    pub fn steps(&self) -> impl Iterator<Item = Step> + '_ {
        self.segments.clone().step_by(self.group).enumerate().map(|(at, segment)| {
            let segments = segment..self.segments.end.min(segment + self.group);
            Step { rows: self.rows.clone(), segments, columns: self.columns.clone(), index: self.first + at }
        })
    }
}

/// What one core does in a step: C (`m`×`columns`) = A · B.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreRun {
    /// The core.
    pub core: usize,
    /// Rows, counted from the step's first.
    pub rows: Range<usize>,
    /// M of the run, planes and padding counted.
    pub m: usize,
    /// Columns of the stack.
    pub columns: Range<usize>,
}

/// Products in a run's C that belong together: a segment's pieces of rows times that segment's columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The segment.
    pub segment: usize,
    /// First row in C.
    pub c_row: usize,
    /// First column in C.
    pub c_column: usize,
    /// Columns of the matrix.
    pub columns: Range<usize>,
}

impl CoreRun {
    /// Bytes of C.
    pub fn c_bytes(&self, plan: &WeightPlan) -> usize {
        plan.dtype.c().bytes(self.m * self.columns.len())
    }

    /// The pieces of a run that is part of `step`, the segments ascending.
    pub fn pieces<'a>(&'a self, plan: &'a WeightPlan, step: &Step) -> impl Iterator<Item = Piece> + 'a {
        let (first, rows) = (step.segments.start, self.rows.len());
        step.segments.clone().filter_map(move |segment| {
            let base = segment * plan.columns;
            let start = self.columns.start.max(base);
            let end = self.columns.end.min(base + plan.n);
            (start < end).then(|| Piece {
                segment,
                c_row: (segment - first) * rows,
                c_column: start - self.columns.start,
                columns: start - base..end - base,
            })
        })
    }
}

impl Schedule {
    /// The best for `rows` rows: of those that keep the NPU for about as short as possible, the one after which the
    /// results are there first. What the CPU does before the first batch and after the last one nobody hides, nor what
    /// it does for longer than the NPU.
    pub fn best(plan: &WeightPlan, timing: &Timing, means: Means, rows: usize) -> Self {
        // One row, one segment: always possible.
        let one = Self { cut: Cut::Columns(1), tile: 1, parts: 1, batch: 1, ns: f64::INFINITY };
        Self::search(plan, timing, means, rows, Wanted::ALONE).unwrap_or(one)
    }

    /// The best for `rows` rows of two products that are alike, whose batches are run in turns and read together: each batch
    /// has all segments, and both products' C, of a batch on a core, is at most `c_bytes`. `None` if there is none that
    /// keeps the NPU for about as short as possible.
    pub fn joint(
        plan: &WeightPlan,
        timing: &Timing,
        means: Means,
        rows: usize,
        c_bytes: usize,
    ) -> Option<Self> {
        let wanted = Wanted { c_bytes: c_bytes / 2, steps: BATCH_MAX / 2, joint: true };
        Self::search(plan, timing, means, rows, wanted)
    }

    fn search(plan: &WeightPlan, timing: &Timing, means: Means, rows: usize, wanted: Wanted) -> Option<Self> {
        let nearly = if plan.dtype.a() == Element::F16 { NEARLY_16_BITS } else { NEARLY };
        let most = nearly * Self::least_ns(plan, timing, means, rows);
        let mut best = None;
        let mut best_end = f64::INFINITY;
        Self::each(plan, timing, means, rows, |schedule| {
            for parts in 1..=schedule.parts_max(plan, means) {
                let mut schedule = Self { parts, ..schedule };
                schedule.ns = schedule.time(plan, timing, means, rows);
                if schedule.ns > most {
                    // More parts only take longer.
                    return;
                }
                let steps = plan.segments.len().div_ceil(schedule.group());
                let batches = if wanted.joint { steps..=steps } else { 1..=steps.min(wanted.steps) };
                for batch in batches {
                    let schedule = Self { batch, ..schedule };
                    if !schedule.fits(plan, means, rows, wanted) {
                        continue;
                    }
                    let end = schedule.end(plan, rows, wanted.joint);
                    if end < best_end {
                        (best, best_end) = (Some(schedule), end);
                    }
                }
            }
        });
        best
    }

    /// The shortest modelled time of the NPU for `rows` rows, ns.
    pub fn least_ns(plan: &WeightPlan, timing: &Timing, means: Means, rows: usize) -> f64 {
        let mut least = f64::INFINITY;
        Self::each(plan, timing, means, rows, |schedule| {
            if schedule.fits(plan, means, rows, Wanted::ALONE) {
                least = least.min(schedule.time(plan, timing, means, rows));
            }
        });
        least
    }

    /// Calls `take` with each schedule that is worth a look, of undivided columns and of batches of one step; its time is
    /// still to be found.
    fn each(plan: &WeightPlan, timing: &Timing, means: Means, rows: usize, mut take: impl FnMut(Self)) {
        let segments = plan.segments.len();
        let mut consider = |cut, tile| take(Self { cut, tile, parts: 1, batch: 1, ns: 0.0 });
        for tile in tiles(plan, timing, means, rows) {
            consider(Cut::Columns(1), tile);
            if means.windows && means.cores > 1 {
                consider(Cut::Rows, (tile * means.cores).min(ROWS_MAX));
            }
        }
        if means.windows && segments > 1 {
            (1..=4).for_each(|runs| consider(Cut::Columns(segments.div_ceil(runs)), rows));
        }
    }

    /// As many parts may the columns have: with some blocks of columns for each core.
    fn parts_max(&self, plan: &WeightPlan, means: Means) -> usize {
        if self.cut == Cut::Columns(1) && means.windows && self.tile >= PARTED_ROWS_MIN {
            (plan.columns / (means.cores.max(1) * PART_COLUMNS_MIN)).clamp(1, PARTS_MAX)
        } else {
            1
        }
    }

    /// ns until the results are there: the longer of the NPU's and the CPU's work, and the CPU's before the first batch
    /// and after the last.
    fn end(&self, plan: &WeightPlan, rows: usize, joint: bool) -> f64 {
        let (steps, group) = (plan.segments.len().div_ceil(self.group()), self.group() as f64);
        let (k, segment) = (plan.k as f64, group * plan.longest() as f64);
        // Of a row: read and written back once a batch, beside the sums themselves; of two products that are read together
        // one result is written.
        let written = if joint { 4.0 } else { 8.0 };
        let row = |steps: usize, batches: usize| {
            plan.n as f64 * (4.0 * group * steps as f64 + written * batches as f64) / SCALE_RATE
        };
        let (first, last) = (4.0 * k / PACK_RATE, row(self.batch, 1) / self.parts as f64);
        // Rotated rows that are not packed at once are read again.
        let again =
            if self.batch < steps { 4.0 * (k - segment * self.batch as f64) / PACK_RATE / 2.0 } else { 0.0 };
        let cpu = rows as f64 * (first + again + row(steps, steps.div_ceil(self.batch)));
        self.ns.max(cpu) + self.tile.min(rows) as f64 * (first + last)
    }

    /// Whether it is within the bounds; those of C do not hold for a batch of one step and row.
    fn fits(&self, plan: &WeightPlan, means: Means, rows: usize, wanted: Wanted) -> bool {
        let group = self.group();
        let stacks = group == 1 || group * self.tile * means.planes <= STACK_ROWS_MAX;
        let least = group == 1 && self.tile == 1 && self.batch == 1;
        stacks && self.batch <= wanted.steps && (least || self.c_bytes(plan, means, rows) <= wanted.c_bytes)
    }

    /// Bytes of C of a core's batch, at most.
    fn c_bytes(&self, plan: &WeightPlan, means: Means, rows: usize) -> usize {
        let Some(step) = self.steps(plan, rows).next() else { return 0 };
        let bytes = self.runs(plan, means, &step).map(|run| run.c_bytes(plan)).max().unwrap_or(0);
        self.batch * bytes
    }

    fn time(&self, plan: &WeightPlan, timing: &Timing, means: Means, rows: usize) -> f64 {
        // Parts are as good as alike; the last is the widest.
        let columns = self.part(plan, self.parts - 1);
        let ns = |step: &Step| {
            let cores = self.runs(plan, means, step).count();
            let ns =
                |run: CoreRun| timing.run_ns(plan.dtype, (run.m, plan.longest(), run.columns.len()), cores);
            self.runs(plan, means, step).map(ns).fold(0.0, f64::max)
        };
        // Steps differ in whether they are the last of the rows, and of the segments.
        let (tile, segments) = (self.tile.min(rows), plan.segments.len());
        let group = self.group().min(segments);
        let parts = |all: usize, part: usize| [(all / part, part), (usize::from(all % part > 0), all % part)];
        let mut total = 0.0;
        for (tiles, len) in parts(rows, tile.max(1)) {
            for (groups, segments) in parts(segments, group) {
                if tiles * groups > 0 {
                    let step =
                        Step { rows: 0..len, segments: 0..segments, columns: columns.clone(), index: 0 };
                    total += (tiles * groups * self.parts) as f64 * ns(&step);
                }
            }
        }
        total
    }

    /// Segments of a step.
    fn group(&self) -> usize {
        match self.cut {
            Cut::Columns(group) => group,
            Cut::Rows => 1,
        }
    }

    /// The columns of a part.
    fn part(&self, plan: &WeightPlan, part: usize) -> Range<usize> {
        plan.share(plan.columns, part, self.parts)
    }

    /// The batches of `rows` rows, in the order in which they are run: all segments of a part of the columns, and all
    /// parts of a tile, one after the other.
    pub fn batches<'a>(&self, plan: &'a WeightPlan, rows: usize) -> impl Iterator<Item = Batch> + 'a {
        let schedule = *self;
        (0..rows.div_ceil(self.tile)).flat_map(move |tile| {
            (0..schedule.parts).flat_map(move |part| schedule.batches_of(plan, rows, tile, part))
        })
    }

    /// The batches of a part of a tile's columns.
    fn batches_of<'a>(
        &self,
        plan: &'a WeightPlan,
        rows: usize,
        tile: usize,
        part: usize,
    ) -> impl Iterator<Item = Batch> + 'a {
        let (segments, group, size) = (plan.segments.len(), self.group(), self.batch);
        let (rows, columns) = (self.rows(rows, tile), self.part(plan, part));
        let steps = segments.div_ceil(group);
        (0..steps).step_by(size).map(move |at| {
            let segments = at * group..segments.min((at + size) * group);
            Batch { rows: rows.clone(), segments, columns: columns.clone(), first: tile * steps + at, group }
        })
    }

    /// The rows of a tile, of `rows` rows.
    fn rows(&self, rows: usize, tile: usize) -> Range<usize> {
        tile * self.tile..rows.min((tile + 1) * self.tile)
    }

    /// The steps of `rows` rows in the first part of the columns, in the order in which they are run: those of the other
    /// parts read the same rows of A.
    pub fn steps(&self, plan: &WeightPlan, rows: usize) -> impl Iterator<Item = Step> {
        let (segments, group, schedule) = (plan.segments.len(), self.group(), *self);
        let (steps, columns) = (segments.div_ceil(group), self.part(plan, 0));
        (0..rows.div_ceil(self.tile) * steps).map(move |index| {
            let first = index % steps * group;
            let segments = first..segments.min(first + group);
            Step { rows: schedule.rows(rows, index / steps), segments, columns: columns.clone(), index }
        })
    }

    /// What the cores do in a step. A core whose share is empty is left out.
    pub fn runs<'a>(
        &self,
        plan: &'a WeightPlan,
        means: Means,
        step: &Step,
    ) -> impl Iterator<Item = CoreRun> + 'a {
        let (cut, len, segments) = (self.cut, step.rows.len(), step.segments.clone());
        let part = step.columns.clone();
        (0..means.cores.min(CORES_MAX)).filter_map(move |core| {
            let base = segments.start * plan.columns;
            let run = match cut {
                Cut::Columns(_) => {
                    // Several segments have all columns; one alone may have some of them.
                    let all = if segments.len() > 1 { segments.len() * plan.columns } else { part.len() };
                    let base = if segments.len() > 1 { base } else { base + part.start };
                    let cores = means.cores.min(all / plan.limits.n_align);
                    if core >= cores {
                        return None;
                    }
                    let columns = plan.share(all, core, cores);
                    // Segments lie one after the other among the rows, so that padding comes after all of them.
                    let m = round_up_by_an_eighth(segments.len() * len) * means.planes;
                    CoreRun { core, rows: 0..len, m, columns: base + columns.start..base + columns.end }
                }
                Cut::Rows => {
                    let rows = len.div_ceil(means.cores);
                    // The same M for all, and so contexts of one shape.
                    let m = round_up_by_an_eighth(rows) * means.planes;
                    let rows = (core * rows).min(len)..((core + 1) * rows).min(len);
                    CoreRun { core, rows, m, columns: base..base + plan.columns }
                }
            };
            (!run.rows.is_empty() && !run.columns.is_empty()).then_some(run)
        })
    }
}

/// Numbers of rows of a core's run that are worth a look: halves of all, and as many as let B stream by a whole number
/// of times.
fn tiles<'a>(
    plan: &WeightPlan,
    timing: &'a Timing,
    means: Means,
    rows: usize,
) -> impl Iterator<Item = usize> + 'a {
    let most = rows.clamp(1, ROWS_MAX);
    let row_bytes = plan.dtype.a().bytes(plan.longest() * means.planes).max(1);
    let full = move |times: usize| {
        let rows = (timing.a_tile * times as f64) as usize / row_bytes;
        round_down_by_an_eighth(rows).clamp(1, most)
    };
    (0..10).map(move |power| (most >> power).max(1)).chain((1..=12).map(full))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::{Chip, CHIPS};
    use proptest::prelude::*;
    use rknn_sys::MatmulType;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Whatever is chosen, each product of a row's segment with a column comes once, in ascending segments, and
        /// no run is larger than allowed.
        #[test]
        fn every_product_comes_once(
            chip in 0..CHIPS.len(), dtype in 0..MatmulType::ALL.len(), k in 1usize..3000, n in 1usize..3000,
            segment_max in 32usize..2000, rows in 1usize..700, windows: bool, planes in 1usize..3,
            joint: bool,
        ) {
            let (chip, dtype) = (&CHIPS[chip], MatmulType::ALL[dtype]);
            let Some(plan) = WeightPlan::new(chip, chip.cores, dtype, (k, n), segment_max) else { return Ok(()) };
            let means = Means { cores: chip.cores, planes, windows };
            let alone = Schedule::best(&plan, &chip.timing, means, rows);
            let schedule = match Schedule::joint(&plan, &chip.timing, means, rows, C_BYTES_MAX).filter(|_| joint) {
                Some(joint) => {
                    prop_assert!(joint.batches(&plan, rows).all(|batch| batch.segments.len() == plan.segments.len()));
                    joint
                }
                None => alone,
            };
            let most = if schedule == alone { (C_BYTES_MAX, BATCH_MAX) } else { (C_BYTES_MAX / 2, BATCH_MAX / 2) };
            let mut done = vec![0usize; rows];
            let mut columns = vec![0usize; rows * plan.segments.len()];
            let steps: Vec<Step> = schedule.batches(&plan, rows).flat_map(|batch| batch.steps().collect::<Vec<_>>()).collect();
            let first: Vec<Step> = steps.iter().filter(|step| step.columns.start == 0).cloned().collect();
            prop_assert_eq!(&first, &schedule.steps(&plan, rows).collect::<Vec<_>>());
            prop_assert_eq!(first.len() * schedule.parts, steps.len());
            prop_assert!(schedule.batches(&plan, rows).all(|batch| batch.steps().count() <= most.1));
            for step in steps {
                let same = &first[step.index];
                prop_assert_eq!((&step.rows, &step.segments), (&same.rows, &same.segments));
                for run in schedule.runs(&plan, means, &step) {
                    prop_assert!(windows || schedule.parts == 1 && run.columns.len() == plan.slices[run.core].padded);
                    prop_assert!(run.m >= step.segments.len() * run.rows.len() * planes);
                    prop_assert_eq!(run.columns.start % plan.limits.n_align, 0);
                    prop_assert_eq!(run.columns.end % plan.limits.n_align, 0);
                    prop_assert!(run.m == planes || run.c_bytes(&plan) * schedule.batch <= most.0);
                    for piece in run.pieces(&plan, &step) {
                        prop_assert!(piece.c_row + run.rows.len() <= run.m / planes);
                        prop_assert!(piece.c_column + piece.columns.len() <= run.columns.len());
                        for row in run.rows.clone() {
                            let row = step.rows.start + row;
                            columns[row * plan.segments.len() + piece.segment] += piece.columns.len();
                            done[row] += 1;
                        }
                    }
                }
            }
            prop_assert!(columns.iter().all(|count| *count == n), "each column once");
            prop_assert!(done.iter().all(|count| *count > 0));
        }
    }

    #[test]
    fn one_row_is_one_run_a_core_and_narrow_weights_share_rows() {
        let chip = Chip::by_name("rk3588").unwrap();
        let means = Means { cores: 3, planes: 1, windows: true };
        let plan = WeightPlan::new(chip, 3, MatmulType::I8, (8960, 1536), 896).unwrap();
        let one = Schedule::best(&plan, &chip.timing, means, 1);
        assert_eq!((one.cut, one.steps(&plan, 1).count()), (Cut::Columns(10), 1));
        let narrow = WeightPlan::new(chip, 3, MatmulType::I8, (1536, 32), 768).unwrap();
        assert_eq!(Schedule::best(&narrow, &chip.timing, means, 512).cut, Cut::Rows);
        let no_windows = Means { windows: false, ..means };
        assert_eq!(Schedule::best(&plan, &chip.timing, no_windows, 1).cut, Cut::Columns(1));
    }
}
