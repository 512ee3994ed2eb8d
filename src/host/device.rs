//! The device: found once, shared by all of the host's contexts and threads.

use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::Arc;

use parking_lot::Mutex;
use rknn_sys::{Library, Version};

use super::attention::{AttentionCosts, Who};
use super::config::Config;
use super::cores;
use super::host_copy::{HostCopies, HostKernels};
use super::machine;
use super::mixture::MixtureRoom;
use super::progress::Progress;
use super::trust::{self, Candidate};
use super::weight::Weight;
pub use super::weight::{HostWeight, Job};
use crate::chip::Chip;
use crate::cpus;
pub use crate::engine::{Between, Link, CHAIN, CHAIN_ROWS, GROUP};
use crate::engine::{Engine, Route};
use crate::kernels::int4::Calibration;
use crate::kernels::rotate::Signs;
use crate::log;
use crate::mode::Mode;
use crate::observe::{stats_table, Choices, Report, Stats};
use crate::policy::decide::Policy;
use crate::policy::Pipeline;
use crate::probe::quick;
use crate::weights::cache::Cache;
use crate::weights::store::Store;

/// The device's name, as in `llama-bench -dev RKNPU` and `test-backend-ops -b RKNPU`.
pub const NAME: &CStr = c"RKNPU";
/// The I/O domains that weights fill one after the other, unless the user says otherwise: about 3 GB each.
const DOMAINS: [u8; 4] = [0, 1, 2, 3];

/// An NPU that answers.
pub struct Device {
    description: CString,
    chip: &'static Chip,
    pub(super) engine: Mutex<Engine>,
    /// What the user wants of each weight.
    pub(super) policy: Arc<Policy>,
    /// How the signs of all rotations are laid, if the user says so.
    pub(super) signs: Option<Signs>,
    /// How four-bit scales are found.
    pub(super) calibration: Calibration,
    /// What was chosen since the table was shown last.
    pub(super) choices: Mutex<Choices>,
    /// How far the conversion of a model is.
    pub(super) progress: Mutex<Progress>,
    /// Whether the user knows that accuracy is lost.
    pub(super) cost_is_said: AtomicBool,
    pub(super) weights: Mutex<Cache<Weight>>,
    /// Whether a graph's writes may concern a weight.
    pub(super) watches: AtomicBool,
    /// The buffers that weights were seen in.
    pub(super) models: Mutex<Vec<(usize, usize)>>,
    pub(super) copies: HostCopies,
    /// Who does attention, and what is known of those who could.
    pub(super) attention: Who,
    pub(super) attention_costs: AttentionCosts,
    pub(super) kernels: &'static dyn HostKernels,
    pub(super) mixture: Mutex<MixtureRoom>,
    pub(super) stats: Arc<Stats>,
    pub(super) failures: AtomicU32,
    pub(super) given_up: AtomicBool,
}

impl Device {
    /// Opens the NPU that `config` and the machine name; `kernels` are the host's own.
    ///
    /// # Errors
    /// One sentence for the user: what is missing and what to do.
    pub fn open(config: &Config, kernels: &'static dyn HostKernels) -> Result<Self, String> {
        machine::raise_fd_limit();
        let library = Library::open(config.library.as_deref()).map_err(|error| error.to_string())?;
        let (chip, description) = match library.emulated_soc() {
            Some(name) => {
                let chip = Chip::by_name(name).ok_or_else(|| {
                    format!("the NPU emulator plays \"{name}\", expected one of {}", Chip::names())
                })?;
                (chip, format!("emulated {}", chip.title))
            }
            None => {
                let chip = match config.chip.and_then(Chip::by_name) {
                    Some(chip) => chip,
                    None => machine::chip_of_this_board()?,
                };
                (chip, format!("Rockchip {} NPU", chip.title))
            }
        };
        if let Some(wanted) = &config.cores {
            cores::check(wanted, chip)?;
        }
        let domains: Vec<u8> = config.domains.as_ref().map_or_else(
            || DOMAINS.to_vec(),
            // Each is at most 15.
            |domains| domains.list.iter().map(|domain| *domain as u8).collect(),
        );
        runnable(&config.policy, chip)?;
        let stats = Arc::new(Stats::default());
        let emulated = library.emulated_soc().is_some();
        let mut no_core = None;
        let mode = |version: Option<&Version>| {
            let candidate = Candidate { chip, version, emulated };
            let found =
                candidate.mode(config.probe, trust::cache_path().as_deref(), || quick(&library, chip));
            let restricted = config.cores.as_ref().map_or(Ok(found), |wanted| cores::restrict(found, wanted));
            restricted.unwrap_or_else(|error| {
                no_core = Some(error);
                Mode::NONE
            })
        };
        let mut engine = Engine::open(&library, chip, &domains, mode, &stats).map_err(|error| {
            no_core.unwrap_or_else(|| format!("the NPU of the {} does not answer: {error}", chip.title))
        })?;
        for (variable, scheme) in config.policy.named() {
            let used = engine.mode().pipeline(scheme.pipeline);
            if used != Some(scheme.pipeline) {
                let instead = used.map_or("the CPU", Pipeline::name);
                log!(Warn, "{variable} names {scheme}, which this NPU gets wrong or refuses: {instead} is used instead");
            }
        }
        if let Some(folder) = config.cache.folder(emulated) {
            match Store::open(&folder) {
                Ok(store) => engine.keep_weights_in(store),
                Err(error) => log!(Warn, "converted weights are not kept on disk: {error}"),
            }
        }
        // An emulated NPU takes the time of its emulation.
        engine.set_route(Route::new(config.decode, !emulated));
        let cpus = config.cpus.as_ref().map(|cpus| cpus.list.clone()).or_else(cpus::big_cores);
        if let Some(cpus) = cpus {
            if let Err(error) = engine.pin_to(cpus) {
                log!(Warn, "the CPU's threads stay where they are: {error}");
            }
        }
        if config.trace.is_some() {
            stats.trace.start();
        }
        let version = engine.version();
        log!(
            Info,
            "{description}, {} cores, library {}, driver {}",
            chip.cores,
            version.map_or("unknown", |version| &version.api),
            version.map_or("unknown", |version| &version.driver)
        );
        Ok(Self {
            description: CString::new(description).unwrap_or_default(),
            chip,
            engine: Mutex::new(engine),
            policy: config.policy.clone(),
            signs: config.signs,
            calibration: config.calibration,
            choices: Mutex::default(),
            progress: Mutex::default(),
            cost_is_said: AtomicBool::new(false),
            weights: Mutex::default(),
            watches: AtomicBool::new(false),
            models: Mutex::default(),
            copies: HostCopies::new(kernels, config.keep.effective(config.decode, emulated), &stats),
            attention: config.attention,
            attention_costs: AttentionCosts::default(),
            kernels,
            mixture: Mutex::default(),
            stats,
            failures: AtomicU32::new(0),
            given_up: AtomicBool::new(false),
        })
    }

