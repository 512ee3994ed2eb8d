//! The device: found once, shared by all of the host's contexts and threads.

use std::ffi::{CStr, CString};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Instant;

use ggml_sys::RowReader;
use parking_lot::Mutex;
use rknn_sys::{Library, Version};

use super::attention::{AttentionCosts, Who};
use super::config::Config;
use super::cores;
use super::host_copy::{HostCopies, HostKernels};
use super::machine;
use super::mixture::MixtureRoom;
use super::pages;
use super::progress::Progress;
use super::trust::{self, Candidate};
use super::weight::{layer, upload, Weight};
pub use super::weight::{HostWeight, Job};
use crate::chip::Chip;
use crate::cpus;
pub use crate::engine::{Between, GROUP};
use crate::engine::{Engine, Error, NpuWeight, Product, Request, Route, Wanted};
use crate::kernels::glu::Activation;
use crate::kernels::int4::Calibration;
use crate::kernels::rotate::Signs;
use crate::log;
use crate::mode::Mode;
use crate::observe::{stats_table, Choice, Choices, Done, Report, Stats};
use crate::policy::decide::{Decision, Policy};
use crate::policy::scheme::{Placement, Rotate, Scheme};
use crate::policy::Pipeline;
use crate::pool::Divided;
use crate::probe::quick;
use crate::weights::cache::{Cache, Key};
use crate::weights::store::Store;

/// The device's name, as in `llama-bench -dev RKNPU` and `test-backend-ops -b RKNPU`.
pub const NAME: &CStr = c"RKNPU";
/// After as many failed products in a row the NPU is left alone.
const FAILURES_MAX: u32 = 3;
/// The I/O domains that weights fill one after the other, unless the user says otherwise: about 3 GB each.
const DOMAINS: [u8; 4] = [0, 1, 2, 3];

/// A product as it is counted.
#[derive(Clone, Copy)]
pub(super) struct Counted<'a> {
    pub weight: HostWeight<'a>,
    pub rows: usize,
    pub done: Done,
}

/// An NPU that answers.
pub struct Device {
    description: CString,
    chip: &'static Chip,
    pub(super) engine: Mutex<Engine>,
    /// What the user wants of each weight.
    policy: Arc<Policy>,
    /// How the signs of all rotations are laid, if the user says so.
    signs: Option<Signs>,
    /// How four-bit scales are found.
    calibration: Calibration,
    /// What was chosen since the table was shown last.
    choices: Mutex<Choices>,
    /// How far the conversion of a model is.
    progress: Mutex<Progress>,
    /// Whether the user knows that accuracy is lost.
    cost_is_said: AtomicBool,
    weights: Mutex<Cache<Weight>>,
    /// Whether a graph's writes may concern a weight.
    watches: AtomicBool,
    /// The buffers that weights were seen in.
    models: Mutex<Vec<(usize, usize)>>,
    copies: HostCopies,
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

    /// Does the products of a group, none of which reads what another one writes, and what is made between them if that
    /// can be made meanwhile. Tells which were done; the CPU is to do the others, which are then counted and, once, said.
    pub fn multiply(&self, jobs: &mut [Option<Job>; GROUP], between: Option<&mut Between>) -> [bool; GROUP] {
        let started = Instant::now();
        let mut done = [Done::ByHost; GROUP];
        if !self.given_up.load(Relaxed) {
            self.try_multiply(jobs, between, &mut done);
        }
        let counted = jobs.iter().zip(done).filter_map(|(job, done)| {
            let job = job.as_ref()?;
            Some(Counted { weight: job.weight, rows: job.activations.rows, done })
        });
        self.count(started, counted);
        done.map(|done| done != Done::ByHost)
    }

    /// `out` = the activation of the first of `sources` times the second, all of the same length.
    pub fn gate(&self, activation: Activation, sources: [&[f32]; 2], out: &mut [f32]) {
        self.engine.lock().gate(activation, sources, out);
    }

