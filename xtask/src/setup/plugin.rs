//! The plugin and the emulator, built by cargo in this workspace.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::error::{Error, IoContext, Result};
use crate::process;

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

/// What cargo says, as far as this looks at it.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    target: Option<Target>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// The `cargo` that started this, or the one on the path.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    command
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

/// Builds both in release mode; cargo itself knows what is fresh.
///
/// # Errors
/// When cargo fails, having said why on stderr.
pub fn build() -> Result<Plugin> {
    let mut command = cargo();
    command.args(["build", "--release", "-p", "ggml-rknpu", "-p", "npu-emulator"]);
    command.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = process::spawn(&mut command)?;
    let mut made: [Option<PathBuf>; 2] = [None, None];
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line =
                line.map_err(|source| Error::Io { doing: "read cargo's messages".to_owned(), source })?;
            for (slot, name) in made.iter_mut().zip(["ggml_rknpu", "npu_emulator"]) {
                if let Some(path) = shared_library(&line, name) {
                    *slot = Some(path);
                }
            }
        }
    }
    let status = child.wait().map_err(|source| Error::Io { doing: "wait for cargo".to_owned(), source })?;
    if !status.success() {
        return Err(Error::Tool {
            program: "cargo build".to_owned(),
            outcome: process::outcome(status),
            tail: Vec::new(),
            log: None,
        });
    }
    match made {
        [Some(built), Some(emulator)] => Ok(Plugin { library: with_host_name(&built)?, emulator }),
        [None, _] => Err(no_library("ggml-rknpu")),
        [_, None] => Err(no_library("npu-emulator")),
    }
}

fn no_library(package: &str) -> Error {
    Error::Refused(format!(
        "cargo built {package} but no shared library of it; its crate-type must be cdylib"
    ))
}

/// The shared library in one of cargo's messages, if it is that of the target.
fn shared_library(line: &str, target_name: &str) -> Option<PathBuf> {
    let message: Message = serde_json::from_str(line).ok()?;
    let target = message.target.filter(|_| message.reason == "compiler-artifact")?;
    if target.name != target_name || !target.kind.iter().any(|kind| kind == "cdylib") {
        return None;
    }
    message.filenames.into_iter().find(|path| path.extension().is_some_and(|ext| ext == "so"))
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
    fn the_shared_library_is_found_among_the_messages() {
        let line = r#"{"reason":"compiler-artifact","package_id":"x","target":{"kind":["cdylib","rlib"],
            "crate_types":["cdylib","rlib"],"name":"ggml_rknpu"},"filenames":["/t/libggml_rknpu.so","/t/libggml_rknpu.rlib"],"fresh":true}"#
            .replace('\n', "");
        assert_eq!(shared_library(&line, "ggml_rknpu"), Some(PathBuf::from("/t/libggml_rknpu.so")));
        assert_eq!(shared_library(&line, "npu_emulator"), None);
        assert_eq!(shared_library(r#"{"reason":"build-finished","success":true}"#, "ggml_rknpu"), None);
        assert_eq!(shared_library("not json", "ggml_rknpu"), None);
    }

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
