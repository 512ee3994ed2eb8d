//! Products of the same rows whose weights lie one after the other, as one: Q, K and V, and, of few rows, gate and up. A run
//! costs as much as half a megabyte of weights, so that one token's are fewer and fuller.
//!
//! A run then has columns of several weights. Of each segment's columns those of a weight are together, so that where there
//! are several segments all of them are to be in one run.

use std::sync::Arc;

use super::block::Begin;
use super::flight::{Flight, Give, PlaceOfC};
use super::on_cpu::{has_kernel, is_exact};
use super::pair::same_rows;
use super::prepare::Known;
use super::product::{blocks, GROUP};
use super::route::ROWS_MAX as FEW;
use super::stream::{Stream, UnderWay, With};
use super::{schedule_key, Activations, Engine, Error, NpuWeight, Product, ScheduleKey, SCHEDULES_MAX};
use crate::plan::{Planned, Schedule, WeightPlan, ROWS_MAX};

/// The first weight and how many rows, the columns of all of them, and what is looked for.
pub(super) type TogetherKey = (ScheduleKey, [usize; GROUP], Aim);

/// What is looked for of weights as one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Aim {
    /// The results are to be there soon.
    Best,
    /// The NPU is to be done soon, as in a chain: others' results are read meanwhile.
    Shortest,
}

/// Weights as one.
#[derive(Clone)]
pub(super) struct Together {
    pub(super) plan: Arc<WeightPlan>,
    pub(super) schedule: Schedule,
}

impl Together {
    /// The NPU's time of all of them, ns.
    pub(super) fn ns(&self) -> f64 {
        self.schedule.ns
    }
}

impl Engine {
    /// How many of the products, from the first on, are run together, and how so many rows of them are; 1 if it is alone.
    pub(super) fn together(
        &mut self,
        products: &[Option<Product>],
        rows: usize,
        aim: Aim,
    ) -> (usize, Option<Together>) {
        let Some(Some(Product { weight, activations, .. })) = products.first() else { return (1, None) };
        let (mut weights, mut count) = ([*weight; GROUP], 1);
        for next in products[1..].iter().take(GROUP - 1) {
            let Some(next) = next else { break };
            if !next.same
                || next.activations.rows != activations.rows
                || !follows(weights[count - 1], next.weight)
            {
                break;
            }
            weights[count] = next.weight;
            count += 1;
        }
        let weights = &weights[..count];
        // As one weight they may be the NPU's though none is by itself; but only integers are the same whoever does them.
        let exact = is_exact(weight.pipeline);
        let may = count > 1
            && activations.picks.is_none()
            && (exact || !weights.iter().any(|weight| self.is_for_cpu(weight, rows)));
        let Some(together) = (if may { self.as_one(weights, rows.min(ROWS_MAX), aim) } else { None }) else {
            return (1, None);
        };
        let (plan, ns) = (&together.plan, together.schedule.ns);
        let may_be_cpus = exact && rows <= FEW && has_kernel(weight);
        if may_be_cpus && self.route.is_cpu(plan, &self.chip.timing, rows, ns, exact) {
            return (1, None);
        }
        (count, Some(together))
    }

    /// The same of a pair, few rows of it.
    pub(super) fn pair_together(&mut self, [one, other]: [&NpuWeight; 2], rows: usize) -> Option<Together> {
        // Of more rows it is looked at together with down's.
        let may = rows <= FEW && follows(one, other);
        if may {
            self.as_one(&[one, other], rows, Aim::Best)
        } else {
            None
        }
    }

