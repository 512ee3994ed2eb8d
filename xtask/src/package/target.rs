//! The processors that packages are made for, by each tool's name for them.

use object::Architecture;

use crate::setup::cross;

/// The oldest C library that the packages run on: Debian 11's and Ubuntu 20.04's, the boards' vendor images.
pub const GLIBC: Version = Version(2, 31);

/// A version of the C library.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl std::fmt::Display for Version {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}.{}", self.0, self.1)
    }
}

/// A processor.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// rustc's name.
    pub triple: &'static str,
    /// The name of Debian's folder of libraries, which is also what zig calls it.
    pub multiarch: &'static str,
    /// Debian's name for its packages.
    pub debian: &'static str,
    /// What the files must be for.
    pub architecture: Architecture,
}

/// The boards', and the one of the machines that they are built on.
static TARGETS: [Target; 2] = [
    Target {
        triple: cross::TARGET,
        multiarch: "aarch64-linux-gnu",
        debian: "arm64",
        architecture: Architecture::Aarch64,
    },
    Target {
        triple: "x86_64-unknown-linux-gnu",
        multiarch: "x86_64-linux-gnu",
        debian: "amd64",
        architecture: Architecture::X86_64,
    },
];

impl Target {
    /// The one of that triple.
    ///
    /// # Errors
    /// Which there are.
    pub fn of(triple: &str) -> Result<&'static Self, String> {
        let all = TARGETS.iter().map(|target| target.triple).collect::<Vec<_>>().join(", ");
        TARGETS.iter().find(|target| target.triple == triple).ok_or(format!("expected one of {all}"))
    }

    /// What zig links for.
    pub fn zig(&self) -> String {
        format!("{}.{GLIBC}", self.multiarch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boards_are_known_and_others_are_told_which_are() {
        assert_eq!(Target::of("aarch64-unknown-linux-gnu").unwrap().zig(), "aarch64-linux-gnu.2.31");
        let error = Target::of("riscv64gc-unknown-linux-gnu").unwrap_err();
        assert_eq!(error, "expected one of aarch64-unknown-linux-gnu, x86_64-unknown-linux-gnu");
    }

    #[test]
    fn versions_are_compared_by_numbers() {
        assert!(Version(2, 4) < Version(2, 31) && Version(2, 31) < Version(3, 0));
    }
}
