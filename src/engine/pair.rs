//! Two products of the same rows, gate and up of a feed-forward block: what is made of their results is made where these are
//! read, while they are in the cache ([`super::made`]); or, where the C of both would be too much, where the second one's are.
//! A third product, down, may be with what is made ([`super::fed`]).

use std::sync::Arc;

use super::block::{Begin, Block, Flight, Give, PlaceOfC};
use super::prepare::Known;
use super::product::blocks;
use super::stream::{Stream, UnderWay, With};
use super::{Activations, Engine, Error, NpuWeight, Product};
use crate::kernels::glu::{glu, Activation};
use crate::observe::Stage;
use crate::plan::{Batch, Schedule, ROWS_MAX};
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
    /// Somebody else may read what is made; it is in its place then. Else it need not be where a product [feeds](Self::feeds) on it.
    pub kept: bool,
    /// Set by the engine: it was made, whatever failed after that.
    pub made: bool,
    /// Set by the engine: the product of it is done, too, whatever failed after that; what is made may not be in its place.
    pub used: bool,
}

impl<'a> Between<'a> {
    /// What is made of the product `first` and the next one, into `out`; nobody sees their own results, and the next product is not
    /// with it.
    pub fn new(first: usize, activation: Activation, swapped: bool, out: Divided<'a, f32>) -> Self {
        Self {
            first,
            activation,
            swapped,
            out,
            seen: false,
            feeds: false,
            kept: true,
            made: false,
            used: false,
        }
    }

    /// As many products of the group are done for sure: if something was made of two, they and those before.
    pub fn done(&self) -> usize {
        match (self.made, self.used) {
            (true, true) => self.first + 3,
            (true, false) => self.first + 2,
            _ => 0,
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
        if let Some(fed) = fed.filter(|_| activations.rows <= ROWS_MAX) {
            let schedule = self.fed_schedule(Some(one), fed, activations.rows);
            self.feed(stream, index + 2, Some(schedule));
        }
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
            let block = self.begin(one, &part, Begin::shared(first, known, schedule), stream.room)?;
            self.in_turns(stream, index, &part, block)?;
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
        let block = self.begin(weight, part, Begin::shared(first, known, schedule), stream.room)?;
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
        let slot = stream.next_slot();
        let mut give = |at: usize, weight| {
            let place = PlaceOfC::shared(slot, at, 2);
            let give = Give { product: index + at, block, batch: batch.clone(), place, together: None };
            self.give((weight, part), give, stream.room)
        };
        let (flight, other) = (give(0, one)?, give(1, other)?);
        self.follow(stream, UnderWay { flight, with: With::Alike(other) })
    }

    /// Each product's batches are read as they come; what is made of both, as the second one's are.
    fn in_turns(
        &mut self,
        stream: &mut Stream,
        index: usize,
        part: &Activations,
        block: Block,
    ) -> Result<(), Error> {
        let Some(Pair { of, .. }) = stream.pair(index) else { return Ok(()) };
        let [one, other] = of.map(|product| product.weight);
        let segments = one.plan.segments.len();
        for batch in block.schedule.batches(&one.plan, part.rows) {
            self.advance(stream, index, part, block, batch.clone())?;
            if batch.segments.end < segments {
                self.advance(stream, index + 1, part, block, batch)?;
                continue;
            }
            self.advance_with(stream, (other, part), (index + 1, block, batch), With::After)?;
        }
        Ok(())
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
