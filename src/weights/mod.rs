//! A weight's way onto the NPU: dequantise → quantise per output channel → pack into native B, in the parts that
//! the plan cut. The only place that knows source types, by way of the host's own dequantisers.
//!
//! What lives here: [`Source`] (the host's bytes), `rows` (one row's conversion), [`pack`] (all rows into B),
//! [`relative_error`] (what a conversion loses), [`cache`] (which tensors have a converted copy), [`store`] (copies kept
//! on disk). What may not: host structs, contexts, or when a run happens.

pub mod cache;
mod error;
mod pack;
mod rows;
pub mod store;

pub use error::relative_error;
pub use pack::{pack, Form, PackError};

use ggml_sys::RowReader;

/// A weight as the host keeps it: N rows (one an output channel) of K elements.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// From the first byte of row 0 to the last byte of the last row.
    pub data: &'a [u8],
    /// How a row is read.
    pub reader: RowReader,
    /// Elements of a row.
    pub k: usize,
    /// Rows.
    pub n: usize,
    /// Bytes from one row to the next.
    pub row_stride: usize,
}

impl Source<'_> {
    /// Bits of an element as the host stores it, scales and all.
    pub fn bits_per_weight(&self) -> f64 {
        self.reader.row_bytes(self.k).map_or(0.0, |bytes| bytes as f64 * 8.0 / self.k as f64)
    }

    /// The bytes of row `n`.
    ///
    /// # Panics
    /// When the row lies outside of `data`, or K is no multiple of the type's block.
    pub fn row(&self, n: usize) -> &[u8] {
        let bytes = self.reader.row_bytes(self.k).expect("K is whole blocks of the type");
        &self.data[n * self.row_stride..][..bytes]
    }
}
