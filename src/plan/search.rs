//! Which schedule is best: all that are worth a look are timed, the NPU's part by [`Timing`], the CPU's by what its memory
//! lets through.

use std::cmp::Ordering;

use rknn_sys::Element;

use super::line::{Kind, Line};
use super::rows::{round_down_by_an_eighth, round_up_by_an_eighth};
use super::schedule::{CoreRun, Cut, Means, Schedule, Step, BATCH_MAX};
use super::{WeightPlan, ROWS_MAX};
use crate::chip::Timing;

/// The most bytes of C of a core's batch: a wide output (a vocabulary) gets shorter steps.
const C_BYTES_MAX: usize = 8 << 20;
/// The most rows of A of a stacked run.
const STACK_ROWS_MAX: usize = 512;

/// How much longer than the fastest a schedule may keep the NPU if its results are there sooner, by the width of A: than the
/// fastest of its plan, and than the fastest of segments of any lengths. Products of 16 and of 4 bits have more segments, whose results are
/// worth more of the NPU's time where they then are read together. Of products that belong together one may take longer,
/// `SLACK` times that of the first, if all of them do not, by the second.
const NEARLY: [(Element, f64, f64); 3] =
    [(Element::F16, 1.10, 1.16), (Element::I8, 1.065, 1.12), (Element::I4, 1.13, 1.16)];
const SLACK: f64 = 1.5;
/// The same of products that follow from each other, all of them, than the fastest of segments of any lengths: nobody then
/// waits for what the CPU does before and after each. Where the CPU has as much to do as the NPU, more tiles gain nothing: SmolLM2
/// in 8 bits is faster in tiles from gate and up to the next Q, K and V, which keep the NPU for 3 % longer, but not with O in
/// them, too, for 6 % longer; and four bits in tiles are slower, since there are more sums of segments to be written and read again.
const IN_CHAIN: [(Element, f64); 3] = [(Element::F16, 1.16), (Element::I8, 1.05), (Element::I4, 1.00)];
/// The most parts of the columns, the fewest of them for a core, and the fewest rows where that is worth a look.
const PARTS_MAX: usize = 8;
const PART_COLUMNS_MIN: usize = 256;
const PARTED_ROWS_MIN: usize = 64;

/// What is asked of a schedule.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// The most bytes of C, and steps, of a core's batch.
    c_bytes: usize,
    steps: usize,
    /// All segments are to be in one batch, and the results are read with another product's and not written.
    joint: bool,
}

impl Wanted {
    /// Of one product.
    pub(super) const ALONE: Self = Self { c_bytes: C_BYTES_MAX, steps: BATCH_MAX, joint: false };

    /// Of each of two that are read together, and have `c_bytes` of C at once.
    pub(super) fn joint(c_bytes: usize) -> Self {
        Self { c_bytes: c_bytes / 2, steps: BATCH_MAX / 2, joint: true }
    }

    /// Of two as one, with `c_bytes` of C.
    pub(super) fn as_one(c_bytes: usize) -> Self {
        Self { c_bytes, steps: BATCH_MAX, joint: true }
    }
}

/// A weight's plan, and what may be done with it.
#[derive(Debug, Clone, Copy)]
pub struct Planned<'a> {
    /// How it is cut.
    pub plan: &'a WeightPlan,
    /// The cores, and how its memory may be bound.
    pub means: Means,
}

/// How long schedules may keep the NPU, ns.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// That of the plan's fastest.
    least: f64,
    /// That of a good one of the plan.
    nearly: f64,
    /// That of a good one of all plans.
    pub(super) most: f64,
}

impl Limits {
    pub(super) fn new(Planned { plan, means }: Planned, timing: &Timing, rows: usize) -> Self {
        let least = Schedule::least_ns(plan, timing, means, rows);
        let (nearly, most) = NEARLY
            .iter()
            .find(|(of, ..)| *of == plan.dtype.a())
            .map_or((1.0, 1.0), |(_, nearly, most)| (*nearly, *most));
        Self { least, nearly: nearly * least, most: (most / plan.lag).max(1.0) * least }
    }

    /// Of one product.
    pub(super) fn alone(&self) -> f64 {
        self.nearly.min(self.most)
    }

    /// Of one among others.
    pub(super) fn of_one(&self) -> f64 {
        self.least + SLACK * (self.nearly - self.least)
    }
}

