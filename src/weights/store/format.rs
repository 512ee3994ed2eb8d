//! The header of an entry: written from a weight, and read from a file that may hold anything.
//!
//! The table in the folder's `mod.rs` is the law.

use std::io::{self, Write};

use super::digest::Digest;
use super::entry::Damaged;
use super::{Contents, Fingerprint, Shape};

/// The version of the file's format. Raised when the table changes; files of other versions are rebuilt.
pub const VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"RKNPUWGT";
/// Bytes before the table of parts.
const FIXED: usize = 80;
/// Bytes of a part's line in the table.
const LINE: usize = 8 + Digest::BYTES;

/// What the header of an entry says, apart from what was expected of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub scales: Digest,
    pub metadata: Digest,
    pub metadata_bytes: usize,
    pub parts: Vec<Digest>,
}

/// Bytes of a header with `parts` parts; this is also where the scales begin.
pub(super) fn header_bytes(parts: usize) -> usize {
    FIXED + parts * LINE + Digest::BYTES
}

impl Contents<'_> {
    /// Bytes of the whole file.
    pub(super) fn file_bytes(&self) -> u64 {
        let parts: u64 = self.parts.iter().map(|part| part.len() as u64).sum();
        let others = header_bytes(self.parts.len()) + size_of_val(self.scales) + self.metadata.len();
        others as u64 + parts
    }

    /// Writes the whole file, straight from the slices.
    ///
    /// # Errors
    /// Those of `out`.
    pub(super) fn write(&self, fingerprint: Fingerprint, out: &mut impl Write) -> io::Result<()> {
        let scales: &[u8] = bytemuck::cast_slice(self.scales);
        let mut header = Vec::with_capacity(header_bytes(self.parts.len()));
        header.extend(MAGIC);
        header.extend(VERSION.to_le_bytes());
        header.extend((self.parts.len() as u32).to_le_bytes());
        header.extend(fingerprint.to_bytes());
        header.extend((self.scales.len() as u64).to_le_bytes());
        header.extend((self.metadata.len() as u64).to_le_bytes());
        header.extend(Digest::of_many(scales).to_bytes());
        header.extend(Digest::of_many(self.metadata.as_bytes()).to_bytes());
        for part in self.parts {
            header.extend((part.len() as u64).to_le_bytes());
            header.extend(Digest::of_many(part).to_bytes());
        }
        header.extend(Digest::of(&header).to_bytes());
        out.write_all(&header)?;
        out.write_all(scales)?;
        self.parts.iter().try_for_each(|part| out.write_all(part))?;
        out.write_all(self.metadata.as_bytes())
    }
}

impl Header {
    /// Reads the header of a file of `bytes` bytes through `read`, which fills a buffer from an offset.
    ///
    /// Nothing of the file is believed before its checksum held, and no more room taken than `expected` asks for.
    ///
    /// # Errors
    /// The first thing that is not as expected.
    pub fn read(
        bytes: u64,
        fingerprint: Fingerprint,
        expected: &Shape,
        read: impl Fn(u64, &mut [u8]) -> Result<(), Damaged>,
    ) -> Result<Self, Damaged> {
        let least = header_bytes(expected.parts.len());
        let mut header = vec![0; least];
        // A file of another version may be shorter and still say so.
        let first = least.min(usize::try_from(bytes).unwrap_or(usize::MAX));
        read(0, &mut header[..first])?;
        if header[..8] != MAGIC[..] {
            return Err(Damaged::NotOurs);
        }
        if first < 16 {
            return Err(Damaged::Length { found: bytes, expected: least as u64 });
        }
        let (version, parts) = (u32_at(&header, 8), u32_at(&header, 12));
        if version != VERSION {
            return Err(Damaged::Version { found: version });
        }
        if first < least {
            return Err(Damaged::Length { found: bytes, expected: least as u64 });
        }
        if parts as usize != expected.parts.len() {
            return Err(Damaged::Shape);
        }
        let (covered, sum) = header.split_at(least - Digest::BYTES);
        if Digest::of(covered) != digest_at(sum, 0) {
            return Err(Damaged::Checksum { what: "header".to_owned() });
        }
        if covered[16..32] != fingerprint.to_bytes() {
            return Err(Damaged::Fingerprint);
        }
        let lines: Vec<&[u8]> = covered[FIXED..].chunks_exact(LINE).collect();
        let lengths = lines.iter().map(|line| u64_at(line, 0));
        if u64_at(covered, 32) != expected.scales as u64
            || lengths.clone().ne(expected.parts.iter().map(|bytes| *bytes as u64))
        {
            return Err(Damaged::Shape);
        }
        let metadata_bytes = u64_at(covered, 40);
        // The checksum held, so that nothing overflows but what we were given; even then a length is just wrong.
        let total = lengths
            .fold(least as u64, u64::saturating_add)
            .saturating_add((expected.scales as u64).saturating_mul(4))
            .saturating_add(metadata_bytes);
        if bytes != total {
            return Err(Damaged::Length { found: bytes, expected: total });
        }
        Ok(Self {
            scales: digest_at(covered, 48),
            metadata: digest_at(covered, 64),
            metadata_bytes: usize::try_from(metadata_bytes).map_err(|_| Damaged::Shape)?,
            parts: lines.iter().map(|line| digest_at(line, 8)).collect(),
        })
    }
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn digest_at(bytes: &[u8], at: usize) -> Digest {
    Digest::from_bytes(array_at(bytes, at))
}
