//! Two products of the same rows, gate and up of a feed-forward block, in turns: what is made of their results is made where
//! these are read, while they are in the cache.
//!
//! ```text
//! CPU                                | gate 0 and up 0 read and made one | …
//! NPU   gate 0 | up 0 | gate 1 | up 1 | gate 2 ……………………………………………………| …
//! ```

use std::sync::Arc;

use super::product::blocks;
use super::results::chunks;
use super::scratch::SLOTS;
use super::stream::{Flight, PlaceOfC, Room};
use super::{Engine, Error, Product};
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
        before: Option<Flight>,
        room: &mut Room,
    ) -> Result<(), Error> {
        let index = between.first;
        let [Some(one), Some(other)] = &products[index..index + 2] else { return Ok(()) };
        let (weights, activations, same) = ([one.weight, other.weight], one.activations, one.same);
        weights.iter().for_each(|weight| self.count_bytes(weight, activations.rows));
        let mut slot = before.as_ref().map_or(0, |flight| (flight.c.slot + 1) % SLOTS);
        let (mut before, mut under_way) = (before, None::<[Flight; 2]>);
        for (first, part) in blocks(activations) {
            let same = same && activations.rows <= ROWS_MAX;
            let block = self.begin(weights[0], first, &part, same, 2, room)?;
            for batch in block.schedule.batches(&weights[0].plan, part.rows) {
                self.pack_batch(weights[0], &part, &block, &batch, room)?;
                let mut give = |at: usize| {
                    let place = PlaceOfC::shared(slot, at, 2);
                    self.give(weights[at], index + at, block, batch.clone(), place)
                };
                let next = [give(0)?, give(1)?];
                slot = (slot + 1) % SLOTS;
                if let Some(landed) = before.take() {
                    self.land(products, landed, room)?;
                }
                if let Some(landed) = under_way.replace(next) {
                    self.land_both(products, landed, between, room)?;
                }
            }
        }
        match under_way {
            Some(last) => self.land_both(products, last, between, room),
            None => Ok(()),
        }
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