    /// Counts products that were begun together, each with its share of the time since then.
    pub(super) fn count<'a>(&self, began: Instant, products: impl Iterator<Item = Counted<'a>> + Clone) {
        let ns = began.elapsed().as_nanos();
        let flops = |one: &Counted| (one.rows * one.weight.source.k * one.weight.source.n) as u128;
        let all: u128 = products.clone().map(|one| flops(&one)).sum();
        for one in products {
            let ns = (ns * flops(&one) / all.max(1)) as u64;
            let Counted { weight: HostWeight { name, source, .. }, rows, done } = one;
            let shape = (source.reader.name(), source.k, source.n);
            self.stats.count_product(name, shape, rows, done, ns);
        }
    }

    /// Notes who did each product, if somebody did.
    fn try_multiply(
        &self,
        jobs: &mut [Option<Job>; GROUP],
        between: Option<&mut Between>,
        done: &mut [Done; GROUP],
    ) {
        let mut engine = self.engine.lock();
        let mut weights: [Option<Arc<Weight>>; GROUP] = Default::default();
        for (job, weight) in jobs.iter().zip(&mut weights) {
            *weight = job.as_ref().and_then(|job| self.weight(&mut engine, &job.weight));
        }
        let mut products: [Option<Product>; GROUP] = Default::default();
        let mut by_host = [false; GROUP];
        let names = jobs.each_ref().map(|job| job.as_ref().map(|job| job.weight.name));
        // Rows are the same as those of the job before only if that one is in the stream too.
        let mut unbroken = false;
        for (((job, weight), product), by_host) in
            jobs.iter_mut().zip(&weights).zip(&mut products).zip(&mut by_host)
        {
            let (Some(job), Some(Weight { npu: weight, kept })) = (job, weight.as_deref()) else {
                unbroken = false;
                continue;
            };
            let rows = job.activations.rows;
            *by_host = kept.as_ref().is_some_and(|kept| engine.is_for_host(weight, rows, kept.copy.bytes()));
            if *by_host {
                unbroken = false;
                continue;
            }
            let same = job.same && unbroken;
            unbroken = true;
            let (activations, out) = (job.activations, Divided::new(job.out));
            *product = Some(Product { weight, activations, same, out, routed: false, recovered: false });
        }
        let named = names.into_iter().flatten().next().unwrap_or_default();
        self.run(&mut engine, &mut products, between, named, done);
        for (index, job) in jobs.iter_mut().enumerate().filter(|(index, _)| by_host[*index]) {
            if let (Some(job), Some(Weight { npu, kept: Some(kept) })) = (job, weights[index].as_deref()) {
                let (started, rows, bytes) = (Instant::now(), job.activations.rows, kept.copy.bytes());
                if kept.copy.multiply(&job.activations, job.out) {
                    engine.host_took(npu, rows, bytes, started.elapsed().as_nanos() as f64);
                    done[index] = Done::Kept(npu.pipeline, bytes);
                }
            }
        }
    }

    /// Has the engine do some products, and notes who did each; what nobody did is left to the host. `name` is of one of
    /// them.
    pub(super) fn run(
        &self,
        engine: &mut Engine,
        products: &mut [Option<Product>],
        mut between: Option<&mut Between>,
        name: &str,
        done: &mut [Done],
    ) {
        if products.iter().all(Option::is_none) {
            return;
        }
        let result = engine.products(products, between.as_deref_mut());
        match &result {
            Ok(()) => self.failures.store(0, Relaxed),
            // The output of each may have been begun, unless it was never the NPU's.
            Err(error) => {
                engine.recover(products);
                if let Some(between) = between {
                    // Of results that are others now.
                    between.made = false;
                }
                self.note_failure(name, error);
            }
        }
        for (done, product) in done.iter_mut().zip(products) {
            let Some(Product { weight, routed, recovered, .. }) = product else { continue };
            *done = match (*routed, *recovered) {
                (true, _) => Done::Routed(weight.pipeline),
                (_, true) => Done::Recovered(weight.pipeline),
                _ if result.is_ok() => Done::Npu(weight.pipeline),
                _ => Done::ByHost,
            };
        }
    }

    /// Whether the weight of that name is the CPU's by what the user wants: the host then places it as without us, in the
    /// layout that its own kernels like best.
    pub fn leaves_to_cpu(&self, name: &str) -> bool {
        self.policy.is_for_cpu(name)
    }

    /// How a weight is to be converted, by what the user wants; `None` leaves it to the CPU.
    fn request(&self, weight: &HostWeight) -> Option<Request> {
        if weight.computed {
            // No weight that a user could name; its own digits are kept.
            let scheme = Scheme { pipeline: Pipeline::W16A16, rotate: Rotate::Off };
            let (wanted, layer, keep, models) = (Wanted::Scheme(scheme), None, false, 0);
            let (signs, calibration) = (self.signs, self.calibration);
            return Some(Request { wanted, layer, signs, calibration, keep, models });
        }
        let wanted = match self.policy.of(weight.name) {
            Decision::Fixed(Placement::Cpu) => return None,
            Decision::Fixed(Placement::Npu(scheme)) => Wanted::Scheme(scheme),
            Decision::Choose(goal) => Wanted::Best(goal),
        };
        Some(Request {
            wanted,
            layer: layer(weight.name),
            signs: self.signs,
            calibration: self.calibration,
            keep: weight.constant,
            models: self.models(weight),
        })
    }

    /// Bytes of the buffers that weights were seen in, this one's among them.
    fn models(&self, weight: &HostWeight) -> usize {
        let mut models = self.models.lock();
        if let Some(buffer) = weight.buffer.filter(|buffer| weight.constant && !models.contains(buffer)) {
            models.push(buffer);
        }
        models.iter().map(|(start, end)| end - start).sum()
    }

    /// The converted weight: the kept one, or a new one, which is kept if the host's bytes stay.
    pub(super) fn weight(&self, engine: &mut Engine, host: &HostWeight) -> Option<Arc<Weight>> {
        let key = Key::of(&host.source);
        if host.constant {
            if let Some(known) = self.weights.lock().get(&key) {
                // The model has come round: all its weights were seen.
                self.show_choices();
                return known;
            }
        }
        let started = Instant::now();
        let npu = match self.request(host) {
            Some(request) => upload(engine, host, &request),
            None => {
                log!(Debug, "{} stays with the CPU, as was asked for", host.name);
                None
            }
        };
        let weight = npu.map(|npu| {
            let kept =
                if host.constant && !host.expert { self.copies.of(&host.source, npu.bytes) } else { None };
            Arc::new(Weight { npu, kept })
        });
        if host.constant {
            if let Some(Weight { npu, kept }) = weight.as_deref() {
                self.note_choice(host, npu);
                self.progress.lock().note(started, npu.bytes);
                // The host's bytes are read again only if the CPU has to step in.
                if host.lent && !kept.as_ref().is_some_and(|kept| kept.copy.is_original()) {
                    pages::give_back(host.source.data);
                }
            }
            let mut weights = self.weights.lock();
            weights.insert(key, weight.clone());
            if let Some((start, end)) = host.buffer.filter(|_| host.watched) {
                weights.watch(start..end);
                self.watches.store(true, Relaxed);
            }
        }
        weight
    }

    fn note_choice(&self, host: &HostWeight, weight: &NpuWeight) {
        self.stats.set_bytes(host.name, weight.bytes);
        self.choices.lock().add(&Choice {
            name: host.name,
            ggml_type: host.source.reader.name(),
            pipeline: (weight.pipeline.name(), weight.rotation.is_some()),
            error: weight.error,
            elements: host.source.k * host.source.n,
            bytes: weight.bytes,
        });
        // What the user named is no news.
        let chosen = matches!(self.policy.of(host.name), Decision::Choose(_));
        if chosen && weight.error > weight.level && !self.cost_is_said.swap(true, Relaxed) {
            let percent = |error: f64| error.sqrt() * 100.0;
            log!(
                Warn,
                "accuracy is lost: products of {} as {} are off by about {:.1} %, on the CPU by {:.1} %; \
                 RKNPU_MODE=accurate, the default, stays at the CPU's level",
                host.name,
                weight.pipeline.name(),
                percent(weight.error),
                percent(weight.level)
            );
        }
    }

    /// Shows what was chosen since the last time, if that is asked for.
    pub fn show_choices(&self) {
        let mut choices = self.choices.lock();
        if !choices.is_empty() {
            for line in std::mem::take(&mut *choices).table().lines() {
                log!(Info, "{line}");
            }
            let kept = self.stats.kept_bytes.now();
            if kept > 0 {
                log!(Info, "copies for the host's kernels, RKNPU_KEEP: {:.1} MB", kept as f64 / 1e6);
            }
        }
    }

    /// Bytes that the copies of a weight will take, of so many `elements` and, in the file, `bytes`: about, since its
    /// pipeline is known only when its values are. At least as much as `RKNPU_MODE` comes to.
    pub fn copies_take(&self, name: &str, reader: &RowReader, elements: usize, bytes: usize) -> usize {
        let pipeline = match self.policy.of(name) {
            Decision::Fixed(Placement::Cpu) => return 0,
            Decision::Fixed(Placement::Npu(scheme)) => scheme.pipeline,
            Decision::Choose(_) => Pipeline::of(reader.is_quantized()),
        };
        let kept = if self.copies.are_all_made(reader, elements, bytes) { bytes } else { 0 };
        pipeline.dtype().b().bytes(elements).saturating_add(kept)
    }

    /// Notes that the host makes a buffer: it may be loading a model.
    pub fn a_model_comes(&self) {
        self.copies.a_model_comes();
    }

    /// Says who did the products so far, if that is asked for.
    pub fn show_ways(&self) {
        if let Some(line) = self.stats.ways() {
            log!(Info, "{line}");
        }
    }

    pub(super) fn note_failure(&self, name: &str, error: &Error) {
        log!(Warn, "the CPU does {name}: {error}");
        if self.failures.fetch_add(1, Relaxed) + 1 >= FAILURES_MAX && !self.given_up.swap(true, Relaxed) {
            log!(Error, "the NPU failed {FAILURES_MAX} times in a row: the CPU does everything from now on");
        }
    }

    /// Drops the converted copies of what lies in the addresses `range`, which the host wrote or frees;
    /// whether there were any.
    pub fn invalidate(&self, range: &Range<usize>) -> bool {
        self.models.lock().retain(|(start, end)| *start < range.start || range.end < *end);
        // Two statements: a product locks the engine first and the weights within.
        let dropped = self.weights.lock().invalidate(range);
        if dropped {
            self.engine.lock().release();
        }
        dropped
    }

    /// Notes that a graph writes to the addresses `range`.
    pub fn wrote(&self, range: &Range<usize>) {
        if self.watches.load(Relaxed) && self.weights.lock().is_watched(range) {
            self.invalidate(range);
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