    /// How weights that follow each other are run as one, if that takes no longer.
    fn as_one(&mut self, weights: &[&NpuWeight], rows: usize, aim: Aim) -> Option<Together> {
        let mut columns = [0; GROUP];
        columns.iter_mut().zip(weights).for_each(|(columns, weight)| *columns = weight.plan.columns);
        let (first, means) = (weights[0], self.means(weights[0].pipeline));
        let key = (schedule_key(first, rows), columns, aim);
        if let Some(known) = self.together.get(&key) {
            return known.clone();
        }
        if self.together.len() >= SCHEDULES_MAX {
            self.together.clear();
        }
        let mut alone = |weight: &&NpuWeight| match aim {
            Aim::Best => Some(self.schedule(weight, rows).ns),
            Aim::Shortest => Some(self.chained(weight, rows)?.ns),
        };
        let singly = weights.iter().map(&mut alone).sum::<Option<f64>>()?;
        let plan = WeightPlan::together(weights.iter().map(|weight| &weight.plan), means.cores);
        let together = plan.filter(|_| means.windows).and_then(|plan| {
            let (planned, timing) = (Planned { plan: &plan, means }, &self.chip.timing);
            let schedule = match aim {
                Aim::Best => Schedule::best_together(planned, timing, rows, singly)?,
                Aim::Shortest => Schedule::shortest_together(planned, timing, rows, singly)?,
            };
            Some(Together { plan: Arc::new(plan), schedule })
        });
        self.together.insert(key, together.clone());
        together
    }

    /// Does `count` products from `index` on; their last batch is under way when this returns.
    pub(super) fn run_together(
        &mut self,
        stream: &mut Stream,
        index: usize,
        count: usize,
    ) -> Result<(), Error> {
        let Some(Product { weight, activations, same, .. }) = &stream.products[index] else { return Ok(()) };
        let (weight, activations, same) = (*weight, *activations, *same);
        let mut weights = [weight; GROUP];
        for (weight, product) in
            weights.iter_mut().zip(stream.products[index..index + count].iter().flatten())
        {
            *weight = product.weight;
            self.count_bytes(weight, activations.rows);
        }
        for (first, part) in blocks(activations) {
            let known = Known::same(activations.is_same(same, first));
            // The last rows may be so few that it is not worth it.
            let Some(together) = self.as_one(&weights[..count], part.rows, Aim::Best) else {
                for (at, weight) in weights[..count].iter().enumerate() {
                    let known = if at > 0 { Known::same(true) } else { known };
                    let schedule = self.schedule(weight, part.rows);
                    self.one_block(stream, index + at, (first, &part), known, schedule)?;
                }
                continue;
            };
            self.run_others(stream, index, (first, &part), known, &together, count)?;
        }
        Ok(())
    }

    /// Does some rows, from `first` on, of `count` products from `index` on; these are under way when this returns.
    pub(super) fn run_others(
        &mut self,
        stream: &mut Stream,
        index: usize,
        part: (usize, &Activations),
        known: Known,
        together: &Together,
        count: usize,
    ) -> Result<(), Error> {
        self.run_block(stream, index, part, known, together, |_| With::Others(count - 1))
    }

    /// Does some rows, from `first` on, of the product `index` and those that are run `with` it; these are under way when this
    /// returns.
    pub(super) fn run_block(
        &mut self,
        stream: &mut Stream,
        index: usize,
        (first, part): (usize, &Activations),
        known: Known,
        Together { plan, schedule }: &Together,
        with: impl Fn(&Flight) -> With,
    ) -> Result<(), Error> {
        let Some(Product { weight, .. }) = &stream.products[index] else { return Ok(()) };
        let weight = *weight;
        stream.asked.add(schedule.ns, part.rows);
        let begin = Begin::together(first, known, *schedule, plan);
        let block = self.begin(weight, part, begin, stream.room)?;
        for batch in schedule.batches(plan, part.rows) {
            let place = PlaceOfC::whole(stream.next_slot());
            let give = Give { product: index, block, batch, place, together: Some(plan) };
            let flight = self.give((weight, part), give, stream.room)?;
            let with = with(&flight);
            self.follow(stream, UnderWay { flight, with })?;
        }
        Ok(())
    }
}

/// Whether the stack of a weight with the same rows, in the same segments, follows that of the other one.
pub(super) fn follows(one: &NpuWeight, next: &NpuWeight) -> bool {
    one.is_before(next) && same_rows(one, next) && one.plan.segments == next.plan.segments
}
