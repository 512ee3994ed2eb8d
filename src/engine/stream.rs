//! Products as one stream of batches: while the NPU runs a batch, the CPU packs the next one's rows and scales the
//! results of the one before.
//!
//! ```text
//! CPU   pack 0 | pack 1        | scale 0 | pack 2 | scale 1 | …
//! NPU          | run 0 ………………| run 1 ………………| run 2 …
//! ```
//!
//! Two batches are under way at most: rows and results have two slots each. Products of one group are independent of
//! each other, so that the stream runs on from one to the next; rows that they share are packed once. Of two of them
//! something may be made, and the next product may be with what is made ([`super::pair`]).

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::ahead::Feeds;
use super::block::{Begin, Block, Packed};
use super::flight::{Flight, Give, PlaceOfC};
use super::mixture::FewRows;
use super::on_cpu::CpuRoom;
use super::pair::Between;
use super::prepare::{grow, Known, Prepared, LOTS};
use super::product::{blocks, Activations, Product, GROUP};
use super::route::ROWS_MAX as FEW;
use super::scratch::SLOTS;
use super::together::Aim;
use super::{Engine, Error, NpuWeight};
use crate::observe::Lane;
use crate::plan::{Batch, Schedule};
use crate::pool::Divided;

/// What the stream needs beside the NPU's memories; kept from one to the next.
pub struct Room {
    pub(super) prepared: [Prepared; LOTS as usize],
    pub(super) cpu: CpuRoom,
    pub(super) packed: Packed,
    pub(super) few: FewRows,
    /// Sums of the first segments of a product that are kept apart.
    pub(super) sums: Vec<f32>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            prepared: Prepared::lots(),
            cpu: CpuRoom::default(),
            packed: Packed::default(),
            few: FewRows::default(),
            sums: Vec::new(),
        }
    }
}

/// Products on their way.
pub(super) struct Stream<'s, 'p> {
    pub(super) products: &'s mut [Option<Product<'p>>],
    pub(super) between: Option<&'s Between<'s>>,
    /// All that is made between two products is made.
    pub(super) made: bool,
    /// The product whose sums of segments are kept apart, see [`Self::keep_apart`].
    pub(super) apart: Option<usize>,
    /// The product whose rows are packed as they are made, and those of them that were begun last, by their slot.
    pub(super) feeds: Option<Feeds>,
    pub(super) ahead: [Option<Block>; SLOTS],
    pub(super) under_way: Option<UnderWay>,
    pub(super) asked: Asked,
    pub(super) room: &'s mut Room,
}

/// What the NPU was given of a stream.
#[derive(Default)]
pub(super) struct Asked {
    /// What it takes by the formula, ns.
    ns: f64,
    /// The most rows of a product.
    rows: usize,
}

impl Asked {
    /// Notes what takes so many ns, of so many rows.
    pub(super) fn add(&mut self, ns: f64, rows: usize) {
        self.ns += ns;
        self.rows = self.rows.max(rows);
    }
}

/// What the NPU was given last: a batch of a product.
pub(super) struct UnderWay {
    pub(super) flight: Flight,
    pub(super) with: With,
}

/// What else came with it.
// In a box it would be an allocation for each batch.
#[allow(clippy::large_enum_variant)]
pub(super) enum With {
    /// The same batch of the other product of a pair.
    Alike(Flight),
    /// Nothing; it is of the second of a pair, and the first one's results are in its output already.
    After,
    /// So many of the products that follow, in the same runs.
    Others(usize),
}

impl Stream<'_, '_> {
    /// The slot for the results of the next batch: that of the batch under way is still to be read.
    pub(super) fn next_slot(&self) -> usize {
        self.under_way.as_ref().map_or(0, |under_way| (under_way.flight.c.slot + 1) % SLOTS)
    }

    /// Has so many sums of the first segments of a product kept apart, so that its results, which may lie over the rows of two
    /// others, are written when all else is done.
    pub(super) fn keep_apart(&mut self, product: usize, sums: usize) {
        self.apart = Some(product);
        grow(&mut self.room.sums, sums);
    }

    /// The columns of a product's weight, those of padding counted.
    pub(super) fn columns(&self, product: usize) -> usize {
        self.products[product].as_ref().map_or(0, |product| product.weight.plan.columns)
    }
}

