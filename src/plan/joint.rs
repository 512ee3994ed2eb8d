//! Which schedules are best for products that belong together: two that are alike, gate and up, which are read together, and
//! the one of what is made of them, down.
//!
//! The two are run in turns, or as one weight where their stacks lie one after the other, all segments at once: fewer and
//! fuller runs, so that tiles of rows, whose results are read while the NPU is at the next ones, cost less of its time.

use std::sync::Arc;

use super::line::{Kind, Line};
use super::search::{by_time, Limits, Planned, Wanted};
use super::{Schedule, WeightPlan};
use crate::chip::Timing;

/// How two products that are alike are run and read together, and the product of what is made of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Joint {
    /// Each of the two, in turns; or both as one.
    pub pair: Schedule,
    /// The plan of both as one, if they are run so.
    pub as_one: Option<Arc<WeightPlan>>,
    /// The one that is with what is made, if it was asked for.
    pub fed: Option<Schedule>,
    /// Its batches come between those of the two, each as soon as the part of its K is made; not after all of them.
    pub woven: bool,
}

/// Two products that are alike.
#[derive(Debug, Clone, Copy)]
pub struct Alike<'a> {
    /// Each of their weights.
    pub each: Planned<'a>,
    /// Both weights as one, if their stacks lie one after the other.
    pub as_one: Option<&'a Arc<WeightPlan>>,
    /// The most bytes of C of both, of a batch on a core.
    pub c_bytes: usize,
}

/// A product with what is made of two others.
#[derive(Debug, Clone, Copy)]
pub struct Fed<'a> {
    /// Its weight.
    pub planned: Planned<'a>,
    /// Its rows are packed as they are made.
    pub packs: bool,
    /// Its batches may come between those of the two, if they are.
    pub weaves: bool,
}

/// A way to run the two.
struct Way<'a> {
    schedule: Schedule,
    planned: Planned<'a>,
    kind: Kind,
    /// The NPU's time of both, ns.
    ns: f64,
}

impl<'a> Alike<'a> {
    /// All ways to run `rows` rows of the two that keep the NPU for at most `most` ns each: each batch has all segments.
    fn ways(self, timing: &Timing, rows: usize, most: f64) -> impl Iterator<Item = Way<'a>> {
        let (planned, means) = (self.each, self.each.means);
        let in_turns = Schedule::candidates(planned, timing, rows, Wanted::joint(self.c_bytes), most);
        let in_turns = in_turns.into_iter().map(move |schedule| Way {
            ns: 2.0 * schedule.ns,
            schedule,
            planned,
            kind: Kind::Pair,
        });
        let as_one = self.as_one.filter(|_| means.windows).map(|plan| {
            let planned = Planned { plan, means };
            let all = Schedule::candidates(planned, timing, rows, Wanted::as_one(self.c_bytes), 2.0 * most);
            // Of several segments the stack of both is in another order, and parts of the columns are not of both.
            let is_whole =
                |schedule: &Schedule| schedule.takes_all(plan.segments.len()) && schedule.parts == 1;
            let whole = all.into_iter().filter(is_whole);
            whole.map(move |schedule| Way { ns: schedule.ns, schedule, planned, kind: Kind::AsOne })
        });
        let as_one = as_one.into_iter().flatten();
        in_turns.chain(as_one)
    }

    /// How the two are run in this way.
    fn joint(&self, way: &Way, fed: Option<Schedule>, woven: bool) -> Joint {
        let as_one = self.as_one.filter(|_| way.kind == Kind::AsOne).cloned();
        Joint { pair: way.schedule, as_one, fed, woven }
    }
}

impl Joint {
    /// The best for `rows` rows of two products that are alike, and of the product that is then made of their rows. `None` if
    /// there is none that keeps the NPU for about as short as possible.
    pub fn best(pair: Alike, fed: Option<Fed>, timing: &Timing, rows: usize) -> Option<Self> {
        let limits = |planned| Limits::new(planned, timing, rows);
        let (of_pair, of_fed) = (limits(pair.each), fed.map(|fed| limits(fed.planned)));
        let most = 2.0 * of_pair.most + of_fed.map_or(0.0, |fed| fed.most);
        let longest = if fed.is_some() { of_pair.of_one() } else { of_pair.alone() };
        let candidates = fed.zip(of_fed).map(|(fed, limits)| {
            Schedule::candidates(fed.planned, timing, rows, Wanted::ALONE, limits.of_one())
        });
        let (mut best, mut least_cost) = (None, f64::INFINITY);
        for way in pair.ways(timing, rows, longest) {
            let packs = fed.is_some_and(|fed| fed.packs);
            let mut line = Line::new(packs);
            line.run(&way.schedule, way.planned, rows, way.kind);
            let mut consider = |end: f64, fed: Option<Schedule>, woven: bool| {
                let cost = end * (way.ns + fed.map_or(0.0, |fed| fed.ns));
                if cost < least_cost {
                    (best, least_cost) = (Some(pair.joint(&way, fed, woven)), cost);
                }
            };
            let (Some(Fed { planned, weaves, .. }), Some(candidates)) = (fed, &candidates) else {
                consider(line.end(), None, false);
                continue;
            };
            let weaves = weaves && packs && way.schedule.parts > 1 && way.schedule.tile >= rows;
            for candidate in candidates {
                if way.ns + candidate.ns > most {
                    continue;
                }
                let mut line = if weaves { Line::new(packs) } else { line.clone() };
                if weaves {
                    line.weave((&way.schedule, way.planned), (candidate, planned), rows);
                } else {
                    line.run(candidate, planned, rows, Kind::Fed);
                }
                // In tiles or parts it begins to write its results while what is made may still be needed, which then has to be
                // in its place.
                let is_kept = packs && !(candidate.parts == 1 && candidate.tile >= rows);
                let kept = if is_kept { Line::writing(rows * pair.each.plan.n) } else { 0.0 };
                consider(line.end() + kept, Some(*candidate), weaves);
            }
        }
        best
    }

