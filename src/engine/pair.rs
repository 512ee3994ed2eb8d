//! Two products of the same rows, gate and up of a feed-forward block: what is made of their results is made where these are
//! read, while they are in the cache; or, where the C of both would be too much, of parts of the outputs. A third product,
//! down, may be with what is made ([`super::fed`]).

use std::ops::Range;
use std::sync::Arc;

use super::block::{Block, Flight, PlaceOfC};
use super::prepare::Known;
use super::product::blocks;
use super::stream::{Stream, UnderWay, With};
use super::{Activations, Engine, Error, NpuWeight, Product};
use crate::kernels::glu::{glu, Activation};
use crate::observe::Stage;
use crate::plan::{Batch, Schedule};
use crate::pool::Divided;

/// What is made of the results of two neighbours in a group, gate and up, as they come: an activation of the one times the
/// other, which is as long.
pub struct Between<'a> {
    /// The first of the two products.
    pub first: usize,
    /// What the gate is put through.
    pub activation: Activation,
    /// Whether the gate is the second of the two.
    pub swapped: bool,
    /// Where it goes: rows of N, one after the other.
    pub out: Divided<'a, f32>,
    /// Whether somebody else sees the products' own results, which are then written too.
    pub seen: bool,
    /// The next product of the group is with what is made, whose rows it has though its own are empty: it is done only if
    /// that was made.
    pub feeds: bool,
    /// Set by the engine: it was made, whatever failed after that.
    pub made: bool,
}

impl Between<'_> {
    /// As many products of the group are done for sure: if something was made of two, they and those before.
    pub fn done(&self) -> usize {
        if self.made {
            self.first + 2
        } else {
            0
        }
    }

    /// The product that is with what is made.
    pub fn fed(&self) -> Option<usize> {
        self.feeds.then_some(self.first + 2)
    }

    /// `out` = what is made of the two products' results, as many of each.
    pub(super) fn make(&self, [first, second]: [&[f32]; 2], out: &mut [f32]) {
        let (gate, up) = if self.swapped { (second, first) } else { (first, second) };
        glu(self.activation, gate, up, out);
    }
}

/// Two products that are alike, and what is made of them.
pub(super) struct Pair<'s, 'p> {
    pub(super) of: [&'s Product<'p>; 2],
    pub(super) between: &'s Between<'s>,
}

impl<'p> Stream<'_, 'p> {
    /// The two products from `first` on, of which something is made, if both are there.
    pub(super) fn pair(&self, first: usize) -> Option<Pair<'_, 'p>> {
        let between = self.between?;
        let [Some(one), Some(other)] = self.products.get(first..)?.get(..2)? else { return None };
        Some(Pair { of: [one, other], between })
    }
}

/// Whether two weights have the same rows for theirs.
pub(super) fn same_rows(one: &NpuWeight, other: &NpuWeight) -> bool {
    let same_rotation = match (&one.rotation, &other.rotation) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    };
    same_rotation && one.pipeline == other.pipeline && one.share.domain == other.share.domain
}

impl Engine {
    /// Whether the first two products have the same rows, and weights that are cut and run alike, on the NPU.
    pub(super) fn are_alike(&mut self, products: &[Option<Product>]) -> bool {
        let [Some(one), Some(other), ..] = products else { return false };
        let rows = other.activations.rows;
        other.same && one.activations.rows == rows && self.run_alike([one.weight, other.weight], rows)
    }

    /// Whether the NPU does products of two weights with the same rows, so many, alike.
    pub(super) fn run_alike(&mut self, [one, other]: [&NpuWeight; 2], rows: usize) -> bool {
        same_rows(one, other)
            && one.plan == other.plan
            && ![one, other].into_iter().any(|weight| self.is_for_cpu(weight, rows))
    }

    /// Does two products that are alike, from `index` on, batch by batch in turns, and what is made of them as their results
    /// come; their last batches may be under way when this returns.
    pub(super) fn pair(&mut self, stream: &mut Stream, index: usize) -> Result<(), Error> {
        let Some(pair) = stream.pair(index) else { return Ok(()) };
        let [one, other] = pair.of.map(|product| product.weight);
        let (activations, same) = (pair.of[0].activations, pair.of[0].same);
        let fed = stream.products.get(index + 2).filter(|_| pair.between.feeds);
        let fed = fed.and_then(Option::as_ref).map(|fed| fed.weight);
        [one, other].iter().for_each(|weight| self.count_bytes(weight, activations.rows));
        for (first, part) in blocks(activations) {
            let known = Known::same(activations.is_same(same, first));
            if let Some(together) = self.pair_together([one, other], part.rows) {
                let with = |flight: &Flight| With::Alike(flight.of_next(one.plan.columns));
                self.run_block(stream, index, (first, &part), known, &together, with)?;
                continue;
            }
            if let Some(joint) = self.joint_schedule(one, fed, part.rows, false) {
                self.pair_block(stream, index, (first, &part), known, joint.pair)?;
                continue;
            }
            let schedule = self.schedule(one, part.rows);
            stream.asked.add(2.0 * schedule.ns, part.rows);
            let block = self.begin(one, first, &part, 0, known, schedule, stream.room)?;
            self.read_in_turns(stream, index, &part, block)?;
        }
        Ok(())
    }

