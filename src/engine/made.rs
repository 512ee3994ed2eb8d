//! Two products' results of the same rows, gate and up, of which something is made as they are read; and the rows of the next
//! product, down, that it becomes: a segment of a few rows is made, rotated, scaled and packed while it is in a thread's
//! cache, and need not be written to memory, nor read from there.

use std::cell::RefCell;
use std::ops::Range;

use super::experts::Picks;
use super::pack::{Filling, Kernel};
use super::pair::Between;
use super::prepare::grow;
use super::results::{Computed, Reading, WIDTH};
use crate::kernels::fast::F16Scratch;
use crate::kernels::rotate::Rotation;
use crate::plan::Segment;
use crate::pool::{Divided, Pool};

/// Elements of a segment of a thread's rows, made: 256 KiB, half of the level-2 cache.
const ELEMENTS: usize = 64 * 1024;
/// Rows of them, of which as many are rotated and packed at a time. The more, the longer what is read of C at a time.
const ROWS: usize = 16;
const ROWS_MAX: usize = 256;

thread_local! {
    static ROOM: RefCell<Room> = RefCell::default();
}

/// A thread's room.
#[derive(Default)]
struct Room {
    /// A tile of each product's results.
    two: [Vec<f32>; 2],
    made: Vec<f32>,
    rotated: Vec<f32>,
    scratch: Vec<f32>,
    halves: F16Scratch,
}

/// The results of two products of the same rows, of which something is made.
pub struct Two<'a> {
    /// What a batch's runs computed of each; nothing of one whose results are in its output already.
    pub computed: [&'a [Option<Computed<'a>>]; 2],
    pub readings: [&'a Reading<'a>; 2],
    pub outs: [&'a Divided<'a, f32>; 2],
    /// The row of the product that a batch's row 0 is.
    pub first: usize,
    /// Which rows of the outputs those of the product are; the same ones without.
    pub picks: Option<Picks<'a>>,
    pub between: &'a Between<'a>,
    /// What the rows that are made become.
    pub feed: Option<Feed<'a>>,
}

/// Rows of the next product, of which each segment's are packed as soon as they are all made.
pub struct Feed<'a> {
    /// Where rows go; the batch's are among them, as they are counted there.
    pub filling: Filling<'a>,
    pub kernel: Kernel,
    pub rotation: Option<&'a Rotation>,
    pub scales: Divided<'a, f32>,
    pub memory: Divided<'a, u8>,
    /// What is made goes to its place in the host's memory all the same.
    pub keeps: bool,
}

