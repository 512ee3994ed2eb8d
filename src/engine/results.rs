//! The products that a batch's runs left in C, scaled and added up in the rows of the output.

use std::cell::RefCell;
use std::ops::Range;

use rknn_sys::Element;

use super::pair::Between;
use crate::chip::CORES_MAX;
use crate::kernels::glu::glu;
use crate::kernels::{fast, int4, Results};
use crate::plan::{CoreRun, Piece, Step, WeightPlan, BATCH_MAX};
use crate::pool::{Divided, Pool, PARALLEL_MIN};

/// The most runs whose results are read together.
pub const RUNS_MAX: usize = BATCH_MAX * CORES_MAX;
/// Rows and columns of the output in which the results of several segments are added up: 128 KiB, in the level-2 cache.
/// Many rows, since a block of columns is a page or two of C, of which few rows would take a few lines.
const ROWS: usize = 64;
const COLUMNS: usize = 512;
/// Columns of each of two products that are read together: both in as many bytes.
const COLUMNS_OF_TWO: usize = COLUMNS / 2;

thread_local! {
    /// A thread's room for results on their way to rows that are not neighbours.
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A run and what it computed.
pub struct Computed<'a> {
    pub step: Step,
    pub run: CoreRun,
    /// C of the run, M·N elements.
    pub c: &'a [u8],
}

/// What is needed to read the C of a batch's runs.
pub struct Reading<'a> {
    pub plan: &'a WeightPlan,
    /// The batch's rows.
    pub batch: Range<usize>,
    /// The batch's columns, none of padding.
    pub columns: Range<usize>,
    /// Columns of a native block; `None` for row-major C.
    pub block: Option<usize>,
    pub planes: usize,
    /// One scale a row of the product and segment: those of a segment together, `rows` of them.
    pub row_scales: &'a [f32],
    pub rows: usize,
    /// One scale a column and segment: those of a segment together.
    pub column_scales: &'a [f32],
}

/// A part of the output: rows of the batch, and columns.
struct Part<'a> {
    rows: Range<usize>,
    columns: Range<usize>,
    /// From the first row's first column on, rows `stride` apart.
    out: &'a mut [f32],
    stride: usize,
}

