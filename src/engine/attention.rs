//! Attention: the NPU multiplies queries by keys and weights by values, the CPU makes weights of scores in between.
//!
//! A task is a tile of rows that meets a piece of positions. Tasks are spread over the cores in turn, and each core has
//! several under way:
//!
//! ```text
//! CPU   pack 0 | pack 1 | weights 0 | pack 2 | weights 1 | add 0 | …
//! NPU          | scores 0 | scores 1 | results 0 | scores 2 | results 1 | …
//! ```
//!
//! Keys and values are packed once for all tiles of a piece, queries once for all pieces. The rows of the output are what
//! results are added to. Every size is bounded by the plan, whatever the lengths.

use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Instant;

use rknn_sys::{Context, Layout, MatmulSpec, MatmulType};

use super::core::{Cores, Job, Ticket};
use super::scratch::{Piece, Slots};
use super::{windows, Engine, Error};
use crate::chip::TypeLimits;
use crate::observe::{Stage, Stats};
use crate::plan::{AttentionPlan, AttentionShape, Stretch};
use crate::policy::Pipeline;
use crate::pool::{Divided, Pool};

mod asked;
mod costs;
mod rows;

pub use asked::{Attention, Cached, Mask, Queries};
use rows::{Adding, Positions, Weighing};

/// Places of tasks in the memories begin at multiples of this.
const PAGE: usize = 4096;
/// As many rows of a head of the cache meet its pieces before the next ones do: their queries stay packed meanwhile.
const BAND_ROWS: usize = 4096;

/// What the mask does to a tile and a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Masking {
    /// It hides all.
    Hides,
    /// It changes nothing.
    Nothing,
    /// It has to be looked at.
    Something,
}

/// A tile that meets a piece.
#[derive(Debug, Clone, Copy)]
struct Task {
    sequence: usize,
    kv_head: usize,
    tile: usize,
    piece: Stretch,
    /// Which of the packed pieces, and of the bands of packed queries, counted from the first.
    packed: usize,
    band: usize,
    masking: Masking,
    /// It is the first, and the last of its tile.
    first: bool,
    last: bool,
}

impl Task {
    /// Which of the packed tiles of queries, counted from the first; a band has `tiles`.
    fn packed_tile(&self, tiles: usize) -> usize {
        self.band * tiles + self.tile % tiles
    }
}

/// What attention needs beside contexts; kept from one node to the next.
#[derive(Default)]
pub struct AttentionRoom {
    /// What the NPU reads, and what it writes.
    memories: Option<[Slots; 2]>,
    tasks: Vec<Task>,
    /// Tickets of scores and of results, by the task's place in its ring.
    tickets: Vec<[Ticket; 2]>,
    rows: rows::Room,
}

impl AttentionRoom {
    /// Lets go of the memories.
    pub fn release(&mut self) {
        self.memories = None;
    }
}

/// Where things are in the two memories, in bytes: rings of equal places.
#[derive(Clone, Copy)]
struct Ring {
    start: usize,
    stride: usize,
    places: usize,
}

impl Ring {
    fn after(start: usize, bytes: usize, places: usize) -> Self {
        Self { start, stride: bytes.next_multiple_of(PAGE), places }
    }

    fn end(&self) -> usize {
        self.start + self.stride * self.places
    }

    /// A place. It is bound and synced as a whole, however much of it is used: there are then few windows, and whatever the
    /// lengths none is made once all places were used.
    fn piece(&self, index: usize) -> Piece {
        let at = self.start + index % self.places * self.stride;
        Piece { slot: 0, index: at / PAGE, stride: PAGE, bytes: self.stride }
    }
}

/// All rings of a node.
struct Rings {
    queries: Ring,
    keys: Ring,
    values: Ring,
    weights: Ring,
    scores: Ring,
    results: Ring,
}

impl Rings {
    /// `ahead` tasks have scores under way, and as many results: their places may not be used again before.
    fn new(plan: &AttentionPlan, tiles: usize, ahead: usize) -> Self {
        let half = 2;
        // Each piece and each band has a task at least.
        let queries = Ring::after(0, plan.rows * plan.head * half, (ahead + 2) * tiles);
        let keys = Ring::after(queries.end(), plan.longest() * plan.head * half, 2 * ahead + 2);
        let values = Ring::after(keys.end(), plan.longest() * plan.value * half, 2 * ahead + 2);
        let weights = Ring::after(values.end(), plan.rows * plan.longest() * half, ahead + 1);
        let scores = Ring::after(0, plan.rows * plan.longest() * 4, ahead + 1);
        let results = Ring::after(scores.end(), plan.rows * plan.value * 4, ahead + 1);
        Self { queries, keys, values, weights, scores, results }
    }
}

