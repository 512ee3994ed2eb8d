//! The sources that a package is made of: which commit, of when, and a copy of them in another folder.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, IoContext, Result};
use crate::process;

/// The commit of sources that are no checkout.
const UNKNOWN: &str = "unknown";
/// Their time, in seconds since 1970: zip knows no earlier one.
const EARLIEST: &str = "315532800";

/// A checkout.
#[derive(Debug)]
pub struct Source {
    /// Its root.
    pub root: PathBuf,
    /// The commit, with `-dirty` where files differ from it.
    pub commit: String,
    /// The time that stands in everything made of it, in seconds since 1970: the commit's, or `SOURCE_DATE_EPOCH`.
    pub time: u64,
}

impl Source {
    /// Asks git. Sources without it, of an unpacked archive, name no commit and are of the first day of 1980.
    ///
    /// # Errors
    /// Why git does not tell, or a `SOURCE_DATE_EPOCH` that is no number.
    pub fn of(root: &Path) -> Result<Self> {
        let commit = match git(root, &["rev-parse", "HEAD"]) {
            Ok(commit) if git(root, &["status", "--porcelain"])?.is_empty() => commit,
            Ok(commit) => commit + "-dirty",
            Err(_) => UNKNOWN.to_owned(),
        };
        let (told, from) = match env::var("SOURCE_DATE_EPOCH") {
            Ok(value) if !value.is_empty() => (value, "SOURCE_DATE_EPOCH"),
            _ if commit == UNKNOWN => (EARLIEST.to_owned(), "the earliest time of an archive"),
            _ => (git(root, &["log", "-1", "--format=%ct"])?, "the commit's time"),
        };
        let time = told.parse().map_err(|_| {
            Error::Refused(format!(
                "{from} is {told:?}, expected whole seconds since 1970, such as 1735689600"
            ))
        })?;
        Ok(Self { root: root.to_owned(), commit, time })
    }

    /// Copies every file that git knows, or would, to `to`; without git, every one but cargo's.
    ///
    /// # Errors
    /// git's, or a disk's.
    pub fn copy_to(&self, to: &Path) -> Result<()> {
        if self.commit == UNKNOWN {
            return copy_tree(&self.root, to);
        }
        let listed = git(&self.root, &["ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
        for name in listed.split('\0').filter(|name| !name.is_empty()) {
            let (from, to) = (self.root.join(name), to.join(name));
            // Deleted, but not yet for git.
            if !from.exists() {
                continue;
            }
            if let Some(folder) = to.parent() {
                fs::create_dir_all(folder).at("create", folder)?;
            }
            fs::copy(&from, &to).at("copy", &from)?;
        }
        Ok(())
    }
}

/// Copies a folder without what cargo made in it.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).at("create", to)?;
    for entry in fs::read_dir(from).at("list", from)? {
        let path = entry.at("list", from)?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() && name != "target" {
            copy_tree(&path, &to.join(name))?;
        } else if path.is_file() {
            fs::copy(&path, to.join(name)).at("copy", &path)?;
        }
    }
    Ok(())
}

fn git(root: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    // A checkout of another user's, as a container may have it mounted, is read all the same.
    command.args(["-c", "safe.directory=*", "-C"]);
    let output = command.arg(root).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|source| Error::Io { doing: "start git".to_owned(), source })?;
    if !output.status.success() {
        return Err(Error::Tool {
            program: format!("git {}", arguments.join(" ")),
            outcome: format!(
                "{}; packages are made of a git checkout, whose commit names and dates them",
                process::outcome(output.status)
            ),
            tail: String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned).collect(),
            log: None,
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkout_tells_its_commit_and_time_and_is_copied() {
        let (dir, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let root = dir.path();
        fs::create_dir_all(root.join("x/target")).unwrap();
        fs::write(root.join("x/y"), "plain").unwrap();
        let plain = Source::of(root).unwrap();
        assert_eq!((plain.commit.as_str(), plain.time), (UNKNOWN, 315_532_800));
        plain.copy_to(&copy.path().join("plain")).unwrap();
        assert_eq!(fs::read_to_string(copy.path().join("plain/x/y")).unwrap(), "plain");
        assert!(!copy.path().join("plain/x/target").exists());
        git(root, &["init", "-q"]).unwrap();
        fs::write(root.join(".gitignore"), "/target\n").unwrap();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/c"), "text").unwrap();
        fs::create_dir(root.join("target")).unwrap();
        fs::write(root.join("target/x"), "built").unwrap();
        let who = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"];
        git(root, &["add", "."]).unwrap();
        git(root, &[&who[..], &["commit", "-q", "-m", "m"]].concat()).unwrap();

        let source = Source::of(root).unwrap();
        assert!(source.commit.len() >= 40 && source.commit.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert!(source.time > 1_700_000_000, "{source:?}");
        fs::write(root.join("a/new"), "more").unwrap();
        let source = Source::of(root).unwrap();
        assert!(source.commit.ends_with("-dirty"), "{source:?}");
        source.copy_to(copy.path()).unwrap();
        assert_eq!(fs::read_to_string(copy.path().join("a/b/c")).unwrap(), "text");
        assert!(copy.path().join("a/new").exists() && !copy.path().join("target").exists());
    }
}
