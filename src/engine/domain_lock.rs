//! I/O domains other than 0 are for one process at a time: kernels have crashed when several used them at once (source:
//! `docs/facts.md`). A lock on a file keeps our processes apart; the system lets go of it when a process ends.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// The right to use domains other than 0, as long as it is held.
pub struct DomainLock {
    _file: File,
}

impl DomainLock {
    /// Takes the lock of this machine; `None` when another process has it.
    ///
    /// # Errors
    /// The file and why it cannot be locked.
    pub fn take() -> Result<Option<Self>, String> {
        Self::at(&file()).map_err(|error| format!("{}: {error}", file().display()))
    }

    fn at(path: &Path) -> io::Result<Option<Self>> {
        // Never truncated and never written: another user's file does as well, if it may be opened.
        let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = open().or_else(|_| File::open(path))?;
        // SAFETY: a plain call on a descriptor that is open.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(Some(Self { _file: file }));
        }
        match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        }
    }
}

/// The same file for all users: the one of the machine's locks, or in the folder for temporary files.
fn file() -> PathBuf {
    let locks = Path::new("/run/lock");
    let folder = if locks.is_dir() { locks.to_owned() } else { std::env::temp_dir() };
    folder.join("ggml-rknpu-domains.lock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_has_it_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = DomainLock::at(&path).unwrap().expect("nobody else has it");
        assert!(DomainLock::at(&path).unwrap().is_none());
        drop(first);
        assert!(DomainLock::at(&path).unwrap().is_some());
        assert!(DomainLock::at(&dir.path().join("missing").join("lock")).is_err());
    }
}
