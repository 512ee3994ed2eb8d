//! The system's packages that the host and the plugin are built with, and how any is installed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{Error, Result};
use crate::process;
use crate::progress::Step;

/// Something that must be on the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// cmake, for the host.
    Cmake,
    /// ninja, for the host.
    Ninja,
    /// ccache, which ggml's build takes by itself where it is: it spares tests that build llama.cpp anew most of the time.
    Ccache,
    /// A C++ compiler, for the host.
    Cxx,
    /// pip, which fetches the host and the model.
    Pip,
    /// npm and node, for a host in JavaScript.
    Npm,
    /// jq, with which the documentation looks at reports, for its tests.
    Jq,
    /// curl, with which the documentation asks a server, for its tests.
    Curl,
    /// libclang, with which the plugin's bindings are made.
    Libclang,
}

impl Need {
    /// Debian's package.
    fn package(self) -> &'static str {
        match self {
            Self::Cmake => "cmake",
            Self::Ninja => "ninja-build",
            Self::Ccache => "ccache",
            Self::Cxx => "g++",
            Self::Pip => "python3-pip",
            Self::Npm => "npm",
            Self::Jq => "jq",
            Self::Curl => "curl",
            Self::Libclang => "libclang-dev",
        }
    }

    /// Whether people can do without it: builds are slower then, or tests are counted as skipped.
    fn is_optional(self) -> bool {
        matches!(self, Self::Ccache | Self::Jq | Self::Curl)
    }

    fn is_there(self) -> bool {
        match self {
            Self::Cmake => on_path("cmake").is_some(),
            Self::Ninja => on_path("ninja").is_some(),
            Self::Ccache => on_path("ccache").is_some(),
            Self::Cxx => env::var_os("CXX").is_some() || on_path("c++").is_some(),
            Self::Pip => Command::new("python3")
                .args(["-m", "pip", "--version"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success()),
            Self::Npm => on_path("npm").is_some() && on_path("node").is_some(),
            Self::Jq => on_path("jq").is_some(),
            Self::Curl => on_path("curl").is_some(),
            Self::Libclang => env::var_os("LIBCLANG_PATH").is_some() || libclang_in(Path::new("/usr")),
        }
    }
}

/// The program's full path, if a folder of `PATH` has it.
pub fn on_path(program: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|path| process::is_program(path))
}

/// Looks where distributions put libclang: `lib`, `lib64`, `lib/TRIPLE`, `lib/llvm-N/lib`, `local/lib`.
fn libclang_in(usr: &Path) -> bool {
    let children = |dir: PathBuf| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let has = |dir: PathBuf| {
        children(dir).any(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("libclang") && !name.starts_with("libclang-cpp") && name.contains(".so")
        })
    };
    ["lib", "lib64", "local/lib"].into_iter().any(|dir| has(usr.join(dir)))
        || children(usr.join("lib")).filter(|path| path.is_dir()).any(|dir| has(dir.join("lib")) || has(dir))
}

/// Makes sure that everything needed is there: installs it when this is root on a system with apt,
/// otherwise says which line to run.
///
/// # Errors
/// The line to run, or apt's failure.
pub fn ensure(needs: &[Need]) -> Result<()> {
    let missing: Vec<Need> = needs.iter().copied().filter(|need| !need.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let are_optional = missing.iter().all(|need| need.is_optional());
    match get(&missing) {
        // Without a network, or without the right to install, people go on.
        Err(_) if are_optional => Ok(()),
        other => other,
    }
}

fn get(missing: &[Need]) -> Result<()> {
    let names: Vec<&str> = missing.iter().map(|need| need.package()).collect();
    if !can_install() {
        return Err(Error::Packages { line: line(&names) });
    }
    update()?;
    install(&names)?;
    match missing.iter().find(|need| !need.is_optional() && !need.is_there()) {
        None => Ok(()),
        Some(need) => Err(Error::Refused(format!(
            "apt-get installed {}, but it is still not found; look at PATH",
            need.package()
        ))),
    }
}

/// Whether packages can be installed here: this is root on a system with apt.
pub fn can_install() -> bool {
    rustix::process::geteuid().is_root() && on_path("apt-get").is_some()
}

/// What a person without root's rights here has to run.
pub fn line(packages: &[&str]) -> String {
    format!("sudo apt-get update && sudo apt-get install -y --no-install-recommends {}", packages.join(" "))
}

/// Renews the list of packages.
///
/// # Errors
/// apt's failure.
pub fn update() -> Result<()> {
    apt(&["update"], "updating the list of system packages")
}

/// Installs packages. One that would push another off the system is not installed.
///
/// # Errors
/// apt's failure.
pub fn install(packages: &[&str]) -> Result<()> {
    let arguments = [&["install", "-y", "--no-install-recommends", "--no-remove"], packages].concat();
    apt(&arguments, &format!("installing {}", packages.join(", ")))
}

/// Lets packages of another processor be installed too.
///
/// # Errors
/// dpkg's failure.
pub fn add_architecture(name: &str) -> Result<()> {
    process::run_quietly(Command::new("dpkg").args(["--add-architecture", name]))
}

/// Whether apt knows a package of that name.
pub fn is_known(package: &str) -> bool {
    let mut command = Command::new("apt-cache");
    command.args(["show", "--no-all-versions", package]).stdin(Stdio::null());
    // A package that others merely speak of has no record: apt-cache then fails, or says nothing.
    command.output().is_ok_and(|output| output.status.success() && !output.stdout.is_empty())
}

fn apt(arguments: &[&str], what: &str) -> Result<()> {
    let step = Step::spinner(what);
    // Another apt at work is waited for.
    let wait = ["-o", "DPkg::Lock::Timeout=600"];
    let mut command = Command::new("apt-get");
    process::run_quietly(command.args(wait).args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))?;
    step.done();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_to_run_names_every_missing_package() {
        assert_eq!(
            line(&[Need::Cmake.package(), Need::Pip.package()]),
            "sudo apt-get update && sudo apt-get install -y --no-install-recommends cmake python3-pip"
        );
    }

    #[test]
    fn libclang_is_found_where_distributions_put_it() {
        for dir in ["lib", "lib64", "lib/llvm-14/lib", "lib/aarch64-linux-gnu"] {
            let usr = tempfile::tempdir().unwrap();
            fs::create_dir_all(usr.path().join(dir)).unwrap();
            fs::write(usr.path().join(dir).join("libclang-cpp.so.14"), b"").unwrap();
            assert!(!libclang_in(usr.path()), "{dir}: libclang-cpp is another library");
            fs::write(usr.path().join(dir).join("libclang-14.so.1"), b"").unwrap();
            assert!(libclang_in(usr.path()), "{dir}");
        }
    }
}
