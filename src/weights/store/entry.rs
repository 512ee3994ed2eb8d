//! A file of the store: mapped, and verified as it is read.
//!
//! Nothing is handed out by reference to the mapping. A mapped file can be truncated by somebody else, and a disk
//! can fail to read a sector; touching such a page ends the process (SIGBUS), where reading it would give an error.
//! So each leaf is first asked of the kernel, which says whether it is there, and only then copied; where the
//! kernel does not know how to (before 5.14) or says no, the leaf is read from the file, which works or gives the
//! error. What remains is a file that is truncated within the microseconds of a copy: we never do that, and
//! nobody else may write to the folder. What is verified is the copy, so that it cannot change afterwards.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use memmap2::{Advice, Mmap};
use rayon::prelude::*;

use super::digest::{Digest, LEAF};
use super::format::{header_bytes, Header};
use super::{Fingerprint, Shape};
use crate::log;

/// Why an entry is not used.
#[derive(Debug, thiserror::Error)]
pub enum Damaged {
    /// A folder, a device, a link.
    #[error("it is no plain file")]
    NotAFile,
    /// The system's word.
    #[error("it cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It does not begin as one.
    #[error("it is no converted weight")]
    NotOurs,
    /// Of an older or newer plugin.
    #[error("its format is version {found}, expected {}", super::VERSION)]
    Version {
        /// The file's.
        found: u32,
    },
    /// Another weight's file under this name.
    #[error("it is of another weight than its name says")]
    Fingerprint,
    /// Whole, but not what the plan asks for.
    #[error("its parts or scales are not as many, or as long, as the plan's")]
    Shape,
    /// Cut off, or with something behind it.
    #[error("it has {found} bytes, expected {expected}")]
    Length {
        /// The file's bytes.
        found: u64,
        /// The bytes by its header, or at least.
        expected: u64,
    },
    /// Bytes have changed.
    #[error("the checksum of its {what} is wrong")]
    Checksum {
        /// Header, scales, metadata or which part.
        what: String,
    },
}

impl Damaged {
    /// Whether the file itself is to blame: it may go. A process out of descriptors or memory can say nothing of it.
    fn is_the_files_fault(&self) -> bool {
        let Self::Unreadable(error) = self else { return true };
        let passing = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EINTR, libc::EAGAIN];
        !error.raw_os_error().is_some_and(|code| passing.contains(&code))
    }
}

/// A converted weight on disk, whose header, scales and metadata were verified, and whose parts are when copied.
pub struct Entry {
    path: PathBuf,
    reader: Reader,
    scales: Vec<f32>,
    metadata: String,
    parts: Vec<StoredPart>,
}

/// Where a part lies in the file.
struct StoredPart {
    at: u64,
    bytes: usize,
    digest: Digest,
}

impl Entry {
    /// Opens the entry at `path`; `None` when there is none.
    ///
    /// # Errors
    /// What is wrong with it; [`discard`] is the answer.
    pub(super) fn open(
        path: &Path,
        fingerprint: Fingerprint,
        expected: &Shape,
    ) -> Result<Option<Self>, Damaged> {
        let Some(reader) = Reader::open(path)? else { return Ok(None) };
        let read = |at: u64, out: &mut [u8]| Ok(reader.read(at, out)?);
        let header = Header::read(reader.bytes, fingerprint, expected, read)?;
        // From here on the file is as long as the header, which is whole, says.
        let mut at = header_bytes(expected.parts.len()) as u64;
        let mut scales = vec![0f32; expected.scales];
        reader.copy(at, bytemuck::cast_slice_mut(&mut scales), header.scales, || "scales".to_owned())?;
        at += size_of_val(&scales[..]) as u64;
        let mut parts = Vec::with_capacity(expected.parts.len());
        for (bytes, digest) in expected.parts.iter().zip(header.parts) {
            parts.push(StoredPart { at, bytes: *bytes, digest });
            at += *bytes as u64;
        }
        let mut metadata = vec![0; header.metadata_bytes];
        reader.copy(at, &mut metadata, header.metadata, || "metadata".to_owned())?;
        let metadata =
            String::from_utf8(metadata).map_err(|_| Damaged::Checksum { what: "metadata".to_owned() })?;
        // The least recently used go first, and this is how it is known. A file system that cannot, cannot.
        let _ = reader.file.set_modified(SystemTime::now());
        Ok(Some(Self { path: path.to_owned(), reader, scales, metadata, parts }))
    }