impl Schedule {
    /// The best for `rows` rows: of those that keep the NPU for about as short as possible, the one after which the
    /// results are there first; later by a part is as good as the NPU's time shorter by as large a part. What the CPU does
    /// before the first batch and after the last one nobody hides, nor what it does for longer than the NPU.
    pub fn best(plan: &WeightPlan, timing: &Timing, means: Means, rows: usize) -> Self {
        // One row, one segment: always possible.
        let one = Self { cut: Cut::Columns(1), tile: 1, parts: 1, batch: 1, ns: f64::INFINITY };
        Self::best_within(Planned { plan, means }, timing, rows, 0.0, |_| true).unwrap_or(one)
    }

    /// The same of weights that are run [`WeightPlan::together`]: it takes all segments at once, and may keep the NPU for as long
    /// as the products do one by one, `singly`, in ns. `None` if there is none.
    pub fn best_together(planned: Planned, timing: &Timing, rows: usize, singly: f64) -> Option<Self> {
        let is_whole = |schedule: &Self| schedule.is_whole(planned) && schedule.ns <= singly;
        Self::best_within(planned, timing, rows, singly, is_whole)
    }

    /// The best of those that `may` be, and keep the NPU for about as short as possible, or for `most` ns at most.
    fn best_within(
        planned: Planned,
        timing: &Timing,
        rows: usize,
        most: f64,
        may: impl Fn(&Self) -> bool,
    ) -> Option<Self> {
        let cost = |schedule: &Self| {
            let mut line = Line::default();
            line.run(schedule, planned, rows, Kind::Alone);
            line.end() * schedule.ns
        };
        let most = Limits::new(planned, timing, rows).alone().max(most);
        let candidates = Self::candidates(planned, timing, rows, Wanted::ALONE, most);
        let best = candidates.into_iter().filter(may).map(|schedule| (cost(&schedule), schedule));
        best.min_by(|one, other| one.0.total_cmp(&other.0)).map(|(_, best)| best)
    }

    /// The one that keeps the NPU for the shortest time; of equal ones that with the fewest batches.
    pub fn shortest(planned: Planned, timing: &Timing, rows: usize) -> Option<Self> {
        Self::shortest_within(planned, timing, rows, f64::INFINITY, |_| true)
    }

    /// The same of weights that are run together, as in [`Self::best_together`].
    pub fn shortest_together(planned: Planned, timing: &Timing, rows: usize, singly: f64) -> Option<Self> {
        Self::shortest_within(planned, timing, rows, singly, |schedule| schedule.is_whole(planned))
    }

    /// The shortest of those that `may` be, and keep the NPU for `most` ns at most.
    fn shortest_within(
        planned: Planned,
        timing: &Timing,
        rows: usize,
        most: f64,
        may: impl Fn(&Self) -> bool,
    ) -> Option<Self> {
        let all = Self::candidates(planned, timing, rows, Wanted::ALONE, most);
        all.into_iter().filter(may).min_by(|one, other| by_time((one.ns, one), (other.ns, other)))
    }

    /// Whether a run has columns of all segments.
    fn is_whole(&self, planned: Planned) -> bool {
        self.takes_all(planned.plan.segments.len())
    }

    /// How long the product's share of a chain may keep the NPU, ns.
    pub fn most_in_chain(planned: Planned, timing: &Timing, rows: usize) -> f64 {
        let plan = planned.plan;
        let most = IN_CHAIN.iter().find(|(of, _)| *of == plan.dtype.a()).map_or(1.0, |(_, most)| *most);
        let least: f64 =
            parts_of_rows(rows).map(|rows| Self::least_ns(plan, timing, planned.means, rows)).sum();
        most / plan.lag * least
    }

