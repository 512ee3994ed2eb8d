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
use super::results::chunks;
use super::scratch::SLOTS;
use super::stream::{Block, Flight, PlaceOfC, Room};
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

/// Rows and columns of an output of `n` columns.
struct Area {
    rows: Range<usize>,
    columns: Range<usize>,
    n: usize,
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
        let (activations, same) = (one.activations, one.same);
        [one, other].iter().for_each(|product| self.count_bytes(product.weight, activations.rows));
        for (first, part) in blocks(activations) {
            let same = same && activations.rows <= ROWS_MAX;
            match self.joint_schedule(one.weight, part.rows) {
                Some(schedule) => {
                    let block = self.begin(one.weight, first, &part, same, schedule, room)?;
                    self.read_together(products, between, (&part, block), flight, room)?;
                }
                None => {
                    let schedule = self.schedule(one.weight, part.rows);
                    let block = self.begin(one.weight, first, &part, same, schedule, room)?;
                    self.read_in_turns(products, between, (&part, block), flight, room)?;
                }
            }
        }
        Ok(())
    }

    /// Both products' batches are read together, and what is made of them is made of what is in the cache.
    fn read_together(
        &mut self,
        products: &[Option<Product>],
        between: &Between,
        (part, block): (&Activations, Block),
        flight: &mut Option<Flight>,
        room: &mut Room,
    ) -> Result<(), Error> {
        let [Some(one), Some(other)] = &products[between.first..][..2] else { return Ok(()) };
        let mut slot = flight.as_ref().map_or(0, |flight| (flight.c.slot + 1) % SLOTS);
        let mut under_way = None::<[Flight; 2]>;
        for batch in block.schedule.batches(&one.weight.plan, part.rows) {
            self.pack_batch(one.weight, part, &block, &batch, room)?;
            let mut give = |at: usize, weight| {
                let place = PlaceOfC::shared(slot, at, 2);
                self.give(weight, between.first + at, block, batch.clone(), place)
            };
            let next = [give(0, one.weight)?, give(1, other.weight)?];
            slot = (slot + 1) % SLOTS;
            if let Some(landed) = flight.take() {
                self.land(products, landed, room)?;
            }
            if let Some(landed) = under_way.replace(next) {
                self.land_both(products, landed, between, room)?;
            }
        }
        match under_way {
            Some(last) => self.land_both(products, last, between, room),
            None => Ok(()),
        }
    }

    /// Each product's batches are read as they come, and what is made of both is made of the rows and columns that are done.
    fn read_in_turns(
        &mut self,
        products: &[Option<Product>],
        between: &Between,
        (part, block): (&Activations, Block),
        flight: &mut Option<Flight>,
        room: &mut Room,
    ) -> Result<(), Error> {
        let [Some(one), Some(other)] = &products[between.first..][..2] else { return Ok(()) };
        let (plan, outs) = (&one.weight.plan, [&one.out, &other.out]);
        let mut next = None;
        for batch in block.schedule.batches(plan, part.rows) {
            for at in 0..2 {
                self.advance(products, between.first + at, part, block, batch.clone(), flight, room)?;
            }
            if batch.segments.end == plan.segments.len() {
                let rows = block.first + batch.rows.start..block.first + batch.rows.end;
                let done =
                    Area { rows, columns: batch.columns.start..batch.columns.end.min(plan.n), n: plan.n };
                // The last one is under way.
                if let Some(done) = next.replace(done) {
                    self.make(between, outs, &done);
                }
            }
        }
        if let Some(last) = flight.take() {
            self.land(products, last, room)?;
        }
        if let Some(done) = next {
            self.make(between, outs, &done);
        }
        Ok(())
    }

    /// Makes of two products' results what is made of these rows and columns.
    fn make(&self, between: &Between, outs: [&Divided<f32>; 2], area: &Area) {
        let Area { rows, columns, n } = area;
        let work = |index: usize| {
            let row = (rows.start + index) * n;
            // SAFETY: each index comes once, and has its own row; the products write other rows or columns, if any.
            let [first, second, out] = [outs[0], outs[1], &between.out]
                .map(|rows| unsafe { rows.part(row + columns.start..row + columns.end) });
            let (gate, up) = if between.swapped { (second, first) } else { (first, second) };
            glu(between.activation, gate, up, out);
        };
        let elements = rows.len() * columns.len();
        self.stats.stage(Stage::Gate, || self.pool.run_if_many(elements, rows.len(), work));
    }

    /// `out` = the activation of `gate` times `up`, all of the same length; the same bits as between two products.
    pub fn gate(&self, activation: Activation, [gate, up]: [&[f32]; 2], out: &mut [f32]) {
        let size = out.len().div_ceil(self.pool.threads()).next_multiple_of(16);
        self.stats.stage(Stage::Gate, || {
            chunks(&self.pool, out.len(), out, size.max(1), |index, out| {
                let at = index * size;
                glu(activation, &gate[at..], &up[at..], out);
            });
        });
    }
}
