//! `cargo xtask patch`: lets a checkout of llama.cpp build the plugin in, by the patch of its version.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use clap::Args;
use diffy::patch_set::{FileOperation, ParseOptions, PatchKind, PatchSet};

use crate::error::{Error, IoContext, Result};
use crate::setup::plugin::workspace;

/// Where the patches are, in this checkout.
const PATCHES: &str = "llama.cpp-patches";
/// What the patched build takes as a subdirectory, in the checkout of llama.cpp: a link to this checkout.
const LINK: &str = "ggml/src/ggml-rknpu";
/// The line of a patch, before its first file, that says which ggml it is for.
const GGML: &str = "ggml: ";

/// The options of `patch`.
#[derive(Debug, Args)]
pub struct Options {
    /// The checkout of llama.cpp
    #[arg(value_name = "PATH")]
    checkout: PathBuf,
    /// Only say whether the patch is in, or would go in; fails where it would not
    #[arg(long, conflicts_with = "revert")]
    check: bool,
    /// Take the patch out again
    #[arg(long)]
    revert: bool,
}

/// How a checkout stands to a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// As it was released.
    Stock,
    /// With the patch in.
    Patched,
}

/// A patch that was read.
#[derive(Debug)]
struct Patch {
    /// The version of llama.cpp, as the file is called.
    version: String,
    /// The version of ggml, by which a checkout is told.
    ggml: String,
    text: String,
}

/// Files of a checkout, as they are to become.
type Files = Vec<(PathBuf, String)>;

/// Applies, checks or reverts; says what it did on stdout.
///
/// # Errors
/// No llama.cpp there, one of a version that there is no patch for, or files that the patch does not fit.
pub fn command(options: &Options) -> Result<()> {
    let root = workspace();
    let checkout = std::path::absolute(&options.checkout).at("resolve", &options.checkout)?;
    let version = ggml_version(&checkout)?;
    let patches = patches(&root.join(PATCHES))?;
    let patch = patches
        .iter()
        .find(|patch| patch.ggml == version)
        .ok_or_else(|| other_version(&checkout, &version, &patches, &root))?;
    let state = patch.state(&checkout)?;
    let shown = checkout.display();
    match (state, options.check, options.revert) {
        (State::Stock, true, _) => println!("{shown}: {}, to which its patch can be applied", patch.version),
        (State::Patched, true, _) => println!("{shown}: {}, with its patch", patch.version),
        (State::Stock, _, true) => println!("{shown}: the patch is not in; nothing to do"),
        (State::Patched, _, true) => {
            write(&patch.applied(&checkout, true)?)?;
            unlink(&checkout.join(LINK))?;
            println!("{shown}: the patch is out, every file is as it was");
        }
        (State::Patched, ..) => {
            link(&root, &checkout.join(LINK))?;
            println!("{shown}: the patch is in already; now: {}", configure(&checkout));
        }
        (State::Stock, ..) => {
            // Before anything is written: it may be refused.
            link(&root, &checkout.join(LINK))?;
            write(&patch.applied(&checkout, false)?)?;
            println!("{shown}: {}, patched; now: {}", patch.version, configure(&checkout));
        }
    }
    Ok(())
}

fn configure(checkout: &Path) -> String {
    format!("cmake -S {0} -B {0}/build -DLLAMA_RKNPU2=ON && cmake --build {0}/build", checkout.display())
}

fn other_version(checkout: &Path, version: &str, patches: &[Patch], root: &Path) -> Error {
    let known: Vec<String> =
        patches.iter().map(|patch| format!("{} (ggml {})", patch.version, patch.ggml)).collect();
    Error::Refused(format!(
        "{}: its ggml is {version}; there are patches for {}; without a patch: cmake -DLLAMA_RKNPU2=ON \
         -DCMAKE_PROJECT_INCLUDE={}, or load the plugin by GGML_BACKEND_PATH",
        checkout.display(),
        known.join(" and "),
        root.join("cmake/rknpu.cmake").display(),
    ))
}

