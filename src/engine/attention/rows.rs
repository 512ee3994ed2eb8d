//! The CPU's share of attention: queries into A, keys and values into B, scores into weights, results into the output.
//! Rows are those of a tile, token by token, the heads of a group together.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rknn_sys::Element;

use super::{Attention, Cached, Mask, Task};
use crate::chip::TypeLimits;
use crate::engine::pack::{kernel, Area};
use crate::engine::results::read;
use crate::kernels::attention::{
    are_finite, exponentials, from_halves, place_rows, scores, Bias, CAPPED, MASKED,
};
use crate::kernels::exp::exp;
use crate::kernels::fast::{self, place_column, F16Scratch};
use crate::kernels::scalar::scale_f16;
use crate::kernels::{Results, Rows};
use crate::plan::{AttentionPlan, AttentionShape, Stretch};
use crate::policy::Pipeline;
use crate::pool::{Divided, Pool};

/// Rows that a thread takes at a time: their pieces of native A and C are whole cache lines, and their scores stay in the
/// level-2 cache.
const ROWS: usize = 16;
/// What weights, which are 1 at most, are divided by as they become f16: the smallest normal f16 is then 2·10⁻⁹ of the
/// largest weight.
const WEIGHT_SCALE: f32 = 1.0 / 32_768.0;
/// The f16 of −∞: a masked score.
pub const MINUS_INFINITY: u16 = 0xfc00;

thread_local! {
    static ROOM: RefCell<ThreadRoom> = RefCell::default();
}

/// A thread's room: rows, the mask's row, and halves on their way.
type ThreadRoom = (Vec<f32>, Vec<f32>, Vec<u16>, F16Scratch);

/// What is known of the rows between pieces.
#[derive(Default)]
pub struct Room {
    /// For each row of the output: the largest score so far, and the sum of exp(score − largest).
    largest: Vec<f32>,
    sums: Vec<f32>,
    /// For each task under way and row of its tile: what makes earlier results smaller.
    shrink: Vec<f32>,
    /// For each tile whose queries are packed, and each row: its scale.
    scales: Vec<f32>,
    /// As many as a tile has rows.
    weight_scales: Vec<f32>,
    /// As many as a piece has positions, or a value elements.
    ones: Vec<f32>,
}

impl Room {
    /// Makes room for a node, of which nothing is known yet.
    pub fn reserve(&mut self, shape: &AttentionShape, plan: &AttentionPlan, ahead: usize, tiles: usize) {
        let rows = shape.sequences * shape.tokens * shape.heads;
        refill(&mut self.largest, rows, f32::NEG_INFINITY);
        refill(&mut self.sums, rows, 0.0);
        refill(&mut self.shrink, (ahead + 1) * plan.rows, 1.0);
        refill(&mut self.scales, (ahead + 2) * tiles * plan.rows, 1.0);
        refill(&mut self.weight_scales, plan.rows, WEIGHT_SCALE);
        refill(&mut self.ones, plan.longest().max(plan.value), 1.0);
    }
}

fn refill(values: &mut Vec<f32>, len: usize, value: f32) {
    values.clear();
    values.resize(len, value);
}

/// At least `len` elements of a thread's room.
fn part<T: Copy + Default>(room: &mut Vec<T>, len: usize) -> &mut [T] {
    if room.len() < len {
        room.resize(len, T::default());
    }
    &mut room[..len]
}

/// Keys or values of one head, for the positions of a piece.
pub struct Positions<'a> {
    pub cached: &'a Cached<'a>,
    pub head: usize,
    pub sequence: usize,
    pub piece: &'a Stretch,
}

