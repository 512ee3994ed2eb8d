//! `RKNPU_CACHE`: whether converted weights are kept on disk, and where.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use super::space::{Space, GIB};
use crate::log;

/// What `RKNPU_CACHE` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum CacheChoice {
    /// Not set: in the user's cache folder, where the disk has ample room.
    #[default]
    Auto,
    /// `off` or `0`: nowhere.
    Off,
    /// In this folder, however much room there is.
    At(PathBuf),
}

impl CacheChoice {
    /// Reads the variable's value: unset, empty or `auto`, `off` or `0`, else a folder.
    pub fn parse(value: Option<&OsStr>) -> Self {
        match value {
            None => Self::Auto,
            Some(value) if value.is_empty() || value.eq_ignore_ascii_case("auto") => Self::Auto,
            Some(value) if value == "0" || value.eq_ignore_ascii_case("off") => Self::Off,
            Some(folder) => Self::At(folder.into()),
        }
    }

    /// The folder to open a [`super::Store`] in, if weights are to be kept.
    ///
    /// By [`CacheChoice::Auto`] it is `ggml-rknpu/weights` in `$XDG_CACHE_HOME` or `~/.cache`, unless the NPU is
    /// `emulated` (its runs are short and many) or the file system has less than 20 % or 16 GiB free.
    pub fn folder(&self, emulated: bool) -> Option<PathBuf> {
        self.folder_by(emulated, |name| std::env::var_os(name), Space::of)
    }

    fn folder_by(
        &self,
        emulated: bool,
        get: impl Fn(&str) -> Option<OsString>,
        measure: impl Fn(&Path) -> io::Result<Space>,
    ) -> Option<PathBuf> {
        match self {
            Self::Off => return None,
            Self::At(folder) => return Some(folder.clone()),
            Self::Auto if emulated => return None,
            Self::Auto => {}
        }
        // The base directory specification has relative paths ignored.
        let set = |name| get(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let root = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
        let folder = root.join("ggml-rknpu").join("weights");
        // It need not exist yet: the nearest folder above that does is on the same file system.
        let space = folder.ancestors().find_map(|path| measure(path).ok())?;
        if !space.is_ample() {
            log!(
                Info,
                "converted weights are not kept: {} of {} GiB are free, expected 20 % and 16 GiB; RKNPU_CACHE=DIR keeps them all the same",
                space.free / GIB,
                space.total / GIB
            );
            return None;
        }
        Some(folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> CacheChoice {
        CacheChoice::parse(Some(OsStr::new(value)))
    }

    #[test]
    fn the_variable_is_read() {
        assert_eq!(CacheChoice::parse(None), CacheChoice::Auto);
        assert_eq!([parse(""), parse("auto")], [CacheChoice::Auto, CacheChoice::Auto]);
        assert_eq!([parse("off"), parse("OFF"), parse("0")], [(); 3].map(|()| CacheChoice::Off));
        assert_eq!(parse("/mnt/nvme"), CacheChoice::At("/mnt/nvme".into()));
        assert_eq!(parse("off/0"), CacheChoice::At("off/0".into()));
    }

    /// The folder of `choice` with those variables, on a disk with so many GiB, of which only `/home` exists.
    fn folder(
        choice: &CacheChoice,
        emulated: bool,
        set: &[(&str, &str)],
        total: u64,
        free: u64,
    ) -> Option<PathBuf> {
        let get = |name: &str| set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        choice.folder_by(emulated, get, |path| match path.to_str() {
            Some("/home") => Ok(Space { total: total * GIB, free: free * GIB }),
            _ => Err(io::ErrorKind::NotFound.into()),
        })
    }

    #[test]
    fn auto_wants_a_board_and_room() {
        let home = [("HOME", "/home/me")];
        let expected = Some(PathBuf::from("/home/me/.cache/ggml-rknpu/weights"));
        assert_eq!(folder(&CacheChoice::Auto, false, &home, 64, 16), expected);
        assert_eq!(folder(&CacheChoice::Auto, true, &home, 64, 16), None, "emulated");
        assert_eq!(folder(&CacheChoice::Auto, false, &home, 64, 15), None, "16 GiB");
        assert_eq!(folder(&CacheChoice::Auto, false, &home, 500, 99), None, "20 %");
        assert_eq!(folder(&CacheChoice::Auto, false, &[], 64, 64), None, "no home");
        let both = [("HOME", "/home/me"), ("XDG_CACHE_HOME", "/home/xdg")];
        let expected = Some(PathBuf::from("/home/xdg/ggml-rknpu/weights"));
        assert_eq!(folder(&CacheChoice::Auto, false, &both, 64, 64), expected);
        let empty = [("HOME", "/home/me"), ("XDG_CACHE_HOME", "")];
        assert!(folder(&CacheChoice::Auto, false, &empty, 64, 64).unwrap().starts_with("/home/me/.cache"));
        assert_eq!(
            folder(&CacheChoice::Auto, false, &[("HOME", "/elsewhere")], 64, 64),
            None,
            "not measured"
        );
    }

    #[test]
    fn a_named_folder_is_taken_and_off_is_off() {
        let named = CacheChoice::At("/mnt/nvme".into());
        assert_eq!(folder(&named, true, &[], 0, 0), Some("/mnt/nvme".into()));
        assert_eq!(folder(&CacheChoice::Off, false, &[("HOME", "/home/me")], 64, 64), None);
    }
}
