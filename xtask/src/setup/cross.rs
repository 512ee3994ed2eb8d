//! What builds and runs programs of the boards' processor on a machine of another one.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::packages::{self, on_path};
use crate::error::{Error, Result};
use crate::process;
use crate::progress::Step;

/// The boards' target.
pub const TARGET: &str = "aarch64-unknown-linux-gnu";
/// The target's C compiler, which links.
pub const LINKER: &str = "aarch64-linux-gnu-gcc";
/// Where Debian has its own rustc, the one that its packages of the target's standard library belong to.
const DEBIANS_RUSTC: &str = "/usr/bin/rustc";
/// The target's C library must be the system's own. With the one of Debian's cross compilers, in
/// /usr/aarch64-linux-gnu, programs hang in qemu 7.2 as soon as they start a thread.
const LOADER: &str = "/lib/ld-linux-aarch64.so.1";

/// The tools, all of them there.
#[derive(Debug)]
pub struct Cross {
    rustc: OsString,
    qemu: PathBuf,
}

/// A tool that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Std,
    Linker,
    Libc,
    Qemu,
}

impl Missing {
    fn name(self) -> String {
        match self {
            Self::Std => format!("a rustc {} or later with the target {TARGET}", oldest()),
            Self::Linker => LINKER.to_owned(),
            Self::Libc => LOADER.to_owned(),
            Self::Qemu => "qemu-aarch64-static".to_owned(),
        }
    }

    /// Debian's packages. Its stable releases have a newer rustc by another name, for its browsers.
    fn packages(self, has_web: bool) -> &'static [&'static str] {
        match self {
            Self::Std if has_web => &["rustc-web", "libstd-rust-web-dev:arm64"],
            Self::Std => &["rustc", "libstd-rust-dev:arm64"],
            Self::Linker => &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
            Self::Libc => &["libc6:arm64"],
            Self::Qemu => &["qemu-user-static"],
        }
    }
}

impl Cross {
    /// Finds the tools. Installs what is missing when this is root on a system with apt.
    ///
    /// # Errors
    /// Why they cannot be had, with what to do about it, in one line.
    pub fn ensure() -> Result<Self, String> {
        let missing = match Self::find() {
            Ok(found) => return Ok(found),
            Err(missing) => missing,
        };
        if !packages::can_install() {
            return Err(advice(&missing));
        }
        installed(&missing)?;
        Self::find().map_err(|still| format!("installed, and yet {}", advice(&still)))
    }

    fn find() -> Result<Self, Vec<Missing>> {
        let rustc = find_rustc(TARGET);
        let qemu = ["qemu-aarch64-static", "qemu-aarch64"].into_iter().find_map(on_path);
        let mut missing = Vec::new();
        missing.extend(rustc.is_none().then_some(Missing::Std));
        missing.extend(on_path(LINKER).is_none().then_some(Missing::Linker));
        missing.extend((!Path::new(LOADER).exists()).then_some(Missing::Libc));
        missing.extend(qemu.is_none().then_some(Missing::Qemu));
        match (rustc, qemu) {
            (Some(rustc), Some(qemu)) if missing.is_empty() => Ok(Self { rustc, qemu }),
            _ => Err(missing),
        }
    }

    /// Lets cargo build for the target, in a folder of its own: another rustc there builds nothing anew here.
    pub fn build_with(&self, cargo: &mut Command) {
        let target_dir = env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let target_dir = target_dir.unwrap_or_else(|| super::plugin::workspace().join("target"));
        cargo.args(["--target", TARGET]).arg("--target-dir").arg(target_dir.join("aarch64"));
        cargo.env("RUSTC", &self.rustc).env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER);
    }

    /// A program of the target, to be started on a processor of qemu's.
    pub fn run_on(&self, processor: &str, program: &Path) -> Command {
        let mut command = Command::new(&self.qemu);
        command.args(["-L", "/", "-cpu", processor]).arg(program);
        command
    }
}

/// A rustc that builds for `target`. Where there is none, it installs Debian's for the boards' target when this is root
/// on a system with apt, and else has rustup, if it is there, fetch the target's standard library.
///
/// # Errors
/// Why it cannot be had, with what to do about it, in one line.
pub fn rustc_for(target: &str) -> Result<OsString, String> {
    if let Some(found) = find_rustc(target) {
        return Ok(found);
    }
    let missing = [Missing::Std];
    let what_to_do = || match target {
        TARGET => advice(&missing),
        _ => {
            format!("there is no rustc {} or later with {target}; run: rustup target add {target}", oldest())
        }
    };
    if target == TARGET && packages::can_install() {
        installed(&missing)?;
    } else if on_path("rustup").is_some() {
        let step = Step::spinner(format!("fetching the standard library of {target}"));
        process::run_quietly(Command::new("rustup").args(["target", "add", target]))
            .map_err(|error| explained(&error, &what_to_do()))?;
        step.done();
    }
    find_rustc(target).ok_or_else(what_to_do)
}

