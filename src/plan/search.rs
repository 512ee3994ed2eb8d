//! Which schedule is best: all that are worth a look are timed, the NPU's part by [`Timing`], the CPU's by what its memory
//! lets through.

use rknn_sys::Element;

use super::rows::round_down_by_an_eighth;
use super::schedule::{CoreRun, Cut, Means, Schedule, Step, BATCH_MAX};
use super::{WeightPlan, ROWS_MAX};
use crate::chip::Timing;

/// The most bytes of C of a core's batch: a wide output (a vocabulary) gets shorter steps.
const C_BYTES_MAX: usize = 8 << 20;
/// The most rows of A of a stacked run.
const STACK_ROWS_MAX: usize = 512;

/// How much longer than the fastest a schedule may keep the NPU if its results are there sooner, by the width of A. Products of
/// 16 and of 4 bits have more segments, whose results are worth more of the NPU's time where they then are read together.
const NEARLY: [(Element, f64); 3] = [(Element::F16, 1.10), (Element::I8, 1.06), (Element::I4, 1.13)];
/// Bytes of f32 rows that the CPU rotates and packs, and of results that it reads and writes, in a ns: a guess for four
/// big cores. Results come from memory, since the NPU does not write to the CPU's caches.
const PACK_RATE: f64 = 6.0;
const SCALE_RATE: f64 = 12.0;
/// The most parts of the columns, the fewest of them for a core, and the fewest rows where that is worth a look.
const PARTS_MAX: usize = 8;
const PART_COLUMNS_MIN: usize = 256;
const PARTED_ROWS_MIN: usize = 64;

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
        let nearly = NEARLY.iter().find(|(of, _)| *of == plan.dtype.a()).map_or(1.0, |(_, nearly)| *nearly);
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
                let fewest = if wanted.joint { steps } else { 1 };
                for batch in fewest..=steps {
                    let schedule = Self { batch, ..schedule };
                    if !schedule.fits(plan, means, rows, wanted) {
                        continue;
                    }
                    let end = schedule.end(plan, means, rows, wanted.joint);
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

    /// ns until the results are there: the batches go through the CPU, the NPU and the CPU again as [`crate::engine`] has
    /// them do, two of them under way at a time.
    fn end(&self, plan: &WeightPlan, means: Means, rows: usize, joint: bool) -> f64 {
        let products = if joint { 2.0 } else { 1.0 };
        let ns = products * self.ns / (rows * plan.columns * plan.segments.len()) as f64;
        let sum = (plan.dtype.c().bytes(1) * means.planes) as f64;
        // Results are written, and read before if other segments were added up; of two that are read together one is made.
        let written = if joint { 4.0 } else { 8.0 };
        let (mut cpu, mut npu) = (0.0f64, 0.0f64);
        let mut under_way: Option<(f64, f64)> = None;
        for batch in self.batches(plan, rows) {
            let (rows, columns, segments) = (batch.rows.len(), batch.columns.len(), batch.segments.len());
            if batch.columns.start == 0 {
                // A row is rotated and packed as far as it is needed; what is left is read again.
                let again = batch.segments.start > 0;
                let elements = if again { segments * plan.longest() } else { plan.k };
                cpu += (rows * elements) as f64 * if again { 2.0 } else { 4.0 } / PACK_RATE;
            }
            npu = npu.max(cpu) + (rows * columns * segments) as f64 * ns;
            let read = products * (rows * columns) as f64 * (sum * segments as f64 + written) / SCALE_RATE;
            if let Some((done, read)) = under_way.replace((npu, read)) {
                cpu = cpu.max(done) + read;
            }
        }
        under_way.map_or(cpu, |(done, read)| cpu.max(done) + read)
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