    /// One scale an output channel, as saved.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// The metadata, as saved.
    pub fn metadata(&self) -> &str {
        &self.metadata
    }

    /// Copies part `index` to `out` and verifies it there, by leaves that are spread over the current rayon pool.
    ///
    /// # Errors
    /// The part is not what was saved: `out` is then unspecified, the file removed, and a line says so.
    ///
    /// # Panics
    /// When there is no such part, or `out` is not as long as it; both are as in the shape that was loaded.
    pub fn copy_part(&self, index: usize, out: &mut [u8]) -> Result<(), Damaged> {
        let part = &self.parts[index];
        assert_eq!(out.len(), part.bytes, "bytes of part {index}");
        let copied = self.reader.copy(part.at, out, part.digest, || format!("part {index}"));
        copied.inspect_err(|damaged| discard(&self.path, damaged))
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Entry").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Removes what is no good under an entry's name, and says so.
pub(super) fn discard(path: &Path, damaged: &Damaged) {
    let path_shown = path.display();
    if !damaged.is_the_files_fault() {
        log!(Warn, "the cached weight {path_shown} is not used: {damaged}; the weight is converted");
        return;
    }
    // Whoever put an empty folder there will not miss it; a full one stays, and saving will say so.
    let removed = std::fs::remove_file(path).or_else(|error| std::fs::remove_dir(path).map_err(|_| error));
    let what = match removed {
        Ok(()) => "it is removed".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "it is gone".to_owned(),
        Err(error) => format!("it cannot be removed ({error}), do so by hand"),
    };
    match damaged {
        // To be expected after an update.
        Damaged::Version { .. } => {
            log!(
                Info,
                "the cached weight {path_shown} is stale: {damaged}; {what} and the weight is converted"
            );
        }
        _ => log!(
            Warn,
            "the cached weight {path_shown} is damaged: {damaged}; {what} and the weight is converted"
        ),
    }
}

/// An open file, by its mapping where that is sound.
struct Reader {
    file: File,
    map: Option<Mmap>,
    bytes: u64,
}

impl Reader {
    /// `None` when there is no file.
    fn open(path: &Path) -> Result<Option<Self>, Damaged> {
        // Never through a link, which may lead anywhere, and never waiting for the other end of a pipe.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => return Err(Damaged::NotAFile),
            Err(error) => return Err(error.into()),
        };
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(Damaged::NotAFile);
        }
        // SAFETY: the mapping is read by `read` alone, which copies bytes out after the kernel said that they are
        // there, and believes them only by their checksum. Files of the store are replaced, never written to.
        let map = unsafe { Mmap::map(&file) }.ok();
        Ok(Some(Self { file, map, bytes: about.len() }))
    }

    /// Fills `out` from the offset `at`.
    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        if let Some(bytes) = self.mapped(at, out.len()) {
            out.copy_from_slice(bytes);
            return Ok(());
        }
        self.file.read_exact_at(out, at)
    }

    /// Those bytes of the mapping, if they can be touched.
    fn mapped(&self, at: u64, bytes: usize) -> Option<&[u8]> {
        let map = self.map.as_ref()?;
        let at = usize::try_from(at).ok()?;
        let slice = map.get(at..at.checked_add(bytes)?)?;
        map.advise_range(Advice::PopulateRead, at, bytes).ok()?;
        Some(slice)
    }

    /// Fills `out` from the offset `at` and compares what arrived with its digest.
    fn copy(
        &self,
        at: u64,
        out: &mut [u8],
        digest: Digest,
        what: impl Fn() -> String,
    ) -> Result<(), Damaged> {
        if let (Some(map), Ok(start)) = (&self.map, usize::try_from(at)) {
            if out.len() > LEAF && start + out.len() <= map.len() {
                // The disk can begin with all of it while the first leaves are copied. Only advice: it may fail.
                let _ = map.advise_range(Advice::WillNeed, start, out.len());
            }
        }
        let leaf = |(index, leaf): (usize, &mut [u8])| -> Result<Digest, Damaged> {
            self.read(at + (index * LEAF) as u64, leaf)?;
            Ok(Digest::of(leaf))
        };
        let leaves: Vec<Digest> = out.par_chunks_mut(LEAF).enumerate().map(leaf).collect::<Result<_, _>>()?;
        if Digest::of_leaves(&leaves) != digest {
            return Err(Damaged::Checksum { what: what() });
        }
        Ok(())
    }
}
