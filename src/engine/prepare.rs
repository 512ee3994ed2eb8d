//! The rows at work, and their rotation, which all weights share that share the rows.
//!
//! Q, K and V, or gate and up, are products with the same rows, one after the other, perhaps with other work between.
//! Within a group of products the host's graph says so. Beyond it nothing does, and the same memory may hold other rows
//! the next time, so that the rows themselves are compared with a copy. Copy and rotated rows cost as much to write as
//! all else that is done to rows; so they are kept only for weights whose rows some other weight has asked for before.
//!
//! Rows are rotated as they are needed, so that the NPU can begin with the first of them.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;

use super::Activations;
use crate::kernels::rotate::Rotation;
use crate::observe::{Stage, Stats};
use crate::pool::{Divided, Pool};

/// Rows that a thread rotates at a time where all are rotated first.
const ROWS_AT_ONCE: usize = 16;

thread_local! {
    /// A thread's room where all rows are rotated first.
    static ROOM: RefCell<RowRoom> = RefCell::default();
}

/// Rows of as many kinds are prepared independently: those that products share, and, in [`LOT_BETWEEN`], those of a down that
/// comes between products that share theirs: experts', or one that is woven in.
pub const LOTS: u64 = 2;
/// See [`LOTS`].
pub const LOT_BETWEEN: usize = 1;

/// Rows that were taken up last.
#[derive(Default)]
pub struct Prepared {
    rotation: Option<Arc<Rotation>>,
    rows: usize,
    /// Rows that went through [`Self::source`] already.
    ready: usize,
    /// Whether their rotated form is kept, and whether they themselves are, to compare others with.
    stored: bool,
    copied: bool,
    /// Whether another weight had use for that, and the flag that tells so of the weight that brought the rows.
    used: bool,
    owner: Option<Arc<AtomicBool>>,
    /// The rows as they came, and rotated; one after the other.
    source: Vec<f32>,
    rotated: Vec<f32>,
    /// Changes whenever other rows come; of no two lots the same.
    generation: u64,
}

/// What a weight wants of its rows.
pub struct Wish<'a> {
    /// How they are to be rotated.
    pub rotation: Option<&'a Arc<Rotation>>,
    /// Whether rows of this weight are asked for again by others, as far as known.
    pub shared: &'a Arc<AtomicBool>,
    /// What the caller knows of them.
    pub known: Known,
    /// They will be asked for more than once, in parts.
    pub again: bool,
}

/// What is known of rows that come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// They are the very rows of the last time.
    Same,
    /// They are others, some of them perhaps still to be made, which no other product has.
    Others,
    /// Nothing.
    Nothing,
}

impl Known {
    /// Of rows that are the same as far as that is known.
    pub fn same(same: bool) -> Self {
        if same {
            Self::Same
        } else {
            Self::Nothing
        }
    }
}

impl Prepared {
    /// Nothing yet, of each lot.
    pub fn lots() -> [Self; LOTS as usize] {
        std::array::from_fn(|lot| Self { generation: lot as u64, ..Self::default() })
    }

    /// Takes up rows for a weight, and rotates all where experts pick from them; gives a number that stands for them, the
    /// same for the same rows.
    pub fn take_up(&mut self, pool: &Pool, wish: &Wish, activations: &Activations, stats: &Stats) -> u64 {
        let generation = stats.stage(Stage::Compare, || self.begin(pool, wish, activations, stats));
        if activations.picks.is_some() {
            stats.stage(Stage::Pack, || self.rotate_all(pool, activations, stats));
        }
        generation
    }