impl Reading<'_> {
    /// Puts the pieces of all runs, those of earlier segments first, into `out`, the batch's rows; other columns stay.
    pub fn scale(&self, pool: &Pool, computed: &[Option<Computed>], out: &mut [f32]) {
        let (n, len) = (self.plan.n, self.batch.len());
        if len == 1 {
            // Whole blocks of columns, so that each part begins with one; a row-major row is read from its start.
            let size = if self.block.is_some() { n.div_ceil(pool.threads()).next_multiple_of(64) } else { n };
            return chunks(pool, n, out, size, |index, out| {
                let start = index * size;
                let columns = start..start + out.len();
                self.part(computed, &mut Part { rows: 0..1, columns, out, stride: n });
            });
        }
        let mut segments = computed.iter().flatten().map(|computed| &computed.step.segments);
        let one = segments.next();
        let several = segments.any(|other| Some(other) != one) || one.is_some_and(|one| one.len() > 1);
        // Whole cache lines of rows where there are many, as the kernels take them.
        let share = len.div_ceil(pool.threads() * 2);
        let size = if share >= ROWS { ROWS } else { share.max(1) };
        chunks(pool, len * n, out, size * n, |index, out| {
            let rows = index * size..index * size + out.len() / n;
            // Whole rows are written the fastest. What begins within a row cannot be read from row-major C.
            let columns = if several && self.block.is_some() { COLUMNS } else { n };
            for start in self.columns.clone().step_by(columns) {
                let (columns, out) = (start..self.columns.end.min(start + columns), &mut out[start..]);
                self.part(computed, &mut Part { rows: rows.clone(), columns, out, stride: n });
            }
        });
    }

    /// As [`Self::scale`], but each row of the batch goes to the row of `out` that `to` names, all of them different.
    pub fn scatter(&self, pool: &Pool, computed: &[Option<Computed>], out: &Divided<f32>, to: &[u32]) {
        let (n, len) = (self.plan.n, self.batch.len());
        let size = ROWS.min(len.div_ceil(pool.threads() * 2)).max(1);
        let width = if self.block.is_some() { COLUMNS.min(n) } else { n };
        let work = |index: usize| {
            let rows = index * size..len.min((index + 1) * size);
            for start in self.columns.clone().step_by(width) {
                let columns = start..self.columns.end.min(start + width);
                // SAFETY: no two rows go to the same one, and each index comes once.
                let row = |row: usize| unsafe {
                    let at = to[row] as usize * n;
                    out.part(at + columns.start..at + columns.end)
                };
                ROOM.with_borrow_mut(|room| {
                    if room.len() < size * width {
                        room.resize(size * width, 0.0);
                    }
                    if self.first(computed) > 0 {
                        // The sum so far.
                        for (index, room) in rows.clone().zip(room.chunks_mut(width)) {
                            room[..columns.len()].copy_from_slice(row(index));
                        }
                    }
                    let (out, stride) = (&mut room[..], width);
                    let mut part = Part { rows: rows.clone(), columns: columns.clone(), out, stride };
                    self.part(computed, &mut part);
                    for (index, room) in rows.clone().zip(room.chunks(width)) {
                        row(index).copy_from_slice(&room[..columns.len()]);
                    }
                });
            }
        };
        pool.run_if_many(len * n, len.div_ceil(size), work);
    }

    /// The first segment of a batch.
    fn first(&self, computed: &[Option<Computed>]) -> usize {
        computed.iter().flatten().map(|computed| computed.step.segments.start).min().unwrap_or(0)
    }

    fn part(&self, computed: &[Option<Computed>], part: &mut Part) {
        for Computed { step, run, c } in computed.iter().flatten() {
            let rows = part.rows.start.max(run.rows.start)..part.rows.end.min(run.rows.end);
            if rows.is_empty() {
                continue;
            }
            for piece in run.pieces(self.plan, step) {
                self.piece(run, c, &piece, rows.clone(), part);
            }
        }
    }

    fn piece(&self, run: &CoreRun, c: &[u8], piece: &Piece, rows: Range<usize>, part: &mut Part) {
        let start = piece.columns.start.max(part.columns.start);
        let end = piece.columns.end.min(part.columns.end);
        if start >= end {
            return;
        }
        let first_row = piece.segment * self.rows + self.batch.start;
        let first_column = piece.segment * self.plan.n;
        let results = Results {
            m: run.m,
            row_start: piece.c_row + rows.start - run.rows.start,
            rows: rows.len(),
            columns: end - start,
            row_scales: &self.row_scales[first_row + rows.start..first_row + rows.end],
            column_scales: &self.column_scales[first_column + start..first_column + end],
            accumulate: piece.segment > 0,
            stride: part.stride,
        };
        let out = &mut part.out[(rows.start - part.rows.start) * part.stride + start - part.columns.start..];
        let element = self.plan.dtype.c();
        // Blocks of columns lie one after the other; a row-major C is read from its first column only.
        let at = element.bytes((piece.c_column + start - piece.columns.start) * run.m);
        let c = if self.block.is_some() { &c[at..] } else { c };
        read(element, self.block, self.planes, c, &results, out);
    }
}

/// The results of two products of the same rows, of which something is made.
pub struct Two<'a> {
    pub computed: [&'a [Option<Computed<'a>>]; 2],
    pub readings: [&'a Reading<'a>; 2],
    pub outs: [&'a Divided<'a, f32>; 2],
    /// The row of the outputs that a batch's row 0 is.
    pub first: usize,
    pub between: &'a Between<'a>,
}

