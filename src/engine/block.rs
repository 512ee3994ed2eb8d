//! Rows that are prepared together: the slot of activations that they are in, and its pieces.

use std::sync::atomic::Ordering::Relaxed;

use super::pack::{Filling, Target};
use super::prepare::{Known, Wish, LOT_BETWEEN};
use super::product::GROUP;
use super::scratch::{Piece, SLOTS, SLOTS_AHEAD};
use super::stream::Room;
use super::{Activations, Engine, Error, NpuWeight};
use crate::observe::Stage;
use crate::plan::{Batch, CoreRun, Cut, Schedule, Step, WeightPlan};

/// Pieces of A and of C begin at multiples of this.
pub(super) const PIECE_ALIGN: usize = 4096;

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
    pub(super) slots: [Slot; SLOTS_AHEAD.end],
    targets: Vec<Target>,
    /// Where rows go that are packed as they are made.
    pub(super) ahead: Vec<Target>,
    /// The slot used last of those that rows take in turns.
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
    /// The columns of all weights of a stacked run, by which it follows which segments' rows a core has.
    stacks: [usize; GROUP],
    picks: Option<(u64, usize)>,
}

/// How rows are to be prepared.
pub(super) struct Begin<'a> {
    /// The row of the product that the first of them is.
    first: usize,
    /// Which of the prepared rows they are.
    lot: usize,
    /// The slot that they are to have; one of those that rows take in turns without.
    slot: Option<usize>,
    known: Known,
    schedule: Schedule,
    /// The plan of the product's weight and of those that follow it, if it is run as one with them.
    together: Option<&'a WeightPlan>,
}

impl<'a> Begin<'a> {
    /// Rows from `first` on, which products may share.
    pub(super) fn shared(first: usize, known: Known, schedule: Schedule) -> Self {
        Self { first, lot: 0, slot: None, known, schedule, together: None }
    }

    /// The same of products that are run as one.
    pub(super) fn together(first: usize, known: Known, schedule: Schedule, plan: &'a WeightPlan) -> Self {
        Self { together: Some(plan), ..Self::shared(first, known, schedule) }
    }

    /// Rows from `first` on that come between those that other products share.
    pub(super) fn between(first: usize, slot: Option<usize>, schedule: Schedule) -> Self {
        Self { first, lot: LOT_BETWEEN, slot, known: Known::Others, schedule, together: None }
    }
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

impl Engine {
    /// Finds the slot that has, or is to get, a block's activations as the weight and its schedule want them.
    pub(super) fn begin(
        &mut self,
        weight: &NpuWeight,
        part: &Activations,
        begin: Begin,
        room: &mut Room,
    ) -> Result<Block, Error> {
        let Begin { first, lot, slot: own, known, schedule, together } = begin;
        let plan = together.unwrap_or(&weight.plan);
        let stats = self.stats.clone();
        let wish = Wish {
            rotation: weight.rotation.as_ref(),
            shared: &weight.shared,
            known,
            again: matches!(schedule.cut, Cut::Columns(1) | Cut::Segments(_))
                && schedule.batch * schedule.group() < plan.segments.len()
                && !weight.is_by_segments(),
        };
        let mut stacks = [0; GROUP];
        if matches!(schedule.cut, Cut::Columns(2..)) {
            stacks.iter_mut().zip(plan.stacks()).for_each(|(stack, columns)| *stack = *columns);
        }
        let generation = room.prepared[lot].take_up(&self.pool, &wish, part, &stats);
        let key = Key {
            generation,
            domain: weight.share.domain,
            pipeline: weight.pipeline,
            segments: (plan.longest(), plan.segments.len()),
            rows: part.rows,
            cut: schedule.cut,
            tile: schedule.tile,
            stacks,
            picks: part.picks.map(|picks| picks.key()),
        };
        let means = self.means(weight.pipeline);
        let largest = |step: &Step| schedule.runs(plan, means, step).map(|run| run.m).max().unwrap_or(0);
        // The first tile has as many rows as any.
        let m = schedule.steps(plan, part.rows).take(plan.segments.len()).map(|step| largest(&step)).max();
        let m = m.unwrap_or(0);
        let stride = plan.dtype.a().bytes(m * plan.longest()).next_multiple_of(PIECE_ALIGN);
        let slot = match room.packed.slots.iter().position(|slot| slot.key == Some(key)) {
            Some(slot) => slot,
            None => {
                // The other one may still be read by the step under way.
                let slot = own.unwrap_or((room.packed.last + 1) % SLOTS);
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
        if slot < SLOTS {
            room.packed.last = slot;
        }
        Ok(Block { first, rows: part.rows, lot, schedule, slot, stride })
    }

    /// Pieces of A that a step has: one, or one a core.
    fn pieces_a_step(&self, schedule: &Schedule) -> usize {
        if schedule.has_own_rows() {
            self.cores.count()
        } else {
            1
        }
    }

    pub(super) fn piece(&self, weight: &NpuWeight, block: &Block, step: &Step, run: &CoreRun) -> Piece {
        let own = if block.schedule.has_own_rows_in(step) { run.core } else { 0 };
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
        (weight, plan): (&NpuWeight, &WeightPlan),
        part: &Activations,
        block: &Block,
        batch: &Batch,
        room: &mut Room,
    ) -> Result<(), Error> {
        let stats = self.stats.clone();
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
                room.packed.targets.extend(targets((plan, &step), &run, &piece, together));
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

    /// Notes where all rows of a block go, which are packed as they are made; all pieces are in one memory.
    pub(super) fn aim(&self, weight: &NpuWeight, block: &Block, room: &mut Room) {
        let (plan, means) = (&weight.plan, self.means(weight.pipeline));
        room.packed.ahead.clear();
        for batch in block.schedule.batches(plan, block.rows) {
            for step in batch.steps() {
                for run in block.schedule.runs(plan, means, &step) {
                    let piece = self.piece(weight, block, &step, &run);
                    let state = &mut room.packed.slots[block.slot].pieces[piece.index];
                    // Parts of the columns have the same rows.
                    if std::mem::replace(state, State::Packed) == State::Empty {
                        room.packed.ahead.extend(targets((plan, &step), &run, &piece, true));
                    }
                }
            }
        }
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
}

/// Where the rows of a run go, segment by segment; the piece is in a memory of all `together`, or in its own.
fn targets<'a>(
    (plan, step): (&'a WeightPlan, &'a Step),
    run: &'a CoreRun,
    piece: &'a Piece,
    together: bool,
) -> impl Iterator<Item = Target> + 'a {
    let rows = step.rows.start + run.rows.start..step.rows.start + run.rows.end;
    let start = if together { piece.index * piece.stride } else { 0 };
    let segments = plan.segments.len();
    (0..run.stacked.count).map(move |place| Target {
        segment: (run.stacked.first + place) % segments,
        rows: rows.clone(),
        bytes: start..start + piece.bytes,
        m: run.m,
        first: place * rows.len(),
    })
}