    fn begin(&mut self, pool: &Pool, wish: &Wish, activations: &Activations, stats: &Stats) -> u64 {
        let rotation = wish.rotation;
        let alike = self.rows == activations.all()
            && match (rotation, &self.rotation) {
                (Some(rotation), Some(last)) => Arc::ptr_eq(rotation, last),
                (None, None) => true,
                _ => false,
            };
        let same = match wish.known {
            Known::Same => alike,
            Known::Others => false,
            Known::Nothing => alike && self.copied && self.is_of(pool, activations),
        };
        if same {
            if rotation.is_some() {
                stats.rows_shared.fetch_add(activations.rows as u64, Relaxed);
            }
            self.used |= wish.known != Known::Same;
            return self.generation;
        }
        if let (Some(owner), false) = (self.owner.take(), self.used) {
            owner.store(false, Relaxed);
        }
        self.generation += LOTS;
        (self.rotation, self.rows, self.ready) = (rotation.cloned(), activations.all(), 0);
        (self.used, self.owner) = (false, Some(wish.shared.clone()));
        // Rows that are picked once each come in no order, and nobody else asks for them.
        let (shared, again) = match activations.picks {
            Some(picks) => (picks.is_shared(), picks.is_shared()),
            None => (wish.known != Known::Others, wish.again),
        };
        self.copied = rotation.is_some() && shared && wish.shared.load(Relaxed);
        self.stored = rotation.is_some() && (self.copied || again);
        if let Some(rotation) = rotation {
            grow(&mut self.source, if self.copied { self.rows * rotation.k() } else { 0 });
            grow(&mut self.rotated, if self.stored { self.rows * rotation.width() } else { 0 });
        }
        self.generation
    }

    /// Rotates all rows that are to be kept rotated and are not yet.
    fn rotate_all(&mut self, pool: &Pool, activations: &Activations, stats: &Stats) {
        let all = self.rows;
        if !self.stored || self.ready >= all {
            return;
        }
        let Some(width) = self.rotation.as_ref().map(|rotation| rotation.width()) else { return };
        let plain = Activations { rows: all, picks: None, ..*activations };
        let source = self.source(&plain, &(0..all), 0..width, stats);
        let size = chunk(all, pool.threads()).min(ROWS_AT_ONCE);
        let work = |index: usize| {
            let rows = index * size..all.min((index + 1) * size);
            ROOM.with_borrow_mut(|room| {
                // SAFETY: each index comes once, and so does each row.
                unsafe { source.rows(rows, room) };
            });
        };
        pool.run_if_many(all * width, all.div_ceil(size), work);
    }

    /// The rows that [`Self::take_up`] was given, of which `rows` are to be read now, all of them, each by [`Source::rows`];
    /// these `columns` of what they become at least.
    pub fn source<'a>(
        &'a mut self,
        activations: &Activations<'a>,
        rows: &Range<usize>,
        columns: Range<usize>,
        stats: &Stats,
    ) -> Source<'a> {
        let Some(rotation) = &self.rotation else {
            return Source {
                activations: *activations,
                columns,
                rotation: None,
                ready: 0,
                kept: [None, None],
            };
        };
        let (k, width) = (rotation.k(), rotation.width());
        let whole = 0..width;
        if activations.picks.is_some() {
            let (activations, rotation) = if self.stored && self.ready >= self.rows {
                (Activations { data: &self.rotated, stride: width, ..*activations }, None)
            } else {
                stats.rows_rotated.fetch_add(rows.len() as u64, Relaxed);
                (*activations, Some(rotation))
            };
            return Source { activations, columns: whole, rotation, ready: 0, kept: [None, None] };
        }
        let size = rotation.block();
        let columns = columns.start / size * size..columns.end.next_multiple_of(size).min(width);
        if columns != whole && !self.stored {
            // Only the blocks that are asked for; a row counts with its first.
            let first = columns.start == 0;
            stats.rows_rotated.fetch_add(if first { rows.len() as u64 } else { 0 }, Relaxed);
            let rotation = Some(rotation);
            return Source { activations: *activations, columns, rotation, ready: 0, kept: [None, None] };
        }
        if rows.start < self.ready && !self.stored {
            // The next time they are kept.
            self.used = true;
            if let Some(owner) = &self.owner {
                owner.store(true, Relaxed);
            }
        }
        let ready = if self.stored { self.ready } else { 0 };
        stats.rows_rotated.fetch_add(rows.end.saturating_sub(ready.max(rows.start)) as u64, Relaxed);
        // Rows beyond a gap are not counted: all rows before are to be ready.
        if rows.start <= self.ready {
            self.ready = self.ready.max(rows.end);
        }
        let rotated = self.stored.then(|| Divided::new(&mut self.rotated[..self.rows * width]));
        let source = self.copied.then(|| Divided::new(&mut self.source[..self.rows * k]));
        let kept = [rotated, source];
        Source { activations: *activations, columns: whole, rotation: Some(rotation), ready, kept }
    }

    /// Whether these very rows were taken up last. A NaN is like no other, so that it is never shared.
    fn is_of(&self, pool: &Pool, activations: &Activations) -> bool {
        let Some(k) = self.rotation.as_ref().map(|rotation| rotation.k()) else { return false };
        if self.ready < self.rows {
            return false;
        }
        let rows = chunk(self.rows, pool.threads());
        let (same, chunks) = (AtomicBool::new(true), self.rows.div_ceil(rows));
        let compare = |index: usize| {
            let range = index * rows..self.rows.min((index + 1) * rows);
            let alike = range.clone().all(|row| {
                same.load(Relaxed)
                    && self.source[row * k..][..k] == activations.data[row * activations.stride..][..k]
            });
            if !alike {
                same.store(false, Relaxed);
            }
        };
        pool.run_if_many(self.rows * k, chunks, compare);
        same.into_inner()
    }

    /// Forgets the rows.
    pub fn forget(&mut self) {
        (self.rows, self.ready) = (0, 0);
        (self.copied, self.stored) = (false, false);
        self.generation += LOTS;
    }
}

