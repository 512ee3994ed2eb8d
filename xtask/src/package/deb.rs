//! Debian's package, made by cargo-deb of files that are built already.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::contents::Entry;
use super::target::{Target, GLIBC};
use crate::cache::Cache;
use crate::error::{IoContext, Result};
use crate::process;
use crate::progress::Step;
use crate::setup::cargo;

/// The version of cargo-deb: another one may lay the same files out in other bytes.
const CARGO_DEB: &str = "3.8.0";

/// The program, built in the cache if it is not there: once for all clones, in some three minutes.
///
/// # Errors
/// cargo's.
pub fn tool(cache: &Cache) -> Result<PathBuf> {
    let folder = cache.root().join(format!("cargo-deb-{CARGO_DEB}"));
    let program = folder.join("bin/cargo-deb");
    if program.exists() {
        return Ok(program);
    }
    let step = Step::spinner(format!("building cargo-deb {CARGO_DEB}, once for all clones"));
    let partial = cache.partial()?;
    let mut install = cargo::cargo();
    // Its default feature is a compressor in C.
    install.args([
        "install",
        "cargo-deb",
        "--locked",
        "--no-default-features",
        "--no-track",
        "--version",
        CARGO_DEB,
    ]);
    install.arg("--root").arg(partial.path()).env("CARGO_TARGET_DIR", partial.path().join("target"));
    process::run_quietly(install.env_remove("CARGO_ENCODED_RUSTFLAGS"))?;
    let target = partial.path().join("target");
    fs::remove_dir_all(&target).at("remove", &target)?;
    match fs::rename(partial.keep(), &folder) {
        // Another one was faster.
        Err(_) if program.exists() => {}
        moved => moved.at("move cargo-deb to", &folder)?,
    }
    step.done();
    Ok(program)
}

/// What the package says of itself.
#[derive(Debug)]
pub struct About<'a> {
    /// The version.
    pub version: &'a str,
    /// What it is built for.
    pub target: &'a Target,
    /// The time of all its files, in seconds since 1970.
    pub time: u64,
}

/// Packs the entries, all below `/usr`, and the script that runs after they are unpacked.
///
/// # Errors
/// cargo-deb's, or a disk's.
pub fn deb(tool: &Path, about: &About, entries: &[Entry], postinst: &str) -> Result<Vec<u8>> {
    // cargo-deb takes all that it packs from a crate: here one of nothing else.
    let folder = tempfile::tempdir().at("create a folder in", &std::env::temp_dir())?;
    let put = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        let parent = path.parent().unwrap_or(folder.path());
        fs::create_dir_all(parent).at("create", parent)?;
        fs::write(&path, content).at("write", &path)
    };
    for entry in entries {
        put(&format!("usr/{}", entry.path), &entry.content)?;
        let path = folder.path().join("usr").join(&entry.path);
        fs::set_permissions(&path, Permissions::from_mode(entry.mode)).at("set the mode of", &path)?;
    }
    put("lib.rs", b"")?;
    put("scripts/postinst", postinst.as_bytes())?;
    put("Cargo.toml", manifest(about, entries).as_bytes())?;

    let out = folder.path().join("out.deb");
    let mut command = Command::new(tool);
    command.current_dir(folder.path()).args(["--no-build", "--no-strip", "--offline", "-Z", "gz"]);
    command.args(["--target", about.target.triple]).arg("--output").arg(&out);
    command.env("SOURCE_DATE_EPOCH", about.time.to_string()).env("CARGO", cargo_program());
    // What a cargo around this one tells of its own workspace.
    command.env_remove("CARGO_MANIFEST_DIR").env_remove("CARGO_TARGET_DIR");
    process::run_quietly(&mut command)?;
    fs::read(&out).at("read", &out)
}

fn cargo_program() -> OsString {
    cargo::cargo().get_program().to_owned()
}

/// The crate that cargo-deb reads.
fn manifest(about: &About, entries: &[Entry]) -> String {
    let mut assets = String::new();
    for Entry { path, mode, .. } in entries {
        assets += &format!("    [\"usr/{path}\", \"usr/{path}\", \"{mode:o}\"],\n");
    }
    format!(
        r#"[workspace]

[package]
name = "ggml-rknpu"
version = "{version}"
edition = "2021"
description = "A ggml backend plugin for the NPU of Rockchip boards"
license = "MIT"

[lib]
path = "lib.rs"

[package.metadata.deb]
maintainer = "the ggml-rknpu authors <maintainers@ggml-rknpu.invalid>"
copyright = "the ggml-rknpu authors"
extended-description = """
Lets a stock llama.cpp run language models on the NPU of Rockchip's RK3588,
RK3576, RK3566, RK3568 and RK3562. Needs a vendor kernel and the vendor's
librknnrt.so; rknpu-doctor tells whether a board is all right."""
section = "libs"
priority = "optional"
depends = "libc6 (>= {GLIBC}), passwd"
maintainer-scripts = "scripts"
assets = [
{assets}]
"#,
        version = about.version,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_crate_names_every_file_with_its_mode() {
        let target = Target::of("aarch64-unknown-linux-gnu").unwrap();
        let about = About { version: "1.2.3", target, time: 0 };
        let entries = [Entry { path: "bin/rknpu-doctor".to_owned(), mode: 0o755, content: Vec::new() }];
        let text = manifest(&about, &entries);
        let crate_of: serde_json::Value = toml::from_str(&text).unwrap();
        let deb = &crate_of["package"]["metadata"]["deb"];
        assert_eq!(deb["depends"], "libc6 (>= 2.31), passwd");
        let asset = ["usr/bin/rknpu-doctor", "usr/bin/rknpu-doctor", "755"];
        assert_eq!(deb["assets"][0], serde_json::json!(asset));
    }
}