impl Engine {
    /// Does the products of a group, none of which reads what another one writes; and what is made of two of them, with the
    /// product of that.
    ///
    /// A row with an infinity or a NaN gives a row of NaNs.
    ///
    /// # Errors
    /// The NPU's failure; all outputs are then unspecified, but what [`Between::made`] says.
    pub fn products(
        &mut self,
        products: &mut [Option<Product>],
        between: Option<&mut Between>,
    ) -> Result<(), Error> {
        let (result, made) = self.drive(products, between.as_deref(), Self::stream);
        if let Some(between) = between {
            (between.made, between.used) = made;
        }
        result
    }

    /// Has `flow` send products through the stream, and ends it; and whether all that is made between two products was made, and
    /// used.
    pub(super) fn drive<'p>(
        &mut self,
        products: &mut [Option<Product<'p>>],
        between: Option<&Between>,
        flow: impl FnOnce(&mut Self, &mut Stream<'_, 'p>) -> Result<(), Error>,
    ) -> (Result<(), Error>, (bool, bool)) {
        let started = Instant::now();
        self.stats.groups.fetch_add(1, Relaxed);
        if std::mem::take(&mut self.makes_room) {
            self.domains.release();
        }
        // Taken for the time of the products, so that it grows once and is never allocated again.
        let mut room = std::mem::take(&mut self.room);
        let mut stream = Stream {
            products,
            between,
            made: false,
            apart: None,
            feeds: None,
            ahead: [None; SLOTS],
            under_way: None,
            asked: Asked::default(),
            room: &mut room,
        };
        let mut result = flow(self, &mut stream).and_then(|()| self.settle(&mut stream));
        let asked = stream.asked;
        let made = match stream.feeds {
            // What is not in its place is of no use to anybody else.
            Some(feeds) if !feeds.keeps => (result.is_ok(), result.is_ok()),
            _ => (stream.made, false),
        };
        if result.is_err() {
            // Nothing may be under way in memories that others will use.
            let _ = self.cores.drain();
            room.prepared.iter_mut().for_each(Prepared::forget);
            room.packed.forget();
        } else {
            result = self.cores.drain();
        }
        self.room = room;
        let ns = started.elapsed().as_nanos() as u64;
        self.stats.products_ns.fetch_add(ns, Relaxed);
        let is_routed = |product: &Product| product.routed;
        if (1..=FEW).contains(&asked.rows) && result.is_ok() && !products.iter().flatten().any(is_routed) {
            self.route.npu_took(asked.ns, ns as f64);
        }
        if self.stats.trace.is_on() {
            if let Some(ended) = self.last_product.replace(Instant::now()) {
                self.stats.trace.gap(Lane::Host, ended, started);
            }
        }
        (result, made)
    }

    /// `out` (rows × N, rows one after the other) = `activations` (rows × K) · `weight` (K × N), as [`Self::products`].
    ///
    /// # Errors
    /// The NPU's failure; `out` is then unspecified.
    pub fn matmul(
        &mut self,
        weight: &NpuWeight,
        activations: Activations,
        out: &mut [f32],
    ) -> Result<(), Error> {
        let mut group = [const { None }; GROUP];
        group[0] = Some(Product {
            weight,
            activations,
            same: false,
            out: Divided::new(out),
            routed: false,
            recovered: false,
        });
        self.products(&mut group, None)
    }

    fn stream(&mut self, stream: &mut Stream) -> Result<(), Error> {
        let mut index = 0;
        while index < stream.products.len() {
            let between = stream.between.filter(|between| between.first == index);
            if between.is_some() && self.are_alike(&stream.products[index..]) {
                if let Some(joint) = self.woven(stream, index) {
                    self.weave(stream, index, joint)?;
                    index += 3;
                    continue;
                }
                self.pair(stream, index)?;
                index += 2;
            } else if stream.between.and_then(Between::fed) != Some(index) {
                index += self.some(stream, index)?;
            } else if stream.made || stream.is_making(index - 2) {
                self.fed(stream, index)?;
                index += 1;
            } else {
                // Its rows are still to be made, by who asked for it.
                stream.products[index] = None;
                index += 1;
            }
        }
        Ok(())
    }

