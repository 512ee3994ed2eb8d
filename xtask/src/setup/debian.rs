//! The C library of the oldest system that the packages are for, Debian 11, for the boards' processor: fetched by apt from the
//! mirror that this machine has, with lists of its own, so that nothing of the machine is changed. For tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::packages::on_path;
use crate::cache::Cache;
use crate::error::{Error, IoContext, Result};
use crate::process;
use crate::progress::Step;

/// glibc 2.31, as the boards' older images have it.
const SUITE: &str = "bullseye";
const PACKAGES: [&str; 2] = ["libc6", "libgcc-s1"];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The root of a system that has nothing else; `None` where this machine is no Debian.
///
/// # Errors
/// apt's, or a disk's.
pub fn root(cache: &Cache) -> Result<Option<PathBuf>> {
    let folder = cache.root().join(format!("debian-{SUITE}-arm64"));
    if folder.exists() {
        return Ok(Some(folder));
    }
    let tools = ["apt-get", "dpkg-deb"];
    let (Some(mirror), true, true) =
        (mirror(), tools.into_iter().all(|tool| on_path(tool).is_some()), Path::new(KEYRING).exists())
    else {
        return Ok(None);
    };
    let step = Step::spinner(format!("fetching {} of Debian's {SUITE} for arm64", PACKAGES.join(", ")));
    let partial = cache.partial()?;
    let at = |name: &str| partial.path().join(name);
    for dir in ["lists/partial", "archives/partial", "debs", "root"] {
        fs::create_dir_all(at(dir)).at("create", &at(dir))?;
    }
    let sources = at("sources.list");
    fs::write(&sources, format!("deb [signed-by={KEYRING}] {mirror} {SUITE} main\n"))
        .at("write", &sources)?;
    let apt = || {
        let mut apt = Command::new("apt-get");
        for setting in [
            &format!("Dir::Etc::SourceList={}", sources.display()),
            "Dir::Etc::SourceParts=-",
            &format!("Dir::State={}", partial.path().display()),
            "Dir::State::status=/dev/null",
            &format!("Dir::Cache={}", partial.path().display()),
            "APT::Architecture=arm64",
            "APT::Architectures=arm64",
            // apt's own user may not write here.
            "APT::Sandbox::User=root",
        ] {
            apt.args(["-o", setting]);
        }
        apt.current_dir(at("debs"));
        apt
    };
    process::run_quietly(apt().arg("update"))?;
    process::run_quietly(apt().arg("download").args(PACKAGES))?;
    for entry in fs::read_dir(at("debs")).at("read", &at("debs"))? {
        let deb = entry.at("read", &at("debs"))?.path();
        process::run_quietly(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(at("root")))?;
    }
    if !at("root").join("lib/aarch64-linux-gnu/libc.so.6").exists() {
        return Err(Error::Refused(format!("{} of {SUITE} has no libc.so.6", PACKAGES[0])));
    }
    fs::rename(at("root"), &folder).at("move the files to", &folder)?;
    step.done();
    Ok(Some(folder))
}

/// The mirror from which this machine has Debian's own packages.
fn mirror() -> Option<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(COMPONENT)"]);
    let output = command.stdin(Stdio::null()).output().ok()?;
    mirror_in(&String::from_utf8_lossy(&output.stdout))
}

fn mirror_in(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // Its security updates lie elsewhere.
            [uri, "Debian", "main"] if !uri.contains("security") => Some(uri.to_owned()),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::mirror_in;

    #[test]
    fn the_mirror_is_debians_own_and_not_that_of_its_updates() {
        let targets = "http://e.org/debian-security/ Debian main\nhttp://e.org/other/ Other main\n\
                       http://e.org/debian/ Debian main\nhttp://e.org/later/ Debian main\n";
        assert_eq!(mirror_in(targets).as_deref(), Some("http://e.org/debian/"));
        assert_eq!(mirror_in("http://e.org/ubuntu/ Ubuntu main\n"), None);
    }
}