/// Rows to be packed.
pub struct Source<'a> {
    activations: Activations<'a>,
    /// The columns that are given: all that were asked for, and perhaps others.
    columns: Range<usize>,
    rotation: Option<&'a Arc<Rotation>>,
    /// Rows that are kept rotated already.
    ready: usize,
    /// Where rotated rows, and copies of the rows themselves, are kept; nowhere if nobody will ask.
    kept: [Option<Divided<'a, f32>>; 2],
}

/// A thread's room for rows that are being rotated.
#[derive(Default)]
pub struct RowRoom {
    rows: Vec<f32>,
    scratch: Vec<f32>,
}

impl Source<'_> {
    /// Passes over its elements that packing a row takes, about.
    pub fn passes(&self) -> usize {
        if self.rotation.is_some() {
            8
        } else {
            1
        }
    }

    /// The first of the columns that [`Self::rows`] gives.
    pub fn first_column(&self) -> usize {
        self.columns.start
    }

    /// The columns of the rows `range`, rotated if they are to be, and the elements from one row to the next.
    ///
    /// # Safety
    /// No two threads ask for the same row.
    pub unsafe fn rows<'b>(&'b self, range: Range<usize>, room: &'b mut RowRoom) -> (&'b [f32], usize) {
        let (columns, len) = (self.columns.clone(), self.columns.len());
        let Activations { data, stride, picks, .. } = self.activations;
        let Some(rotation) = self.rotation else {
            let Some(picks) = picks else { return (&data[range.start * stride + columns.start..], stride) };
            grow(&mut room.rows, range.len() * len);
            for (row, from) in room.rows.chunks_mut(len.max(1)).zip(picks.from(range)) {
                row.copy_from_slice(&data[*from as usize * stride + columns.start..][..len]);
            }
            return (&room.rows, len);
        };
        let k = rotation.k();
        let own = columns.start..columns.end.min(k);
        let [rotated, copies] = &self.kept;
        let out = match rotated {
            // SAFETY: other threads have other rows. What is kept has all columns.
            Some(rotated) => unsafe { rotated.part(range.start * len..range.end * len) },
            None => {
                grow(&mut room.rows, range.len() * len);
                &mut room.rows[..range.len() * len]
            }
        };
        grow(&mut room.scratch, rotation.block());
        for row in range.start.max(self.ready)..range.end {
            let from = picks.map_or(row, |picks| picks.from(row..row + 1)[0] as usize);
            let plain = &data[from * stride..][..k];
            let place = &mut out[(row - range.start) * len..][..len];
            rotation.apply_part(&plain[own.clone()], columns.clone(), place, &mut room.scratch);
            if let Some(copies) = copies {
                // SAFETY: other threads have other rows.
                unsafe { copies.part(row * k..(row + 1) * k) }.copy_from_slice(plain);
            }
        }
        (out, len)
    }
}

/// At least `len` elements.
pub(super) fn grow(room: &mut Vec<f32>, len: usize) {
    if room.len() < len {
        room.resize(len, 0.0);
    }
}

/// Rows of a chunk when `threads` share `rows` rows: some more than one chunk each, since threads are not alike.
pub fn chunk(rows: usize, threads: usize) -> usize {
    rows.div_ceil(threads.max(1) * 2).max(1)
}