    /// Those that keep the NPU for at most so many ns.
    pub(super) fn candidates(
        Planned { plan, means }: Planned,
        timing: &Timing,
        rows: usize,
        wanted: Wanted,
        most: f64,
    ) -> Vec<Self> {
        let mut found = Vec::new();
        Self::each(plan, timing, means, rows, |schedule| {
            for parts in 1..=schedule.parts_max(plan, means) {
                let mut schedule = Self { parts, ..schedule };
                schedule.ns = schedule.time(plan, timing, means, rows);
                if schedule.ns > most {
                    // More parts only take longer.
                    return;
                }
                let steps = plan.segments.len().div_ceil(schedule.group());
                let fewest = if wanted.joint { steps } else { 1 };
                let batches = (fewest..=steps).map(|batch| Self { batch, ..schedule });
                found.extend(batches.filter(|schedule| schedule.fits(plan, means, rows, wanted)));
            }
        });
        found
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
                if segments > 1 {
                    consider(Cut::Segments(means.cores), tile);
                }
            }
        }
        if means.windows && segments > 1 {
            (1..=6).for_each(|runs| consider(Cut::Columns(segments.div_ceil(runs)), rows));
        }
    }

    /// As many parts may the columns have: with some blocks of columns for each core.
    fn parts_max(&self, plan: &WeightPlan, means: Means) -> usize {
        if !means.windows || self.tile < PARTED_ROWS_MIN {
            return 1;
        }
        match self.cut {
            Cut::Columns(1) | Cut::Segments(_) => {
                (plan.columns / (means.cores.max(1) * PART_COLUMNS_MIN)).clamp(1, PARTS_MAX)
            }
            _ => 1,
        }
    }

    /// Whether it is within the bounds; those of C do not hold for a batch of one step and row.
    fn fits(&self, plan: &WeightPlan, means: Means, rows: usize, wanted: Wanted) -> bool {
        let group = self.group();
        let is_stack = matches!(self.cut, Cut::Columns(2..));
        let stacks = !is_stack || group * self.tile * means.planes <= STACK_ROWS_MAX;
        let least = group == 1 && self.tile == 1 && self.batch == 1;
        stacks && self.batch <= wanted.steps && (least || self.c_bytes(plan, means, rows) <= wanted.c_bytes)
    }

    /// Bytes of C of a core's batch, at most.
    fn c_bytes(&self, plan: &WeightPlan, means: Means, rows: usize) -> usize {
        let Some(step) = self.steps(plan, rows).next() else { return 0 };
        // Of the last part, which is the widest.
        let step = Step { columns: self.part(plan, self.parts - 1), ..step };
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
}

/// The order of schedules by the NPU's time of what they are for, ns; of equal ones that with the fewest batches comes first.
pub(super) fn by_time((ns, one): (f64, &Schedule), (other_ns, other): (f64, &Schedule)) -> Ordering {
    ns.total_cmp(&other_ns).then(other.batch.cmp(&one.batch))
}

/// Numbers of rows of a tile that are worth a look where products follow from each other: as few tiles as there can be, but two
/// at least; all as large, or the last one a little smaller, so that B streams by a whole number of times for some.
pub fn sizes_of_tiles(rows: usize) -> impl Iterator<Item = usize> {
    let size = rows.div_ceil(rows.div_ceil(ROWS_MAX).max(2)).max(1);
    let step = round_up_by_an_eighth(size + 1) - round_down_by_an_eighth(size);
    (0..2)
        .map(move |more| round_up_by_an_eighth(size) + more * step)
        .take_while(move |size| *size <= ROWS_MAX)
}

