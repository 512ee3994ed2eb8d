//! The rows of a product that is with what is made of two others, down's: packed segment by segment as they are made
//! ([`super::made`]), before the product has its turn. It finds them in A, in a slot of their own.

use std::sync::atomic::Ordering::Relaxed;

use super::block::{Begin, Block};
use super::made::Feed;
use super::pack::{kernel, Filling, Target};
use super::route::ROWS_MAX as FEW;
use super::scratch::{Lent, SLOTS_AHEAD};
use super::stream::Stream;
use super::{Activations, Engine, Error, NpuWeight, Product};
use crate::plan::{Batch, Schedule, ROWS_MAX};
use crate::pool::Divided;

/// Rows that are packed as they are made were not begun.
pub(super) const NOT_BEGUN: Error = Error::Lost { what: "block of rows that are packed as they are made" };

/// A product whose rows are packed as they are made.
#[derive(Clone, Copy)]
pub(super) struct Feeds {
    /// The product.
    product: usize,
    /// How it is run; as a chain's of its rows without.
    schedule: Option<Schedule>,
    /// What is made goes to its place in the host's memory, too.
    pub(super) keeps: bool,
}

/// What is written where rows are packed as they are made, while all else is read.
pub(super) struct Ahead<'p> {
    weight: &'p NpuWeight,
    block: Block,
    keeps: bool,
    memory: Lent,
    scales: Vec<f32>,
    targets: Vec<Target>,
}

impl Ahead<'_> {
    /// Where rows of native A go, in blocks of as many elements as the weight's.
    ///
    /// # Errors
    /// No memory, or no kernel for it: neither, where the block was begun.
    pub(super) fn feed(&mut self) -> Result<Feed<'_>, Error> {
        let (plan, pipeline) = (&self.weight.plan, self.weight.pipeline);
        let block = Some(plan.limits.a_block);
        Ok(Feed {
            filling: Filling {
                pipeline,
                block,
                segments: &plan.segments,
                rows: 0..self.block.rows,
                all_rows: self.block.rows,
                targets: &self.targets,
            },
            kernel: kernel(pipeline, block)
                .ok_or(Error::Lost { what: "kernel for rows that are packed as they are made" })?,
            rotation: self.weight.rotation.as_deref(),
            scales: Divided::new(&mut self.scales),
            memory: Divided::new(self.memory.memory()?),
            keeps: self.keeps,
        })
    }
}

impl Stream<'_, '_> {
    /// Of the product that is with what is made of two, the rows from `first` on, if they are packed as they are made.
    ///
    /// # Errors
    /// They were to be, are nowhere else, and are not.
    pub(super) fn begun_ahead(&self, product: usize, first: usize) -> Result<Option<Block>, Error> {
        let Some(feeds) = self.feeds.filter(|feeds| feeds.product == product) else { return Ok(None) };
        let block = self.ahead_from(first);
        if block.is_none() && !feeds.keeps {
            return Err(NOT_BEGUN);
        }
        Ok(block)
    }

    /// The rows from `first` on that were begun ahead, if they were.
    fn ahead_from(&self, first: usize) -> Option<Block> {
        self.ahead.into_iter().flatten().find(|block| block.first == first)
    }

    /// A slot for more of them: not that of the batch under way, and one that no others wait in, if there is one.
    fn free_ahead(&self) -> usize {
        let busy = self.under_way.as_ref().map(|under_way| under_way.flight.block.slot);
        let free = SLOTS_AHEAD.zip(&self.ahead).filter(|(slot, _)| Some(*slot) != busy);
        let found = free.min_by_key(|(_, block)| block.is_some());
        found.map_or(SLOTS_AHEAD.start, |(slot, _)| slot)
    }
}

impl Engine {
    /// Whether so many rows of a weight can be packed as they are made.
    pub(super) fn packs_as_made(&self, weight: &NpuWeight, rows: usize) -> bool {
        (FEW + 1..=ROWS_MAX).contains(&rows)
            && weight.is_by_segments()
            // Where it is, layouts are native.
            && self.domains.get(weight.share.domain).scratch.is_one_memory()
            && kernel(weight.pipeline, Some(weight.plan.limits.a_block)).is_some()
    }