impl Engine {
    /// Whether attention can be done at all: native f16 through windows.
    pub fn can_attend(&self) -> bool {
        windows(&self.mode) && self.mode.pipeline(Pipeline::W16A16) == Some(Pipeline::W16A16)
    }

    /// The cut of attention of that shape, and the ns that the NPU is believed to take.
    pub fn attention_plan(&self, shape: &AttentionShape) -> Option<(AttentionPlan, f64)> {
        let limits = self.chip.limits(MatmulType::F16)?;
        Some(AttentionPlan::best(shape, &self.chip.timing, limits, self.cores.count()))
    }

    /// Does attention; false where an operand holds an infinity or a NaN, for which only the CPU's arithmetic is defined:
    /// the output is then unspecified.
    ///
    /// # Errors
    /// The NPU's failure; the output is then unspecified.
    pub fn attend(&mut self, attention: &mut Attention) -> Result<bool, Error> {
        let (Some(limits), true) = (self.chip.limits(MatmulType::F16), self.can_attend()) else {
            return Err(Error::Unsupported { chip: self.chip.title, what: "attention".to_owned() });
        };
        let (plan, _) =
            self.attention_plan(&attention.shape).ok_or(Error::Lost { what: "plan of this attention" })?;
        let started = Instant::now();
        let domain = self.domains.get_mut(0);
        let (id, keeper) = (domain.id, domain.keeper.clone());
        let mut room = std::mem::take(&mut self.attention);
        let (ahead, tiles) =
            (self.cores.count(), (BAND_ROWS / plan.rows).clamp(1, plan.tiles(&attention.shape)));
        let mut flow = Flow {
            cores: &mut self.cores,
            pool: &self.pool,
            stats: &self.stats,
            limits,
            plan,
            rings: Rings::new(&plan, tiles, ahead),
            ahead,
            tiles,
            domain: id,
            attention,
        };
        let result = flow.run(&keeper, &mut room);
        // Nothing may be under way in memories that others will use.
        let drained = self.cores.drain();
        self.attention = room;
        self.stats.products_ns.fetch_add(started.elapsed().as_nanos() as u64, Relaxed);
        result.and_then(|finite| drained.map(|()| finite))
    }
}

/// The `elements` halves of B at a place.
fn b_of<'a>(reads: &'a mut Slots, place: &Piece, elements: usize) -> Result<Divided<'a, u16>, Error> {
    let (memory, range) = reads.place(place)?;
    Ok(Divided::new(bytemuck::cast_slice_mut(&mut memory[range][..elements * 2])))
}

/// One node on its way.
struct Flow<'a, 'b> {
    cores: &'a mut Cores,
    pool: &'a Pool,
    stats: &'a Arc<Stats>,
    limits: &'a TypeLimits,
    plan: AttentionPlan,
    rings: Rings,
    /// Tasks whose scores, and as many whose results, are under way.
    ahead: usize,
    /// Tiles of a band.
    tiles: usize,
    domain: u8,
    attention: &'a mut Attention<'b>,
}

impl Flow<'_, '_> {
    fn run(&mut self, keeper: &Arc<Context>, room: &mut AttentionRoom) -> Result<bool, Error> {
        let AttentionRoom { memories, tasks, tickets, rows } = room;
        self.list(tasks);
        rows.reserve(&self.attention.shape, &self.plan, self.ahead, self.tiles);
        tickets.clear();
        tickets.resize(self.ahead + 1, <[Ticket; 2]>::default());
        let memories = memories.get_or_insert_with(|| [(); 2].map(|()| Slots::new(keeper, true, self.stats)));
        for (memory, end) in memories.iter_mut().zip([self.rings.weights.end(), self.rings.results.end()]) {
            memory.reserve(0, end / PAGE, PAGE)?;
        }
        let (ahead, count) = (self.ahead, tasks.len());
        let (mut packed, mut bands) = (0, 0);
        for step in 0..count + 2 * ahead {
            if let Some(task) = tasks.get(step) {
                if packed == task.packed {
                    packed += 1;
                    if !self.pack_piece(task, memories)? {
                        return Ok(false);
                    }
                }
                if bands == task.band {
                    bands += 1;
                    if !self.pack_queries(task, memories, rows)? {
                        return Ok(false);
                    }
                }
                self.give_scores(step, task, memories)?;
                tickets[step % (ahead + 1)][0] = self.cores.ticket();
            }
            if let Some(index) = step.checked_sub(ahead).filter(|index| *index < count) {
                let ticket = tickets[index % (ahead + 1)][0];
                self.stats.stage(Stage::Wait, || self.cores.wait(ticket))?;
                self.weigh(index, &tasks[index], memories, rows)?;
                self.give_results(index, &tasks[index], memories)?;
                tickets[index % (ahead + 1)][1] = self.cores.ticket();
            }
            if let Some(index) = step.checked_sub(2 * ahead) {
                let ticket = tickets[index % (ahead + 1)][1];
                self.stats.stage(Stage::Wait, || self.cores.wait(ticket))?;
                self.add(index, &tasks[index], memories, rows)?;
            }
        }
        Ok(true)
    }

