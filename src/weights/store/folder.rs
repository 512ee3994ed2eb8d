//! The folder of converted weights: what is found in it, how a new one gets there, and how it stays small.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::entry::discard;
use super::space::Space;
use super::{Contents, Entry, Fingerprint, Shape};
use crate::log;

/// What a file that is whole is called.
const ENTRY: &str = "rknpu-weight";
/// What a file is called while it is written.
const PARTIAL: &str = "rknpu-partial";
/// A partial file older than this belongs to a process that is dead: no weight takes so long to write.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// Why weights are not kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder cannot be made or written to.
    #[error("converted weights cannot be kept in {}: {source}; expected a folder to write to, RKNPU_CACHE=DIR names another one, RKNPU_CACHE=off none", folder.display())]
    Folder {
        /// The store's folder.
        folder: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The bound on the folder's growth is met, with nothing to remove but what this process uses.
    #[error("no more converted weights are kept in {}: {wanted} bytes are wanted, {left} are left of its share of the disk; RKNPU_CACHE=DIR names another folder", folder.display())]
    Full {
        /// The store's folder.
        folder: PathBuf,
        /// Bytes of the file to be saved.
        wanted: u64,
        /// Bytes that could be had by removing others.
        left: u64,
    },
    /// Writing failed; what was written is removed.
    #[error("no more converted weights are kept: {} cannot be written: {source}", path.display())]
    Write {
        /// The entry's path.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

/// A folder of converted weights, which several threads and processes may share.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    measure: fn(&Path) -> io::Result<Space>,
    /// What this process has loaded or saved. It is not removed for the sake of new ones: a model that is larger
    /// than the store would otherwise push itself out, be converted at each start, and wear the disk.
    ours: Mutex<HashSet<Fingerprint>>,
    stopped: AtomicBool,
}

/// A file of the folder that is whole by its name.
struct Found {
    fingerprint: Fingerprint,
    path: PathBuf,
    bytes: u64,
    used: SystemTime,
}

impl Store {
    /// Opens `folder`, which is made if need be, for its owner only, and removes what dead processes left in it.
    ///
    /// # Errors
    /// [`Error::Folder`], also when it cannot be written to.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        Self::open_measured(folder, Space::of)
    }

    /// The same, with a disk as large as `measure` says.
    pub(super) fn open_measured(
        folder: &Path,
        measure: fn(&Path) -> io::Result<Space>,
    ) -> Result<Self, Error> {
        let store = Self {
            folder: folder.to_owned(),
            measure,
            ours: Mutex::default(),
            stopped: AtomicBool::new(false),
        };
        let failed = |source| Error::Folder { folder: folder.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        // The one sure way to learn whether it can be written to; also tells whether it can be listed.
        let (partial, _) = store.partial("probe").map_err(failed)?;
        fs::remove_file(partial).map_err(failed)?;
        store.remove_stale().map_err(failed)?;
        Ok(store)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether [`Store::save`] still saves: until it fails.
    pub fn saves(&self) -> bool {
        !self.stopped.load(Relaxed)
    }

    /// The entry of `fingerprint`, verified but for its parts, which are when they are copied.
    ///
    /// `None` when there is none, or none that is exactly what was saved and as long as `expected`; such a file is
    /// removed, and a line says so.
    pub fn load(&self, fingerprint: Fingerprint, expected: &Shape) -> Option<Entry> {
        let path = self.path(fingerprint);
        match Entry::open(&path, fingerprint, expected) {
            Ok(entry) => {
                let entry = entry?;
                self.ours.lock().insert(fingerprint);
                Some(entry)
            }
            Err(damaged) => {
                discard(&path, &damaged);
                None
            }
        }
    }

    /// Saves a converted weight, of which nothing is seen before all of it is on disk.
    ///
    /// Before that the least recently used entries of others are removed, if the folder would have more than half of
    /// what is free without it, or less would stay free of the disk than 10 %, 2 GiB at least and 8 GiB at most.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Write`] or, when the disk cannot be asked, [`Error::Folder`]: said once. From then on
    /// nothing is saved any more, which is no error.
    pub fn save(&self, fingerprint: Fingerprint, contents: &Contents) -> Result<(), Error> {
        self.save_by(fingerprint, contents.file_bytes(), |file| contents.write(fingerprint, file))
    }

    /// The same, with the `bytes` bytes of the file written by `write`.
    pub(super) fn save_by(
        &self,
        fingerprint: Fingerprint,
        bytes: u64,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> Result<(), Error> {
        if !self.saves() {
            return Ok(());
        }
        let path = self.path(fingerprint);
        let saved = self.make_room(bytes).and_then(|()| {
            self.place(&path, &fingerprint.to_string(), write).map_err(|source| Error::Write { path, source })
        });
        match saved {
            Ok(()) => {
                self.ours.lock().insert(fingerprint);
                Ok(())
            }
            // Another thread may have failed meanwhile, and said so.
            Err(_) if self.stopped.swap(true, Relaxed) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Where the entry of `fingerprint` is, or would be.
    pub(super) fn path(&self, fingerprint: Fingerprint) -> PathBuf {
        self.folder.join(format!("{fingerprint}.{ENTRY}"))
    }

    /// A new file of a name that nobody else uses.
    fn partial(&self, stem: &str) -> io::Result<(PathBuf, File)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Relaxed);
            let path = self.folder.join(format!("{stem}.{}-{count}.{PARTIAL}", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                // Left by a dead process of our id, or by a living one in another container.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                opened => return Ok((path, opened?)),
            }
        }
    }

    fn place(
        &self,
        path: &Path,
        stem: &str,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<()> {
        let (partial, mut file) = self.partial(stem)?;
        let placed =
            write(&mut file).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&partial, path));
        if placed.is_err() {
            // It is to no use, and there is nothing to do about one that stays but wait for `STALE`.
            let _ = fs::remove_file(&partial);
            return placed;
        }
        // So that the name survives a power cut, too. If it does not, the weight is converted again.
        let _ = File::open(&self.folder).and_then(|folder| folder.sync_all());
        Ok(())
    }

    /// Makes sure that `wanted` bytes more are within the store's budget.
    fn make_room(&self, wanted: u64) -> Result<(), Error> {
        let failed = |source| Error::Folder { folder: self.folder.clone(), source };
        let space = (self.measure)(&self.folder).map_err(failed)?;
        let mut found = self.entries().map_err(failed)?;
        let mut used: u64 = found.iter().map(|entry| entry.bytes).sum();
        let budget = space.budget(used);
        if used.saturating_add(wanted) <= budget {
            return Ok(());
        }
        {
            let ours = self.ours.lock();
            found.retain(|entry| !ours.contains(&entry.fingerprint));
        }
        let removable: u64 = found.iter().map(|entry| entry.bytes).sum();
        let left = budget.saturating_sub(used - removable);
        if wanted > left {
            // Removing would cost others their entries and not help us.
            return Err(Error::Full { folder: self.folder.clone(), wanted, left });
        }
        found.sort_by_key(|entry| entry.used);
        for entry in found {
            if used.saturating_add(wanted) <= budget {
                break;
            }
            // Another process may have been here first.
            match fs::remove_file(&entry.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => used -= entry.bytes,
            }
            log!(Debug, "{} is removed to make room", entry.path.display());
        }
        Ok(())
    }

    /// The entries of the folder, unread.
    fn entries(&self) -> io::Result<Vec<Found>> {
        let mut found = Vec::new();
        self.each_file(ENTRY, |path, about| {
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            if let Some(fingerprint) = stem.and_then(Fingerprint::from_hex) {
                let used = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                found.push(Found { fingerprint, path, bytes: about.len(), used });
            }
        })?;
        Ok(found)
    }

    fn remove_stale(&self) -> io::Result<()> {
        self.each_file(PARTIAL, |path, about| {
            let age = about.modified().ok().and_then(|modified| modified.elapsed().ok());
            if age.is_some_and(|age| age > STALE) {
                log!(Debug, "{} was left by another process and is removed", path.display());
                let _ = fs::remove_file(path);
            }
        })
    }

    /// Calls `each` with the plain files of that extension; what is no concern of ours is passed over.
    fn each_file(&self, extension: &str, mut each: impl FnMut(PathBuf, fs::Metadata)) -> io::Result<()> {
        for item in fs::read_dir(&self.folder)? {
            let item = item?;
            let path = item.path();
            if path.extension().is_none_or(|found| found != extension) {
                continue;
            }
            // Removed by another process since it was listed, perhaps.
            match item.metadata() {
                Ok(about) if about.is_file() => each(path, about),
                _ => {}
            }
        }
        Ok(())
    }
}