/// Rows by as many as are run at once.
fn parts_of_rows(rows: usize) -> impl Iterator<Item = usize> {
    (0..rows).step_by(ROWS_MAX).map(move |first| ROWS_MAX.min(rows - first))
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
    use crate::plan::{Alike, Joint};
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
            let planned = Planned { plan: &plan, means };
            let alike = Alike { each: planned, as_one: None, c_bytes: C_BYTES_MAX };
            let schedule = match Joint::best(alike, None, &chip.timing, rows).filter(|_| joint) {
                Some(Joint { pair: joint, .. }) => {
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
                    prop_assert!(run.m >= run.stacked.count * run.rows.len() * planes);
                    prop_assert_eq!(run.columns.start % plan.limits.n_align, 0);
                    prop_assert_eq!(run.columns.end % plan.limits.n_align, 0);
                    prop_assert!(run.m == planes || run.c_bytes(&plan) * schedule.batch <= most.0);
                    for piece in run.pieces(&plan, &step) {
                        // Its rows are those of A that the segment's rows are.
                        let place = run.stacked.place(piece.segment, plan.segments.len());
                        prop_assert!(place < run.stacked.count && piece.c_row == place * run.rows.len());
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

    proptest! {
        /// Runs of several weights as one: each column of each segment of each weight once for each row, where all segments
        /// of a step and all columns of a batch are.
        #[test]
        fn weights_as_one_are_covered_once(
            chip in 0..CHIPS.len(), dtype in 0..MatmulType::ALL.len(), k in 1usize..6000,
            ns in proptest::collection::vec(1usize..3000, 2..5), rows in 1usize..200, segment_max in 300usize..4000,
            shortest: bool,
        ) {
            let (chip, dtype) = (&CHIPS[chip], MatmulType::ALL[dtype]);
            let plans: Option<Vec<WeightPlan>> =
                ns.iter().map(|n| WeightPlan::new(chip, chip.cores, dtype, (k, *n), segment_max)).collect();
            let Some(plans) = plans else { return Ok(()) };
            let means = Means { cores: chip.cores, planes: 1, windows: true };
            let singly: f64 = plans.iter().map(|plan| Schedule::best(plan, &chip.timing, means, rows).ns).sum();
            let whole = WeightPlan::together(plans.iter(), chip.cores).unwrap();
            prop_assert_eq!(whole.stack_bytes(), plans.iter().map(WeightPlan::stack_bytes).sum::<usize>());
            let planned = Planned { plan: &whole, means };
            let best = Schedule::best_together(planned, &chip.timing, rows, singly);
            let least = Schedule::shortest_together(planned, &chip.timing, rows, singly);
            let Some((best, least)) = best.zip(least) else {
                prop_assert_eq!(best, least, "one that is allowed is there for both");
                return Ok(());
            };
            prop_assert!(best.ns <= singly && least.ns <= best.ns);
            let schedule = if shortest { least } else { best };
            let segments = whole.segments.len();
            let mut first = 0;
            for plan in &plans {
                let stack = first * segments..(first + plan.columns) * segments;
                let mut done = vec![0u8; rows * segments * plan.n];
                for batch in schedule.batches(&whole, rows) {
                    for step in batch.steps() {
                        prop_assert_eq!(step.segments.len(), segments);
                        for run in schedule.runs(&whole, means, &step) {
                            let Some((own, at)) = run.within(&stack) else { continue };
                            prop_assert_eq!(run.columns.start + at, stack.start + own.columns.start);
                            for piece in own.pieces(plan, &step) {
                                prop_assert_eq!(piece.c_row, own.stacked.place(piece.segment, segments) * own.rows.len());
                                prop_assert!(piece.c_row + own.rows.len() <= run.m);
                                for row in own.rows.clone() {
                                    let row = (step.rows.start + row) * segments + piece.segment;
                                    piece.columns.clone().for_each(|column| done[row * plan.n + column] += 1);
                                }
                            }
                        }
                    }
                }
                prop_assert!(done.iter().all(|times| *times == 1), "{:?}", schedule);
                first += plan.columns;
            }
        }
    }

    /// Q, K and V, and gate and up, of published models; of longer rows in several segments.
    #[test]
    fn one_row_of_neighbours_is_one_run_a_core() {
        let chip = Chip::by_name("rk3588").unwrap();
        let means = Means { cores: 3, planes: 1, windows: true };
        for (k, ns) in
            [(576, &[576, 192, 192][..]), (1536, &[1536, 256, 256]), (1536, &[8960; 2]), (4096, &[14_336; 2])]
        {
            let plan = |n: &usize| WeightPlan::new(chip, 3, MatmulType::I8, (k, *n), 1280).unwrap();
            let plans: Vec<WeightPlan> = ns.iter().map(plan).collect();
            for rows in [1, 4] {
                let singly: f64 =
                    plans.iter().map(|plan| Schedule::best(plan, &chip.timing, means, rows).ns).sum();
                let whole = WeightPlan::together(plans.iter(), 3).unwrap();
                let planned = Planned { plan: &whole, means };
                let best = Schedule::best_together(planned, &chip.timing, rows, singly);
                // What is multiplied in vain writes C too: of many segments only one row is worth it.
                let Some(best) = best else {
                    assert!(rows * whole.segments.len() > 8, "K = {k}, {rows} rows");
                    continue;
                };
                assert_eq!(best.steps(&whole, rows).count(), 1, "K = {k}, {rows} rows");
                // Each other weight costs a run less; where a core then has columns of more segments, some of that is lost.
                let saved = (ns.len() - 1) as f64 * chip.timing.run_ns;
                let saved = if whole.segments.len() > 3 { 0.0 } else { saved };
                assert!(best.ns <= singly - 0.9 * saved, "K = {k}, {rows} rows: {} of {singly}", best.ns);
            }
        }
    }

    #[test]
    fn one_row_is_one_run_a_core_narrow_weights_share_rows_and_long_ones_segments() {
        let chip = Chip::by_name("rk3588").unwrap();
        let means = Means { cores: 3, planes: 1, windows: true };
        let plan = WeightPlan::new(chip, 3, MatmulType::I8, (8960, 1536), 896).unwrap();
        let one = Schedule::best(&plan, &chip.timing, means, 1);
        assert_eq!((one.cut, one.steps(&plan, 1).count()), (Cut::Columns(10), 1));
        let narrow = WeightPlan::new(chip, 3, MatmulType::I8, (768, 32), 768).unwrap();
        assert_eq!(Schedule::best(&narrow, &chip.timing, means, 512).cut, Cut::Rows);
        let long = WeightPlan::new(chip, 3, MatmulType::I8, (8960, 1536), 768).unwrap();
        assert_eq!(Schedule::best(&long, &chip.timing, means, 512).cut, Cut::Segments(3));
        let no_windows = Means { windows: false, ..means };
        assert_eq!(Schedule::best(&plan, &chip.timing, no_windows, 1).cut, Cut::Columns(1));
    }
}
