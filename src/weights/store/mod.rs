//! Converted weights on disk, so that the second start of a model does not convert it again.
//!
//! What lives here: [`Fingerprint`] (what a conversion is known by), [`Store`] (the folder: load, save, its
//! bounds), [`Entry`] (one file, verified as it is read), [`CacheChoice`] (`RKNPU_CACHE`). What may not: how a
//! weight is converted, and memories of the NPU.
//!
//! An entry is a file of its own, `<fingerprint in hex>.rknpu-weight`. It appears by a rename and is never
//! written to again, so that a reader, of whatever process, sees all of it or nothing. One that is not exactly
//! what was saved is removed and the weight converted anew.
//!
//! # The file
//!
//! Numbers are little-endian; scales and parts are as in memory. Big-endian machines are out of scope: no chip
//! that has such an NPU is one, and a folder must not be carried to one.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | `RKNPUWGT` |
//! | 8 | 4 | version of this table, [`VERSION`] |
//! | 12 | 4 | P, the number of parts |
//! | 16 | 16 | the fingerprint, as in the file's name |
//! | 32 | 8 | S, the number of scales |
//! | 40 | 8 | M, the bytes of the metadata |
//! | 48 | 16 | checksum of the scales |
//! | 64 | 16 | checksum of the metadata |
//! | 80 | 24 · P | each part's bytes (8) and checksum (16) |
//! | 80 + 24 · P | 16 | checksum of all bytes above |
//! | … | 4 · S | the scales, f32 |
//! | … | by the table | the parts, one after the other |
//! | … | M | the metadata, UTF-8, which means nothing to the store |
//!
//! There is no padding and nothing after the metadata: every byte is covered by a checksum, and the file's length
//! by the numbers. A checksum is XXH3 (128 bits) of the XXH3s of leaves of 256 KiB, so that one part is verified
//! by all threads. They find what disks, and programs that stop half-way, do; they are no defence against
//! somebody who may write to the folder, which is why it is made for its owner only.

mod choice;
mod digest;
mod entry;
mod fingerprint;
mod folder;
mod format;
mod space;
#[cfg(test)]
mod tests;

pub use choice::CacheChoice;
pub use entry::{Damaged, Entry};
pub use fingerprint::{Fingerprint, CONVERSION};
pub use folder::{Error, Store};
pub use format::VERSION;

/// A converted weight, about to be saved.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a> {
    /// One scale an output channel.
    pub scales: &'a [f32],
    /// A few words on the conversion, such as its error; handed back as it is.
    pub metadata: &'a str,
    /// The bytes of each part, in the order of the plan.
    pub parts: &'a [&'a [u8]],
}

/// How much of what an entry must hold to be of use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape<'a> {
    /// The number of scales.
    pub scales: usize,
    /// The bytes of each part.
    pub parts: &'a [usize],
}