    /// Does some rows, from `first` on, of two products that are alike and read together.
    pub(super) fn pair_block(
        &mut self,
        stream: &mut Stream,
        index: usize,
        (first, part): (usize, &Activations),
        known: Known,
        schedule: Schedule,
    ) -> Result<(), Error> {
        let Some(Product { weight, .. }) = &stream.products[index] else { return Ok(()) };
        let weight = *weight;
        stream.asked.add(2.0 * schedule.ns, part.rows);
        let block = self.begin(weight, first, part, 0, known, schedule, stream.room)?;
        for batch in schedule.batches(&weight.plan, part.rows) {
            self.advance_pair(stream, index, part, block, batch)?;
        }
        Ok(())
    }

    /// Gives the same batch of two products that are alike to the NPU, then takes the results of the one before.
    pub(super) fn advance_pair(
        &mut self,
        stream: &mut Stream,
        index: usize,
        part: &Activations,
        block: Block,
        batch: Batch,
    ) -> Result<(), Error> {
        let Some(Pair { of, .. }) = stream.pair(index) else { return Ok(()) };
        let [one, other] = of.map(|product| product.weight);
        self.pack_batch(one, part, &block, &batch, stream.room)?;
        let slot = stream.next_slot();
        let mut give = |at: usize, weight| {
            self.give(weight, index + at, block, batch.clone(), PlaceOfC::shared(slot, at, 2), None)
        };
        let next = UnderWay { flight: give(0, one)?, with: With::Alike(give(1, other)?) };
        self.follow(stream, next)
    }

    /// Each product's batches are read as they come, and what is made of both is made of the rows and columns that are done.
    fn read_in_turns(
        &mut self,
        stream: &mut Stream,
        index: usize,
        part: &Activations,
        block: Block,
    ) -> Result<(), Error> {
        let Some(Pair { of: [one, _], .. }) = stream.pair(index) else { return Ok(()) };
        let (plan, all) = (&one.weight.plan, one.activations.rows);
        let mut next = None;
        for batch in block.schedule.batches(plan, part.rows) {
            for at in 0..2 {
                self.advance(stream, index + at, part, block, batch.clone())?;
            }
            if batch.segments.end == plan.segments.len() {
                let rows = block.first + batch.rows.start..block.first + batch.rows.end;
                // The last one is under way.
                if let Some((rows, columns)) = next.replace((rows, batch.columns)) {
                    self.make(stream, index, rows, columns);
                }
            }
        }
        self.settle(stream)?;
        if let Some((rows, columns)) = next {
            self.make(stream, index, rows, columns);
        }
        stream.made = block.first + part.rows == all;
        Ok(())
    }

    /// Makes of a pair's results what is made of these rows, and of these columns but those of padding.
    fn make(&self, stream: &Stream, index: usize, rows: Range<usize>, columns: Range<usize>) {
        let Some(pair) = stream.pair(index) else { return };
        let n = pair.of[0].weight.plan.n;
        let columns = columns.start..columns.end.min(n);
        let work = |index: usize| {
            let row = (rows.start + index) * n;
            let place = row + columns.start..row + columns.end;
            // SAFETY: each index comes once, and has its own row; the products write other rows or columns, if any.
            let [first, second, out] = [&pair.of[0].out, &pair.of[1].out, &pair.between.out]
                .map(|rows| unsafe { rows.part(place.clone()) });
            pair.between.make([first, second], out);
        };
        let elements = rows.len() * columns.len();
        self.stats.stage(Stage::Gate, || self.pool.run_if_many(elements, rows.len(), work));
    }

    /// `out` = the activation of `gate` times `up`, all of the same length; the same bits as between two products.
    pub fn gate(&self, activation: Activation, [gate, up]: [&[f32]; 2], out: &mut [f32]) {
        let size = out.len().div_ceil(self.pool.threads()).next_multiple_of(16);
        self.stats.stage(Stage::Gate, || {
            self.pool.chunks_if_many(out, size.max(1), |index, out| {
                let at = index * size;
                glu(activation, &gate[at..], &up[at..], out);
            });
        });
    }
}
