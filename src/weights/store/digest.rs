//! XXH3 over much data at once: the digest of the digests of its leaves, which all threads compute.

use rayon::prelude::*;
use twox_hash::XxHash3_128;

/// Bytes that one thread takes at a time: they stay in its cache between being copied and being hashed.
pub(super) const LEAF: usize = 256 * 1024;

/// 128 bits of XXH3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Digest(u128);

impl Digest {
    /// Bytes of a digest in a file.
    pub const BYTES: usize = 16;

    /// The digest of bytes in one go.
    pub fn of(bytes: &[u8]) -> Self {
        Self(XxHash3_128::oneshot(bytes))
    }

    /// The same digest as that of all `pieces` one after the other.
    pub fn of_pieces<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut hasher = XxHash3_128::new();
        pieces.for_each(|piece| hasher.write(piece));
        Self(hasher.finish_128())
    }

    /// The digest above `leaves`.
    pub fn of_leaves(leaves: &[Self]) -> Self {
        let bytes: Vec<u8> = leaves.iter().flat_map(|leaf| leaf.to_bytes()).collect();
        Self::of(&bytes)
    }

    /// The digest of bytes by leaves of [`LEAF`], spread over the current rayon pool.
    pub fn of_many(bytes: &[u8]) -> Self {
        let leaves: Vec<Self> = bytes.par_chunks(LEAF).map(Self::of).collect();
        Self::of_leaves(&leaves)
    }

    /// As in a file.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0.to_le_bytes()
    }

    /// From a file.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(u128::from_le_bytes(bytes))
    }
}