/// The version that a checkout's ggml/CMakeLists.txt sets.
fn ggml_version(checkout: &Path) -> Result<String> {
    let path = checkout.join("ggml/CMakeLists.txt");
    let text = fs::read_to_string(&path).map_err(|error| {
        Error::Refused(format!(
            "{}: no llama.cpp there ({}: {error}); name the folder of its sources",
            checkout.display(),
            path.display()
        ))
    })?;
    let part = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("set(GGML_VERSION_{name} ")))?;
        Some(line.trim_end_matches(')').trim().to_owned())
    };
    let parts = ["MAJOR", "MINOR", "PATCH"].map(part);
    Ok(parts.map(|part| part.unwrap_or_else(|| "unknown".to_owned())).join("."))
}

/// The patches in a folder, by name.
fn patches(folder: &Path) -> Result<Vec<Patch>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).at("read", folder)? {
        let path = entry.at("read", folder)?.path();
        if path.extension().is_none_or(|extension| extension != "patch") {
            continue;
        }
        let version = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).at("read", &path)?;
        let ggml =
            text.lines().find_map(|line| line.strip_prefix(GGML)).map(str::to_owned).ok_or_else(|| {
                Error::Refused(format!("{}: no line '{GGML}…' says which ggml it is for", path.display()))
            })?;
        found.push(Patch { version, ggml, text });
    }
    found.sort_by(|a, b| a.version.cmp(&b.version));
    Ok(found)
}

impl Patch {
    /// Whether it is in the checkout, or can be put there.
    fn state(&self, checkout: &Path) -> Result<State> {
        match (self.applied(checkout, true), self.applied(checkout, false)) {
            (Ok(_), _) => Ok(State::Patched),
            (_, Ok(_)) => Ok(State::Stock),
            (_, Err(error)) => Err(error),
        }
    }

    /// The files with the patch in, or out of them; nothing is written.
    fn applied(&self, checkout: &Path, reverse: bool) -> Result<Files> {
        let broken = |what: String| Error::Refused(format!("{PATCHES}/{}.patch: {what}", self.version));
        let mut files = Files::new();
        for file in PatchSet::parse(&self.text, ParseOptions::unidiff()) {
            let file = file.map_err(|error| broken(error.to_string()))?;
            let operation = file.operation().strip_prefix(1);
            let (FileOperation::Modify { modified, .. }, PatchKind::Text(patch)) = (&operation, file.patch())
            else {
                return Err(broken(format!("only changes of files are expected, found {operation:?}")));
            };
            let path = checkout.join(&**modified);
            let text = fs::read_to_string(&path).at("read", &path)?;
            let result =
                if reverse { diffy::apply(&text, &patch.reverse()) } else { diffy::apply(&text, patch) };
            let text = result.map_err(|error| {
                Error::Refused(format!(
                    "{}: {error} of {PATCHES}/{}.patch: the file is not that of {}; restore it, or build \
                     with -DCMAKE_PROJECT_INCLUDE=…/cmake/rknpu.cmake instead",
                    path.display(),
                    self.version,
                    self.version
                ))
            })?;
            files.push((path, text));
        }
        Ok(files)
    }
}

/// Writes the files, each as a whole or not at all.
fn write(files: &Files) -> Result<()> {
    for (path, text) in files {
        let partial = path.with_extension("rknpu-partial");
        fs::write(&partial, text).at("write", &partial)?;
        let permissions = fs::metadata(path).at("look at", path)?.permissions();
        fs::set_permissions(&partial, permissions).at("change", &partial)?;
        fs::rename(&partial, path).at("write", path)?;
    }
    Ok(())
}

/// Makes the link to this checkout, unless it is there.
fn link(root: &Path, link: &Path) -> Result<()> {
    match fs::symlink_metadata(link) {
        Ok(found) if !found.is_symlink() => {
            return Err(Error::Refused(format!(
                "{}: expected nothing there, or a link to a checkout of ggml-rknpu; move it away",
                link.display()
            )));
        }
        Ok(_) => fs::remove_file(link).at("remove", link)?,
        Err(_) => {}
    }
    symlink(root, link).at("make the link", link)
}

