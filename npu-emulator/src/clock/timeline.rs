//! When everything happened in modelled time.
//!
//! Calls are recorded as tasks with what each had to wait for, and placed in time only when somebody asks. What
//! is recorded is the program's order, not the machine's: a call waits for
//!
//! * the previous call of its thread, since calls block;
//! * the last call on the same context;
//! * the last calls that wrote the bytes that it reads or writes (a sync to the device writes A and B, a run reads
//!   them and writes C, a sync from the device reads C).
//!
//! A core serves one run at a time, in the order in which they become ready; an unpinned run takes the idle core
//! of the lowest number. While n cores move data at once, the traffic of each is slower by
//! `max(1, n · rate of one / rate of all)`, and speeds up again as soon as one of them is done. None of this depends
//! on how fast the emulator computed, or on which of two threads came first, unless two runs are ready for one core
//! in the same ns. What the CPU does between calls takes no modelled time.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::cost::{Cost, Shape, Timing};

/// Tasks that are kept before they are placed even if nobody asks. Runs after such a point do not slow down those
/// before it.
const MOST: usize = 1 << 15;

/// When something is done.
#[derive(Debug, Clone, Copy)]
enum When {
    At(f64),
    After(usize),
}

/// The calls of the host that take time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Making a context.
    Create,
    /// Binding a memory as it is.
    Bind,
    /// Binding a row-major B, which is converted.
    Convert,
    /// A sync, either way.
    Sync,
}

/// What a task does.
#[derive(Debug, Clone, Copy)]
pub enum Work {
    /// Keeps its thread for that many ns.
    Host(Kind, f64),
    /// Keeps a core, the one given or any.
    Run(Shape, Option<usize>),
}

/// Who calls and what the call touches.
#[derive(Debug, Default)]
pub struct Touch {
    /// The calling thread.
    pub thread: u64,
    /// The context, by any number of its own.
    pub context: Option<usize>,
    /// Device addresses that are read.
    pub reads: Vec<Range<usize>>,
    /// Device addresses that are written.
    pub writes: Vec<Range<usize>>,
}

/// A task that has its place.
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    /// What it did.
    pub work: Work,
    /// Its core, of a run.
    pub core: Option<usize>,
    /// First ns.
    pub start: f64,
    /// First ns after it.
    pub end: f64,
}

struct Task {
    after: Vec<When>,
    work: Work,
}

struct Active {
    task: usize,
    core: usize,
    start: f64,
    left: Cost,
}

/// Tasks that wait for their place, and the ends of those that have one.
pub struct Timeline {
    timing: &'static Timing,
    tasks: Vec<Task>,
    threads: HashMap<u64, When>,
    contexts: HashMap<usize, When>,
    /// Last writers: ranges that do not overlap, by their start.
    written: BTreeMap<usize, (usize, When)>,
    /// When each core ended its last run.
    cores: Vec<f64>,
    latest: f64,
}

impl Timeline {
    /// An empty one for a chip of that many cores.
    pub fn new(timing: &'static Timing, cores: usize) -> Self {
        Self {
            timing,
            tasks: Vec::new(),
            threads: HashMap::new(),
            contexts: HashMap::new(),
            written: BTreeMap::new(),
            cores: vec![0.0; cores.max(1)],
            latest: 0.0,
        }
    }

    /// When each core ended its last placed run.
    pub fn cores(&self) -> &[f64] {
        &self.cores
    }

    /// When the last placed task ended.
    pub fn latest(&self) -> f64 {
        self.latest
    }

    /// Whether it is time to [`place`](Self::place).
    pub fn is_full(&self) -> bool {
        self.tasks.len() >= MOST
    }

    /// Notes a call that succeeded.
    pub fn record(&mut self, work: Work, touch: &Touch) {
        let mut after = Vec::new();
        after.extend(self.threads.get(&touch.thread));
        after.extend(touch.context.and_then(|context| self.contexts.get(&context)));
        for range in touch.reads.iter().chain(&touch.writes) {
            self.writers(range, |_, _, when| after.push(when));
        }
        let done = When::After(self.tasks.len());
        self.tasks.push(Task { after, work });
        self.threads.insert(touch.thread, done);
        if let Some(context) = touch.context {
            self.contexts.insert(context, done);
        }
        for range in touch.writes.iter().filter(|range| !range.is_empty()) {
            self.forget(range);
            self.written.insert(range.start, (range.end, done));
        }
    }

    /// Forgets a context: its number may come again.
    pub fn forget_context(&mut self, context: usize) {
        self.contexts.remove(&context);
    }

    /// Forgets who wrote `range`: the memory is gone, or written anew.
    pub fn forget(&mut self, range: &Range<usize>) {
        let mut cut = Vec::new();
        self.writers(range, |start, end, when| cut.push((start, end, when)));
        for (start, end, when) in cut {
            self.written.remove(&start);
            if start < range.start {
                self.written.insert(start, (range.start, when));
            }
            if end > range.end {
                self.written.insert(range.end, (end, when));
            }
        }
    }

    /// Every noted write that `range` overlaps.
    fn writers(&self, range: &Range<usize>, mut visit: impl FnMut(usize, usize, When)) {
        for (start, (end, when)) in self.written.range(..range.end).rev() {
            if *end <= range.start {
                break;
            }
            visit(*start, *end, *when);
        }
    }