    /// Lists the tasks; rows of tiles without any are zeros.
    fn list(&mut self, tasks: &mut Vec<Task>) {
        tasks.clear();
        let shape = self.attention.shape;
        let all = self.plan.tiles(&shape);
        for sequence in 0..shape.sequences {
            let begin = tasks.len();
            for start in (0..all).step_by(self.tiles) {
                self.list_band(sequence, start..all.min(start + self.tiles), tasks);
            }
            // What the mask hides it hides of every head: the others have the same tasks.
            let (Some(first), Some(last)) = (tasks.get(begin).copied(), tasks.last().copied()) else {
                continue;
            };
            let (pieces, bands) = (last.packed + 1 - first.packed, last.band + 1 - first.band);
            let end = tasks.len();
            for kv_head in 1..shape.kv_heads {
                for index in begin..end {
                    let task = tasks[index];
                    let (packed, band) = (task.packed + kv_head * pieces, task.band + kv_head * bands);
                    tasks.push(Task { kv_head, packed, band, ..task });
                }
            }
        }
    }

    /// Lists those of the first head of the cache.
    fn list_band(&mut self, sequence: usize, tiles: Range<usize>, tasks: &mut Vec<Task>) {
        let (shape, kv_head) = (self.attention.shape, 0);
        let begin = tasks.len();
        let (mut packed, band) = tasks.last().map_or((0, 0), |last| (last.packed + 1, last.band + 1));
        for piece in self.plan.pieces(shape.positions) {
            let before = tasks.len();
            for tile in tiles.clone() {
                let masking = self.masking(sequence, tile, &piece);
                if masking != Masking::Hides {
                    let (first, last) = (!tasks[begin..].iter().any(|task| task.tile == tile), false);
                    tasks.push(Task { sequence, kv_head, tile, piece, packed, band, masking, first, last });
                }
            }
            packed += usize::from(tasks.len() > before);
        }
        for tile in tiles {
            match tasks[begin..].iter_mut().rev().find(|task| task.tile == tile) {
                Some(task) => task.last = true,
                None => self.attention.clear(sequence, self.plan.tokens_of(&shape, tile)),
            }
        }
    }

    fn masking(&self, sequence: usize, tile: usize, piece: &Stretch) -> Masking {
        let Some(mask) = &self.attention.mask else { return Masking::Nothing };
        let shape = self.attention.shape;
        if mask.extents[0] > 1 {
            return Masking::Something;
        }
        let (mut hides, mut nothing) = (true, true);
        for token in self.plan.tokens_of(&shape, tile) {
            let row = mask.row(sequence, 0, token, piece.range());
            hides = hides && row.iter().all(|half| *half == rows::MINUS_INFINITY);
            nothing = nothing && row.iter().all(|half| *half == 0);
            if !hides && !nothing {
                return Masking::Something;
            }
        }
        if hides {
            Masking::Hides
        } else {
            Masking::Nothing
        }
    }

    fn spec(&self, k: usize, n: usize) -> MatmulSpec {
        MatmulSpec {
            dtype: MatmulType::F16,
            rows: self.plan.rows,
            k,
            n,
            b_layout: Layout::Native,
            ac_layout: Layout::Native,
            domain: self.domain,
        }
    }

    /// Keys and values of a task's piece, each in its B; false where one is no number.
    fn pack_piece(&self, task: &Task, [reads, _]: &mut [Slots; 2]) -> Result<bool, Error> {
        let Task { piece, packed, kv_head: head, sequence, .. } = task;
        let (keys, values) = (self.rings.keys.piece(*packed), self.rings.values.piece(*packed));
        let of = |cached| Positions { cached, head: *head, sequence: *sequence, piece };
        let finite = self.stats.stage(Stage::Pack, || {
            let b = b_of(reads, &keys, self.plan.head * piece.padded)?;
            let finite = of(&self.attention.keys).pack_keys(self.pool, self.limits, &b);
            let b = b_of(reads, &values, self.plan.value * piece.padded)?;
            Ok::<_, Error>(of(&self.attention.values).pack_values(self.pool, self.limits, &b) && finite)
        })?;
        self.stats.stage(Stage::Sync, || {
            reads.sync_to_device(&keys)?;
            reads.sync_to_device(&values)
        })?;
        Ok(finite)
    }

