//! CPU, NPU and CPU again, which batches go through: when the results of a schedule are there, the CPU's part by what its
//! memory lets through.

use super::schedule::{Batch, Schedule};
use super::search::Planned;
use super::weave::{turns, Turn};

/// Bytes of f32 rows that the CPU rotates and packs, and of results that it reads and writes, in a ns: a guess for four
/// big cores. Results come from memory, since the NPU does not write to the CPU's caches.
const PACK_RATE: f64 = 6.0;
const SCALE_RATE: f64 = 12.0;

/// What batches are of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// One product.
    Alone,
    /// Two, run in turns and read together.
    Pair,
    /// Two, run as one and read together.
    AsOne,
    /// One with what is made of two before it.
    Fed,
    /// One with what is made of two that its batches come between.
    Woven,
}

/// CPU, NPU and CPU again, which batches go through as [`crate::engine`] has them do, two of them under way at a time.
#[derive(Debug, Clone, Default)]
pub struct Line {
    /// What is made of two is packed at once.
    packs: bool,
    /// ns until each is done with what it was given.
    cpu: f64,
    npu: f64,
    under_way: Option<Batched>,
}

/// A batch that the NPU was given.
#[derive(Debug, Clone)]
struct Batched {
    /// When it is done, ns, and how long its results then take to be read.
    done: f64,
    read: f64,
    /// The first of its rows and of its columns, if something is made of them.
    makes: Option<(usize, usize)>,
}

/// The NPU's time of an element of K, a row and a column of a product, ns.
fn rate(schedule: &Schedule, Planned { plan, .. }: Planned, rows: usize) -> f64 {
    schedule.ns / (rows * plan.columns * plan.segments.len()) as f64
}

impl Line {
    /// One where what is made of two is packed at once, if it `packs`.
    pub fn new(packs: bool) -> Self {
        Self { packs, ..Self::default() }
    }

    /// ns that writing as many elements of what is made takes.
    pub fn writing(elements: usize) -> f64 {
        4.0 * elements as f64 / SCALE_RATE
    }

    /// Takes the results of what is under way.
    fn land(&mut self) {
        if let Some(Batched { done, read, .. }) = self.under_way.take() {
            self.cpu = self.cpu.max(done) + read;
        }
    }

    /// Lets a batch through, whose product takes the NPU `rate`.
    fn step(&mut self, batch: &Batch, Planned { plan, means }: Planned, rate: f64, kind: Kind) {
        let (products, is_pair) = match kind {
            Kind::Pair => (2.0, true),
            Kind::AsOne => (1.0, true),
            _ => (1.0, false),
        };
        let sum = (plan.dtype.c().bytes(1) * means.planes) as f64;
        let (rows, columns, segments) = (batch.rows.len(), batch.columns.len(), batch.segments.len());
        // Results are written, and read before if other segments were added up; of two that are read together one is made,
        // which stays in the cache if it is packed at once.
        let results = products * (rows * columns) as f64;
        let (written, packed) = match is_pair {
            true if self.packs => (0.0, 4.0 * (results / 2.0) / PACK_RATE),
            true => (4.0, 0.0),
            false => (8.0, 0.0),
        };
        let is_packed = self.packs && matches!(kind, Kind::Fed | Kind::Woven);
        let makes = self.under_way.as_ref().and_then(|under_way| under_way.makes);
        // What is packed segment by segment is there as soon as its own columns are.
        let k = if self.packs { batch.k(plan).end } else { plan.k };
        let needs = |(row, column)| batch.rows.end > row && k > column;
        if kind == Kind::Fed && makes.is_some_and(needs) {
            self.land();
        }
        if batch.columns.start == 0 && !is_packed {
            // A row is rotated and packed as far as it is needed; what is left is read again.
            let (elements, bytes) = match batch.segments.start {
                0 => (plan.k, 4.0),
                _ => (segments * plan.longest(), 2.0),
            };
            self.cpu += (rows * elements) as f64 * bytes / PACK_RATE;
        }
        self.npu = self.npu.max(self.cpu) + results * segments as f64 * rate;
        let read = results * (sum * segments as f64 + written) / SCALE_RATE + packed;
        let makes = is_pair.then_some((batch.rows.start, batch.columns.start));
        let next = Batched { done: self.npu, read, makes };
        self.land();
        self.under_way = Some(next);
    }

    /// Lets all batches of `rows` rows through.
    pub fn run(&mut self, schedule: &Schedule, planned: Planned, rows: usize, kind: Kind) {
        let rate = rate(schedule, planned, rows);
        schedule.batches(planned.plan, rows).for_each(|batch| self.step(&batch, planned, rate, kind));
    }

    /// Lets all batches of two products through, and those of a third one between them, each as soon as its part of K is made.
    pub fn weave(
        &mut self,
        (pair, of_pair): (&Schedule, Planned),
        (fed, of_fed): (&Schedule, Planned),
        rows: usize,
    ) {
        let [pair_rate, fed_rate] = [(pair, of_pair), (fed, of_fed)].map(|(of, plan)| rate(of, plan, rows));
        for turn in turns((pair, of_pair.plan), (fed, of_fed.plan), rows) {
            match turn {
                Turn::Pair(batch) => self.step(&batch, of_pair, pair_rate, Kind::Pair),
                Turn::Woven(batch) => self.step(&batch, of_fed, fed_rate, Kind::Woven),
                Turn::Last(batch) => {
                    self.land();
                    self.step(&batch, of_fed, fed_rate, Kind::Woven);
                }
            }
        }
    }

    /// ns until the results of all are there.
    pub fn end(mut self) -> f64 {
        self.land();
        self.cpu
    }
}
