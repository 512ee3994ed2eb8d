//! The products that a batch's runs left in C, scaled and added up in the rows of the output.

use std::cell::RefCell;
use std::ops::Range;

use rknn_sys::Element;

use super::prepare::grow;
use crate::chip::CORES_MAX;
use crate::kernels::{fast, int4, Results};
use crate::plan::{CoreRun, Piece, Step, WeightPlan, BATCH_MAX};
use crate::pool::{Divided, Pool};

/// The most runs whose results are read together.
pub const RUNS_MAX: usize = BATCH_MAX * CORES_MAX;
/// Rows and columns of a tile, in which the results of several segments are added up: 64 KiB, in the level-2 cache. Many rows,
/// since those of a block of columns are neighbours in C, a page of them, and few columns, whose rows are whole cache lines.
const HEIGHT: usize = 256;
pub(super) const WIDTH: usize = 64;

thread_local! {
    /// A thread's room for tiles.
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
    /// Puts the pieces of all runs, those of earlier segments first, into `out`, the batch's rows; other columns stay. Where
    /// there are `sums`, rows alike, those of earlier segments are there, and only the last go to `out`.
    pub fn scale(
        &self,
        pool: &Pool,
        computed: &[Option<Computed>],
        out: &mut [f32],
        sums: Option<&Divided<f32>>,
    ) {
        if self.batch.len() > 1 || sums.is_some() {
            let out = Divided::new(out);
            let ends = computed.iter().flatten().map(|computed| computed.step.segments.end).max();
            let is_last = ends == Some(self.plan.segments.len());
            let sums = sums.unwrap_or(&out);
            return self.spread(pool, computed, sums, if is_last { &out } else { sums }, |row| row);
        }
        // Whole blocks of columns, so that each part begins with one; a row-major row is read from its start.
        let n = self.plan.n;
        let size = if self.block.is_some() { n.div_ceil(pool.threads()).next_multiple_of(64) } else { n };
        pool.chunks_if_many(out, size, |index, out| {
            let start = index * size;
            let columns = start..start + out.len();
            self.part(computed, &mut Part { rows: 0..1, columns, out, stride: n });
        });
    }

    /// As [`Self::scale`], but each row of the batch goes to the row of `out` that `to` names, all of them different.
    pub fn scatter(&self, pool: &Pool, computed: &[Option<Computed>], out: &Divided<f32>, to: &[u32]) {
        self.spread(pool, computed, out, out, |row| to[row] as usize);
    }

    /// Reads tile by tile; each row of the batch goes to another row of `out`, by `to`, on top of what `sums` has there if
    /// these are not the first segments.
    fn spread(
        &self,
        pool: &Pool,
        computed: &[Option<Computed>],
        sums: &Divided<f32>,
        out: &Divided<f32>,
        to: impl Fn(usize) -> usize + Sync,
    ) {
        let n = self.plan.n;
        let tiles = self.tiles(self.columns.clone(), pool.threads());
        let work = |index: usize| {
            let (rows, columns) = tiles.at(index);
            let place = |row: usize| to(row) * n + columns.start..to(row) * n + columns.end;
            ROOM.with_borrow_mut(|room| {
                grow(room, tiles.len());
                let room = &mut room[..tiles.len()];
                // SAFETY: no two rows go to the same one, and each index comes once.
                let before = |row: usize| unsafe { &*sums.part(place(row)) };
                self.tile(computed, (rows.clone(), columns.clone()), before, room, tiles.width);
                for (row, room) in rows.clone().zip(room.chunks(tiles.width)) {
                    // SAFETY: as above.
                    unsafe { out.part(place(row)) }.copy_from_slice(&room[..columns.len()]);
                }
            });
        };
        pool.run_if_many(tiles.rows * tiles.columns.len(), tiles.count(), work);
    }

    /// The batch's rows, and some of its columns, in tiles, wider ones where there are few rows, and some for each thread. A
    /// row-major C is read from its first column only.
    pub(super) fn tiles(&self, columns: Range<usize>, threads: usize) -> Tiles {
        let rows = self.batch.len();
        if self.block.is_none() {
            let height = (HEIGHT * WIDTH / self.plan.n).clamp(1, HEIGHT).min(rows);
            return Tiles { rows, columns, height, width: self.plan.n };
        }
        let height = HEIGHT.min(rows);
        let width = (HEIGHT * WIDTH / height).min(columns.len() / (2 * threads));
        Tiles { rows, columns, height, width: (width / WIDTH).max(1) * WIDTH }
    }

    /// Puts what the runs computed of some rows and columns into `room`, rows `stride` apart: on top of what there was `before` of a
    /// row, if that has the sums of earlier segments, or if nothing was computed.
    pub(super) fn tile<'a>(
        &self,
        computed: &[Option<Computed>],
        (rows, columns): (Range<usize>, Range<usize>),
        before: impl Fn(usize) -> &'a [f32],
        room: &mut [f32],
        stride: usize,
    ) {
        let first = computed.iter().flatten().map(|computed| computed.step.segments.start).min();
        if first != Some(0) {
            for (row, room) in rows.clone().zip(room.chunks_mut(stride)) {
                room[..columns.len()].copy_from_slice(before(row));
            }
        }
        self.part(computed, &mut Part { rows, columns, out: room, stride });
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

/// Rows and columns of a batch in tiles: those of some columns first, since they are neighbours in C.
pub(super) struct Tiles {
    rows: usize,
    columns: Range<usize>,
    height: usize,
    pub(super) width: usize,
}

impl Tiles {
    fn down(&self) -> usize {
        self.rows.div_ceil(self.height)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.down() * self.columns.len().div_ceil(self.width)
    }

    /// The rows and columns of one.
    pub(super) fn at(&self, index: usize) -> (Range<usize>, Range<usize>) {
        let row = index % self.down() * self.height;
        let column = self.columns.start + index / self.down() * self.width;
        (row..self.rows.min(row + self.height), column..self.columns.end.min(column + self.width))
    }

    /// Elements of one.
    pub(super) fn len(&self) -> usize {
        self.height * self.width
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