fn unlink(link: &Path) -> Result<()> {
    match fs::symlink_metadata(link) {
        Ok(found) if found.is_symlink() => fs::remove_file(link).at("remove", link),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str =
        "For a test.\nggml: 1.2.3\n\n--- a/ggml/one\n+++ b/ggml/one\n@@ -1,2 +1,3 @@\n a\n+new\n b\n--- \
                        a/ggml/two\n+++ b/ggml/two\n@@ -1,2 +1,2 @@\n c\n-d\n+D\n";

    fn checkout() -> (tempfile::TempDir, Patch) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("ggml/src")).unwrap();
        fs::write(dir.path().join("ggml/one"), "a\nb\n").unwrap();
        fs::write(dir.path().join("ggml/two"), "c\nd\n").unwrap();
        (dir, Patch { version: "v".to_owned(), ggml: "1.2.3".to_owned(), text: TEXT.to_owned() })
    }

    fn read(dir: &Path) -> [String; 2] {
        ["one", "two"].map(|name| fs::read_to_string(dir.join("ggml").join(name)).unwrap())
    }

    #[test]
    fn a_patch_goes_in_and_out_again() {
        let (dir, patch) = checkout();
        assert_eq!(patch.state(dir.path()).unwrap(), State::Stock);
        write(&patch.applied(dir.path(), false).unwrap()).unwrap();
        assert_eq!(read(dir.path()), ["a\nnew\nb\n", "c\nD\n"]);
        assert_eq!(patch.state(dir.path()).unwrap(), State::Patched);
        write(&patch.applied(dir.path(), true).unwrap()).unwrap();
        assert_eq!(read(dir.path()), ["a\nb\n", "c\nd\n"]);
    }

    #[test]
    fn a_file_that_is_another_is_named_and_nothing_is_written() {
        let (dir, patch) = checkout();
        fs::write(dir.path().join("ggml/two"), "other\n").unwrap();
        let text = patch.state(dir.path()).unwrap_err().to_string();
        assert!(text.contains("ggml/two: error applying hunk #1 of llama.cpp-patches/v.patch"), "{text}");
        assert_eq!(read(dir.path())[0], "a\nb\n");
    }

    #[test]
    fn a_checkout_is_told_by_its_ggml() {
        let (dir, _) = checkout();
        let text = ggml_version(dir.path()).unwrap_err().to_string();
        assert!(text.contains("no llama.cpp there"), "{text}");
        let lists = "set(GGML_VERSION_MAJOR 0)\nset(GGML_VERSION_MINOR 26)\nset(GGML_VERSION_PATCH 1)\n";
        fs::write(dir.path().join("ggml/CMakeLists.txt"), lists).unwrap();
        assert_eq!(ggml_version(dir.path()).unwrap(), "0.26.1");
        let known = patches(&workspace().join(PATCHES)).unwrap();
        let text = other_version(dir.path(), "0.26.1", &known, Path::new("/root")).to_string();
        assert!(
            text.contains("its ggml is 0.26.1; there are patches for b11434 (ggml 0.26.0) and "),
            "{text}"
        );
    }

    #[test]
    fn what_lies_where_the_link_belongs_is_left_alone() {
        let (dir, _) = checkout();
        let place = dir.path().join(LINK);
        link(dir.path(), &place).unwrap();
        link(dir.path(), &place).unwrap();
        assert_eq!(fs::read_link(&place).unwrap(), dir.path());
        unlink(&place).unwrap();
        unlink(&place).unwrap();
        fs::create_dir(&place).unwrap();
        assert!(link(dir.path(), &place).unwrap_err().to_string().contains("expected nothing there"));
        unlink(&place).unwrap();
        assert!(place.is_dir());
    }
}
