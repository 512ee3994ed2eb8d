//! Where everything lands that is fetched or built once: a folder outside the checkout, keyed by
//! version and flags, so that a second clone builds nothing twice.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use crate::error::{Error, IoContext, Result};

/// Half-made things live in folders of this prefix until a rename makes them whole.
const PARTIAL: &str = ".partial-";

/// The cache folder and the names inside it.
#[derive(Debug, Clone)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// `$XDG_CACHE_HOME/ggml-rknpu`, else `~/.cache/ggml-rknpu`.
    ///
    /// # Errors
    /// When neither variable names an absolute path.
    pub fn from_env() -> Result<Self> {
        let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
        match base {
            Some(base) => Ok(Self::at(base.join("ggml-rknpu"))),
            None => Err(Error::Refused(
                "neither XDG_CACHE_HOME nor HOME is an absolute path: set XDG_CACHE_HOME to where \
                 downloads and builds may be kept"
                    .to_owned(),
            )),
        }
    }

    /// A cache at a given place.
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Packages as fetched.
    pub fn downloads(&self) -> PathBuf {
        self.root.join("downloads")
    }

    /// Sources and builds of a version of the host.
    pub fn host(&self, version: &str) -> PathBuf {
        self.root.join(format!("llama.cpp-{version}"))
    }

    /// Its sources.
    pub fn source(&self, version: &str) -> PathBuf {
        self.host(version).join("source")
    }

    /// Its build for this machine's flags.
    pub fn build(&self, version: &str) -> PathBuf {
        self.host(version).join(format!("build-{}", flag_hash(&flags(env::consts::ARCH))))
    }

    /// What ccache keeps of the hosts' builds.
    pub fn ccache(&self) -> PathBuf {
        self.root.join("ccache")
    }

    /// The models.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// The synthetic models.
    pub fn synth(&self) -> PathBuf {
        self.root.join("synth")
    }

    /// The file that keeps two set-ups apart.
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("setup.lock")
    }

    /// A temporary folder on the cache's own file system, so that a rename out of it is atomic.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn partial(&self) -> Result<TempDir> {
        fs::create_dir_all(&self.root).at("create", &self.root)?;
        tempfile::Builder::new()
            .prefix(&format!("{PARTIAL}{}-", std::process::id()))
            .tempdir_in(&self.root)
            .at("create a temporary folder in", &self.root)
    }

    /// Removes what processes left half-made that are no more; others are at work on theirs.
    ///
    /// # Errors
    /// When a leftover cannot be removed.
    pub fn clear_partials(&self) -> Result<()> {
        for entry in fs::read_dir(&self.root).at("list", &self.root)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(rest) = name.strip_prefix(PARTIAL) else { continue };
            let owner = rest.split('-').next().unwrap_or_default();
            if !is_alive(owner) {
                fs::remove_dir_all(entry.path()).at("remove", &entry.path())?;
            }
        }
        Ok(())
    }
}

/// Whether there is a process of this id; what is no id names none.
fn is_alive(id: &str) -> bool {
    id.parse::<u32>().is_ok_and(|id| Path::new("/proc").join(id.to_string()).exists())
}

/// The host's cmake flags on a machine of this architecture, in the order that the hash is taken of.
pub fn flags(arch: &str) -> Vec<&'static str> {
    let mut flags = vec![
        "-DCMAKE_BUILD_TYPE=Release",
        "-DGGML_BACKEND_DL=ON",
        "-DBUILD_SHARED_LIBS=ON",
        "-DGGML_NATIVE=OFF",
    ];
    if arch == "x86_64" {
        flags.extend(["-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON"]);
    }
    flags.extend([
        "-DLLAMA_CURL=OFF",
        "-DLLAMA_OPENSSL=OFF",
        "-DLLAMA_BUILD_EXAMPLES=OFF",
        "-DLLAMA_BUILD_UI=OFF",
        "-DLLAMA_USE_PREBUILT_UI=OFF",
        "-DLLAMA_BUILD_TESTS=ON",
        "-DLLAMA_BUILD_SERVER=ON",
    ]);
    flags
}

/// Eight hexadecimal digits that change whenever a flag does.
pub fn flag_hash(flags: &[&str]) -> String {
    hex(&Sha256::digest(flags.join("\n")))[..8].to_owned()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_the_flags_names_the_build_folder() {
        assert_eq!(flag_hash(&flags("x86_64")), "ee155275");
        assert_ne!(flag_hash(&flags("aarch64")), "ee155275");
        assert_eq!(flags("aarch64").len() + 3, flags("x86_64").len());
    }

    #[test]
    fn leftovers_go_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        let at_work = cache.partial().unwrap();
        // No process has this id: the largest one is 2^22.
        let left = ["4194305-x", "of-another-name"].map(|name| cache.root().join(format!("{PARTIAL}{name}")));
        for left in &left {
            fs::create_dir_all(left).unwrap();
            fs::write(left.join("half"), b"x").unwrap();
        }
        fs::create_dir(cache.models()).unwrap();
        cache.clear_partials().unwrap();
        assert!(!left.iter().any(|left| left.exists()) && at_work.path().exists());
        assert!(cache.models().exists());
    }
}
