//! Brings about what the other commands stand on: system packages, the host, the models, the plugin.
//!
//! Every product is put in place by a rename as the last act, so an interruption at any point leaves either
//! the whole of it or nothing, and the next set-up goes on from there. With everything present nothing is
//! written and no lock is taken.
//!
//! Inside `cargo xtask test` the paths are already known and cargo must not be started again (it would wait
//! for the lock of the cargo that runs the tests): the `GGML_RKNPU_TEST_*` variables then stand for the
//! products, see [`given`].

pub mod bindings;
pub mod cargo;
pub mod cross;
mod debian;
pub mod download;
pub mod host;
pub mod models;
pub mod packages;
pub mod plugin;
pub mod zig;

use std::env;
use std::fs::{self, OpenOptions};
use std::path::PathBuf;

use self::download::Indexes;
use self::host::{Host, Release, CURRENT, V2, V2_2D, V2_UNMARKED};
use self::packages::Need;
use self::plugin::Plugin;
use crate::cache::Cache;
use crate::error::{Error, IoContext, Result};
use crate::progress::note;

/// The host's folder of programs, for tests.
pub const TEST_HOST: &str = "GGML_RKNPU_TEST_HOST";
/// The host's sources, for tests.
pub const TEST_HOST_SOURCE: &str = "GGML_RKNPU_TEST_HOST_SOURCE";
/// The folder of programs of a host with the plugin ABI v2-2d, for tests.
pub const TEST_HOST_V2_2D: &str = "GGML_RKNPU_TEST_HOST_V2_2D";
/// The same with v2.
pub const TEST_HOST_V2: &str = "GGML_RKNPU_TEST_HOST_V2";
/// The folder of libraries of a ggml with v2 that does not mark the nodes that are to be computed, for tests.
pub const TEST_HOST_V2_UNMARKED: &str = "GGML_RKNPU_TEST_HOST_V2_UNMARKED";
/// The folder of llama-cpp-python, for tests.
pub const TEST_PYTHON: &str = "GGML_RKNPU_TEST_PYTHON";
/// The folder of node-llama-cpp, for tests.
pub const TEST_NODE: &str = "GGML_RKNPU_TEST_NODE";
/// The folder of node-llama-cpp for the boards' processor, on a machine of another one, for tests.
pub const TEST_NODE_FOR_BOARDS: &str = "GGML_RKNPU_TEST_NODE_FOR_BOARDS";
/// The root of a Debian 11 for boards, in the environment of `cargo test`.
pub const TEST_DEBIAN_11: &str = "GGML_RKNPU_TEST_DEBIAN_11";
/// The folder of models, for tests.
pub const TEST_MODELS: &str = "GGML_RKNPU_TEST_MODELS";
/// The plugin, for tests.
pub const TEST_PLUGIN: &str = "GGML_RKNPU_TEST_PLUGIN";
/// The emulator, for tests.
pub const TEST_EMULATOR: &str = "GGML_RKNPU_TEST_EMULATOR";

/// What a command needs.
#[derive(Debug, Clone, Copy)]
pub struct Wants {
    /// The cached models.
    pub models: bool,
    /// The plugin and the emulator.
    pub plugin: bool,
}

/// What a command gets.
#[derive(Debug)]
pub struct Ready {
    /// The host.
    pub host: Host,
    /// The folder of the cached models.
    pub models: PathBuf,
    /// The plugin and the emulator, if they were wanted.
    pub plugin: Option<Plugin>,
}

/// Products that somebody else has made and named by a variable.
#[derive(Debug, Default)]
struct Given {
    host: Option<Host>,
    models: Option<PathBuf>,
    plugin: Option<Plugin>,
}

/// Looks at `GGML_RKNPU_TEST_*` and `LLAMA_CPP_DIR`.
fn given() -> Result<Given> {
    let path = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let host = match (path(TEST_HOST), path("LLAMA_CPP_DIR")) {
        (Some(bin), _) => Some(Host { bin, source: path(TEST_HOST_SOURCE) }),
        (None, Some(dir)) => Some(Host::of_user(&dir)?),
        (None, None) => None,
    };
    let plugin =
        path(TEST_PLUGIN).zip(path(TEST_EMULATOR)).map(|(library, emulator)| Plugin { library, emulator });
    Ok(Given { host, models: path(TEST_MODELS), plugin })
}