    /// Places every task, hands each to `each` in the order in which they were recorded, and forgets them.
    pub fn place(&mut self, mut each: impl FnMut(&Placed)) {
        let tasks = std::mem::take(&mut self.tasks);
        let placed = Placing::new(&tasks, self.timing, &mut self.cores).run();
        for placed in &placed {
            self.latest = self.latest.max(placed.end);
            each(placed);
        }
        let settle = |when: &mut When| {
            if let When::After(task) = *when {
                *when = When::At(placed[task].end);
            }
        };
        self.threads.values_mut().for_each(settle);
        self.contexts.values_mut().for_each(settle);
        self.written.values_mut().for_each(|(_, when)| settle(when));
    }
}

/// One pass of placing.
struct Placing<'a> {
    tasks: &'a [Task],
    timing: &'static Timing,
    cores: &'a mut [f64],
    placed: Vec<Placed>,
    /// How many tasks each still waits for, and since when it could begin otherwise.
    waits: Vec<(usize, f64)>,
    followers: Vec<Vec<usize>>,
    ready: Vec<usize>,
    active: Vec<Active>,
}

impl<'a> Placing<'a> {
    fn new(tasks: &'a [Task], timing: &'static Timing, cores: &'a mut [f64]) -> Self {
        let mut waits = vec![(0, 0.0f64); tasks.len()];
        let mut followers = vec![Vec::new(); tasks.len()];
        for (index, task) in tasks.iter().enumerate() {
            for when in &task.after {
                match *when {
                    When::At(time) => waits[index].1 = waits[index].1.max(time),
                    When::After(earlier) => {
                        waits[index].0 += 1;
                        followers[earlier].push(index);
                    }
                }
            }
        }
        let nowhere = |task: &Task| Placed { work: task.work, core: None, start: 0.0, end: 0.0 };
        let placed = tasks.iter().map(nowhere).collect();
        Self { tasks, timing, cores, placed, waits, followers, ready: Vec::new(), active: Vec::new() }
    }

    fn run(mut self) -> Vec<Placed> {
        let free: Vec<usize> = (0..self.tasks.len()).filter(|task| self.waits[*task].0 == 0).collect();
        self.release(free);
        let mut now = 0.0;
        while !(self.ready.is_empty() && self.active.is_empty()) {
            let next_start = self.start(now);
            let moving = self.active.iter().filter(|run| run.left.moves_data()).count();
            let slowdown = self.timing.slowdown(moving);
            let next_change =
                self.active.iter().map(|run| run.left.next(slowdown)).fold(f64::INFINITY, f64::min);
            let ns = next_change.min(next_start - now).max(0.0);
            now += ns;
            self.active.iter_mut().for_each(|run| run.left.advance(ns, slowdown));
            self.finish(now);
        }
        self.placed
    }

    /// Starts what can start at `now`; when the next ready run could, on a core that is idle.
    fn start(&mut self, now: f64) -> f64 {
        let mut next = f64::INFINITY;
        let waits = &self.waits;
        self.ready.sort_by(|a, b| waits[*a].1.total_cmp(&waits[*b].1).then(a.cmp(b)));
        let (tasks, cores, active, timing) = (self.tasks, &*self.cores, &mut self.active, self.timing);
        self.ready.retain(|&task| {
            let Work::Run(shape, pinned) = tasks[task].work else { return false };
            let idle = |core: &usize| active.iter().all(|run| run.core != *core);
            let earliest = |core: usize| cores[core].max(waits[task].1);
            let core = match pinned {
                Some(core) => Some(core % cores.len()).filter(idle),
                None => (0..cores.len())
                    .filter(idle)
                    .min_by(|a, b| earliest(*a).max(now).total_cmp(&earliest(*b).max(now))),
            };
            let Some(core) = core else { return true };
            if earliest(core) > now {
                next = next.min(earliest(core));
                return true;
            }
            active.push(Active { task, core, start: now, left: timing.run(&shape) });
            false
        });
        next
    }

    fn finish(&mut self, now: f64) {
        let (done, left) =
            std::mem::take(&mut self.active).into_iter().partition(|run: &Active| run.left.is_done());
        self.active = left;
        let done: Vec<Active> = done;
        for run in done {
            self.cores[run.core] = now;
            let placed = &mut self.placed[run.task];
            (placed.core, placed.start, placed.end) = (Some(run.core), run.start, now);
            let free = self.followers_of(run.task, now);
            self.release(free);
        }
    }

    /// Tells the followers of `task` that it ended; those that wait for nothing else.
    fn followers_of(&mut self, task: usize, end: f64) -> Vec<usize> {
        let mut free = std::mem::take(&mut self.followers[task]);
        free.retain(|&follower| {
            let (count, since) = &mut self.waits[follower];
            *count -= 1;
            *since = since.max(end);
            *count == 0
        });
        free
    }

    /// Runs become ready; calls of the host need nothing else and end at once.
    fn release(&mut self, mut free: Vec<usize>) {
        while let Some(task) = free.pop() {
            match self.tasks[task].work {
                Work::Run(..) => self.ready.push(task),
                Work::Host(_, ns) => {
                    let start = self.waits[task].1;
                    let placed = &mut self.placed[task];
                    (placed.start, placed.end) = (start, start + ns);
                    free.extend(self.followers_of(task, start + ns));
                }
            }
        }
    }
}
