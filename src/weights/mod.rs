//! A weight's way onto the NPU: dequantise → quantise per output channel → pack into native B, in the parts that
//! the plan cut. The only place that knows source types, by way of the host's own dequantisers.
//!
//! What lives here: [`Source`] (the host's bytes), [`pack`] (the conversion), [`gains_from`] (whether to rotate), [`cache`] (which tensors have a
//! converted copy), [`store`] (converted copies on disk). What may not: host structs, contexts, or when a run happens.

pub mod cache;
mod flatness;
mod pack;
pub mod store;

pub use flatness::gains_from;
pub use pack::{pack, PackError, Part};

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
    /// The bytes of row `n`.
    ///
    /// # Panics
    /// When the row lies outside of `data`, or K is no multiple of the type's block.
    pub fn row(&self, n: usize) -> &[u8] {
        let bytes = self.reader.row_bytes(self.k).expect("K is whole blocks of the type");
        &self.data[n * self.row_stride..][..bytes]
    }
}
