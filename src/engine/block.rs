//! Rows that are prepared together: the slot of activations that they are in, its pieces, and the batches that are given to the
//! cores.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use rknn_sys::MatmulSpec;

use super::core::{Job, Ticket};
use super::pack::{Filling, Target};
use super::prepare::{Known, Wish};
use super::scratch::{Piece, SLOTS};
use super::stream::Room;
use super::{Activations, Engine, Error, NpuWeight};
use crate::observe::Stage;
use crate::plan::{Batch, CoreRun, Cut, Schedule, Step, WeightPlan};

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

/// The slots of activations.
#[derive(Default)]
pub(super) struct Packed {
    pub(super) slots: [Slot; SLOTS],
    targets: Vec<Target>,
    /// The slot used last.
    last: usize,
}

impl Packed {
    /// Forgets what is in the slots.
    pub(super) fn forget(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.key = None);
    }
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

/// Rows that are prepared together: at most [`ROWS_MAX`], from `first` on.
#[derive(Clone, Copy)]
pub(super) struct Block {
    pub(super) first: usize,
    pub(super) rows: usize,
    /// Which of the prepared rows they are.
    lot: usize,
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
    pub(super) portion: Option<Portion>,
}

/// The columns of a product whose weight is run together with others.
#[derive(Clone)]
pub(super) struct Portion {
    /// The plan of all of them.
    pub(super) plan: Arc<WeightPlan>,
    /// The first of its columns of a segment.
    pub(super) first: usize,
}

impl Flight {
    /// What the runs are of: the product's weight, or that and others.
    pub(super) fn plan<'a>(&'a self, weight: &'a NpuWeight) -> &'a WeightPlan {
        self.portion.as_ref().map_or(&weight.plan, |portion| &portion.plan)
    }

    /// The same runs for the next product, after the `columns` of this one.
    pub(super) fn of_next(&self, columns: usize) -> Self {
        let next = |portion: &Portion| Portion { plan: portion.plan.clone(), first: portion.first + columns };
        let portion = self.portion.as_ref().map(next);
        Self { product: self.product + 1, batch: self.batch.clone(), portion, ..*self }
    }

    /// The first of the product's columns of a segment.
    fn first(&self) -> usize {
        self.portion.as_ref().map_or(0, |portion| portion.first)
    }

    /// The columns of the product's stack among those of the runs.
    pub(super) fn stack(&self, weight: &NpuWeight) -> Range<usize> {
        let segments = weight.plan.segments.len();
        let first = segments * self.first();
        first..first + segments * weight.plan.columns
    }

    /// The product's columns that the batch has, none of padding.
    pub(super) fn columns(&self, weight: &NpuWeight) -> Range<usize> {
        let first = self.first();
        let at = |column: usize| column.saturating_sub(first).min(weight.plan.n);
        at(self.batch.columns.start)..at(self.batch.columns.end)
    }
}

/// Where the runs of a batch leave their results: each core's in a slot, one after the other.
#[derive(Clone, Copy)]
pub(super) struct PlaceOfC {
    pub(super) slot: usize,
    /// Batches of as many products share the slot, of which this is the `share`-th.
    shares: usize,
    share: usize,
    stride: usize,
}

impl PlaceOfC {
    /// All of a slot.
    pub(super) fn whole(slot: usize) -> Self {
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

impl Engine {
    /// Finds the slot that has, or is to get, a block's activations as the weight and its schedule want them.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn begin(
        &mut self,
        weight: &NpuWeight,
        first: usize,
        part: &Activations,
        lot: usize,
        known: Known,
        schedule: Schedule,
        room: &mut Room,
    ) -> Result<Block, Error> {
        let plan = &weight.plan;
        let stats = self.stats.clone();
        let wish = Wish {
            rotation: weight.rotation.as_ref(),
            shared: &weight.shared,
            known,
            again: schedule.cut == Cut::Columns(1)
                && schedule.batch < plan.segments.len()
                && !weight.is_by_segments(),
        };
        let generation = room.prepared[lot].take_up(&self.pool, &wish, part, &stats);
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
        let slot = match room.packed.slots.iter().position(|slot| slot.key == Some(key)) {
            Some(slot) => slot,
            None => {
                // The other one may still be read by the step under way.
                let slot = (room.packed.last + 1) % SLOTS;
                let pieces = schedule.steps(plan, part.rows).count() * self.pieces_a_step(&schedule);
                let entry = &mut room.packed.slots[slot];
                entry.key = None;
                self.domains.get_mut(weight.share.domain).scratch.a.reserve(slot, pieces, stride)?;
                entry.pieces.clear();
                entry.pieces.resize(pieces, State::Empty);
                entry.scales.resize(plan.segments.len() * part.rows, 0.0);
                entry.key = Some(key);
                slot
            }
        };
        room.packed.last = slot;
        Ok(Block { first, rows: part.rows, lot, schedule, slot, stride })
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
        room.packed.targets.clear();
        for step in batch.steps() {
            for run in block.schedule.runs(plan, means, &step) {
                let piece = self.piece(weight, block, &step, &run);
                let state = &mut room.packed.slots[block.slot].pieces[piece.index];
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
                    room.packed.targets.push(Target { segment, rows, bytes, m: run.m, first });
                }
                if !together {
                    self.fill(weight, part, block, &piece, room)?;
                    room.packed.targets.clear();
                }
            }
        }
        if !room.packed.targets.is_empty() {
            let piece = Piece { slot: block.slot, index: 0, stride: block.stride, bytes: 0 };
            self.fill(weight, part, block, &piece, room)?;
        }
        stats.stage(Stage::Sync, || {
            batch.steps().try_for_each(|step| {
                block.schedule.runs(plan, means, &step).try_for_each(|run| {
                    let piece = self.piece(weight, block, &step, &run);
                    let state = &mut room.packed.slots[block.slot].pieces[piece.index];
                    if std::mem::replace(state, State::Synced) == State::Synced {
                        return Ok(());
                    }
                    stats.a_bytes.fetch_add(piece.bytes as u64, Relaxed);
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
        let Room { packed: Packed { targets, slots, .. }, prepared, .. } = room;
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
            let source = prepared[block.lot].source(part, &filling.rows, filling.columns(), &stats);
            filling.fill(&self.pool, &source, &mut slots[block.slot].scales, memory)
        });
        packed.ok_or_else(|| Error::Unsupported {
            chip: self.chip.title,
            what: format!("{} with A blocks of {native_block:?}", weight.pipeline.name()),
        })
    }

    /// Gives the runs of a batch to the cores: of the product's weight, or of that and others, which follow it.
    pub(super) fn give(
        &mut self,
        weight: &NpuWeight,
        product: usize,
        block: Block,
        batch: Batch,
        place: PlaceOfC,
        together: Option<&Arc<WeightPlan>>,
    ) -> Result<Flight, Error> {
        let means = self.means(weight.pipeline);
        let plan: &WeightPlan = together.map_or(&weight.plan, |together| together);
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
            stats.stage(Stage::Wait, || self.cores.run_here(core, &job))?;
        }
        let portion = together.map(|plan| Portion { plan: plan.clone(), first: 0 });
        Ok(Flight { product, block, batch, c, ticket, portion })
    }
}
