//! Runs plans on the NPU: the weights' memories, the contexts of each core, the tiles of a product.
//!
//! * [`attention`]: attention, from queries, keys and values to its results;
//! * [`choose`]: which pipeline a weight takes, by its error;
//! * [`weight`]: a weight on the NPU, converted, in a piece of an arena;
//! * [`keep`]: converted weights from the disk and onto it;
//! * [`domains`]: the I/O domains that weights are spread over, and the arenas of each; [`arenas`]: how large these are;
//! * [`domain_lock`]: what keeps processes out of each other's domains;
//! * [`experts`]: rows gathered by expert; [`mixture`]: the feed-forward blocks of all experts as one stream;
//! * [`prepare`]: rows rotated, once for all weights that share them;
//! * [`pack`]: rows into A;
//! * [`scratch`]: the memories of activations and results;
//! * [`core`]: one core of the NPU, its bounded set of contexts and the thread that runs them;
//! * [`route`]: who does products of few rows;
//! * [`on_cpu`]: those that the CPU does;
//! * [`results`]: out of C into the rows of the output;
//! * [`product`]: what is asked for; [`pair`]: two products in turns, or as one; [`made`]: what is made of both; [`fed`]: the product of that,
//!   [`ahead`] of which its rows are packed;
//! * [`chain`]: products that follow from each other, tile of rows behind tile;
//! * [`together`]: products whose weights lie one after the other, in the same runs;
//! * [`stream`]: products as a stream of steps, in which CPU and NPU work at once; [`block`]: rows that are prepared together;
//!   [`flight`]: the batches of them that are given to the cores; [`land`]: where each of these ends.
//!
//! Nothing here knows ggml's structs. Every failure comes back as an [`Error`]; what to do instead is the host
//! layer's decision.

mod ahead;
mod arenas;
mod attention;
mod block;
mod chain;
mod choose;
mod core;
mod domain_lock;
mod domains;
mod experts;
mod fed;
mod flight;
mod keep;
mod land;
mod made;
mod mixture;
mod on_cpu;
mod pack;
mod pair;
mod prepare;
mod product;
mod results;
mod route;
mod scratch;
mod stream;
mod together;
mod weight;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use rknn_sys::{Context, Layout, Library, MatmulSpec, MatmulType, Version};

use self::attention::AttentionRoom;
use self::chain::ChainKey;
use self::core::Cores;
use self::domain_lock::DomainLock;
use self::domains::Domains;
use self::pair::JointKey;
use self::stream::Room;
use self::together::{Together, TogetherKey};
use crate::chip::Chip;
use crate::cpus::pin;
use crate::kernels::rotate::{Recipe, Rotation};
use crate::mode::Mode;
use crate::observe::Stats;
use crate::plan::{Joint, Means, Planned, Schedule, WeightPlan};
use crate::policy::Pipeline;
use crate::pool::Pool;
use crate::weights::store::Store;
use crate::weights::PackError;

pub use self::attention::{Attention, Cached, Mask, Queries};
pub use self::chain::{Chain, Chained, Link, Make, CHAIN, CHAIN_ROWS};
use self::choose::BlocksKey;
pub use self::choose::{Request, Wanted};
pub use self::experts::{Experts, Picks};
pub use self::mixture::BLOCK;
pub use self::pair::Between;
pub use self::product::{Activations, Product, GROUP};
pub use self::route::{Decode, Route, ROWS_MAX as FEW};
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
    /// The engine relies on what it does not have.
    #[error("there is no {what} where it has to be: a bug of this plugin; please report it")]
    Lost {
        /// What is looked for.
        what: &'static str,
    },
    /// A core's thread is gone.
    #[error("the thread of NPU core {core} has ended")]
    CoreGone {
        /// The core.
        core: usize,
    },
    /// Another process is in the domains other than 0.
    #[error(
        "another process uses I/O domains other than 0, and domain {domain} is wanted: end it, or use RKNPU_DOMAINS=0"
    )]
    DomainsInUse {
        /// The domain.
        domain: u8,
    },
    /// All domains that may be used are full.
    #[error("no I/O domain has room for {bytes} bytes more")]
    NoRoom {
        /// What was asked for.
        bytes: usize,
    },
    /// The file that guards the domains cannot be used.
    #[error("the I/O domains cannot be locked: {0}")]
    Lock(String),
    /// What the host's graph has between two products.
    #[error("the host's CPU backend failed between two products")]
    Link,
    /// The operating system gives no thread.
    #[error("cannot start a thread: {0}")]
    Thread(String),
}

impl Error {
    /// Whether memory, or addresses in an I/O domain, are used up.
    pub fn is_no_memory(&self) -> bool {
        matches!(self, Self::Npu(error) if error.is_no_memory())
    }
}

/// Pipeline, K and N, the longest segment allowed, and the segment that is asked for.
type PlanKey = (Pipeline, (usize, usize), usize, Option<usize>);
/// Pipeline, K and N, segment and rows.
type ScheduleKey = (Pipeline, (usize, usize), usize, usize);
/// As many schedules are remembered; a server with prompts of all lengths has some thousands.
const SCHEDULES_MAX: usize = 8192;