    /// The one of two products that are alike that keeps the NPU for the shortest time; `None` if there are too few bytes for C.
    pub fn shortest(pair: Alike, timing: &Timing, rows: usize) -> Option<Self> {
        let ways = pair.ways(timing, rows, f64::INFINITY);
        let best = ways.min_by(|one, other| by_time((one.ns, &one.schedule), (other.ns, &other.schedule)));
        best.map(|way| pair.joint(&way, None, false))
    }

    /// The NPU's time of the two, ns.
    pub fn pair_ns(&self) -> f64 {
        if self.as_one.is_some() {
            self.pair.ns
        } else {
            2.0 * self.pair.ns
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::{Chip, CHIPS};
    use crate::plan::Means;
    use proptest::prelude::*;
    use rknn_sys::MatmulType;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        /// Two as one are run all segments at once, each of their columns comes once for each row, and no batch has more of C than
        /// allowed.
        #[test]
        fn two_as_one_are_covered_once(
            chip in 0..CHIPS.len(), dtype in 0..MatmulType::ALL.len(), k in 1usize..4000, n in 1usize..3000,
            rows in 1usize..513, c_bytes in 1usize << 18..4 << 20, in_chain: bool,
        ) {
            let (chip, dtype) = (&CHIPS[chip], MatmulType::ALL[dtype]);
            let Some(plan) = WeightPlan::new(chip, chip.cores, dtype, (k, n), 2000) else { return Ok(()) };
            let means = Means { cores: chip.cores, planes: 1, windows: true };
            let both = WeightPlan::together([&plan; 2].into_iter(), chip.cores).map(Arc::new);
            let alike = Alike { each: Planned { plan: &plan, means }, as_one: both.as_ref(), c_bytes };
            let find = |alike| match in_chain {
                true => Joint::shortest(alike, &chip.timing, rows),
                false => Joint::best(alike, None, &chip.timing, rows),
            };
            let joint = find(alike);
            let Some(Joint { pair: schedule, as_one: Some(plan), .. }) = &joint else {
                // In turns they are as without the other one's stack beside.
                prop_assert_eq!(joint, find(Alike { as_one: None, ..alike }));
                return Ok(());
            };
            let width = plan.columns * plan.segments.len();
            let mut done = vec![0u8; rows * width];
            for batch in schedule.batches(plan, rows) {
                let mut bytes = [0; crate::chip::CORES_MAX];
                for step in batch.steps() {
                    prop_assert_eq!(step.segments.len(), plan.segments.len());
                    for run in schedule.runs(plan, means, &step) {
                        bytes[run.core] += run.c_bytes(plan);
                        for row in run.rows.clone().map(|row| step.rows.start + row) {
                            run.columns.clone().for_each(|column| done[row * width + column] += 1);
                        }
                    }
                }
                let is_least = batch.rows.len() == 1;
                prop_assert!(is_least || bytes.iter().all(|bytes| *bytes <= c_bytes), "{:?} {:?}", bytes, schedule);
            }
            prop_assert!(done.iter().all(|times| *times == 1), "{:?}", schedule);
        }
    }

    /// Gate and up of SmolLM2 and Granite 4.0 350M: a run less for each tile of rows.
    #[test]
    fn narrow_ones_are_run_as_one() {
        let chip = Chip::by_name("rk3588").unwrap();
        let means = Means { cores: 3, planes: 1, windows: true };
        for (k, n) in [(576, 1536), (1024, 2048)] {
            let plan = WeightPlan::new(chip, 3, MatmulType::I8, (k, n), 1280).unwrap();
            let both = WeightPlan::together([&plan; 2].into_iter(), 3).map(Arc::new);
            let alike =
                Alike { each: Planned { plan: &plan, means }, as_one: both.as_ref(), c_bytes: 4 << 20 };
            for rows in [256, 512] {
                let ns = |as_one| {
                    let joint = Joint::shortest(Alike { as_one, ..alike }, &chip.timing, rows).unwrap();
                    assert_eq!(joint.as_one.is_some(), as_one.is_some(), "{n} columns, {rows} rows");
                    joint.pair_ns()
                };
                let (as_one, in_turns) = (ns(alike.as_one), ns(None));
                assert!(
                    as_one <= in_turns - 0.9 * chip.timing.run_ns,
                    "{as_one} as one, {in_turns} in turns"
                );
            }
        }
    }
}
