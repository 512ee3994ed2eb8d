//! How much room a file system has, and how much of it the store may take.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

pub(super) const GIB: u64 = 1 << 30;

/// Bytes of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Space {
    /// All of it.
    pub total: u64,
    /// What we may still write.
    pub free: u64,
}

impl Space {
    /// Asks the file system that holds `path`, which must exist.
    pub fn of(path: &Path) -> io::Result<Self> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut stat = MaybeUninit::<libc::statvfs>::zeroed();
        // SAFETY: the path ends with a NUL, and the call fills the struct that it is given.
        if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: filled by the call; all zeros would do, too.
        let stat = unsafe { stat.assume_init() };
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok(Self { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
    }

    /// Whether there is so much room that nobody will miss what the store takes: 20 % and 16 GiB are free.
    pub fn is_ample(self) -> bool {
        self.free >= (self.total / 5).max(16 * GIB)
    }

    /// The most bytes that the store may have in all, when it has `used` by now.
    ///
    /// Half of what is free without it, so that the store does not fill a disk that others fill as well; and never
    /// so much that less than its reserve stays free: 10 % of the file system, but 2 GiB at least, and 8 GiB at most,
    /// which is room enough for others on a disk of any size.
    pub fn budget(self, used: u64) -> u64 {
        let room = self.free.saturating_add(used);
        let reserve = (self.total / 10).clamp(2 * GIB, 8 * GIB);
        (room / 2).min(room.saturating_sub(reserve))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_is_asked() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::of(dir.path()).unwrap();
        assert!(space.free <= space.total && space.total > 0, "{space:?}");
        assert_eq!(Space::of(&dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(Space::of(Path::new("a\0b")).is_err());
    }

    #[test]
    fn the_budget_leaves_room() {
        let space = |total: u64, free: u64| Space { total: total * GIB, free: free * GIB };
        // Plenty: half, which stays the same as the store grows.
        assert_eq!(space(100, 60).budget(0), 30 * GIB);
        assert_eq!(space(100, 40).budget(20 * GIB), 30 * GIB);
        // Scarce: 10 % stay free, 2 GiB on a small disk, 8 GiB on a large one.
        assert_eq!(space(50, 6).budget(0), GIB);
        assert_eq!(space(8, 3).budget(0), GIB);
        assert_eq!(space(50, 5).budget(0), 0);
        assert_eq!(space(1000, 60).budget(0), 30 * GIB);
        assert_eq!(space(1000, 10).budget(0), 2 * GIB);
        assert_eq!(space(1000, 8).budget(0), 0);
        assert_eq!(Space { total: u64::MAX, free: u64::MAX }.budget(u64::MAX), u64::MAX / 2);
    }

    #[test]
    fn ample_is_both_a_share_and_a_size() {
        let ample = |total: u64, free: u64| Space { total: total * GIB, free: free * GIB }.is_ample();
        assert!(ample(64, 16) && ample(500, 100));
        assert!(!ample(30, 15) && !ample(500, 99) && !ample(0, 0));
    }
}
