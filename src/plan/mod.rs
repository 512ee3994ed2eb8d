//! From a matmul's shape to what the NPU runs: padding, K segments, N slices over the cores, tiles of rows.
//!
//! Pure arithmetic, testable with no device. Nothing here may know the host, the vendor's library's calls or
//! where bytes lie; it depends on [`crate::chip`] only.

mod rows;
mod weight;

pub use rows::{tiles, Tile, ROWS_MAX};
pub use weight::{Segment, Slice, WeightPlan};