impl Two<'_> {
    /// Reads the batch of both, makes of it what is to be made, and packs those segments of the next product's rows whose last
    /// columns these are. What a segment lacks of a batch before is read from its place in the host's memory.
    pub fn read(&self, pool: &Pool) {
        let (rows, columns) = (self.readings[0].batch.len(), self.readings[0].columns.clone());
        let segments = self.feed.as_ref().map_or(0..0, |feed| feed.whole(&columns));
        let packed = self.feed.as_ref().and_then(|feed| Some(feed.columns(segments.clone().last()?).end));
        let left = packed.unwrap_or(columns.start)..columns.end;
        let tiles = self.readings[0].tiles(left.clone(), pool.threads());
        let height = self.feed.as_ref().map_or(1, |feed| feed.height(rows * segments.len(), pool.threads()));
        let down = rows.div_ceil(height);
        let count = segments.len() * down;
        let work = |index: usize| {
            ROOM.with_borrow_mut(|room| match &self.feed {
                Some(feed) if index < count => {
                    let row = index % down * height;
                    self.pack(feed, segments.start + index / down, row..rows.min(row + height), room);
                }
                _ => {
                    let (rows, columns) = tiles.at(index - count);
                    self.each(rows, columns.clone(), tiles.width, &mut room.two, |row, two| {
                        // SAFETY: each index comes once, and has its own rows and columns.
                        let out = unsafe { self.between.out.part(self.place(row, &columns)) };
                        self.between.make(two, out);
                    });
                }
            });
        };
        let tiles = if left.is_empty() { 0 } else { tiles.count() };
        pool.run_if_many(2 * rows * columns.len(), count + tiles, work);
    }

    /// Where some columns of the batch's row `row` are in the outputs, and in what is made.
    fn place(&self, row: usize, columns: &Range<usize>) -> Range<usize> {
        let row = self.first + self.readings[0].batch.start + row;
        let row = self.picks.map_or(row, |picks| picks.to(row..row + 1)[0] as usize);
        let first = row * self.readings[0].plan.n;
        first + columns.start..first + columns.end
    }

    /// Makes some of the batch's rows of a segment and packs them.
    fn pack(&self, feed: &Feed, segment: usize, rows: Range<usize>, room: &mut Room) {
        let Room { two, made, rotated, scratch, halves } = room;
        let whole = feed.columns(segment);
        let k = whole.len();
        grow(made, rows.len() * k);
        let made = &mut made[..rows.len() * k];
        let begin = self.readings[0].columns.start.clamp(whole.start, whole.end);
        for (row, made) in rows.clone().zip(made.chunks_mut(k)) {
            let before = whole.start..begin;
            // SAFETY: the batches before wrote these, and nobody does now.
            made[..before.len()].copy_from_slice(unsafe { self.between.out.part(self.place(row, &before)) });
        }
        for start in (begin..whole.end).step_by(WIDTH) {
            let columns = start..whole.end.min(start + WIDTH);
            self.each(rows.clone(), columns.clone(), WIDTH, two, |row, two| {
                let at = (row - rows.start) * k + start - whole.start;
                self.between.make(two, &mut made[at..][..columns.len()]);
            });
        }
        if feed.keeps {
            for (row, made) in rows.clone().zip(made.chunks(k)) {
                // SAFETY: each index comes once, and has its own rows and columns.
                unsafe { self.between.out.part(self.place(row, &whole)) }.copy_from_slice(made);
            }
        }
        let first = self.readings[0].batch.start;
        for (start, made) in (rows.start..).step_by(ROWS).zip(made.chunks(ROWS * k)) {
            let rows = first + start..first + rows.end.min(start + ROWS);
            let (data, stride) = feed.rotate(segment, made, rotated, scratch);
            let targets = feed.filling.targets.iter().filter(|target| target.segment == segment);
            for target in targets {
                let piece = (rows.clone(), data, stride, whole.start);
                // SAFETY: each index comes once, and has its own rows and segment.
                unsafe { feed.filling.put(feed.kernel, target, piece, (&feed.scales, &feed.memory), halves) };
            }
        }
    }

    /// Reads some rows and columns of the batch, `width` columns at most, of both products, and calls `make` with each row's;
    /// where others see them they go to the outputs, too.
    fn each(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        width: usize,
        room: &mut [Vec<f32>; 2],
        mut make: impl FnMut(usize, [&[f32]; 2]),
    ) {
        for (at, room) in room.iter_mut().enumerate() {
            grow(room, rows.len() * width);
            // SAFETY: nobody else reads or writes these rows and columns meanwhile.
            let there = |row: usize| unsafe { &*self.outs[at].part(self.place(row, &columns)) };
            self.readings[at].tile(self.computed[at], (rows.clone(), columns.clone()), there, room, width);
        }
        let [one, other] = room.each_ref().map(|room| room.chunks(width));
        for (row, (one, other)) in rows.zip(one.zip(other)) {
            let two = [one, other].map(|row| &row[..columns.len()]);
            make(row, two);
            for (at, results) in two.into_iter().enumerate() {
                if self.between.seen && !self.computed[at].is_empty() {
                    // SAFETY: each index comes once, and has its own rows and columns.
                    let out = unsafe { self.outs[at].part(self.place(row, &columns)) };
                    out.copy_from_slice(results);
                }
            }
        }
    }
}

impl Feed<'_> {
    /// The columns that a segment is made of; after rows are rotated it may have more.
    fn columns(&self, segment: usize) -> Range<usize> {
        let Segment { start, len, .. } = self.filling.segments[segment];
        let end = start + len;
        start..self.rotation.map_or(end, |rotation| rotation.k().min(end))
    }

    /// The segments whose last columns are among these.
    fn whole(&self, columns: &Range<usize>) -> Range<usize> {
        let until = |column: usize| {
            let segments = 0..self.filling.segments.len();
            segments.take_while(|segment| self.columns(*segment).end <= column).count()
        };
        until(columns.start)..until(columns.end)
    }

    /// Rows of a segment that a thread takes at a time, if there are so many in all segments; some for each thread.
    fn height(&self, rows: usize, threads: usize) -> usize {
        let len = self.filling.segments.first().map_or(1, |segment| segment.len);
        let most = (ELEMENTS / len).min(rows.div_ceil(2 * threads));
        (most / ROWS * ROWS).clamp(ROWS, ROWS_MAX)
    }

    /// A segment's part of rows as it is to be packed, and the elements from one row to the next.
    fn rotate<'b>(
        &self,
        segment: usize,
        made: &'b [f32],
        rotated: &'b mut Vec<f32>,
        scratch: &mut Vec<f32>,
    ) -> (&'b [f32], usize) {
        let (Segment { start, len, .. }, k) = (self.filling.segments[segment], self.columns(segment).len());
        let Some(rotation) = self.rotation else { return (made, k) };
        grow(rotated, made.len() / k * len);
        grow(scratch, rotation.block());
        for (made, rotated) in made.chunks(k).zip(rotated.chunks_mut(len)) {
            rotation.apply_part(made, start..start + len, rotated, scratch);
        }
        (rotated, len)
    }
}
