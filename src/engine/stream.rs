//! Products as one stream of batches: while the NPU runs a batch, the CPU packs the next one's rows and scales the
//! results of the one before.
//!
//! ```text
//! CPU   pack 0 | pack 1        | scale 0 | pack 2 | scale 1 | …
//! NPU          | run 0 ………………| run 1 ………………| run 2 …
//! ```
//!
//! Two batches are under way at most: rows and results have two slots each. Products of one group are independent of
//! each other, so that the stream runs on from one to the next; rows that they share are packed once.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use rknn_sys::MatmulSpec;

use super::core::{Job, Ticket};
use super::on_cpu::CpuRoom;
use super::pack::{Filling, Target};
use super::pair::Between;
use super::prepare::{Prepared, Wish};
use super::product::{blocks, Activations, Product, GROUP};
use super::scratch::{Piece, SLOTS};
use super::{Engine, Error, NpuWeight};
use crate::observe::{Lane, Stage};
use crate::plan::{Batch, CoreRun, Cut, Schedule, Step, ROWS_MAX};
use crate::pool::Divided;

/// Pieces of A begin at multiples of this.
const PIECE_ALIGN: usize = 4096;
/// Up to as many rows the CPU has next to nothing to do, so that the caller itself drives a core.
const FEW_ROWS: usize = 16;

/// How far a piece of A is.
#[derive(Clone, Copy, PartialEq)]
enum State {
    Empty,
    Packed,
    /// The NPU sees it.
    Synced,
}

/// What is in a slot of activations.
#[derive(Default)]
pub(super) struct Slot {
    key: Option<Key>,
    pieces: Vec<State>,
    /// A scale a row and segment: the rows of a segment together.
    pub(super) scales: Vec<f32>,
}

/// Activations packed in some way.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Key {
    generation: u64,
    domain: usize,
    pipeline: crate::policy::Pipeline,
    segments: (usize, usize),
    rows: usize,
    cut: Cut,
    tile: usize,
    picks: Option<(u64, usize)>,
}

/// What the stream needs beside the NPU's memories; kept from one to the next.
#[derive(Default)]
pub struct Room {
    pub(super) prepared: Prepared,
    pub(super) cpu: CpuRoom,
    pub(super) slots: [Slot; SLOTS],
    targets: Vec<Target>,
    /// The slot of activations used last.
    last: usize,
}

/// Rows that are prepared together: at most [`ROWS_MAX`], from `first` on.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) first: usize,
    pub(super) rows: usize,
    pub(super) schedule: Schedule,
    /// The slot of activations, and bytes from one piece to the next.
    pub(super) slot: usize,
    stride: usize,
}

/// A batch that the NPU was given.
pub(super) struct Flight {
    pub(super) product: usize,
    pub(super) block: Block,
    pub(super) batch: Batch,
    pub(super) c: PlaceOfC,
    pub(super) ticket: Ticket,
}

/// Where the runs of a batch leave their results: each core's in a slot, one after the other.
#[derive(Clone, Copy)]
pub(super) struct PlaceOfC {
    slot: usize,
    /// Batches of as many products share the slot, of which this is the `share`-th.
    shares: usize,
    share: usize,
    stride: usize,
}