    /// Has the rows of a product, all of which are made of two others', packed as they are made, if that can be done. `schedule`
    /// is how it is run, as a chain's tile of its rows without.
    pub(super) fn feed(&mut self, stream: &mut Stream, product: usize, schedule: Option<Schedule>) {
        stream.feeds = None;
        let (Some(between), Some(Product { weight, activations, .. })) =
            (stream.between, &stream.products[product])
        else {
            return;
        };
        let (weight, rows): (&NpuWeight, _) = (weight, activations.rows);
        if activations.picks.is_some() || !self.packs_as_made(weight, rows) || self.is_for_cpu(weight, rows) {
            return;
        }
        // If anything fails the two are done anew, by the CPU: a chain's rows stay for that; of one block the results are written
        // when all else is done.
        let is_last = |schedule: Schedule| schedule.parts == 1 && schedule.tile >= rows;
        let keeps = between.kept || schedule.is_some_and(|schedule| !is_last(schedule));
        if !keeps && schedule.is_some() {
            stream.keep_apart(product, rows * weight.plan.n);
        }
        stream.feeds = Some(Feeds { product, schedule, keeps });
    }

    /// Begins those rows of a product, `rows` from `first` on, that are to be packed as they are made, unless that is done.
    ///
    /// # Errors
    /// No memory for them.
    pub(super) fn begin_ahead(
        &mut self,
        stream: &mut Stream,
        product: usize,
        (first, rows): (usize, usize),
    ) -> Result<(), Error> {
        let Some(Feeds { schedule, .. }) = stream.feeds.filter(|feeds| feeds.product == product) else {
            return Ok(());
        };
        if stream.ahead_from(first).is_some() {
            return Ok(());
        }
        let Some(Product { weight, activations, .. }) = &stream.products[product] else { return Ok(()) };
        let (weight, activations) = (*weight, Activations { data: &[], rows, ..*activations });
        let schedule = match schedule.or_else(|| self.chained(weight, rows)) {
            Some(schedule) => schedule,
            None => return Ok(()),
        };
        let slot = stream.free_ahead();
        let begin = Begin::between(first, Some(slot), schedule);
        let block = self.begin(weight, &activations, begin, stream.room)?;
        self.aim(weight, &block, stream.room);
        stream.ahead[slot - SLOTS_AHEAD.start] = Some(block);
        Ok(())
    }

    /// Hands out what is written where a product's rows from `first` on are packed as they are made.
    pub(super) fn lend<'p>(
        &mut self,
        stream: &mut Stream<'_, 'p>,
        product: usize,
        first: usize,
    ) -> Option<Ahead<'p>> {
        let feeds = stream.feeds.filter(|feeds| feeds.product == product)?;
        let block = stream.ahead_from(first)?;
        let weight = stream.products[product].as_ref()?.weight;
        let packed = &mut stream.room.packed;
        Some(Ahead {
            weight,
            block,
            keeps: feeds.keeps,
            memory: self.domains.get_mut(weight.share.domain).scratch.a.lend(block.slot),
            scales: std::mem::take(&mut packed.slots[block.slot].scales),
            targets: std::mem::take(&mut packed.ahead),
        })
    }

    /// Takes back what [`Self::lend`] gave, for the rows of `batch`.
    pub(super) fn take_back(&mut self, stream: &mut Stream, ahead: Ahead, batch: &Batch) {
        let Ahead { weight, block, memory, scales, targets, .. } = ahead;
        self.domains.get_mut(weight.share.domain).scratch.a.take_back(block.slot, memory);
        let packed = &mut stream.room.packed;
        (packed.slots[block.slot].scales, packed.ahead) = (scales, targets);
        // A row comes with its first columns, and others.
        if batch.columns.start == 0 {
            let rows = batch.rows.len() as u64;
            self.stats.rows_as_made.fetch_add(rows, Relaxed);
            self.stats.rows_rotated.fetch_add(if weight.rotation.is_some() { rows } else { 0 }, Relaxed);
        }
    }
}
