//! The cores of the NPU. Each has its own contexts and, but for the first, its own thread: `rknn_matmul_run`
//! blocks, and three contexts do run at once. The first core is driven by the caller, which saves one wake-up
//! (about 0.1 ms on RK3588) on every product.

use std::collections::HashMap;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::Arc;
use std::thread::JoinHandle;

use rknn_sys::{Binding, Context, Library, MatmulSpec, Operand};

use super::Error;
use crate::chip::CORES_MAX;
use crate::observe::{Held, Stats};

/// The most contexts of one core. A context costs about 0.4 MB and 1.5 ms; a model needs about five shapes times
/// the sizes of its prompts, and unbounded caches have brought boards down.
const CONTEXTS_MAX: usize = 64;

/// One run: a context's shape and what it works on.
pub struct Job {
    pub spec: MatmulSpec,
    pub a: Binding,
    pub b: Binding,
    pub c: Binding,
}

enum Message {
    Run(Job),
    Release,
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
    fn run(&mut self, job: &Job) -> Result<(), Error> {
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
            .and_then(|()| context.run());
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

/// A core with a thread of its own.
struct Worker {
    jobs: Option<Sender<Message>>,
    results: Receiver<Result<(), Error>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(mut contexts: Contexts) -> Result<Self, Error> {
        let (jobs, inbox) = channel();
        let (outbox, results) = channel();
        let thread = std::thread::Builder::new()
            .name(format!("rknpu-core-{}", contexts.core))
            .spawn(move || {
                for message in inbox {
                    match message {
                        Message::Run(job) => {
                            let result = contexts.run(&job);
                            // The memories are let go before the caller hears of it.
                            drop(job);
                            if outbox.send(result).is_err() {
                                break;
                            }
                        }
                        Message::Release => contexts.entries.clear(),
                    }
                }
            })
            .map_err(|error| Error::Thread(error.to_string()))?;
        Ok(Self { jobs: Some(jobs), results, thread: Some(thread) })
    }

    fn send(&self, message: Message) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| jobs.send(message).is_ok())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// All cores of the NPU.
pub struct Cores {
    first: Contexts,
    /// Cores 1 and up, started at their first job.
    others: Vec<Option<Worker>>,
    /// The NPU's numbers of the cores: jobs name them by their place here.
    ids: Vec<usize>,
    library: Library,
    stats: Arc<Stats>,
}

impl Cores {
    /// The cores `ids` of a chip; `pinned` when there are others to keep apart from.
    pub fn new(library: &Library, ids: &[usize], pinned: bool, stats: &Arc<Stats>) -> Self {
        Self {
            first: contexts(library, ids.first().copied().unwrap_or(0), pinned, stats),
            others: ids.iter().skip(1).map(|_| None).collect(),
            ids: ids.to_vec(),
            library: library.clone(),
            stats: stats.clone(),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.ids.len()
    }

    /// Runs one job a core, all at once, and waits for all of them; gives the first failure.
    pub fn run(&mut self, jobs: impl Iterator<Item = (usize, Job)>) -> Result<(), Error> {
        let mut first_job = None;
        let mut failure = None;
        let mut waiting = [false; CORES_MAX];
        for (core, job) in jobs {
            if core == 0 {
                first_job = Some(job);
                continue;
            }
            match self.worker(core) {
                Ok(worker) => {
                    if worker.send(Message::Run(job)) {
                        waiting[core] = true;
                    } else {
                        failure.get_or_insert(Error::CoreGone { core });
                    }
                }
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        if let Some(job) = first_job {
            if let Err(error) = self.first.run(&job) {
                failure.get_or_insert(error);
            }
        }
        for (core, _) in waiting.iter().enumerate().filter(|(_, waits)| **waits) {
            let result = match &self.others[core - 1] {
                Some(worker) => worker.results.recv().unwrap_or(Err(Error::CoreGone { core })),
                None => Err(Error::CoreGone { core }),
            };
            if let Err(error) = result {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn worker(&mut self, core: usize) -> Result<&Worker, Error> {
        let slot = self.others.get_mut(core - 1).ok_or(Error::CoreGone { core })?;
        if slot.is_none() {
            let contexts = contexts(&self.library, self.ids[core], true, &self.stats);
            *slot = Some(Worker::start(contexts)?);
        }
        Ok(slot.as_ref().expect("started above"))
    }

    /// Destroys all contexts.
    pub fn release(&mut self) {
        self.first.entries.clear();
        for worker in self.others.iter().flatten() {
            worker.send(Message::Release);
        }
    }
}

fn contexts(library: &Library, core: usize, pinned: bool, stats: &Arc<Stats>) -> Contexts {
    Contexts {
        library: library.clone(),
        core,
        pinned,
        entries: HashMap::new(),
        clock: 0,
        stats: stats.clone(),
    }
}