    /// Does the product at `index`, and with it those after it that are run together with it; how many.
    fn some(&mut self, stream: &mut Stream, index: usize) -> Result<usize, Error> {
        let end = stream.between.map_or(stream.products.len(), |between| between.first.max(index + 1));
        let products = &stream.products[index..end];
        let rows = products.first().and_then(Option::as_ref).map_or(0, |product| product.activations.rows);
        let (count, _) = self.together(products, rows, Aim::Best);
        if count > 1 {
            self.run_together(stream, index, count)?;
        } else {
            self.one(stream, index)?;
        }
        Ok(count)
    }

    /// Does one product; its last batch is under way when this returns.
    fn one(&mut self, stream: &mut Stream, index: usize) -> Result<(), Error> {
        let Some(Product { weight, activations, same, .. }) = &stream.products[index] else { return Ok(()) };
        let (weight, activations, same) = (*weight, *activations, *same);
        if self.is_for_cpu(weight, activations.rows) {
            // What is under way goes on meanwhile.
            let Some(Product { out, routed, .. }) = &mut stream.products[index] else { return Ok(()) };
            let Room { prepared, cpu, .. } = &mut *stream.room;
            self.multiply_on_cpu(weight, &activations, same, &mut prepared[0], cpu, out)?;
            *routed = true;
            return Ok(());
        }
        self.count_bytes(weight, activations.rows);
        for (first, part) in blocks(activations) {
            let known = Known::same(activations.is_same(same, first));
            let schedule = self.schedule(weight, part.rows);
            self.one_block(stream, index, (first, &part), known, schedule)?;
        }
        Ok(())
    }

    /// Does some rows of a product, from `first` on.
    pub(super) fn one_block(
        &mut self,
        stream: &mut Stream,
        index: usize,
        (first, part): (usize, &Activations),
        known: Known,
        schedule: Schedule,
    ) -> Result<(), Error> {
        let Some(Product { weight, .. }) = &stream.products[index] else { return Ok(()) };
        let weight = *weight;
        stream.asked.add(schedule.ns, part.rows);
        let block = match stream.begun_ahead(index, first)? {
            Some(block) => block,
            None => self.begin(weight, part, Begin::shared(first, known, schedule), stream.room)?,
        };
        for batch in block.schedule.batches(&weight.plan, part.rows) {
            self.advance(stream, index, part, block, batch)?;
        }
        Ok(())
    }

    /// Gives a batch to the NPU, then takes the results of the one before.
    pub(super) fn advance(
        &mut self,
        stream: &mut Stream,
        index: usize,
        part: &Activations,
        block: Block,
        batch: Batch,
    ) -> Result<(), Error> {
        let Some(Product { weight, .. }) = &stream.products[index] else { return Ok(()) };
        let weight = *weight;
        self.advance_with(stream, (weight, part), (index, block, batch), With::Others(0))
    }

    /// Gives a batch of a product to the NPU, and notes what comes with it, then takes the results of the one before.
    pub(super) fn advance_with(
        &mut self,
        stream: &mut Stream,
        rows: (&NpuWeight, &Activations),
        (product, block, batch): (usize, Block, Batch),
        with: With,
    ) -> Result<(), Error> {
        let place = PlaceOfC::whole(stream.next_slot());
        let give = Give { product, block, batch, place, together: None };
        let flight = self.give(rows, give, stream.room)?;
        self.follow(stream, UnderWay { flight, with })
    }

    /// Takes the results of what was under way before `next`.
    pub(super) fn follow(&mut self, stream: &mut Stream, next: UnderWay) -> Result<(), Error> {
        match stream.under_way.replace(next) {
            Some(landed) => self.land(stream, landed),
            None => Ok(()),
        }
    }

    /// Takes the results of what is under way; nothing is then.
    pub(super) fn settle(&mut self, stream: &mut Stream) -> Result<(), Error> {
        match stream.under_way.take() {
            // Nobody else needs the CPU meanwhile.
            Some(UnderWay { flight, with: With::Others(0) }) => self.land_by_steps(stream, &flight),
            Some(last) => self.land(stream, last),
            None => Ok(()),
        }
    }

    /// Counts what a product reads and writes.
    pub(super) fn count_bytes(&self, weight: &NpuWeight, rows: usize) {
        self.stats.activation_bytes.fetch_add((rows * weight.k() * 4) as u64, Relaxed);
        self.stats.result_bytes.fetch_add((rows * weight.plan.n * 4) as u64, Relaxed);
    }
}
