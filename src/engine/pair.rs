//! Two products of the same rows, such as gate and up, in turns; what is made of their results is made meanwhile.
//!
//! ```text
//! CPU                        | scale gate 0 | scale up 0 | make 0 | scale gate 1 | …
//! NPU   gate 0 | up 0 | gate 1 ……………………| up 1 …………………………………………………| …
//! ```

use std::ops::Range;
use std::sync::Arc;

use super::product::blocks;
use super::stream::{Flight, Room};
use super::{Engine, Error, Product};
use crate::observe::Stage;
use crate::plan::ROWS_MAX;

/// What is made of the results of two neighbours in a group, gate and up, part by part as they come, while the NPU runs on.
pub struct Between<'a> {
    /// The first of the two.
    pub first: usize,
    /// Makes it for these rows and columns; false when that failed.
    pub make: &'a mut dyn FnMut(Range<usize>, Range<usize>) -> bool,
    /// Set by the engine: all of it was made.
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
        products: &mut [Option<Product>],
        between: &mut Between,
        flight: &mut Option<Flight>,
        room: &mut Room,
    ) -> Result<(), Error> {
        let Between { first: index, make, made } = between;
        let index = *index;
        let [Some(one), Some(other)] = &products[index..index + 2] else { return Ok(()) };
        let (weights, activations, same) = ([one.weight, other.weight], one.activations, one.same);
        let (plan, stats) = (&weights[0].plan, self.stats.clone());
        weights.iter().for_each(|weight| self.count_bytes(weight, activations.rows));
        let mut all = true;
        let mut make = |(rows, columns)| all &= stats.stage(Stage::Gate, || make(rows, columns));
        // The rows and columns of which the last batch is under way.
        let mut next: Option<(Range<usize>, Range<usize>)> = None;
        for (first, part) in blocks(activations) {
            let same = same && activations.rows <= ROWS_MAX;
            let one = self.begin(weights[0], first, &part, same, room)?;
            let blocks = [one, self.begin(weights[1], first, &part, true, room)?];
            for batch in one.schedule.batches(plan, part.rows) {
                for (at, block) in blocks.into_iter().enumerate() {
                    self.advance(products, index + at, &part, block, batch.clone(), flight, room)?;
                }
                if batch.segments.end == plan.segments.len() {
                    let rows = first + batch.rows.start..first + batch.rows.end;
                    let columns = batch.columns.start..batch.columns.end.min(plan.n);
                    if let Some(ready) = next.replace((rows, columns)) {
                        make(ready);
                    }
                }
            }
        }
        if let Some(last) = flight.take() {
            self.land(products, last, room)?;
        }
        if let Some(ready) = next {
            make(ready);
        }
        *made = all;
        Ok(())
    }
}
