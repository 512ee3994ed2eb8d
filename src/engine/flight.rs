//! Batches that are given to the cores: their runs, and where these leave their results.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use rknn_sys::MatmulSpec;

use super::block::{Block, PIECE_ALIGN};
use super::core::{Job, Ticket};
use super::scratch::Piece;
use super::stream::Room;
use super::{Activations, Engine, Error, NpuWeight};
use crate::observe::Stage;
use crate::plan::{Batch, Step, WeightPlan};

/// Up to as many rows the CPU has next to nothing to do, so that the caller itself drives a core.
const FEW_ROWS: usize = 16;

/// A batch that the NPU was given.
pub(super) struct Flight {
    pub(super) product: usize,
    pub(super) block: Block,
    pub(super) batch: Batch,
    pub(super) c: PlaceOfC,
    pub(super) ticket: Ticket,
    pub(super) portion: Option<Portion>,
}

/// A batch for the NPU.
pub(super) struct Give<'a> {
    pub(super) product: usize,
    pub(super) block: Block,
    pub(super) batch: Batch,
    pub(super) place: PlaceOfC,
    /// The plan of the product's weight and of those that follow it, if the runs are of all of them.
    pub(super) together: Option<&'a Arc<WeightPlan>>,
}

/// The columns of a product whose weight is run together with others.
#[derive(Clone)]
pub(super) struct Portion {
    /// The plan of all of them.
    pub(super) plan: Arc<WeightPlan>,
    /// The first of its columns of a segment.
    pub(super) first: usize,
}

impl Portion {
    /// The first of all the columns.
    fn new(plan: &Arc<WeightPlan>) -> Self {
        Self { plan: plan.clone(), first: 0 }
    }
}

impl Flight {
    /// What the runs are of: the product's weight, or that and others.
    pub(super) fn plan<'a>(&'a self, weight: &'a NpuWeight) -> &'a WeightPlan {
        self.portion.as_ref().map_or(&weight.plan, |portion| &portion.plan)
    }

    /// The same runs for the next product, after the `columns` of this one.
    pub(super) fn of_next(&self, columns: usize) -> Self {
        let next = |portion: &Portion| Portion { plan: portion.plan.clone(), first: portion.first + columns };
        let portion = self.portion.as_ref().map(next);
        Self { product: self.product + 1, batch: self.batch.clone(), portion, ..*self }
    }

    /// The first of the product's columns of a segment.
    fn first(&self) -> usize {
        self.portion.as_ref().map_or(0, |portion| portion.first)
    }

    /// The columns of the product's stack among those of the runs.
    pub(super) fn stack(&self, weight: &NpuWeight) -> Range<usize> {
        let segments = weight.plan.segments.len();
        let first = segments * self.first();
        first..first + segments * weight.plan.columns
    }

    /// The product's columns that the batch has, none of padding.
    pub(super) fn columns(&self, weight: &NpuWeight) -> Range<usize> {
        let first = self.first();
        let at = |column: usize| column.saturating_sub(first).min(weight.plan.n);
        at(self.batch.columns.start)..at(self.batch.columns.end)
    }
}

/// Where the runs of a batch leave their results: each core's in a slot, one after the other.
#[derive(Clone, Copy)]
pub(super) struct PlaceOfC {
    pub(super) slot: usize,
    /// Batches of as many products share the slot, of which this is the `share`-th.
    shares: usize,
    share: usize,
    stride: usize,
}

impl PlaceOfC {
    /// All of a slot.
    pub(super) fn whole(slot: usize) -> Self {
        Self::shared(slot, 0, 1)
    }

    /// The `share`-th of `shares` equal parts of a slot.
    pub(super) fn shared(slot: usize, share: usize, shares: usize) -> Self {
        Self { slot, shares, share, stride: 0 }
    }

    pub(super) fn piece(&self, batch: &Batch, step: &Step, bytes: usize) -> Piece {
        let index = self.share * batch.steps().count() + step.index - batch.first;
        Piece { slot: self.slot, index, stride: self.stride, bytes }
    }
}

impl Engine {
    /// Packs what a batch reads and is not packed yet, and gives its runs to the cores: step by step, if a step needs no more of
    /// the rows than its own segment.
    pub(super) fn give(
        &mut self,
        (weight, part): (&NpuWeight, &Activations),
        give: Give,
        room: &mut Room,
    ) -> Result<Flight, Error> {
        let Give { product, block, batch, place, together } = give;
        let plan: &WeightPlan = together.map_or(&weight.plan, |together| together);
        let means = self.means(weight.pipeline);
        let runs = |step: &Step| block.schedule.runs(plan, means, step);
        let (mut steps, mut bytes) = (0, 0);
        for step in batch.steps() {
            steps += 1;
            bytes = runs(&step).map(|run| run.c_bytes(plan)).fold(bytes, usize::max);
        }
        let c = PlaceOfC { stride: bytes.next_multiple_of(PIECE_ALIGN), ..place };
        let mut flight = Flight {
            product,
            block,
            batch,
            c,
            ticket: Ticket::default(),
            portion: together.map(Portion::new),
        };
        let mut here = None;
        if weight.is_by_segments() {
            for step in flight.batch.by_steps() {
                self.pack_batch((weight, plan), part, &block, &step, room)?;
                self.give_runs(weight, (plan, &flight), &step, steps, &mut here)?;
            }
        } else {
            self.pack_batch((weight, plan), part, &block, &flight.batch, room)?;
            self.give_runs(weight, (plan, &flight), &flight.batch, steps, &mut here)?;
        }
        flight.ticket = self.cores.ticket();
        if let Some((core, job)) = here {
            let stats = self.stats.clone();
            stats.stage(Stage::Wait, || self.cores.run_here(core, &job))?;
        }
        Ok(flight)
    }

    /// Gives the runs of some of a flight's `steps` steps to the cores, but for one that is to be done `here`, if any is.
    fn give_runs(
        &mut self,
        weight: &NpuWeight,
        (plan, flight): (&WeightPlan, &Flight),
        some: &Batch,
        steps: usize,
        here: &mut Option<(usize, Job)>,
    ) -> Result<(), Error> {
        let (means, Flight { block, batch, c, .. }) = (self.means(weight.pipeline), flight);
        for step in some.steps() {
            for run in block.schedule.runs(plan, means, &step) {
                let a = self.piece(weight, block, &step, &run);
                let domain = self.domains.get_mut(weight.share.domain);
                let spec = MatmulSpec {
                    dtype: plan.dtype,
                    rows: run.m,
                    k: plan.longest(),
                    n: run.columns.len(),
                    b_layout: self.mode.b_layout(),
                    ac_layout: self.mode.ac_layout(),
                    domain: domain.id,
                };
                let results = &mut domain.scratch.c[run.core];
                results.reserve(c.slot, c.shares * steps, c.stride)?;
                let job = Job {
                    spec,
                    c: results.bind(&c.piece(batch, &step, run.c_bytes(plan)))?,
                    a: domain.scratch.a.bind(&a)?,
                    b: weight.binding(&run, step.segments.start)?,
                };
                if block.rows <= FEW_ROWS && steps == 1 && here.is_none() {
                    *here = Some((run.core, job));
                } else {
                    self.cores.give(run.core, job)?;
                }
                self.stats.runs[weight.pipeline.index()].fetch_add(1, Relaxed);
            }
        }
        Ok(())
    }
}
