//! Two products of the same rows, gate and up of a feed-forward block, in turns: what is made of their results is made where
//! these are read, while they are in the cache; or, where the C of both would be too much, of parts of the outputs.
//!
//! ```text
//! CPU                                | gate 0 and up 0 read and made one | …
//! NPU   gate 0 | up 0 | gate 1 | up 1 | gate 2 ……………………………………………………| …
//! ```

use std::ops::Range;
use std::sync::Arc;

use super::product::blocks;
use super::stream::{next_slot, Block, Flight, PlaceOfC, Room};
use super::{Activations, Engine, Error, Product};
use crate::kernels::glu::{glu, Activation};
use crate::observe::Stage;
use crate::plan::ROWS_MAX;
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
    /// Set by the engine: it was made.
    pub made: bool,
}

impl Between<'_> {
    /// `out` = what is made of the two products' results, as many of each.
    pub(super) fn make(&self, [first, second]: [&[f32]; 2], out: &mut [f32]) {
        let (gate, up) = if self.swapped { (second, first) } else { (first, second) };
        glu(self.activation, gate, up, out);
    }
}

/// Two products that are alike, among those of a group, and what is made of them.
pub(super) struct Pair<'a> {
    pub(super) products: &'a [Option<Product<'a>>],
    pub(super) of: [&'a Product<'a>; 2],
    pub(super) between: &'a Between<'a>,
}

impl Engine {
    /// Whether the first two products have the same rows, and weights that are cut and run alike, on the NPU.
    pub(super) fn are_alike(&mut self, products: &[Option<Product>]) -> bool {
        let [Some(one), Some(other), ..] = products else { return false };
        let rows = other.activations.rows;
        let same_rotation = match (&one.weight.rotation, &other.weight.rotation) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        other.same
            && other.activations.picks.is_none()
            && one.activations.rows == rows
            && one.weight.plan == other.weight.plan
            && one.weight.pipeline == other.weight.pipeline
            && one.weight.share.domain == other.weight.share.domain
            && same_rotation
            && !self.is_for_cpu(one.weight, rows)
            && !self.is_for_cpu(other.weight, rows)
    }

    /// Does two products that are alike, batch by batch in turns, and what is made of them as their results come. Nothing
    /// is under way when this returns.
    pub(super) fn pair(
        &mut self,
        products: &[Option<Product>],
        between: &Between,
        flight: &mut Option<Flight>,
        room: &mut Room,
    ) -> Result<(), Error> {
        let [Some(one), Some(other)] = &products[between.first..][..2] else { return Ok(()) };
        let pair = Pair { products, of: [one, other], between };
        let (activations, same) = (one.activations, one.same);
        pair.of.iter().for_each(|product| self.count_bytes(product.weight, activations.rows));
        for (first, part) in blocks(activations) {
            let same = same && activations.rows <= ROWS_MAX;
            let joint = self.joint_schedule(one.weight, part.rows);
            let schedule = joint.unwrap_or_else(|| self.schedule(one.weight, part.rows));
            let block = self.begin(one.weight, first, &part, same, schedule, room)?;
            if joint.is_some() {
                self.read_together(&pair, &part, block, flight, room)?;
            } else {
                self.read_in_turns(&pair, &part, block, flight, room)?;
            }
        }
        Ok(())
    }

    /// Both products' batches are read together, and what is made of them is made of what is in the cache.
    fn read_together(
        &mut self,
        pair: &Pair,
        part: &Activations,
        block: Block,
        flight: &mut Option<Flight>,
        room: &mut Room,
    ) -> Result<(), Error> {
        let [one, other] = pair.of.map(|product| product.weight);
        let mut under_way = None::<[Flight; 2]>;
        for batch in block.schedule.batches(&one.plan, part.rows) {
            self.pack_batch(one, part, &block, &batch, room)?;
            let slot = next_slot(under_way.as_ref().map(|[one, _]| one).or(flight.as_ref()));
            let mut give = |at: usize, weight| {
                let place = PlaceOfC::shared(slot, at, 2);
                self.give(weight, pair.between.first + at, block, batch.clone(), place)
            };
            let next = [give(0, one)?, give(1, other)?];
            if let Some(landed) = flight.take() {
                self.land(pair.products, landed, room)?;
            }
            if let Some(landed) = under_way.replace(next) {
                self.land_both(pair, landed, room)?;
            }
        }
        match under_way {
            Some(last) => self.land_both(pair, last, room),
            None => Ok(()),
        }
    }

    /// Each product's batches are read as they come, and what is made of both is made of the rows and columns that are done.
    fn read_in_turns(
        &mut self,
        pair: &Pair,
        part: &Activations,
        block: Block,
        flight: &mut Option<Flight>,
        room: &mut Room,
    ) -> Result<(), Error> {
        let plan = &pair.of[0].weight.plan;
        let mut next = None;
        for batch in block.schedule.batches(plan, part.rows) {
            for at in 0..2 {
                let index = pair.between.first + at;
                self.advance(pair.products, index, part, block, batch.clone(), flight, room)?;
            }
            if batch.segments.end == plan.segments.len() {
                let rows = block.first + batch.rows.start..block.first + batch.rows.end;
                // The last one is under way.
                if let Some((rows, columns)) = next.replace((rows, batch.columns)) {
                    self.make(pair, rows, columns);
                }
            }
        }
        if let Some(last) = flight.take() {
            self.land(pair.products, last, room)?;
        }
        if let Some((rows, columns)) = next {
            self.make(pair, rows, columns);
        }
        Ok(())
    }

    /// Makes of a pair's results what is made of these rows, and of these columns but those of padding.
    fn make(&self, pair: &Pair, rows: Range<usize>, columns: Range<usize>) {
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