impl Positions<'_> {
    /// The row of a position of the piece as f16 bits in `halves`; false where one is no number.
    fn read(
        &self,
        index: usize,
        floats: &mut Vec<f32>,
        scratch: &mut F16Scratch,
        halves: &mut [u16],
    ) -> bool {
        let Cached { data, reader, width, strides, halves: as_they_are } = *self.cached;
        let [of_position, of_head, of_sequence] = strides;
        let at = (self.piece.start + index) * of_position + self.head * of_head + self.sequence * of_sequence;
        let bytes = &data[at..at + reader.row_bytes(width).unwrap_or(0)];
        match bytemuck::try_cast_slice::<u8, u16>(bytes) {
            Ok(row) if as_they_are => halves.copy_from_slice(row),
            _ => {
                let floats = part(floats, width);
                reader.read(bytes, floats);
                halves.copy_from_slice(scratch.convert(floats, 1.0));
            }
        }
        are_finite(halves)
    }

    /// Keys into B, whose columns are positions; false where one is no number.
    pub fn pack_keys(&self, pool: &Pool, limits: &TypeLimits, b: &Divided<u16>) -> bool {
        let (block_n, block_k) = (limits.b_block_n, limits.b_block_k);
        let width = self.cached.width;
        let group = block_n * width.next_multiple_of(limits.k_align);
        let finite = AtomicBool::new(true);
        pool.run_if_many(self.piece.padded * width, self.piece.padded / block_n, |index| {
            ROOM.with_borrow_mut(|(floats, _, halves, scratch)| {
                // SAFETY: each index comes once; these are the columns of one block.
                let group = unsafe { b.part(index * group..(index + 1) * group) };
                let row = part(halves, width);
                for column in 0..block_n {
                    let position = index * block_n + column;
                    if position < self.piece.len {
                        if !self.read(position, floats, scratch, row) {
                            finite.store(false, Relaxed);
                        }
                        place_column(row, column, block_n, block_k, group);
                    } else {
                        place_column(&[], column, block_n, block_k, group);
                    }
                }
            });
        });
        finite.into_inner()
    }

    /// Values into B, whose rows are positions; false where one is no number.
    pub fn pack_values(&self, pool: &Pool, limits: &TypeLimits, b: &Divided<u16>) -> bool {
        let (block_n, block_k) = (limits.b_block_n, limits.b_block_k);
        let width = self.cached.width;
        let (block, deep) = (block_n * block_k, self.piece.padded / block_k);
        let beyond = width.next_multiple_of(block_n)..width.next_multiple_of(limits.n_align);
        let finite = AtomicBool::new(true);
        pool.run_if_many(self.piece.padded * width, deep, |index| {
            ROOM.with_borrow_mut(|(floats, _, halves, scratch)| {
                let count = block_k.min(self.piece.len.saturating_sub(index * block_k));
                let rows = part(halves, count * width);
                for (row, halves) in rows.chunks_exact_mut(width).enumerate() {
                    if !self.read(index * block_k + row, floats, scratch, halves) {
                        finite.store(false, Relaxed);
                    }
                }
                // SAFETY: each index comes once; it has one block of each run of columns.
                let place =
                    |n: usize| unsafe { b.part((n * deep + index) * block..(n * deep + index + 1) * block) };
                place_rows(rows, width, (block_n, block_k), place);
                for n in beyond.clone().step_by(block_n) {
                    place(n / block_n).fill(0);
                }
            });
        });
        finite.into_inner()
    }
}

/// A task, as its rows are weighed.
pub struct Weighing<'a> {
    pub attention: &'a Attention<'a>,
    /// The mask, where it changes something.
    pub mask: Option<&'a Mask<'a>>,
    pub plan: &'a AttentionPlan,
    pub limits: &'a TypeLimits,
    pub task: &'a Task,
}

/// Tokens that a thread takes at a time.
fn chunk(group: usize) -> usize {
    (ROWS / group).max(1)
}

/// Tokens of a tile in chunks: their place in the tile.
fn chunks(tokens: usize, group: usize) -> impl Fn(usize) -> Range<usize> {
    let size = chunk(group);
    move |index| index * size..tokens.min((index + 1) * size)
}

