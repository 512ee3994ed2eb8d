//! cargo in this workspace: what it builds, and where it says that it put it.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::plugin::workspace;
use crate::error::{Error, Result};
use crate::process;

/// One of cargo's messages, as far as this looks at it.
#[derive(Debug, Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    package_id: String,
    #[serde(default)]
    target: Option<Target>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
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

/// What a build made.
pub struct Made(Vec<Message>);

impl Made {
    /// The shared library of a target.
    ///
    /// # Errors
    /// When cargo made none.
    pub fn shared_library(&self, target: &str) -> Result<PathBuf> {
        self.find(target, "shared library", Message::shared_library)
    }

    /// The program of a target.
    ///
    /// # Errors
    /// When cargo made none.
    pub fn program(&self, target: &str) -> Result<PathBuf> {
        self.find(target, "program", |message, name| {
            message.is_of(name, "bin").then(|| message.executable.clone())?
        })
    }

    /// The program of the tests of a library, or of a test of that name.
    ///
    /// # Errors
    /// When cargo made none.
    pub fn tests_of(&self, target: &str) -> Result<PathBuf> {
        self.find(target, "tests", |message, name| {
            let is_it = message.is_of(name, "rlib") || message.is_of(name, "test");
            is_it.then(|| message.executable.clone())?
        })
    }

    /// The packages of which something lies in `folder`, by the ids that `cargo metadata` gives them.
    pub fn packages_in(&self, folder: &Path) -> BTreeSet<String> {
        let is_there = |message: &&Message| message.filenames.iter().any(|file| file.starts_with(folder));
        self.0.iter().filter(is_there).map(|message| message.package_id.clone()).collect()
    }

    fn find(
        &self,
        target: &str,
        what: &str,
        of: impl Fn(&Message, &str) -> Option<PathBuf>,
    ) -> Result<PathBuf> {
        let found = self.0.iter().find_map(|message| of(message, target));
        found.ok_or_else(|| Error::Refused(format!("cargo built, but no {what} of the target {target}")))
    }
}

impl Message {
    fn read(line: &str) -> Option<Self> {
        serde_json::from_str(line).ok()
    }

    fn is_of(&self, target: &str, kind: &str) -> bool {
        let is_it = |of: &Target| of.name == target && of.kind.iter().any(|has| has == kind);
        self.reason == "compiler-artifact" && self.target.as_ref().is_some_and(is_it)
    }

    fn shared_library(&self, target: &str) -> Option<PathBuf> {
        let is_shared = |path: &&PathBuf| Path::extension(path).is_some_and(|extension| extension == "so");
        self.filenames.iter().find(is_shared).filter(|_| self.is_of(target, "cdylib")).cloned()
    }
}

/// Builds packages in release mode, for `target` or this machine; cargo itself knows what is fresh.
///
/// # Errors
/// When cargo fails, having said why on stderr.
pub fn build(packages: &[&str], target: Option<&str>) -> Result<Made> {
    let mut command = cargo();
    command.args(["build", "--release"]).args(packages.iter().flat_map(|package| ["-p", package]));
    command.args(target.map(|target| format!("--target={target}")));
    made_by(command, "cargo build")
}

/// Runs a command of cargo that builds, and collects what it made; `what` names it in errors.
///
/// # Errors
/// When cargo fails, having said why on stderr.
pub fn made_by(mut command: Command, what: &str) -> Result<Made> {
    command.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = process::spawn(&mut command)?;
    let mut messages = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        process::for_each_line(stdout, |line| messages.extend(Message::read(line)))
            .map_err(|source| Error::Io { doing: "read cargo's messages".to_owned(), source })?;
    }
    let status = child.wait().map_err(|source| Error::Io { doing: "wait for cargo".to_owned(), source })?;
    if !status.success() {
        return Err(Error::Tool {
            program: what.to_owned(),
            outcome: process::outcome(status),
            tail: Vec::new(),
            log: None,
        });
    }
    Ok(Made(messages))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_library_is_found_among_the_messages() {
        let shared_library = |line: &str, target| Message::read(line)?.shared_library(target);
        let line = r#"{"reason":"compiler-artifact","package_id":"x","target":{"kind":["cdylib","rlib"],
            "crate_types":["cdylib","rlib"],"name":"ggml_rknpu"},"filenames":["/t/libggml_rknpu.so","/t/libggml_rknpu.rlib"],"fresh":true}"#
            .replace('\n', "");
        assert_eq!(shared_library(&line, "ggml_rknpu"), Some(PathBuf::from("/t/libggml_rknpu.so")));
        assert_eq!(shared_library(&line, "npu_emulator"), None);
        assert_eq!(shared_library(r#"{"reason":"build-finished","success":true}"#, "ggml_rknpu"), None);
        assert_eq!(shared_library("not json", "ggml_rknpu"), None);
    }

    #[test]
    fn the_tests_of_a_library_are_the_program_that_bears_its_name() {
        let made = |executable: &str| {
            let line = format!(
                r#"{{"reason":"compiler-artifact","target":{{"kind":["cdylib","rlib"],"name":"ggml_rknpu"}},
                "profile":{{"test":true}},"filenames":["/t/x"],"executable":{executable}}}"#
            );
            Made(Message::read(&line).into_iter().collect()).tests_of("ggml_rknpu")
        };
        assert_eq!(made("\"/t/x\"").unwrap(), Path::new("/t/x"));
        assert!(made("null").unwrap_err().to_string().contains("no tests of the target ggml_rknpu"));
    }

    #[test]
    fn packages_are_told_by_where_their_files_lie() {
        let line = |id: &str, file: &str| {
            format!(r#"{{"reason":"compiler-artifact","package_id":"{id}","filenames":["{file}"]}}"#)
        };
        let lines =
            [line("a", "/t/arm/release/a.rlib"), line("b", "/t/release/b.so"), line("c", "/t/arm/c.so")];
        let made = Made(lines.iter().filter_map(|line| Message::read(line)).collect());
        let found = made.packages_in(Path::new("/t/arm"));
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn what_was_not_made_is_named() {
        let error = Made(Vec::new()).program("rknpu-doctor").unwrap_err().to_string();
        assert!(error.contains("no program of the target rknpu-doctor"), "{error}");
    }
}