    /// What users read: "Rockchip RK3588 NPU", or "emulated RK3588" where there is no silicon.
    pub fn description(&self) -> &CStr {
        &self.description
    }

    /// Sets the threads of the CPU's share of the work.
    pub fn set_threads(&self, threads: usize) {
        if let Err(error) = self.engine.lock().set_threads(threads) {
            log!(Warn, "{threads} threads were asked for: {error}");
        }
    }

    /// Notes that a graph was computed.
    pub fn count_graph(&self) {
        self.stats.graphs.done(crate::allocations());
    }

    /// Says who did the products so far, if that is asked for.
    pub fn show_ways(&self) {
        if let Some(line) = self.stats.ways() {
            log!(Info, "{line}");
        }
    }

    /// What was done so far.
    pub fn report(&self) -> Report {
        Report::new(&NAME.to_string_lossy(), &self.description.to_string_lossy(), self.chip.name, &self.stats)
    }

    /// Says what the user wants to know at the end of the process; a failure is said, no more.
    pub fn end(&self, config: &Config) {
        if let Some(path) = &config.report {
            self.write_report(path);
        }
        if let Some(path) = &config.trace {
            if let Err(error) = self.stats.trace.write(path) {
                log!(Warn, "cannot write the trace to {}: {error}", path.display());
            }
        }
        if config.stats {
            // Whoever asks for it wants to see it, however quiet the log is.
            for line in stats_table(&self.stats, self.chip) {
                log!(Error, "{line}");
            }
        }
    }

    /// Writes the report to `path`; a failure is said, no more.
    pub fn write_report(&self, path: &Path) {
        if let Err(error) = self.report().write(path) {
            log!(Warn, "cannot write the report to {}: {error}", path.display());
        }
    }
}

/// Whether `chip` has the types of all pipelines that the user named.
///
/// # Errors
/// The first that it lacks, and those that it has.
fn runnable(policy: &Policy, chip: &Chip) -> Result<(), String> {
    let has = |pipeline: &Pipeline| chip.limits(pipeline.dtype()).is_some();
    match policy.named().find(|(_, scheme)| !has(&scheme.pipeline)) {
        None => Ok(()),
        Some((variable, scheme)) => {
            let all = Pipeline::ALL.into_iter().filter(has).map(Pipeline::name).collect::<Vec<_>>();
            Err(format!(
                "{variable} names {scheme}, which the {} does not run, expected one of {}",
                chip.title,
                all.join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::host_copy::NoKernels;
    use super::*;
    use crate::policy::scheme::Placement;

    #[test]
    fn a_pipeline_that_the_chip_lacks_is_named_with_those_that_it_has() {
        let policy = |name: &str| Policy { forced: Placement::by_name(name), ..Policy::default() };
        let chip = |name: &str| Chip::by_name(name).unwrap();
        assert_eq!(runnable(&policy("W4A8_PADDED"), chip("rk3588")), Ok(()));
        assert_eq!(runnable(&policy("CPU"), chip("rk3566")), Ok(()));
        let error = runnable(&policy("W4A8_PADDED"), chip("rk3566")).unwrap_err();
        assert_eq!(
            error,
            "RKNPU_PIPELINE names W4A8_PADDED, which the RK3566 does not run, expected one of W8A8, W16A16"
        );
    }

    #[test]
    fn without_a_library_the_error_says_what_to_do() {
        let config = Config { library: Some("/nonexistent/librknnrt.so".into()), ..Config::default() };
        let error = Device::open(&config, &NoKernels).err().unwrap();
        assert!(error.contains("/nonexistent/librknnrt.so") && error.contains("RKNPU_LIBRARY"), "{error}");
    }
}