impl Weighing<'_> {
    fn tokens(&self) -> Range<usize> {
        self.plan.tokens_of(&self.attention.shape, self.task.tile)
    }

    /// Where the scales of the tile's queries are.
    fn scales(&self, ahead: usize, tiles: usize) -> usize {
        self.task.packed_tile(tiles) % ((ahead + 2) * tiles) * self.plan.rows
    }

    /// Queries, times the scores' factor, into A, `memory`; false where one is no number.
    pub fn pack_queries(
        &self,
        pool: &Pool,
        room: &mut Room,
        (ahead, tiles): (usize, usize),
        memory: &mut [u8],
    ) -> bool {
        let Attention { shape, queries, scale, softcap, .. } = self.attention;
        let factor = if *softcap == 0.0 { *scale } else { scale / softcap };
        let (group, head, tokens) = (shape.group(), shape.head, self.tokens());
        let [of_token, of_head, of_sequence] = queries.strides;
        let start = self.scales(ahead, tiles);
        let scales = Divided::new(&mut room.scales[start..start + self.plan.rows]);
        let (bytes, memory) = (0..memory.len(), Divided::new(memory));
        let (chunk_of, count) = (chunks(tokens.len(), group), tokens.len().div_ceil(chunk(group)));
        let Some(pack) = kernel(Pipeline::W16A16, Some(self.limits.a_block)) else { return false };
        let finite = AtomicBool::new(true);
        pool.run_if_many(tokens.len() * group * head, count, |index| {
            let of = chunk_of(index);
            let rows = of.start * group..of.end * group;
            // SAFETY: each index comes once, and so does each row.
            let scales = unsafe { scales.part(rows.clone()) };
            ROOM.with_borrow_mut(|(floats, _, _, scratch)| {
                let data = part(floats, rows.len() * head);
                for ((index, row), scale) in data.chunks_exact_mut(head).enumerate().zip(scales.iter_mut()) {
                    let token = tokens.start + of.start + index / group;
                    let of_row = self.task.kv_head * group + index % group;
                    let at = token * of_token + of_row * of_head + self.task.sequence * of_sequence;
                    for (value, query) in row.iter_mut().zip(&queries.data[at..at + head]) {
                        *value = query * factor;
                    }
                    *scale = scale_f16(fast::amax(row));
                    if scale.is_nan() {
                        finite.store(false, Relaxed);
                    }
                }
                let view = Rows { data, stride: head, rows: rows.len(), k: head, scales };
                let area = Area { memory: &memory, bytes: bytes.clone(), m: self.plan.rows, rows };
                pack(&view, &area, scratch);
            });
        });
        finite.into_inner()
    }

    /// The scores `c` become weights in A, `memory`; `ring` is the task's place among those under way.
    pub fn weigh(
        &self,
        pool: &Pool,
        room: &mut Room,
        (ring, ahead, tiles): (usize, usize, usize),
        c: &[u8],
        memory: &mut [u8],
    ) {
        let shape = &self.attention.shape;
        let (group, tokens, width) = (shape.group(), self.tokens(), self.task.piece.len);
        let start = self.scales(ahead, tiles);
        let Room { largest, sums, shrink, scales, weight_scales, ones } = room;
        let scales = &scales[start..start + self.plan.rows];
        let (largest, sums) = (Divided::new(largest), Divided::new(sums));
        let shrink = Divided::new(&mut shrink[ring * self.plan.rows..(ring + 1) * self.plan.rows]);
        let (bytes, memory) = (0..memory.len(), Divided::new(memory));
        let (chunk_of, count) = (chunks(tokens.len(), group), tokens.len().div_ceil(chunk(group)));
        let Some(pack) = kernel(Pipeline::W16A16, Some(self.limits.a_block)) else { return };
        pool.run_if_many(tokens.len() * group * width, count, |index| {
            let of = chunk_of(index);
            let rows = of.start * group..of.end * group;
            // SAFETY: each index comes once, and so does each row of the tile.
            let shrink = unsafe { shrink.part(rows.clone()) };
            ROOM.with_borrow_mut(|(floats, of_mask, _, scratch)| {
                let data = part(floats, rows.len() * width);
                let results = Results {
                    m: self.plan.rows,
                    row_start: rows.start,
                    rows: rows.len(),
                    columns: width,
                    row_scales: &scales[rows.clone()],
                    column_scales: &ones[..width],
                    accumulate: false,
                    stride: width,
                };
                read(Element::F32, Some(self.limits.c_block), 1, c, &results, data);
                for (index, tokens_rows) in data.chunks_exact_mut(group * width).enumerate() {
                    let token = tokens.start + of.start + index;
                    let first = self.first_row(token);
                    // SAFETY: rows of this token, which no other thread has.
                    let (largest, sums) =
                        unsafe { (largest.part(first..first + group), sums.part(first..first + group)) };
                    let shrink = &mut shrink[index * group..(index + 1) * group];
                    for (head, row) in tokens_rows.chunks_exact_mut(width).enumerate() {
                        let most = self.score(token, head, row, of_mask);
                        (largest[head], sums[head], shrink[head]) =
                            weigh(row, most, largest[head], sums[head]);
                    }
                }
                let scales = &weight_scales[..rows.len()];
                let view = Rows { data, stride: width, rows: rows.len(), k: width, scales };
                let area = Area { memory: &memory, bytes: bytes.clone(), m: self.plan.rows, rows };
                pack(&view, &area, scratch);
            });
        });
    }

    /// The first of a token's rows of the output, of the task's head.
    fn first_row(&self, token: usize) -> usize {
        first_row(&self.attention.shape, self.task, token)
    }

    /// Caps and masks the products of a row; the largest of them.
    fn score(&self, token: usize, head: usize, row: &mut [f32], of_mask: &mut Vec<f32>) -> f32 {
        let (cap, first) = (self.attention.softcap, head == 0);
        let head = self.task.kv_head * self.attention.shape.group() + head;
        let mask: &[f32] = match self.mask {
            Some(mask) => {
                let floats = part(of_mask, row.len());
                // The heads of a token share the row, unless each has one.
                if first || mask.extents[0] > 1 {
                    from_halves(mask.row(self.task.sequence, head, token, self.task.piece.range()), floats);
                }
                floats
            }
            None => &[],
        };
        let bias = Bias { slope: self.attention.slope(head), cap };
        match (cap != 0.0, self.mask.is_some()) {
            (false, false) => scores::<0>(row, mask, bias),
            (false, true) => scores::<MASKED>(row, mask, bias),
            (true, false) => scores::<CAPPED>(row, mask, bias),
            (true, true) => scores::<{ MASKED + CAPPED }>(row, mask, bias),
        }
    }
}

