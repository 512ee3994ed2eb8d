//! The cores of the NPU. Each has its own contexts and its own thread: `rknn_matmul_run` blocks, and three contexts do
//! run at once. A core takes jobs from a short queue, so that it goes from one to the next while the CPU prepares
//! the one after that; a job may also be done by the caller, which saves a wake-up (about 0.1 ms on RK3588).

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};
use rknn_sys::{Binding, Context, Library, MatmulSpec, Operand};

use super::Error;
use crate::chip::CORES_MAX;
use crate::cpus::{be_brief, spin_until, spins};
use crate::observe::{Held, Lane, Stats};
use crate::plan::BATCH_MAX;

/// The most contexts of one core. A context costs about 0.4 MB and 1.5 ms; a model needs about five shapes times
/// the sizes of its prompts, and unbounded caches have brought boards down.
const CONTEXTS_MAX: usize = 40;
/// Jobs that wait in a core's queue; the stream keeps two batches under way.
const QUEUE: usize = 2 * BATCH_MAX;

/// One run: a context's shape and what it works on.
pub struct Job {
    pub spec: MatmulSpec,
    pub a: Binding,
    pub b: Binding,
    pub c: Binding,
}

/// The contexts of one core, the least recently used one going first.
struct Contexts {
    library: Library,
    core: usize,
    pinned: bool,
    entries: HashMap<MatmulSpec, Entry>,
    clock: u64,
    stats: Arc<Stats>,
}

struct Entry {
    context: Context,
    used: u64,
    _held: Held,
}

impl Contexts {
    fn run(&mut self, place: usize, job: &Job) -> Result<(), Error> {
        self.clock += 1;
        if !self.entries.contains_key(&job.spec) {
            self.create(job.spec)?;
        }
        let entry = self.entries.get_mut(&job.spec).expect("created above");
        entry.used = self.clock;
        let context = &mut entry.context;
        let result = context
            .bind(Operand::A, &job.a)
            .and_then(|()| context.bind(Operand::B, &job.b))
            .and_then(|()| context.bind(Operand::C, &job.c))
            .and_then(|()| {
                let started = self.stats.npu.begin();
                let result = context.run();
                self.stats.npu.end();
                self.stats.trace.span(Lane::Core(place), started, || job.spec.to_string());
                result
            });
        if result.is_err() {
            // After a failure nobody knows what the context holds; the next product gets a new one.
            self.entries.remove(&job.spec);
        }
        Ok(result?)
    }

    fn create(&mut self, spec: MatmulSpec) -> Result<(), Error> {
        while self.entries.len() >= CONTEXTS_MAX {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(spec, _)| *spec);
            let Some(oldest) = oldest else { break };
            self.entries.remove(&oldest);
        }
        let mut context = Context::create(&self.library, spec)?;
        // On a chip with one core there is nothing to choose, and its driver may know no masks.
        if self.pinned {
            context.set_core(self.core)?;
        }
        let held = Held::context(&self.stats);
        self.entries.insert(spec, Entry { context, used: self.clock, _held: held });
        Ok(())
    }
}

#[derive(Default)]
struct Queue {
    jobs: [Option<Job>; QUEUE],
    /// The place of the next job in the ring, and how many there are.
    first: usize,
    waiting: usize,
    failure: Option<Error>,
    asleep: bool,
    stop: bool,
}

/// What a core's thread and its callers share.
struct Shared {
    contexts: Mutex<Contexts>,
    queue: Mutex<Queue>,
    work: Condvar,
    done: Condvar,
    /// Jobs given, and jobs done or failed.
    given: AtomicU64,
    finished: AtomicU64,
    /// How often a thread looks again before it parks.
    spins: u32,
}

impl Shared {
    fn serve(&self, place: usize) {
        // Between two runs it has next to nothing to do, for which the NPU waits.
        be_brief();
        loop {
            spin_until(self.spins, || {
                self.given.load(Ordering::Acquire) != self.finished.load(Ordering::Relaxed)
            });
            let mut queue = self.queue.lock();
            while queue.waiting == 0 && !queue.stop {
                queue.asleep = true;
                self.work.wait(&mut queue);
                queue.asleep = false;
            }
            if queue.stop {
                return;
            }
            let first = queue.first;
            let Some(job) = queue.jobs[first].take() else { return };
            (queue.first, queue.waiting) = ((first + 1) % QUEUE, queue.waiting - 1);
            // What comes after a failure is not worth the time: its product is done anew by somebody else.
            let failed = queue.failure.is_some();
            drop(queue);
            let result = if failed { Ok(()) } else { self.contexts.lock().run(place, &job) };
            // The memories are let go before the caller hears of it.
            drop(job);
            let mut queue = self.queue.lock();
            if let Err(error) = result {
                queue.failure.get_or_insert(error);
            }
            self.finished.fetch_add(1, Ordering::Release);
            self.done.notify_all();
        }
    }
}

