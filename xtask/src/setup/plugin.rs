//! The plugin and the emulator, built by cargo in this workspace.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::cargo;
use crate::error::{IoContext, Result};

/// The evaluation text, from the workspace, where somebody has put it.
pub const TEXT: &str = "../shared/data/wiki.test.raw";

/// The two files that a host is given.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// `libggml-rknpu.so`.
    pub library: PathBuf,
    /// `libnpu_emulator.so`.
    pub emulator: PathBuf,
}

/// The root of the checkout.
pub fn workspace() -> PathBuf {
    let built_in = Path::new(env!("CARGO_MANIFEST_DIR"));
    // cargo sets it when it runs this, which serves a checkout that was moved after it was built.
    let started_in = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    let starts = started_in.as_deref().into_iter().chain([built_in]);
    let root = starts.flat_map(Path::ancestors).find(|dir| dir.join("Cargo.lock").exists());
    root.unwrap_or(built_in).to_owned()
}

/// Builds both.
///
/// # Errors
/// When cargo fails, having said why on stderr.
pub fn build() -> Result<Plugin> {
    let made = cargo::build(&["ggml-rknpu", "npu-emulator"], None)?;
    let library = with_host_name(&made.shared_library("ggml_rknpu")?)?;
    Ok(Plugin { library, emulator: made.shared_library("npu_emulator")? })
}

/// Cargo cannot put a hyphen into a library's name, and hosts and people expect one: a copy beside it.
fn with_host_name(built: &Path) -> Result<PathBuf> {
    let wanted = built.with_file_name("libggml-rknpu.so");
    let content = fs::read(built).at("read", built)?;
    // A host that runs now keeps the old file mapped: it must be replaced by a rename, never written to.
    if fs::read(&wanted).ok().as_ref() != Some(&content) {
        let partial = built.with_file_name(format!(".libggml-rknpu.{}.partial", std::process::id()));
        fs::write(&partial, &content).at("write", &partial)?;
        fs::rename(&partial, &wanted).at("write", &wanted)?;
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_with_the_hyphen_follows_the_original() {
        let dir = tempfile::tempdir().unwrap();
        let built = dir.path().join("libggml_rknpu.so");
        for content in ["one", "one", "two"] {
            fs::write(&built, content).unwrap();
            let copy = with_host_name(&built).unwrap();
            assert_eq!(copy.file_name().unwrap(), "libggml-rknpu.so");
            assert_eq!(fs::read_to_string(copy).unwrap(), content);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn the_workspace_is_the_folder_with_the_lock_file() {
        assert!(workspace().join("Cargo.lock").exists());
    }
}