fn first_row(shape: &AttentionShape, task: &Task, token: usize) -> usize {
    (task.sequence * shape.tokens + token) * shape.heads + task.kv_head * shape.group()
}

/// Makes weights of the scores of a row, whose largest is `most`; what is then the largest and the sum of all so far, and
/// the factor of what was added up before.
fn weigh(row: &mut [f32], most: f32, largest: f32, sum: f32) -> (f32, f32, f32) {
    let now = if most > largest { most } else { largest };
    if now == f32::NEG_INFINITY {
        // Nothing that is not masked so far.
        row.fill(0.0);
        return (now, sum, 1.0);
    }
    let shrink = if largest == now { 1.0 } else { exp(largest - now) };
    (now, sum * shrink + exponentials(row, now), shrink)
}

/// A task whose results are added to the rows of the output.
pub struct Adding<'a> {
    pub shape: &'a AttentionShape,
    pub plan: &'a AttentionPlan,
    pub limits: &'a TypeLimits,
    pub task: &'a Task,
    pub sinks: Option<&'a [f32]>,
}

impl Adding<'_> {
    /// Adds `c`; `ring` is the task's place among those under way.
    pub fn add(&self, pool: &Pool, room: &Room, ring: usize, c: &[u8], out: &mut [f32]) {
        let Self { shape, plan, task, .. } = *self;
        let (group, value) = (shape.group(), shape.value);
        let tokens = plan.tokens_of(shape, task.tile);
        let shrink = &room.shrink[ring * plan.rows..(ring + 1) * plan.rows];
        let out = Divided::new(out);
        let (chunk_of, count) = (chunks(tokens.len(), group), tokens.len().div_ceil(chunk(group)));
        pool.run_if_many(tokens.len() * group * value, count, |index| {
            for at in chunk_of(index) {
                let first = first_row(shape, task, tokens.start + at);
                let rows = at * group..(at + 1) * group;
                // SAFETY: rows of one token, which comes once.
                let out = unsafe { out.part(first * value..(first + group) * value) };
                if !task.first {
                    for (row, shrink) in out.chunks_exact_mut(value).zip(&shrink[rows.clone()]) {
                        if *shrink != 1.0 {
                            row.iter_mut().for_each(|sum| *sum *= shrink);
                        }
                    }
                }
                let results = Results {
                    m: plan.rows,
                    row_start: rows.start,
                    rows: group,
                    columns: value,
                    row_scales: &room.weight_scales[rows],
                    column_scales: &room.ones[..value],
                    accumulate: !task.first,
                    stride: value,
                };
                read(Element::F32, Some(self.limits.c_block), 1, c, &results, out);
                if task.last {
                    self.finish(room, first, out);
                }
            }
        });
    }

    /// Divides a token's rows by their sums.
    fn finish(&self, room: &Room, first: usize, out: &mut [f32]) {
        let heads = self.task.kv_head * self.shape.group()..;
        for ((head, row), at) in heads.zip(out.chunks_exact_mut(self.shape.value)).zip(first..) {
            let (mut sum, mut factor) = (room.sums[at], 1.0);
            if let Some(sinks) = self.sinks {
                let now = if sinks[head] > room.largest[at] { sinks[head] } else { room.largest[at] };
                factor = exp(room.largest[at] - now);
                sum = sum * factor + exp(sinks[head] - now);
            }
            // Where all is masked nothing was added.
            let factor = if sum == 0.0 { 0.0 } else { factor / sum };
            row.iter_mut().for_each(|value| *value *= factor);
        }
    }
}