    fn queries_of(&self, task: &Task) -> Piece {
        self.rings.queries.piece(task.packed_tile(self.tiles))
    }

    /// The queries of all tiles of a task's band; false where one is no number.
    fn pack_queries(
        &self,
        task: &Task,
        [reads, _]: &mut [Slots; 2],
        rows: &mut rows::Room,
    ) -> Result<bool, Error> {
        let mut finite = true;
        let start = task.tile / self.tiles * self.tiles;
        for tile in start..self.plan.tiles(&self.attention.shape).min(start + self.tiles) {
            let of_tile = Task { tile, ..*task };
            let place = self.queries_of(&of_tile);
            self.stats.stage(Stage::Pack, || {
                let (memory, range) = reads.place(&place)?;
                let weighing = self.weighing(&of_tile);
                let a = &mut memory[range][..self.plan.rows * self.plan.head * 2];
                finite &= weighing.pack_queries(self.pool, rows, (self.ahead, self.tiles), a);
                Ok::<_, Error>(())
            })?;
            self.stats.stage(Stage::Sync, || reads.sync_to_device(&place))?;
        }
        Ok(finite)
    }

    fn weighing<'c>(&'c self, task: &'c Task) -> Weighing<'c> {
        let mask = self.attention.mask.as_ref().filter(|_| task.masking == Masking::Something);
        Weighing { attention: self.attention, mask, plan: &self.plan, limits: self.limits, task }
    }

    fn give_scores(
        &mut self,
        index: usize,
        task: &Task,
        [reads, writes]: &mut [Slots; 2],
    ) -> Result<(), Error> {
        let (head, padded) = (self.plan.head, task.piece.padded);
        let job = Job {
            spec: self.spec(head, padded),
            a: reads.bind(&self.queries_of(task))?,
            b: reads.bind(&self.rings.keys.piece(task.packed))?,
            c: writes.bind(&self.rings.scores.piece(index))?,
        };
        self.give(index, job)
    }

    fn give_results(
        &mut self,
        index: usize,
        task: &Task,
        [reads, writes]: &mut [Slots; 2],
    ) -> Result<(), Error> {
        let (value, padded) = (self.plan.value, task.piece.padded);
        let job = Job {
            spec: self.spec(padded, value),
            a: reads.bind(&self.rings.weights.piece(index))?,
            b: reads.bind(&self.rings.values.piece(task.packed))?,
            c: writes.bind(&self.rings.results.piece(index))?,
        };
        self.give(index, job)
    }

    fn give(&mut self, index: usize, job: Job) -> Result<(), Error> {
        self.stats.runs[Pipeline::W16A16.index()].fetch_add(1, Relaxed);
        self.cores.give(index % self.cores.count(), job)
    }

    /// Scores of a task become weights.
    fn weigh(
        &mut self,
        index: usize,
        task: &Task,
        [reads, writes]: &mut [Slots; 2],
        rows: &mut rows::Room,
    ) -> Result<(), Error> {
        let elements = self.plan.rows * task.piece.padded;
        let (scores, weights) = (self.rings.scores.piece(index), self.rings.weights.piece(index));
        self.stats.stage(Stage::Sync, || writes.sync_from_device(&scores))?;
        self.stats.stage(Stage::Weigh, || {
            let (memory, range) = reads.place(&weights)?;
            let ring = (index % (self.ahead + 1), self.ahead, self.tiles);
            let (c, a) = (&writes.read(&scores)[..elements * 4], &mut memory[range][..elements * 2]);
            self.weighing(task).weigh(self.pool, rows, ring, c, a);
            Ok::<_, Error>(())
        })?;
        self.stats.stage(Stage::Sync, || reads.sync_to_device(&weights))
    }

    /// Adds a task's results to the rows of the output; the last of a tile makes them what they are to be.
    fn add(
        &mut self,
        index: usize,
        task: &Task,
        [_, writes]: &mut [Slots; 2],
        rows: &rows::Room,
    ) -> Result<(), Error> {
        let results = self.rings.results.piece(index);
        self.stats.stage(Stage::Sync, || writes.sync_from_device(&results))?;
        let stats = self.stats.clone();
        stats.stage(Stage::Scale, || {
            let Attention { shape, sinks, out, .. } = &mut *self.attention;
            let adding = Adding { shape, plan: &self.plan, limits: self.limits, task, sinks: *sinks };
            adding.add(
                self.pool,
                rows,
                index % (self.ahead + 1),
                &writes.read(&results)[..self.plan.rows * self.plan.value * 4],
                out,
            );
        });
        Ok(())
    }
}
