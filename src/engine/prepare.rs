//! The rows at work, rotated, once for all weights that share them.
//!
//! Q, K and V, or gate and up, are products with the same rows, one after the other, perhaps with other work between.
//! Within a group of products the host's graph says so. Beyond it nothing does, and the same memory may hold other rows
//! the next time, so that the rows themselves are compared with a copy: two reads instead of some twenty passes.
//!
//! Rows are rotated as they are needed, so that the NPU can begin with the first of them.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Arc;

use super::Activations;
use crate::kernels::rotate::Rotation;
use crate::observe::Stats;
use crate::pool::Pool;

/// Below this many elements, waking the other threads costs more than they save.
pub const PARALLEL_MIN: usize = 32 * 1024;

thread_local! {
    /// A thread's room for a row that is being rotated.
    static ROOM: RefCell<Vec<f32>> = RefCell::default();
}

/// Rows that were rotated last.
#[derive(Default)]
pub struct Prepared {
    rotation: Option<Arc<Rotation>>,
    rows: usize,
    /// Rows that are rotated already.
    ready: usize,
    /// The rows as they came, one after the other.
    source: Vec<f32>,
    /// The rows rotated, one after the other.
    rotated: Vec<f32>,
    /// Changes whenever other rows come.
    generation: u64,
}

impl Prepared {
    /// Takes up rows for a weight that is rotated by `rotation`, or not; gives a number that stands for them, the same
    /// for the same rows. `same`: they are the very rows of the last time, as the caller knows.
    pub fn begin(
        &mut self,
        pool: &Pool,
        rotation: Option<&Arc<Rotation>>,
        activations: &Activations,
        same: bool,
        stats: &Stats,
    ) -> u64 {
        let alike = self.rows == activations.rows
            && match (rotation, &self.rotation) {
                (Some(rotation), Some(last)) => Arc::ptr_eq(rotation, last),
                (None, None) => true,
                _ => false,
            };
        let known = alike && (same || rotation.is_some() && self.is_of(pool, activations));
        if known {
            if rotation.is_some() {
                stats.rows_shared.fetch_add(activations.rows as u64, Relaxed);
            }
            return self.generation;
        }
        self.generation += 1;
        (self.rotation, self.rows, self.ready) = (rotation.cloned(), activations.rows, 0);
        if let Some(rotation) = rotation {
            let (k, rows) = (rotation.k(), activations.rows);
            if self.source.len() < rows * k {
                self.source.resize(rows * k, 0.0);
            }
            if self.rotated.len() < rows * rotation.width() {
                self.rotated.resize(rows * rotation.width(), 0.0);
            }
        }
        self.generation
    }

    /// The rows up to `end`, rotated if they are to be: those that [`Self::begin`] was given.
    pub fn rows<'a>(
        &'a mut self,
        pool: &Pool,
        activations: &Activations<'a>,
        end: usize,
        stats: &Stats,
    ) -> Activations<'a> {
        let Some(rotation) = &self.rotation else { return *activations };
        let (k, width) = (rotation.k(), rotation.width());
        if self.ready < end {
            let (first, count) = (self.ready, end - self.ready);
            let rotated = &mut self.rotated[first * width..end * width];
            let copies = &mut self.source[first * k..end * k];
            // A rotation is worth some ten passes over its row.
            let rows = if 8 * count * width >= PARALLEL_MIN { chunk(count, pool.threads()) } else { count };
            pool.zip_chunks(rotated, rows * width, copies, rows * k, |index, rotated, copies| {
                ROOM.with_borrow_mut(|room| {
                    room.resize(width, 0.0);
                    let pairs = rotated.chunks_exact_mut(width).zip(copies.chunks_exact_mut(k));
                    for (row, (rotated, copy)) in pairs.enumerate() {
                        let start = (first + index * rows + row) * activations.stride;
                        let row = &activations.data[start..start + k];
                        rotation.apply(row, rotated, room);
                        copy.copy_from_slice(row);
                    }
                });
            });
            self.ready = end;
            stats.rows_rotated.fetch_add(count as u64, Relaxed);
        }
        Activations { data: &self.rotated[..self.rows * width], stride: width, rows: self.rows }
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
        if self.rows * k >= PARALLEL_MIN {
            pool.run(chunks, compare);
        } else {
            (0..chunks).for_each(compare);
        }
        same.into_inner()
    }

    /// Forgets the rows.
    pub fn forget(&mut self) {
        (self.rows, self.ready) = (0, 0);
        self.generation += 1;
    }
}

/// Rows of a chunk when `threads` share `rows` rows: some more than one chunk each, since threads are not alike.
pub fn chunk(rows: usize, threads: usize) -> usize {
    rows.div_ceil(threads.max(1) * 2).max(1)
}
