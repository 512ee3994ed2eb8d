//! A product with what two others make, down of a feed-forward block: it begins before all of that is made.
//!
//! *By rows*: its first tile of rows, or its first segments, are on the NPU while the last batch of gate and up is still to be
//! read.
//!
//! ```text
//! CPU   …        | gate 0 and up 0 read, made one and packed | gate 1 and up 1 read and … | …
//! NPU   … gate 1 | up 1 ……………………………………………………………………………………| down 0 ……………………………………………| down 1
//! ```
//!
//! *Woven*: gate and up are computed in parts of their columns, which are down's K; so batches of gate and up, and of down, go
//! to the NPU in turns, and B of none of them is read more than once.
//!
//! ```text
//! CPU   … | columns 0 read, made one and packed | columns 1 read and …      | down 0 read | …
//! NPU   … | gate 1 | up 1 ……………………………………………………| down 0 | gate 2 | up 2 ………………………………| down 1 | …
//! ```

use std::sync::atomic::Ordering::Relaxed;

use super::ahead::NOT_BEGUN;
use super::block::Begin;
use super::prepare::{Known, LOT_BETWEEN};
use super::stream::{Room, Stream, UnderWay, With};
use super::{Activations, Engine, Error, NpuWeight, Product};
use crate::plan::{turns, Batch, Joint, Schedule, Turn, ROWS_MAX};

impl Stream<'_, '_> {
    /// The first row under way of the two products from `first` on, and the first column: what is made of rows before is made, and
    /// of columns before.
    fn makes(&self, first: usize) -> Option<(usize, usize)> {
        let UnderWay { flight, with } = self.under_way.as_ref()?;
        let product = match with {
            With::Alike(_) => first,
            With::After => first + 1,
            With::Others(_) => return None,
        };
        let (block, batch) = (&flight.block, &flight.batch);
        (flight.product == product).then(|| (block.first + batch.rows.start, batch.columns.start))
    }

    /// Whether of the two products from `first` on something is under way.
    pub(super) fn is_making(&self, first: usize) -> bool {
        self.makes(first).is_some()
    }
}

impl Engine {
    /// How the product after two that are alike, from `index` on, is woven into them; `None` if it is not.
    ///
    /// Of no more rows than are prepared together: results of down, the last of which are written when all is made, may lie
    /// over the rows of gate and up, which are all packed then.
    pub(super) fn woven(&mut self, stream: &Stream, index: usize) -> Option<Joint> {
        let pair = stream.pair(index).filter(|pair| pair.between.feeds)?;
        let fed = stream.products.get(index + 2)?.as_ref()?;
        let (two, rows) = (pair.of.map(|product| product.weight), fed.activations.rows);
        let may = fed.activations.picks.is_none()
            && self.packs_as_made(fed.weight, rows)
            && !self.is_for_cpu(fed.weight, rows);
        let joint = if may { self.joint_schedule(two, Some(fed.weight), rows, true) } else { None };
        joint.filter(|joint| joint.woven && joint.fed.is_some())
    }

    /// Does two products that are alike, from `index` on, what is made of them, and the product of that, which is woven in.
    pub(super) fn weave(&mut self, stream: &mut Stream, index: usize, joint: Joint) -> Result<(), Error> {
        let (Some(pair), Some(Product { weight: down, .. }), Some(schedule)) =
            (stream.pair(index), &stream.products[index + 2], joint.fed)
        else {
            return Ok(());
        };
        let ([one, other], down) = (pair.of.map(|product| product.weight), *down);
        let (part, known) = (pair.of[0].activations, Known::same(pair.of[0].same));
        [one, other, down].iter().for_each(|weight| self.count_bytes(weight, part.rows));
        stream.asked.add(2.0 * joint.pair.ns + schedule.ns, part.rows);
        stream.keep_apart(index + 2, part.rows * down.plan.n);
        self.feed(stream, index + 2, Some(schedule));
        let block = self.begin(one, &part, Begin::shared(0, known, joint.pair), stream.room)?;
        for turn in turns((&joint.pair, &one.plan), (&schedule, &down.plan), part.rows) {
            let batch = match turn {
                Turn::Pair(batch) => {
                    self.advance_pair(stream, index, &part, block, batch)?;
                    continue;
                }
                Turn::Woven(batch) => batch,
                Turn::Last(batch) => {
                    self.settle(stream)?;
                    batch
                }
            };
            self.advance_woven(stream, index, batch)?;
        }
        Ok(())
    }