impl PlaceOfC {
    /// All of a slot.
    fn whole(slot: usize) -> Self {
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

/// The slot for the results of the next batch: that of the batch under way is still to be read.
pub(super) fn next_slot(under_way: Option<&Flight>) -> usize {
    under_way.map_or(0, |flight| (flight.c.slot + 1) % SLOTS)
}

impl Engine {
    /// Does the products of a group, none of which reads what another one writes; and what is made of two of them, if
    /// they are such that it can be made part by part.
    ///
    /// A row with an infinity or a NaN gives a row of NaNs.
    ///
    /// # Errors
    /// The NPU's failure; all outputs are then unspecified.
    pub fn products(
        &mut self,
        products: &mut [Option<Product>],
        between: Option<&mut Between>,
    ) -> Result<(), Error> {
        let started = Instant::now();
        // Taken for the time of the products, so that it grows once and is never allocated again.
        let mut room = std::mem::take(&mut self.room);
        let mut result = self.stream(products, between, &mut room);
        if result.is_err() {
            // Nothing may be under way in memories that others will use.
            let _ = self.cores.drain();
            room.prepared.forget();
            room.slots.iter_mut().for_each(|slot| slot.key = None);
        } else {
            result = self.cores.drain();
        }
        self.room = room;
        self.stats.products_ns.fetch_add(started.elapsed().as_nanos() as u64, Relaxed);
        if self.stats.trace.is_on() {
            if let Some(ended) = self.last_product.replace(Instant::now()) {
                self.stats.trace.gap(Lane::Host, ended, started);
            }
        }
        result
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

    fn stream(
        &mut self,
        products: &mut [Option<Product>],
        mut between: Option<&mut Between>,
        room: &mut Room,
    ) -> Result<(), Error> {
        let mut flight: Option<Flight> = None;
        let mut index = 0;
        while index < products.len() {
            let between = between.as_mut().filter(|between| between.first == index);
            if let Some(between) = between.filter(|_| self.are_alike(&products[index..])) {
                self.pair(products, between, &mut flight, room)?;
                between.made = true;
                index += 2;
            } else {
                self.one(products, index, &mut flight, room)?;
                index += 1;
            }
        }
        match flight {
            Some(last) => self.land(products, last, room),
            None => Ok(()),
        }
    }

    /// Does one product; its last batch is under way when this returns.
    fn one(
        &mut self,
        products: &mut [Option<Product>],
        index: usize,
        flight: &mut Option<Flight>,
        room: &mut Room,
    ) -> Result<(), Error> {
        let Some(Product { weight, activations, same, .. }) = &products[index] else { return Ok(()) };
        let (weight, activations, same) = (*weight, *activations, *same);
        if self.is_for_cpu(weight, activations.rows) {
            // What is under way goes on meanwhile.
            let Some(Product { out, routed, .. }) = &mut products[index] else { return Ok(()) };
            let Room { prepared, cpu, .. } = &mut *room;
            self.multiply_on_cpu(weight, &activations, same, prepared, cpu, out)?;
            *routed = true;
            return Ok(());
        }
        self.count_bytes(weight, activations.rows);
        for (first, part) in blocks(activations) {
            // Rows beyond the first block replace it, unless all are picked from the same ones.
            let same = match activations.picks {
                Some(_) => same || first > 0,
                None => same && activations.rows <= ROWS_MAX,
            };
            let schedule = self.schedule(weight, part.rows);
            let block = self.begin(weight, first, &part, same, schedule, room)?;
            for batch in block.schedule.batches(&weight.plan, part.rows) {
                self.advance(products, index, &part, block, batch, flight, room)?;
            }
        }
        Ok(())
    }

    /// Gives a batch to the NPU, then takes the results of the one before.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn advance(
        &mut self,
        products: &[Option<Product>],
        index: usize,
        part: &Activations,
        block: Block,
        batch: Batch,
        flight: &mut Option<Flight>,
        room: &mut Room,
    ) -> Result<(), Error> {
        let Some(Product { weight, .. }) = &products[index] else { return Ok(()) };
        self.pack_batch(weight, part, &block, &batch, room)?;
        let place = PlaceOfC::whole(next_slot(flight.as_ref()));
        let next = self.give(weight, index, block, batch, place)?;
        match flight.replace(next) {
            Some(landed) => self.land(products, landed, room),
            None => Ok(()),
        }
    }

    /// Counts what a product reads and writes.
    pub(super) fn count_bytes(&self, weight: &NpuWeight, rows: usize) {
        self.stats.activation_bytes.fetch_add((rows * weight.k() * 4) as u64, Relaxed);
        self.stats.result_bytes.fetch_add((rows * weight.plan.n * 4) as u64, Relaxed);
    }

    /// Finds the slot that has, or is to get, a block's activations as the weight and its schedule want them.
    pub(super) fn begin(
        &mut self,
        weight: &NpuWeight,
        first: usize,
        part: &Activations,
        same: bool,
        schedule: Schedule,
        room: &mut Room,
    ) -> Result<Block, Error> {
        let plan = &weight.plan;
        let stats = self.stats.clone();
        let wish = Wish {
            rotation: weight.rotation.as_ref(),
            shared: &weight.shared,
            same,
            again: schedule.cut == Cut::Columns(1) && schedule.batch < plan.segments.len(),
        };
        let generation = room.prepared.take_up(&self.pool, &wish, part, &stats);
        let key = Key {
            generation,
            domain: weight.share.domain,
            pipeline: weight.pipeline,
            segments: (plan.longest(), plan.segments.len()),
            rows: part.rows,
            cut: schedule.cut,
            tile: schedule.tile,
            picks: part.picks.map(|picks| picks.key()),
        };
        let means = self.means(weight.pipeline);
        let largest = |step: &Step| schedule.runs(plan, means, step).map(|run| run.m).max().unwrap_or(0);
        // The first step of a tile is as large as any.
        let m = schedule.steps(plan, part.rows).next().map_or(0, |step| largest(&step));
        let stride = plan.dtype.a().bytes(m * plan.longest()).next_multiple_of(PIECE_ALIGN);
        let slot = match room.slots.iter().position(|slot| slot.key == Some(key)) {
            Some(slot) => slot,
            None => {
                // The other one may still be read by the step under way.
                let slot = (room.last + 1) % SLOTS;
                let pieces = schedule.steps(plan, part.rows).count() * self.pieces_a_step(&schedule);
                let entry = &mut room.slots[slot];
                entry.key = None;
                self.domains.get_mut(weight.share.domain).scratch.a.reserve(slot, pieces, stride)?;
                entry.pieces.clear();
                entry.pieces.resize(pieces, State::Empty);
                entry.scales.resize(plan.segments.len() * part.rows, 0.0);
                entry.key = Some(key);
                slot
            }
        };
        room.last = slot;
        Ok(Block { first, rows: part.rows, schedule, slot, stride })
    }

    /// Pieces of A that a step has: one, or one a core.
    fn pieces_a_step(&self, schedule: &Schedule) -> usize {
        if schedule.cut == Cut::Rows {
            self.cores.count()
        } else {
            1
        }
    }

    fn piece(&self, weight: &NpuWeight, block: &Block, step: &Step, run: &CoreRun) -> Piece {
        let own = if block.schedule.cut == Cut::Rows { run.core } else { 0 };
        Piece {
            slot: block.slot,
            index: step.index * self.pieces_a_step(&block.schedule) + own,
            stride: block.stride,
            bytes: weight.plan.dtype.a().bytes(run.m * weight.plan.longest()),
        }
    }

    /// Packs what a batch reads and is not packed yet.
    pub(super) fn pack_batch(
        &mut self,
        weight: &NpuWeight,
        part: &Activations,
        block: &Block,
        batch: &Batch,
        room: &mut Room,
    ) -> Result<(), Error> {
        let (plan, stats) = (&weight.plan, self.stats.clone());
        let means = self.means(weight.pipeline);
        let together = self.domains.get_mut(weight.share.domain).scratch.is_one_memory();
        room.targets.clear();
        for step in batch.steps() {
            for run in block.schedule.runs(plan, means, &step) {
                let piece = self.piece(weight, block, &step, &run);
                let state = &mut room.slots[block.slot].pieces[piece.index];
                if *state != State::Empty {
                    continue;
                }
                *state = State::Packed;
                let rows = step.rows.start + run.rows.start..step.rows.start + run.rows.end;
                let bytes = if together { piece.index * piece.stride } else { 0 };
                let bytes = bytes..bytes + piece.bytes;
                for segment in step.segments.clone() {
                    let (rows, bytes) = (rows.clone(), bytes.clone());
                    let first = (segment - step.segments.start) * rows.len();
                    room.targets.push(Target { segment, rows, bytes, m: run.m, first });
                }
                if !together {
                    self.fill(weight, part, block, &piece, room)?;
                    room.targets.clear();
                }
            }
        }
        if !room.targets.is_empty() {
            let piece = Piece { slot: block.slot, index: 0, stride: block.stride, bytes: 0 };
            self.fill(weight, part, block, &piece, room)?;
        }
        stats.stage(Stage::Sync, || {
            batch.steps().try_for_each(|step| {
                block.schedule.runs(plan, means, &step).try_for_each(|run| {
                    let piece = self.piece(weight, block, &step, &run);
                    let state = &mut room.slots[block.slot].pieces[piece.index];
                    if std::mem::replace(state, State::Synced) == State::Synced {
                        return Ok(());
                    }
                    self.domains.get_mut(weight.share.domain).scratch.a.sync_to_device(&piece)
                })
            })
        })
    }

    /// Packs rows into the room's targets, which are in the memory of `piece`.
    fn fill(
        &mut self,
        weight: &NpuWeight,
        part: &Activations,
        block: &Block,
        piece: &Piece,
        room: &mut Room,
    ) -> Result<(), Error> {
        let stats = self.stats.clone();
        let native_block = self.mode.native_ac.then_some(weight.plan.limits.a_block);
        let Room { targets, slots, prepared, .. } = room;
        let start = targets.iter().map(|target| target.rows.start).min().unwrap_or(0);
        let end = targets.iter().map(|target| target.rows.end).max().unwrap_or(0);
        let filling = Filling {
            pipeline: weight.pipeline,
            block: native_block,
            segments: &weight.plan.segments,
            rows: start..end,
            all_rows: part.rows,
            targets,
        };
        let (memory, _) = self.domains.get_mut(weight.share.domain).scratch.a.place(piece)?;
        let packed = stats.stage(Stage::Pack, || {
            let source = prepared.source(part, &filling.rows, &stats);
            filling.fill(&self.pool, &source, &mut slots[block.slot].scales, memory)
        });
        packed.ok_or_else(|| Error::Unsupported {
            chip: self.chip.title,
            what: format!("{} with A blocks of {native_block:?}", weight.pipeline.name()),
        })
    }

    /// Gives the runs of a batch to the cores.
    pub(super) fn give(
        &mut self,
        weight: &NpuWeight,
        product: usize,
        block: Block,
        batch: Batch,
        place: PlaceOfC,
    ) -> Result<Flight, Error> {
        let (plan, means) = (&weight.plan, self.means(weight.pipeline));
        let runs = |step: &Step| block.schedule.runs(plan, means, step);
        let (mut steps, mut bytes) = (0, 0);
        for step in batch.steps() {
            steps += 1;
            bytes = runs(&step).map(|run| run.c_bytes(plan)).fold(bytes, usize::max);
        }
        let c = PlaceOfC { stride: bytes.next_multiple_of(PIECE_ALIGN), ..place };
        let mut here = None;
        for step in batch.steps() {
            for run in runs(&step) {
                let a = self.piece(weight, &block, &step, &run);
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
                    c: results.bind(&c.piece(&batch, &step, run.c_bytes(plan)))?,
                    a: domain.scratch.a.bind(&a)?,
                    b: weight.binding(&run, step.segments.start)?,
                };
                if block.rows <= FEW_ROWS && steps == 1 && here.is_none() {
                    here = Some((run.core, job));
                } else {
                    self.cores.give(run.core, job)?;
                }
                self.stats.runs[weight.pipeline.index()].fetch_add(1, Relaxed);
            }
        }
        let ticket = self.cores.ticket();
        if let Some((core, job)) = here {
            let stats = self.stats.clone();
            stats.stage(Stage::Wait, || {
                let own = self.cores.run_here(core, &job);
                self.cores.wait(ticket).and(own)
            })?;
        }
        Ok(Flight { product, block, batch, c, ticket })
    }
}
