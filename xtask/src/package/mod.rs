//! `cargo xtask package`: plugin, doctor and emulator for the boards, as a `.tar.gz` and a `.deb`.
//!
//! Files come of the checkout, built by [`compile`]; each is checked ([`check`]), and so are the licences of what is
//! inside ([`licences`]) before anything is written. Two builds of a commit give the same bytes, which `--verify` tries.
//! No other command lives here, and nothing that installs a package.

mod archive;
mod check;
mod compile;
mod contents;
mod deb;
mod inventory;
mod licences;
mod sbom;
mod source;
mod target;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use sha2::{Digest, Sha256};

use self::compile::Tools;
use self::contents::{Form, Papers};
use self::sbom::Subject;
use self::source::Source;
use self::target::{Target, Version, GLIBC};
use crate::cache::{hex, Cache};
use crate::error::{Error, IoContext, Result};
use crate::progress::{note, warn};
use crate::setup::{cross, plugin, zig};

/// The most bytes that a package may have, packed and unpacked.
const MOST_BYTES: usize = 6 << 20;
/// The package whose version all have.
const SUBJECT: &str = "ggml-rknpu";

/// The options of `package`.
#[derive(Debug, Args)]
pub struct Options {
    /// The processor: the boards' aarch64-unknown-linux-gnu, or x86_64-unknown-linux-gnu
    #[arg(long, value_name = "TRIPLE", default_value = cross::TARGET, value_parser = Target::of)]
    target: &'static Target,
    /// Where the packages go [default: package in cargo's target folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Build everything a second time, in a copy of the sources, and compare the bytes
    #[arg(long)]
    verify: bool,
}

/// A package: its file's name and bytes.
#[derive(Debug, PartialEq, Eq)]
struct Package {
    name: String,
    content: Vec<u8>,
}

/// Has at hand what makes the boards' packages: installs or fetches what is missing.
///
/// # Errors
/// What cannot be had, with what to do about it.
pub fn prepare() -> Result<()> {
    tools(Target::of(cross::TARGET).map_err(Error::Refused)?).map(|_| ())
}

/// What compiles and links, and cargo-deb.
fn tools(target: &Target) -> Result<(Tools, PathBuf)> {
    let cache = Cache::from_env()?;
    Ok((Tools::ensure(target, &cache)?, deb::tool(&cache)?))
}

