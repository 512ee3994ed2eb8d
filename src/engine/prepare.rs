//! Rows rotated for their weights, once for all that share them.
//!
//! Q, K and V, or gate and up, are products with the same rows, one after the other, perhaps with other work between.
//! Nothing in the host's calls says so, and the same memory may hold other rows the next time, so that the rows
//! themselves are compared with a copy: two reads instead of some twenty passes.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use super::pack::rotate;
use super::Activations;
use crate::kernels::rotate::Rotation;
use crate::observe::Stats;

/// Rows that were rotated last.
#[derive(Default)]
pub struct Prepared {
    rotation: Option<Arc<Rotation>>,
    rows: usize,
    /// The rows as they came, one after the other.
    source: Vec<f32>,
    /// The rows rotated, one after the other.
    rotated: Vec<f32>,
}

impl Prepared {
    /// `activations` (rows × K) rotated: rows × the rotation's width, one after the other.
    pub fn rows(
        &mut self,
        pool: &rayon::ThreadPool,
        rotation: &Arc<Rotation>,
        activations: &Activations,
        stats: &Stats,
    ) -> Activations<'_> {
        let (k, width) = (rotation.k(), rotation.width());
        let rows = activations.rows;
        if self.is_of(rotation, activations) {
            stats.rows_shared.fetch_add(rows as u64, Relaxed);
        } else {
            self.rotation = Some(rotation.clone());
            self.rows = rows;
            self.source.resize(rows * k, 0.0);
            self.rotated.resize(rows * width, 0.0);
            for (row, copy) in self.source.chunks_exact_mut(k).enumerate() {
                copy.copy_from_slice(&activations.data[row * activations.stride..][..k]);
            }
            let source = Activations { data: &self.source, stride: k, rows };
            rotate(pool, rotation, &source, &mut self.rotated);
            stats.rows_rotated.fetch_add(rows as u64, Relaxed);
        }
        Activations { data: &self.rotated[..rows * width], stride: width, rows }
    }

    /// Whether these very rows were rotated last by `rotation`. A NaN is like no other, so that it is never shared.
    fn is_of(&self, rotation: &Arc<Rotation>, activations: &Activations) -> bool {
        let k = rotation.k();
        self.rows == activations.rows
            && self.rotation.as_ref().is_some_and(|last| Arc::ptr_eq(last, rotation))
            && (self.source.chunks_exact(k).take(self.rows).enumerate())
                .all(|(row, copy)| *copy == activations.data[row * activations.stride..][..k])
    }
}