    /// Gives a batch of the product after two others, which is woven into them; what it reads of the rows is packed.
    fn advance_woven(&mut self, stream: &mut Stream, index: usize, batch: Batch) -> Result<(), Error> {
        let block = stream.begun_ahead(index + 2, 0)?.ok_or(NOT_BEGUN)?;
        let Some(Product { activations, .. }) = &stream.products[index + 2] else { return Ok(()) };
        let part = Activations { data: &[], ..*activations };
        if stream.is_making(index) {
            self.stats.rows_ahead.fetch_add(batch.rows.len() as u64, Relaxed);
        }
        self.advance(stream, index + 2, &part, block, batch)
    }

    /// Does the product `index`, which is with what the two before it make, each batch as soon as its rows are there.
    pub(super) fn fed(&mut self, stream: &mut Stream, index: usize) -> Result<(), Error> {
        let (Some(between), Some(Product { weight, activations, .. })) =
            (stream.between, &stream.products[index])
        else {
            return Ok(());
        };
        let (weight, Activations { rows: all, stride, picks, .. }) = (*weight, *activations);
        // As many rows are made, or will be.
        let made = picks.map_or(all, |picks| picks.of());
        if self.is_for_cpu(weight, all) {
            self.settle(stream)?;
            // SAFETY: these rows are made, and nobody writes to them any more.
            let data = unsafe { between.out.part(0..made * stride) };
            let activations = Activations { data, stride, rows: all, picks };
            let Some(Product { out, routed, .. }) = &mut stream.products[index] else { return Ok(()) };
            let Room { prepared, cpu, .. } = &mut *stream.room;
            self.multiply_on_cpu(weight, &activations, false, &mut prepared[LOT_BETWEEN], cpu, out)?;
            *routed = true;
            return Ok(());
        }
        self.count_bytes(weight, all);
        for first in (0..all).step_by(ROWS_MAX) {
            let rows = ROWS_MAX.min(all - first);
            let pair = stream.pair(index - 2).map(|pair| pair.of.map(|product| product.weight));
            let schedule = self.fed_schedule(pair, weight, rows);
            stream.asked.add(schedule.ns, rows);
            // Nothing is read of them yet, and need not be there.
            let part = Activations { data: &[], stride, rows, picks: picks.map(|picks| picks.after(first)) };
            self.begin_ahead(stream, index, (first, rows))?;
            let ahead = stream.begun_ahead(index, first)?;
            let block = match ahead {
                Some(block) => block,
                None if picks.is_some() => {
                    self.begin(weight, &part, Begin::between(first, None, schedule), stream.room)?
                }
                None => {
                    self.begin(weight, &part, Begin::shared(first, Known::Others, schedule), stream.room)?
                }
            };
            for batch in schedule.batches(&weight.plan, rows) {
                let end = first + batch.rows.end;
                // What is packed segment by segment is there as soon as its own columns are.
                let k = if ahead.is_some() { batch.k(&weight.plan).end } else { weight.k() };
                match stream.makes(index - 2) {
                    Some((row, column)) if row < end && column < k => self.settle(stream)?,
                    Some(_) => {
                        self.stats.rows_ahead.fetch_add(batch.rows.len() as u64, Relaxed);
                    }
                    None => (),
                }
                let there = match (ahead, picks) {
                    // They are packed, so that nothing is read of them.
                    (Some(_), _) => 0..0,
                    (None, Some(_)) => 0..made * stride,
                    (None, None) => first * stride..end * stride,
                };
                // SAFETY: those of the rows that are read are made, and nobody writes to any meanwhile.
                let data = unsafe { between.out.part(there) };
                let part = Activations { data, ..part };
                self.advance(stream, index, &part, block, batch)?;
            }
        }
        Ok(())
    }

    /// How so many rows of a product are run that is with what is made of two others, `pair`.
    pub(super) fn fed_schedule(
        &mut self,
        pair: Option<[&NpuWeight; 2]>,
        weight: &NpuWeight,
        rows: usize,
    ) -> Schedule {
        let joint = pair.and_then(|pair| self.joint_schedule(pair, Some(weight), rows, false));
        joint.and_then(|joint| joint.fed).unwrap_or_else(|| self.schedule(weight, rows))
    }
}