/// The NPU of one device. One product at a time: callers lock it.
pub struct Engine {
    chip: &'static Chip,
    mode: Mode,
    domains: Domains,
    cores: Cores,
    /// The threads of the CPU's share of products.
    pool: Pool,
    /// The processors that they are kept on; none if the system may choose.
    cpus: Arc<Vec<usize>>,
    /// Those that convert weights, of which most processes need none after the first product of each.
    converter: rayon::ThreadPool,
    /// How weights of a shape are cut, and products of so many rows run, as far as somebody asked.
    plans: HashMap<PlanKey, Option<WeightPlan>>,
    /// The segments and blocks of long rows that are rotated.
    blocks: HashMap<BlocksKey, Option<(usize, usize)>>,
    schedules: HashMap<ScheduleKey, Schedule>,
    joints: HashMap<JointKey, Option<Joint>>,
    /// Rows of a tile of products that follow from each other, and how each is run that is not one of two.
    chains: HashMap<ChainKey, Option<usize>>,
    chained: HashMap<ScheduleKey, Option<Schedule>>,
    together: HashMap<TogetherKey, Option<Together>>,
    /// Weights were let go of to make room, which is there when the last of them is.
    makes_room: bool,
    /// Who does products of few rows.
    route: Route,
    /// When the last product ended, for the trace.
    last_product: Option<Instant>,
    /// The rotations made so far.
    rotations: HashMap<Recipe, Option<Arc<Rotation>>>,
    room: Room,
    attention: AttentionRoom,
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
        let first = domains.first().copied().unwrap_or(0);
        let lock = match first {
            0 => None,
            _ => Some(DomainLock::take().map_err(Error::Lock)?.ok_or(Error::DomainsInUse { domain: first })?),
        };
        let keeper = Arc::new(smallest_context(library, chip, first)?);
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
            domains: Domains::new(library, chip, domains, keeper, cores.len(), windows(&mode), stats)
                .with(lock),
            pool: pool(default_threads(), &Arc::default(), stats)?,
            cpus: Arc::default(),
            converter: converter(default_threads(), stats)?,
            plans: HashMap::new(),
            blocks: HashMap::new(),
            schedules: HashMap::new(),
            joints: HashMap::new(),
            chains: HashMap::new(),
            chained: HashMap::new(),
            together: HashMap::new(),
            makes_room: false,
            route: Route::new(Decode::Npu, false),
            last_product: None,
            rotations: HashMap::new(),
            room: Room::default(),
            attention: AttentionRoom::default(),
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

    /// Threads of the CPU's share of the work.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Sets the number of threads for the CPU's share of the work.
    ///
    /// # Errors
    /// When the operating system gives no thread; the old ones then stay.
    pub fn set_threads(&mut self, threads: usize) -> Result<(), Error> {
        if threads > 0 && threads != self.pool.threads() {
            self.pool = pool(threads, &self.cpus, &self.stats)?;
            self.converter = converter(threads, &self.stats)?;
        }
        Ok(())
    }

    /// Keeps the CPU's threads on these processors from now on.
    ///
    /// # Errors
    /// As [`Self::set_threads`].
    pub fn pin_to(&mut self, cpus: Vec<usize>) -> Result<(), Error> {
        self.cpus = Arc::new(cpus);
        self.pool = pool(self.pool.threads(), &self.cpus, &self.stats)?;
        Ok(())
    }

    /// Has products of few rows done by who `route` says, from now on; the NPU does them otherwise.
    pub fn set_route(&mut self, route: Route) {
        self.route = route;
    }

    /// Keeps converted weights in `store` from now on, and takes them from there.
    pub fn keep_weights_in(&mut self, store: Store) {
        self.store = Some(store);
    }

    /// Lets go of all contexts, and with them of the memories that they have bound, and of those that no weight is in.
    pub fn release(&mut self) {
        self.cores.release();
        self.attention.release();
        self.domains.release();
    }

    /// After a product found no room: makes some where weights can be had elsewhere. The weights in the arenas of these
    /// numbers are to be let go of.
    pub fn make_room(&mut self) -> Vec<u64> {
        self.release();
        self.makes_room = true;
        self.domains.crowded()
    }

    /// What the cores may do with weights of `pipeline`.
    fn means(&self, pipeline: Pipeline) -> Means {
        means(&self.mode, pipeline, self.cores.count())
    }

    /// How a weight is cut, and what may be done with it.
    fn planned<'w>(&self, weight: &'w NpuWeight) -> Planned<'w> {
        Planned { plan: &weight.plan, means: self.means(weight.pipeline) }
    }

    /// How a product of so many rows is run.
    fn schedule(&mut self, weight: &NpuWeight, rows: usize) -> Schedule {
        let (plan, means) = (&weight.plan, self.means(weight.pipeline));
        if self.schedules.len() >= SCHEDULES_MAX {
            self.schedules.clear();
        }
        *self
            .schedules
            .entry(schedule_key(weight, rows))
            .or_insert_with(|| Schedule::best(plan, &self.chip.timing, means, rows))
    }
}

fn schedule_key(weight: &NpuWeight, rows: usize) -> ScheduleKey {
    let plan = &weight.plan;
    (weight.pipeline, (plan.k, plan.n), plan.longest(), rows)
}

/// Whether any part of a memory may be bound: native parts are whole ranges of bytes.
fn windows(mode: &Mode) -> bool {
    mode.views && mode.native_b && mode.native_ac
}

fn means(mode: &Mode, pipeline: Pipeline, cores: usize) -> Means {
    Means { cores, planes: pipeline.planes(), windows: windows(mode) }
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

fn pool(threads: usize, cpus: &Arc<Vec<usize>>, stats: &Arc<Stats>) -> Result<Pool, Error> {
    let (counted, cpus) = (stats.clone(), cpus.clone());
    let begin = move || {
        counted.count_thread();
        if !cpus.is_empty() {
            pin(&cpus);
        }
    };
    Pool::new(threads, begin).map_err(|error| Error::Thread(error.to_string()))
}

fn converter(threads: usize, stats: &Arc<Stats>) -> Result<rayon::ThreadPool, Error> {
    let counted = stats.clone();
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("rknpu-conv-{index}"))
        .start_handler(move |_| counted.count_thread())
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