/// Makes everything wanted that is not there.
///
/// # Errors
/// The first step that fails, in one line.
pub fn prepare(wants: Wants) -> Result<Ready> {
    let given = given()?;
    let cache = Cache::from_env()?;
    let known_host = given.host.or_else(|| Host::cached(&cache, &CURRENT));
    let models_missing = wants.models && given.models.is_none() && !models::are_ready(&cache.models());
    let plugin_missing = wants.plugin && given.plugin.is_none();

    let host = match known_host {
        Some(host) if !models_missing => {
            if plugin_missing {
                packages::ensure(&[Need::Cxx, Need::Libclang])?;
            }
            host
        }
        known_host => {
            let mut needs = Vec::new();
            if known_host.is_none() {
                needs.extend(host::TOOLS);
            }
            if known_host.is_none() && host::needs_fetching(&cache, &CURRENT)
                || models_missing && models::needs_fetching(&cache)
            {
                needs.push(Need::Pip);
            }
            if plugin_missing {
                needs.extend([Need::Cxx, Need::Libclang]);
            }
            needs.sort();
            needs.dedup();
            fill(&cache, &needs, || {
                // Another set-up may have made it meanwhile.
                let host = match known_host.or_else(|| Host::cached(&cache, &CURRENT)) {
                    Some(host) => host,
                    None => host::prepare(&Indexes, &cache, &CURRENT)?,
                };
                if models_missing {
                    models::prepare(&Indexes, &host, &cache)?;
                }
                Ok(host)
            })?
        }
    };
    let plugin = match given.plugin {
        Some(plugin) => Some(plugin),
        None if plugin_missing => Some(plugin::build()?),
        None => None,
    };
    Ok(Ready { host, models: given.models.unwrap_or_else(|| cache.models()), plugin })
}

/// Hosts of older generations of the plugin ABI and in other languages, for tests: variables, and where each is.
///
/// # Errors
/// As [`prepare`].
pub fn other_hosts() -> Result<Vec<(String, PathBuf)>> {
    let cache = Cache::from_env()?;
    let mut found = Vec::new();
    for (variable, release) in
        [(TEST_HOST_V2_2D, V2_2D), (TEST_HOST_V2, V2), (TEST_HOST_V2_UNMARKED, V2_UNMARKED)]
    {
        let host = older_host(&cache, &release)?;
        if variable == TEST_HOST_V2_2D {
            found.push((TEST_PYTHON.to_owned(), bindings::python(&cache, &host)?));
        }
        found.push((variable.to_owned(), host.bin));
        found.extend(host.source.map(|source| (format!("{variable}_SOURCE"), source)));
    }
    found.push((TEST_NODE.to_owned(), bindings::node(&cache)?));
    if env::consts::ARCH != "aarch64" {
        found.push((TEST_NODE_FOR_BOARDS.to_owned(), bindings::node_for_boards(&cache)?));
        found.extend(debian::root(&cache)?.map(|root| (TEST_DEBIAN_11.to_owned(), root)));
    }
    Ok(found)
}

fn older_host(cache: &Cache, release: &Release) -> Result<Host> {
    if let Some(host) = Host::cached(cache, release) {
        return Ok(host);
    }
    let mut needs = host::TOOLS.to_vec();
    if host::needs_fetching(cache, release) {
        needs.push(Need::Pip);
    }
    needs.sort();
    fill(cache, &needs, || match Host::cached(cache, release) {
        Some(host) => Ok(host),
        None => host::prepare(&Indexes, cache, release),
    })
}

/// Fills the cache by `make`, as the only one who does.
fn fill(cache: &Cache, needs: &[Need], make: impl FnOnce() -> Result<Host>) -> Result<Host> {
    fs::create_dir_all(cache.root()).at("create", cache.root())?;
    let path = cache.lock_file();
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).at("open", &path)?;
    let mut lock = fd_lock::RwLock::new(file);
    // Not a match on try_write: its guard would still borrow the lock where the second write is asked.
    let is_taken = lock.try_write().is_err();
    if is_taken {
        note(&format!("another set-up is at work; waiting for it ({})", path.display()));
    }
    let _guard = lock.write().at("lock", &path)?;

    cache.clear_partials()?;
    packages::ensure(needs)?;
    make()
}

/// `cargo xtask setup`: everything, and where it is.
///
/// # Errors
/// See [`prepare`].
pub fn command() -> Result<()> {
    let ready = prepare(Wants { models: true, plugin: true })?;
    let plugin = ready.plugin.ok_or_else(|| Error::Refused("the plugin was not built".to_owned()))?;
    println!("host      {}", ready.host.bin.display());
    println!("models    {}", ready.models.display());
    println!("plugin    {}", plugin.library.display());
    println!("emulator  {}", plugin.emulator.display());
    Ok(())
}