/// Makes the packages.
///
/// # Errors
/// What is missing, a failed build, a file that must not be packaged, or a second build of other bytes.
pub fn command(options: &Options) -> Result<()> {
    let target = options.target;
    let source = Source::of(&plugin::workspace())?;
    if source.commit.ends_with("-dirty") {
        warn("there are changes that are not committed: the packages are those of no commit");
    }
    let (tools, cargo_deb) = tools(target)?;
    let cargo_dir = env::var_os("CARGO_TARGET_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let cargo_dir = cargo_dir.unwrap_or_else(|| source.root.join("target"));
    // cargo starts elsewhere, and names files by their whole paths.
    let cargo_dir = std::path::absolute(&cargo_dir).at("find", &cargo_dir)?;
    let make = |source: &Source, build_dir: &Path| make(source, build_dir, target, &tools, &cargo_deb);

    note(&format!("building for {} and glibc {GLIBC}", target.triple));
    // A folder of its own: a cargo that runs this has the lock of the other one.
    let (packages, newest) = make(&source, &cargo_dir.join("package-build"))?;
    if options.verify {
        note("building a second time, in a copy of the sources");
        let copy = tempfile::tempdir().at("create a folder in", &env::temp_dir())?;
        let root = copy.path().join("another-checkout");
        source.copy_to(&root)?;
        let second = Source { root, commit: source.commit.clone(), time: source.time };
        compare(&packages, &make(&second, &copy.path().join("target"))?.0)?;
    }

    let out = options.out.clone().unwrap_or_else(|| cargo_dir.join("package"));
    fs::create_dir_all(&out).at("create", &out)?;
    for Package { name, content } in &packages {
        let path = out.join(name);
        fs::write(&path, content).at("write", &path)?;
        println!("{}  {}  {}", hex(&Sha256::digest(content)), megabytes(content.len()), path.display());
    }
    println!("needs glibc {newest}{}", if options.verify { "; two builds gave the same bytes" } else { "" });
    Ok(())
}

/// Builds, checks and packs. Gives the newest version of the C library that is needed, too.
fn make(
    source: &Source,
    build_dir: &Path,
    target: &Target,
    tools: &Tools,
    cargo_deb: &Path,
) -> Result<(Vec<Package>, Version)> {
    let built = compile::build(&source.root, build_dir, target, tools)?;
    let mut newest = Version(0, 0);
    for (name, content, kind) in contents::built(&built) {
        newest = newest.max(check::check(name, content, kind, target)?);
    }
    let inside = inventory::of(&source.root, &built.packages, target, tools)?;
    licences::check(&source.root, &inside)?;
    let version = inside.iter().find(|one| one.name == SUBJECT).map(|one| one.version.clone());
    let version = version.ok_or_else(|| Error::Refused(format!("cargo built no {SUBJECT}")))?;
    let linker = zig::version();
    let subject = Subject {
        name: SUBJECT,
        commit: &source.commit,
        time: source.time,
        triple: target.triple,
        rustc: &tools.rustc_version,
        linker: &linker,
    };
    let (sbom, texts) = (sbom::json(&subject, &inside)?, licences::texts(&inside)?);
    let papers = Papers { sbom: &sbom, licences: &texts, commit: &source.commit };

    let top = format!("{SUBJECT}-{version}-{}", target.triple);
    let entries = contents::list(&source.root, &built, &papers, Form::Archive)?;
    let unpacked = entries.iter().map(|entry| entry.content.len()).sum();
    small_enough("what is packed", unpacked)?;
    let tar = archive::tar_gz(&top, &entries, source.time)
        .map_err(|source| Error::Io { doing: format!("pack {top}.tar.gz"), source })?;

    let entries =
        contents::list(&source.root, &built, &papers, Form::Debian { multiarch: target.multiarch })?;
    let about = deb::About { version: &version, target, time: source.time };
    let script = contents::postinst(&source.root, target.multiarch)?;
    let deb = deb::deb(cargo_deb, &about, &entries, &script)?;
    let packages = vec![
        Package { name: format!("{top}.tar.gz"), content: tar },
        Package { name: format!("{SUBJECT}_{version}-1_{}.deb", target.debian), content: deb },
    ];
    packages.iter().try_for_each(|package| small_enough(&package.name, package.content.len()))?;
    Ok((packages, newest))
}

fn small_enough(what: &str, bytes: usize) -> Result<()> {
    if bytes <= MOST_BYTES {
        return Ok(());
    }
    let (has, most) = (megabytes(bytes), megabytes(MOST_BYTES));
    Err(Error::Refused(format!("{what} has {has}, expected at most {most}; look at what was linked in")))
}

fn megabytes(bytes: usize) -> String {
    format!("{:.2} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Holds a second build against the first.
fn compare(first: &[Package], second: &[Package]) -> Result<()> {
    for (one, other) in first.iter().zip(second) {
        if one != other {
            let differ = one.content.iter().zip(&other.content).position(|(a, b)| a != b);
            let at = differ.unwrap_or(one.content.len().min(other.content.len()));
            return Err(Error::Refused(format!(
                "two builds of the same sources differ: {} has {} and {} bytes, the first other one at {at}",
                one.name,
                one.content.len(),
                other.content.len()
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_that_differ_are_told_where() {
        let package = |content: &str| vec![Package { name: "a".to_owned(), content: content.into() }];
        assert!(compare(&package("same"), &package("same")).is_ok());
        let error = compare(&package("same"), &package("sand")).unwrap_err().to_string();
        assert!(error.ends_with("a has 4 and 4 bytes, the first other one at 2"), "{error}");
        assert!(compare(&package("same"), &package("sa")).unwrap_err().to_string().ends_with("at 2"));
    }

    #[test]
    fn a_package_has_at_most_six_megabytes() {
        assert!(small_enough("x", MOST_BYTES).is_ok());
        let error = small_enough("x", MOST_BYTES + 20_000).unwrap_err().to_string();
        assert!(error.starts_with("x has 6.02 MiB, expected at most 6.00 MiB"), "{error}");
    }
}
