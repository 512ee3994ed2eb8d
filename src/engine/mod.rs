//! Runs plans on the NPU: the weights' memories, the contexts of each core, the tiles of a product.
//!
//! * [`choose`]: which pipeline a weight takes, by its error;
//! * [`weight`]: a weight on the NPU, converted and split over the cores;
//! * [`keep`]: converted weights from the disk and onto it;
//! * [`core`]: one core of the NPU, its bounded set of contexts and the thread that runs them;
//! * [`domains`]: the I/O domains that weights are spread over;
//! * [`scratch`]: the memories of activations and results, by size class;
//! * [`prepare`]: rows rotated, once for all weights that share them;
//! * [`pack`]: a tile's rows into A;
//! * [`matmul`]: pack rows → run the slices → unpack results, tile by tile.
//!
//! Nothing here knows ggml's structs. Every failure comes back as an [`Error`]; what to do instead is the host
//! layer's decision.

mod choose;
mod core;
mod domains;
mod keep;
mod matmul;
mod pack;
mod prepare;
mod scratch;
mod weight;

use std::collections::HashMap;
use std::sync::Arc;

use rknn_sys::{Context, Layout, Library, MatmulSpec, MatmulType, Version};

use self::core::Cores;
use self::domains::Domains;
use self::matmul::Room;
use crate::chip::Chip;
use crate::kernels::rotate::{Recipe, Rotation};
use crate::mode::Mode;
use crate::observe::Stats;
use crate::weights::store::Store;
use crate::weights::PackError;

pub use self::choose::{Request, Wanted};
pub use self::matmul::Activations;
pub use self::weight::NpuWeight;

/// Why the NPU did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The vendor's library refused or failed.
    #[error(transparent)]
    Npu(#[from] rknn_sys::Error),
    /// The weight has no form on the NPU.
    #[error("the weight cannot be converted: {0}")]
    Pack(#[from] PackError),
    /// The chip does not run this.
    #[error("{chip} cannot run {what}")]
    Unsupported {
        /// The chip.
        chip: &'static str,
        /// What was asked for.
        what: String,
    },
    /// The library is older than the ABI that is spoken.
    #[error("librknnrt {found} is too old: 2.1 or later is needed; update librknnrt.so")]
    Version {
        /// What the library says of itself.
        found: String,
    },
    /// No type and core gave right numbers.
    #[error("no product came out right on it; see rknpu-doctor")]
    Unusable,
    /// A core's thread is gone.
    #[error("the thread of NPU core {core} has ended")]
    CoreGone {
        /// The core.
        core: usize,
    },
    /// The operating system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(String),
}

/// The NPU of one device. One product at a time: callers lock it.
pub struct Engine {
    chip: &'static Chip,
    mode: Mode,
    domains: Domains,
    cores: Cores,
    pool: rayon::ThreadPool,
    /// The rotations made so far.
    rotations: HashMap<Recipe, Option<Arc<Rotation>>>,
    room: Room,
    /// Where converted weights are kept from one process to the next.
    store: Option<Store>,
    stats: Arc<Stats>,
    version: Option<Version>,
}

impl Engine {
    /// Opens the NPU: makes one small context, which fails where there is no usable NPU, asks the version, and
    /// asks `mode` how a library of that version is to be used. Weights fill the I/O domains `domains` in their order.
    ///
    /// # Errors
    /// The vendor's refusal; a library before 2.1; no way to use it that gives right numbers; no threads.
    pub fn open(
        library: &Library,
        chip: &'static Chip,
        domains: &[u8],
        mode: impl FnOnce(Option<&Version>) -> Mode,
        stats: &Arc<Stats>,
    ) -> Result<Self, Error> {
        let keeper = Arc::new(smallest_context(library, chip, domains.first().copied().unwrap_or(0))?);
        let version = keeper.version().ok();
        if let Some(version) = &version {
            if too_old(&version.api) {
                return Err(Error::Version { found: version.api.clone() });
            }
        }
        let mode = mode(version.as_ref());
        if !mode.is_usable() {
            return Err(Error::Unusable);
        }
        let cores = mode.core_ids();
        Ok(Self {
            chip,
            mode,
            cores: Cores::new(library, &cores, chip.cores > 1, stats),
            domains: Domains::new(library, chip, domains, keeper, cores.len(), stats),
            pool: pool(default_threads())?,
            rotations: HashMap::new(),
            room: Room::default(),
            store: None,
            stats: stats.clone(),
            version,
        })
    }

    /// How the NPU is used.
    pub fn mode(&self) -> &Mode {
        &self.mode
    }

    /// What library and driver say of themselves, if they do.
    pub fn version(&self) -> Option<&Version> {
        self.version.as_ref()
    }

    /// Sets the number of threads for the CPU's share of the work.
    ///
    /// # Errors
    /// When the operating system gives no thread; the old ones then stay.
    pub fn set_threads(&mut self, threads: usize) -> Result<(), Error> {
        if threads > 0 && threads != self.pool.current_num_threads() {
            self.pool = pool(threads)?;
        }
        Ok(())
    }

    /// Keeps converted weights in `store` from now on, and takes them from there.
    pub fn keep_weights_in(&mut self, store: Store) {
        self.store = Some(store);
    }

    /// Lets go of all contexts, and with them of the memories that they have bound.
    pub fn release_contexts(&mut self) {
        self.cores.release();
    }
}

/// The smallest context of `domain` that the NPU takes, of whichever type it takes.
fn smallest_context(library: &Library, chip: &Chip, domain: u8) -> Result<Context, Error> {
    let mut refused = Error::Unusable;
    for dtype in MatmulType::ALL {
        let Some(limits) = chip.limits(dtype) else { continue };
        let spec = MatmulSpec {
            dtype,
            rows: 1,
            k: limits.k_align,
            n: limits.n_align,
            b_layout: Layout::Native,
            ac_layout: Layout::Native,
            domain,
        };
        match Context::create(library, spec) {
            Ok(context) => return Ok(context),
            Err(error) => refused = error.into(),
        }
    }
    Err(refused)
}

fn pool(threads: usize) -> Result<rayon::ThreadPool, Error> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("rknpu-cpu-{index}"))
        .build()
        .map_err(|error| Error::Thread(error.to_string()))
}

fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).min(4)
}

/// Whether a version text such as "1.6.0 (…)" is before 2.1; an unreadable one is given the benefit of the doubt.
fn too_old(api: &str) -> bool {
    let mut numbers = api
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .map(|digits| digits.parse::<u32>().unwrap_or(u32::MAX));
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) < (2, 1),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_before_the_abi_are_refused() {
        for (text, old) in [
            ("1.6.0 (abc)", true),
            ("2.0.0b0", true),
            ("2.1.0", false),
            ("2.3.2 (emulated)", false),
            ("?", false),
        ] {
            assert_eq!(too_old(text), old, "{text}");
        }
    }
}
