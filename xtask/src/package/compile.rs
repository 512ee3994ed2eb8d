//! The files themselves: built by cargo for the target, linked for an old C library, and with nothing of this machine in
//! them, so that two builds of the same sources are the same bytes.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::target::Target;
use crate::cache::Cache;
use crate::error::{Error, IoContext, Result};
use crate::setup::packages::{self, Need};
use crate::setup::{cargo, cross, zig};

/// What compiles and links.
#[derive(Debug)]
pub struct Tools {
    /// A rustc with the target's standard library.
    pub rustc: OsString,
    /// What it calls itself, in one line.
    pub rustc_version: String,
    linker: PathBuf,
}

impl Tools {
    /// Finds them, installs or fetches what is missing.
    ///
    /// # Errors
    /// What cannot be had, with what to do about it.
    pub fn ensure(target: &Target, cache: &Cache) -> Result<Self> {
        // Build scripts are programs of this machine.
        packages::ensure(&[Need::Cxx])?;
        let rustc = cross::rustc_for(target.triple).map_err(Error::Refused)?;
        let linker = zig::linker(cache, &target.zig())?;
        let rustc_version = asked(&rustc, &["--version"])?;
        Ok(Self { rustc, rustc_version, linker })
    }
}

/// What cargo made.
#[derive(Debug)]
pub struct Built {
    /// `libggml-rknpu.so`.
    pub plugin: Vec<u8>,
    /// `libnpu_emulator.so`.
    pub emulator: Vec<u8>,
    /// `rknpu-doctor`.
    pub doctor: Vec<u8>,
    /// What was compiled for the target, and so may be in the three, by cargo's ids.
    pub packages: BTreeSet<String>,
}

/// Builds the checkout at `root`.
///
/// # Errors
/// When cargo fails, having said why on stderr.
pub fn build(root: &Path, target_dir: &Path, target: &Target, tools: &Tools) -> Result<Built> {
    let mut command = cargo::cargo();
    command.current_dir(root).args(["build", "--release", "--locked", "--target", target.triple]);
    command.args(["-p", "ggml-rknpu", "-p", "npu-emulator", "-p", "rknpu-doctor"]);
    command.arg("--target-dir").arg(target_dir);
    // Somebody's own settings would make other files of the same commit.
    let own = env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CARGO_PROFILE_"));
    own.for_each(|(name, _)| {
        command.env_remove(name);
    });
    let linker = format!("CARGO_TARGET_{}_LINKER", target.triple.to_uppercase().replace('-', "_"));
    command.env("RUSTC", &tools.rustc).env(linker, &tools.linker);
    command.env("CARGO_ENCODED_RUSTFLAGS", flags(root, &tools.rustc)?).env("CARGO_INCREMENTAL", "0");
    let made = cargo::made_by(command, &format!("cargo build for {}", target.triple))?;

    let read = |path: PathBuf| fs::read(&path).at("read", &path);
    Ok(Built {
        plugin: read(made.shared_library("ggml_rknpu")?)?,
        emulator: read(made.shared_library("npu_emulator")?)?,
        doctor: read(made.program("rknpu-doctor")?)?,
        packages: made.packages_in(&target_dir.join(target.triple)),
    })
}

/// rustc's options, in cargo's encoding: folders by names that are the same everywhere.
fn flags(root: &Path, rustc: &OsString) -> Result<OsString> {
    let cargo_home = env::var_os("CARGO_HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let sysroot = asked(rustc, &["--print", "sysroot"])?;
    // The last one that fits a path counts, so the narrower ones come later.
    let named = [
        (Some(PathBuf::from(sysroot)), "/rustc"),
        (cargo_home, "/cargo"),
        (Some(root.to_owned()), "/ggml-rknpu"),
    ];
    let mut flags = OsString::from("-Cstrip=symbols");
    for (folder, name) in named {
        if let Some(folder) = folder {
            flags.push("\u{1f}--remap-path-prefix=");
            flags.push(folder);
            flags.push("=");
            flags.push(name);
        }
    }
    Ok(flags)
}

fn asked(rustc: &OsString, arguments: &[&str]) -> Result<String> {
    let output = Command::new(rustc).args(arguments).stdin(Stdio::null()).output();
    let output =
        output.map_err(|source| Error::Io { doing: format!("start {}", rustc.to_string_lossy()), source })?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || text.is_empty() {
        let question = arguments.join(" ");
        return Err(Error::Refused(format!(
            "{} {question} gives no answer; set RUSTC to a rustc",
            rustc.to_string_lossy()
        )));
    }
    Ok(text)
}