/// A core with its thread, which is started at the first job that it gets.
struct Core {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Core {
    fn drop(&mut self) {
        self.shared.queue.lock().stop = true;
        self.shared.work.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// All cores of the NPU that work.
pub struct Cores {
    cores: Vec<Core>,
    stats: Arc<Stats>,
}

/// The jobs that each core had been given at some time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ticket([u64; CORES_MAX]);

impl Ticket {
    /// The same before the last jobs of each core, so many.
    pub fn before(mut self, jobs: [u64; CORES_MAX]) -> Self {
        self.0.iter_mut().zip(jobs).for_each(|(given, jobs)| *given = given.saturating_sub(jobs));
        self
    }
}

impl Cores {
    /// The cores `ids` of a chip; `pinned` when there are others to keep apart from.
    pub fn new(library: &Library, ids: &[usize], pinned: bool, stats: &Arc<Stats>) -> Self {
        let core = |id: &usize| {
            let contexts = Contexts {
                library: library.clone(),
                core: *id,
                pinned,
                entries: HashMap::new(),
                clock: 0,
                stats: stats.clone(),
            };
            let shared = Shared {
                contexts: Mutex::new(contexts),
                queue: Mutex::default(),
                work: Condvar::new(),
                done: Condvar::new(),
                given: AtomicU64::new(0),
                finished: AtomicU64::new(0),
                // The CPU's own share has about as many threads as cores, and the host's spin.
                spins: spins(2 * ids.len() + 1),
            };
            Core { shared: Arc::new(shared), thread: None }
        };
        Self { cores: ids.iter().map(core).collect(), stats: stats.clone() }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.cores.len()
    }

    /// Puts a job into a core's queue. At most `QUEUE` may be under way.
    ///
    /// # Errors
    /// No thread for the core.
    pub fn give(&mut self, place: usize, job: Job) -> Result<(), Error> {
        let core = self.cores.get_mut(place).ok_or(Error::CoreGone { core: place })?;
        if core.thread.is_none() {
            let shared = core.shared.clone();
            let thread = std::thread::Builder::new().name(format!("rknpu-core-{place}"));
            let thread = thread.spawn(move || shared.serve(place));
            core.thread = Some(thread.map_err(|error| Error::Thread(error.to_string()))?);
            self.stats.count_thread();
        }
        let mut queue = core.shared.queue.lock();
        if queue.waiting == QUEUE {
            return Err(Error::CoreGone { core: place });
        }
        let at = (queue.first + queue.waiting) % QUEUE;
        queue.jobs[at] = Some(job);
        queue.waiting += 1;
        core.shared.given.fetch_add(1, Ordering::Release);
        if queue.asleep {
            core.shared.work.notify_one();
        }
        Ok(())
    }

    /// Does a job on the caller's thread, after those that the core was given.
    ///
    /// # Errors
    /// The NPU's failure.
    pub fn run_here(&mut self, place: usize, job: &Job) -> Result<(), Error> {
        let core = self.cores.get(place).ok_or(Error::CoreGone { core: place })?;
        let result = core.shared.contexts.lock().run(place, job);
        result
    }

    /// What was given so far.
    pub fn ticket(&self) -> Ticket {
        let mut ticket = Ticket::default();
        for (given, core) in ticket.0.iter_mut().zip(&self.cores) {
            *given = core.shared.given.load(Ordering::Relaxed);
        }
        ticket
    }

    /// Waits until everything that had been given at `ticket` is done.
    ///
    /// # Errors
    /// The first failure of a core since the last time; everything that was given is then done or dropped.
    pub fn wait(&mut self, ticket: Ticket) -> Result<(), Error> {
        let mut failed = false;
        for (given, core) in ticket.0.iter().zip(&self.cores) {
            failed |= wait_for(&core.shared, *given);
        }
        if failed {
            self.drain()?;
        }
        Ok(())
    }

    /// Whether everything that had been given at `ticket` is done, or has failed.
    pub fn are_done(&self, ticket: Ticket) -> bool {
        let finished = |core: &Core| core.shared.finished.load(Ordering::Acquire);
        ticket.0.iter().zip(&self.cores).all(|(given, core)| finished(core) >= *given)
    }

    /// Waits until nothing is under way, and forgets failures.
    ///
    /// # Errors
    /// The first of them.
    pub fn drain(&mut self) -> Result<(), Error> {
        let mut failure = None;
        for core in &self.cores {
            wait_for(&core.shared, core.shared.given.load(Ordering::Relaxed));
            failure = failure.or(core.shared.queue.lock().failure.take());
        }
        failure.map_or(Ok(()), Err)
    }

    /// Destroys all contexts.
    pub fn release(&mut self) {
        for core in &self.cores {
            core.shared.contexts.lock().entries.clear();
        }
    }
}

/// Waits until a core has done `given` jobs; true if one has failed.
fn wait_for(shared: &Shared, given: u64) -> bool {
    spin_until(shared.spins, || shared.finished.load(Ordering::Acquire) >= given);
    let mut queue = shared.queue.lock();
    while shared.finished.load(Ordering::Acquire) < given {
        shared.done.wait(&mut queue);
    }
    queue.failure.is_some()
}