fn find_rustc(target: &str) -> Option<OsString> {
    let own = env::var_os("RUSTC").filter(|rustc| !rustc.is_empty()).unwrap_or_else(|| "rustc".into());
    [own, DEBIANS_RUSTC.into()].into_iter().find(|rustc| serves(rustc, target))
}

/// The oldest rustc that builds this workspace.
fn oldest() -> &'static str {
    env!("CARGO_PKG_RUST_VERSION")
}

/// Whether it is new enough and has the target's standard library.
fn serves(rustc: &OsString, target: &str) -> bool {
    let answer = |arguments: &[&str]| {
        let output = Command::new(rustc).args(arguments).stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    answer(&["--version"]).is_some_and(|version| is_new_enough(&version))
        && answer(&["--print", "target-libdir", "--target", target])
            .is_some_and(|dir| has_std(Path::new(&dir)))
}

/// Of a line like `rustc 1.96.0 (ac68faa20 2026-05-25)`.
fn is_new_enough(version: &str) -> bool {
    let numbers = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    let has = version.split_whitespace().nth(1).and_then(numbers);
    has.is_some() && has >= numbers(oldest())
}

fn has_std(dir: &Path) -> bool {
    fs::read_dir(dir).into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with("libstd-") && name.ends_with(".rlib")
    })
}

/// As [`install`], with what else to do in the error.
fn installed(missing: &[Missing]) -> Result<(), String> {
    install(missing).map_err(|error| explained(&error, &advice(missing)))
}

/// An error and what to do, in one line; what else there is to show is shown above.
fn explained(error: &Error, what_to_do: &str) -> String {
    error.details().iter().for_each(|line| eprintln!("  {line}"));
    format!("{error}; {what_to_do}")
}

fn install(missing: &[Missing]) -> Result<()> {
    packages::add_architecture("arm64")?;
    packages::update()?;
    packages::install(&names(missing, packages::is_known("rustc-web")))
}

fn names(missing: &[Missing], has_web: bool) -> Vec<&'static str> {
    missing.iter().flat_map(|missing| missing.packages(has_web)).copied().collect()
}

fn advice(missing: &[Missing]) -> String {
    // Debian 12's plain rustc is too old, so where nothing is known of the packages the newer one is named.
    let has_web = packages::is_known("rustc-web") || !packages::is_known("rustc");
    advice_with(missing, has_web)
}

fn advice_with(missing: &[Missing], has_web: bool) -> String {
    let what: Vec<String> = missing.iter().map(|missing| missing.name()).collect();
    let or_rustup = if missing.contains(&Missing::Std) {
        format!(" (or, for rustc, rustup target add {TARGET})")
    } else {
        String::new()
    };
    format!(
        "there is no {}; on Debian, run: sudo dpkg --add-architecture arm64 && {}{or_rustup}",
        what.join(", no "),
        packages::line(&names(missing, has_web))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_line_to_run() {
        assert_eq!(
            advice_with(&[Missing::Linker, Missing::Qemu], true),
            "there is no aarch64-linux-gnu-gcc, no qemu-aarch64-static; on Debian, run: sudo dpkg --add-architecture \
             arm64 && sudo apt-get update && sudo apt-get install -y --no-install-recommends gcc-aarch64-linux-gnu \
             libc6-dev-arm64-cross qemu-user-static"
        );
        let text = advice_with(&[Missing::Std, Missing::Libc], true);
        assert!(
            text.contains("rustc-web libstd-rust-web-dev:arm64 libc6:arm64 (or, for rustc, rustup "),
            "{text}"
        );
        assert!(advice_with(&[Missing::Std], false).contains(" rustc libstd-rust-dev:arm64 "));
    }

    #[test]
    fn an_old_rustc_does_not_serve() {
        assert!(is_new_enough("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"));
        assert!(is_new_enough(&format!("rustc {}.0", oldest())) && is_new_enough("rustc 2.0.0-nightly"));
        for old in ["rustc 1.63.0 (4b91a6ea7 2022-08-08)", "rustc 1.9.0", "rustc", "", "rustc x.y"] {
            assert!(!is_new_enough(old), "{old}");
        }
        assert!(!serves(&"/nowhere/rustc".into(), TARGET));
    }

    #[test]
    fn a_folder_without_the_standard_library_is_not_a_target() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("libstd-1f2e.so"), "").unwrap();
        assert!(!has_std(dir.path()) && !has_std(Path::new("/nowhere")));
        fs::write(dir.path().join("libstd-1f2e.rlib"), "").unwrap();
        assert!(has_std(dir.path()));
    }
}