impl Two<'_> {
    /// Reads both, part by part, and puts what is made of a part where it belongs as soon as all segments are added up.
    pub fn read(&self, pool: &Pool) {
        let Self { computed, readings: [one, _], between, .. } = self;
        let (n, len) = (one.plan.n, one.batch.len());
        let last = computed[0].iter().flatten().map(|computed| computed.step.segments.end).max();
        let done = last == Some(one.plan.segments.len());
        // Sums so far are kept where the results belong.
        let seen = between.seen || !done || one.first(computed[0]) > 0;
        // A row-major C is read from its first column only.
        let width = if one.block.is_some() { COLUMNS_OF_TWO } else { n };
        let height = ROWS.min(len.div_ceil(pool.threads() * 2)).max(1);
        let work = |index: usize| {
            let rows = index * height..len.min((index + 1) * height);
            let all = (self.first + one.batch.start + rows.start) * n
                ..(self.first + one.batch.start + rows.end) * n;
            // SAFETY: each index comes once, and has its own rows.
            let out = unsafe { between.out.part(all.clone()) };
            ROOM.with_borrow_mut(|room| {
                if room.len() < 2 * height * width {
                    room.resize(2 * height * width, 0.0);
                }
                let (sums, stride) = if seen {
                    // SAFETY: as above.
                    (self.outs.map(|out| unsafe { out.part(all.clone()) }), n)
                } else {
                    let (one, other) = room.split_at_mut(height * width);
                    ([one, other], width)
                };
                for start in one.columns.clone().step_by(width) {
                    let columns = start..one.columns.end.min(start + width);
                    let first = if seen { start } else { 0 };
                    for at in 0..2 {
                        let (rows, columns) = (rows.clone(), columns.clone());
                        let mut part = Part { rows, columns, out: &mut sums[at][first..], stride };
                        self.readings[at].part(self.computed[at], &mut part);
                    }
                    if !done {
                        continue;
                    }
                    let [gate, up] =
                        if between.swapped { [&sums[1], &sums[0]] } else { [&sums[0], &sums[1]] };
                    for row in 0..rows.len() {
                        let of = row * stride + first..row * stride + first + columns.len();
                        let out = &mut out[row * n + start..][..columns.len()];
                        glu(between.activation, &gate[of.clone()], &up[of], out);
                    }
                }
            });
        };
        pool.run_if_many(2 * len * one.columns.len(), len.div_ceil(height), work);
    }
}

/// Calls `work(index, chunk)` for each chunk of `size` items, on the pool when there are `elements` enough.
pub fn chunks<T: Send>(
    pool: &Pool,
    elements: usize,
    data: &mut [T],
    size: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    if elements >= PARALLEL_MIN && data.len() > size {
        pool.chunks(data, size, work);
    } else {
        data.chunks_mut(size).enumerate().for_each(|(index, chunk)| work(index, chunk));
    }
}

/// C, whose bytes are `c`, into rows of the output: in native blocks of `block` columns, or row-major.
pub fn read(
    element: Element,
    block: Option<usize>,
    planes: usize,
    c: &[u8],
    results: &Results,
    out: &mut [f32],
) {
    use bytemuck::cast_slice;
    match (element, block) {
        (Element::I32, Some(_)) => fast::unpack_c_i32(cast_slice(c), results, out),
        (Element::I32, None) => fast::unpack_rows_i32(cast_slice(c), results, out),
        (Element::I16, Some(8)) => int4::unpack_c::<8>(cast_slice(c), planes, results, out),
        (Element::I16, Some(_)) => int4::unpack_c::<4>(cast_slice(c), planes, results, out),
        (Element::I16, None) => int4::unpack_rows(cast_slice(c), planes, results, out),
        (_, Some(_)) => fast::unpack_c_f32(cast_slice(c), results, out),
        (_, None) => fast::unpack_rows_f32(cast_slice(c), results, out),
    }
}
