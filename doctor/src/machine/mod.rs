//! What the system's own files say, without the NPU's library: chip, driver, nodes, limits, clocks.
//!
//! Everything is read below a [`Root`], so that tests bring boards of their own. Nothing here writes.

mod clocks;
mod driver;
mod resources;
pub mod soc;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::report::{Section, State};

/// The folder that stands for `/`.
pub struct Root(PathBuf);

impl Root {
    /// The folder at `path`.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Whether it is the machine's own.
    pub fn is_real(&self) -> bool {
        self.0 == Path::new("/")
    }

    /// The path of a file named from `/`, without its first slash.
    pub fn join(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    /// A file's text without the white space around it.
    pub fn read(&self, path: &str) -> io::Result<String> {
        let bytes = fs::read(self.join(path))?;
        Ok(String::from_utf8_lossy(&bytes).trim_matches(['\0', '\n', ' ', '\t']).to_owned())
    }

    /// A file's text as a number.
    pub fn number(&self, path: &str) -> Option<u64> {
        self.read(path).ok()?.parse().ok()
    }

    /// The names in a folder, sorted; none when there is no such folder.
    pub fn names(&self, folder: &str) -> Vec<String> {
        let entries = fs::read_dir(self.join(folder)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// Whether a chip that we know has a driver that the library can talk to.
pub fn has_npu(root: &Root) -> bool {
    soc::chip(root).is_some() && driver::has_nodes(root)
}

/// Whether the NPU belongs to the mainline kernel's driver.
pub fn is_mainline(root: &Root) -> bool {
    driver::rocket(root).is_some() && !driver::has_nodes(root)
}

/// Everything about the machine. With the emulator nothing of it is wrong, since it needs none of it.
pub fn sections(root: &Root, emulated: bool) -> Vec<Section> {
    let mut sections = vec![
        Section { title: "Machine", items: soc::items(root) },
        Section { title: "Driver", items: driver::items(root) },
        Section { title: "Resources", items: resources::items(root) },
        Section { title: "Clocks", items: clocks::items(root) },
    ];
    if emulated {
        for item in sections.iter_mut().flat_map(|section| &mut section.items) {
            if item.state == State::Wrong {
                item.state = State::Unknown;
                item.found += " (not needed by the emulator)";
            }
            if item.state == State::Unknown {
                item.advice = None;
            }
        }
    }
    sections
}
