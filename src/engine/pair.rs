//! Two products of the same rows, gate and up of a feed-forward block: what is made of their results is made where these are
//! read, while they are in the cache ([`super::made`]); or, where the C of both would be too much, where the second one's are.
//! A third product, down, may be with what is made ([`super::fed`]).

use std::ops::Range;
use std::sync::Arc;

use super::block::{Begin, Block};
use super::domains::Domains;
use super::flight::{Flight, Give, PlaceOfC};
use super::prepare::Known;
use super::product::blocks;
use super::stream::{Stream, UnderWay, With};
use super::together::{follows, Together};
use super::{schedule_key, Activations, Engine, Error, NpuWeight, Product, ScheduleKey, SCHEDULES_MAX};
use crate::chip::Timing;
use crate::kernels::glu::{glu, Activation};
use crate::observe::Stage;
use crate::plan::{Alike, Batch, Fed, Joint, Schedule, WeightPlan, ROWS_MAX};
use crate::pool::Divided;

/// What is made of the results of two neighbours in a group, gate and up, as they come: an activation of the one times the
/// other, which is as long.
pub struct Between<'a> {
    /// The first of the two products.
    pub first: usize,
    /// What the gate is put through.
    pub activation: Activation,
    /// Whether the gate is the second of the two.
    pub swapped: bool,
    /// Where it goes: rows of N, one after the other.
    pub out: Divided<'a, f32>,
    /// Whether somebody else sees the products' own results, which are then written too.
    pub seen: bool,
    /// The next product of the group is with what is made, whose rows it has though its own are empty: it is done only if
    /// that was made.
    pub feeds: bool,
    /// Somebody else may read what is made; it is in its place then. Else it need not be where a product [feeds](Self::feeds) on it.
    pub kept: bool,
    /// Set by the engine: it was made, whatever failed after that.
    pub made: bool,
    /// Set by the engine: the product of it is done, too, whatever failed after that; what is made may not be in its place.
    pub used: bool,
}

impl<'a> Between<'a> {
    /// What is made of the product `first` and the next one, into `out`; nobody sees their own results, and the next product is not
    /// with it.
    pub fn new(first: usize, activation: Activation, swapped: bool, out: Divided<'a, f32>) -> Self {
        Self {
            first,
            activation,
            swapped,
            out,
            seen: false,
            feeds: false,
            kept: true,
            made: false,
            used: false,
        }
    }

    /// As many products of the group are done for sure: if something was made of two, they and those before.
    pub fn done(&self) -> usize {
        match (self.made, self.used) {
            (true, true) => self.first + 3,
            (true, false) => self.first + 2,
            _ => 0,
        }
    }

    /// The product that is with what is made.
    pub fn fed(&self) -> Option<usize> {
        self.feeds.then_some(self.first + 2)
    }

    /// `out` = what is made of the two products' results, as many of each.
    pub(super) fn make(&self, [first, second]: [&[f32]; 2], out: &mut [f32]) {
        let (gate, up) = if self.swapped { (second, first) } else { (first, second) };
        glu(self.activation, gate, up, out);
    }
}

/// Two products that are alike, and what is made of them.
pub(super) struct Pair<'s, 'p> {
    pub(super) of: [&'s Product<'p>; 2],
    pub(super) between: &'s Between<'s>,
}

impl<'p> Stream<'_, 'p> {
    /// The two products from `first` on, of which something is made, if both are there.
    pub(super) fn pair(&self, first: usize) -> Option<Pair<'_, 'p>> {
        let between = self.between?;
        let [Some(one), Some(other)] = self.products.get(first..)?.get(..2)? else { return None };
        Some(Pair { of: [one, other], between })
    }
}

/// How two products that are alike are run where they are read together.
pub(super) enum Paired {
    /// Batch by batch in turns, each by this schedule.
    InTurns(Schedule),
    /// As one.
    AsOne(Together),
}

impl From<Joint> for Paired {
    fn from(Joint { pair: schedule, as_one, .. }: Joint) -> Self {
        match as_one {
            Some(plan) => Self::AsOne(Together { plan, schedule }),
            None => Self::InTurns(schedule),
        }
    }
}

/// What is looked for of two products that are alike.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Sought {
    /// The best, with the one that is with what is made of them, whether it packs and whether it may be woven in.
    Best(Option<(ScheduleKey, [bool; 2])>),
    /// The shortest, for a chain.
    Shortest,
}

/// The first of two products that are alike, whether the other one's weight follows, what is looked for, and bytes of C.
pub(super) type JointKey = (ScheduleKey, bool, Sought, usize);

/// Bytes of C of two products that are read together, of a batch on a core: an eightieth of what the models take, so that
/// all cores' two slots of it stay a few, in steps, so that it comes to rest while these are loaded.
const JOINT_C_PART: usize = 80;
const JOINT_C: Range<usize> = 5 << 18..16 << 20;
const JOINT_C_STEP: usize = 512 << 10;

/// Bytes of C that two products may have at once.
pub(super) fn joint_c_bytes(domains: &Domains) -> usize {
    (domains.expected() / JOINT_C_PART / JOINT_C_STEP * JOINT_C_STEP).clamp(JOINT_C.start, JOINT_C.end)
}

/// Whether two weights have the same rows for theirs.
pub(super) fn same_rows(one: &NpuWeight, other: &NpuWeight) -> bool {
    let same_rotation = match (&one.rotation, &other.rotation) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    };
    same_rotation && one.pipeline == other.pipeline && one.share.domain == other.share.domain
}

impl Engine {
    /// Whether the first two products have the same rows, and weights that are cut and run alike, on the NPU.
    pub(super) fn are_alike(&mut self, products: &[Option<Product>]) -> bool {
        let [Some(one), Some(other), ..] = products else { return false };
        let rows = other.activations.rows;
        other.same && one.activations.rows == rows && self.run_alike([one.weight, other.weight], rows)
    }

    /// Whether the NPU does products of two weights with the same rows, so many, alike.
    pub(super) fn run_alike(&mut self, [one, other]: [&NpuWeight; 2], rows: usize) -> bool {
        same_rows(one, other)
            && one.plan == other.plan
            && ![one, other].into_iter().any(|weight| self.is_for_cpu(weight, rows))
    }

    /// How two products of so many rows, which are alike, are run and read together, and how the one is run that is with what is
    /// made of them, woven in if that is allowed; `None` if they are not read together.
    pub(super) fn joint_schedule(
        &mut self,
        pair: [&NpuWeight; 2],
        fed: Option<&NpuWeight>,
        rows: usize,
        weaves: bool,
    ) -> Option<Joint> {
        let packs = fed.is_some_and(|fed| self.packs_as_made(fed, rows));
        let weaves = weaves && packs;
        let sought = Sought::Best(fed.map(|fed| (schedule_key(fed, rows), [packs, weaves])));
        let fed = fed.map(|fed| Fed { planned: self.planned(fed), packs, weaves });
        self.joint(pair, rows, sought, |alike, timing| Joint::best(alike, fed, timing, rows))
    }

    /// How a chain's tile of two products that are alike is run.
    pub(super) fn chained_pair(&mut self, pair: [&NpuWeight; 2], rows: usize) -> Option<Joint> {
        self.joint(pair, rows, Sought::Shortest, |alike, timing| Joint::shortest(alike, timing, rows))
    }

    fn joint(
        &mut self,
        [one, other]: [&NpuWeight; 2],
        rows: usize,
        sought: Sought,
        find: impl FnOnce(Alike, &Timing) -> Option<Joint>,
    ) -> Option<Joint> {
        let (follows, c_bytes) = (follows(one, other), joint_c_bytes(&self.domains));
        let key = (schedule_key(one, rows), follows, sought, c_bytes);
        if let Some(known) = self.joints.get(&key) {
            return known.clone();
        }
        if self.joints.len() >= SCHEDULES_MAX {
            self.joints.clear();
        }
        let each = self.planned(one);
        let plans = [&one.plan, &other.plan].into_iter().filter(|_| follows);
        let as_one = WeightPlan::together(plans, each.means.cores).map(Arc::new);
        let joint = find(Alike { each, as_one: as_one.as_ref(), c_bytes }, &self.chip.timing);
        self.joints.insert(key, joint.clone());
        joint
    }

    /// Does two products that are alike, from `index` on, in turns or as one, and what is made of them as their results
    /// come; their last batches may be under way when this returns.
    pub(super) fn pair(&mut self, stream: &mut Stream, index: usize) -> Result<(), Error> {
        let Some(pair) = stream.pair(index) else { return Ok(()) };
        let [one, other] = pair.of.map(|product| product.weight);
        let (activations, same) = (pair.of[0].activations, pair.of[0].same);
        let fed = stream.products.get(index + 2).filter(|_| pair.between.feeds);
        let fed = fed.and_then(Option::as_ref).map(|fed| fed.weight);
        if let Some(fed) = fed.filter(|_| activations.rows <= ROWS_MAX) {
            let schedule = self.fed_schedule(Some([one, other]), fed, activations.rows);
            self.feed(stream, index + 2, Some(schedule));
        }
        [one, other].iter().for_each(|weight| self.count_bytes(weight, activations.rows));
        for (first, part) in blocks(activations) {
            let known = Known::same(activations.is_same(same, first));
            let paired = match self.pair_together([one, other], part.rows) {
                Some(together) => Some(Paired::AsOne(together)),
                None => self.joint_schedule([one, other], fed, part.rows, false).map(Paired::from),
            };
            if let Some(paired) = paired {
                self.pair_block(stream, index, (first, &part), known, &paired)?;
                continue;
            }
            let schedule = self.schedule(one, part.rows);
            stream.asked.add(2.0 * schedule.ns, part.rows);
            let block = self.begin(one, &part, Begin::shared(first, known, schedule), stream.room)?;
            self.in_turns(stream, index, &part, block)?;
        }
        Ok(())
    }

    /// Does some rows, from `first` on, of two products that are alike and read together.
    pub(super) fn pair_block(
        &mut self,
        stream: &mut Stream,
        index: usize,
        (first, part): (usize, &Activations),
        known: Known,
        paired: &Paired,
    ) -> Result<(), Error> {
        let Some(Product { weight, .. }) = &stream.products[index] else { return Ok(()) };
        let weight = *weight;
        let schedule = match paired {
            Paired::InTurns(schedule) => *schedule,
            Paired::AsOne(together) => {
                let with = |flight: &Flight| With::Alike(flight.of_next(weight.plan.columns));
                return self.run_block(stream, index, (first, part), known, together, with);
            }
        };
        stream.asked.add(2.0 * schedule.ns, part.rows);
        let block = self.begin(weight, part, Begin::shared(first, known, schedule), stream.room)?;
        for batch in schedule.batches(&weight.plan, part.rows) {
            self.advance_pair(stream, index, part, block, batch)?;
        }
        Ok(())
    }

    /// Gives the same batch of two products that are alike to the NPU, then takes the results of the one before.
    pub(super) fn advance_pair(
        &mut self,
        stream: &mut Stream,
        index: usize,
        part: &Activations,
        block: Block,
        batch: Batch,
    ) -> Result<(), Error> {
        let Some(Pair { of, .. }) = stream.pair(index) else { return Ok(()) };
        let [one, other] = of.map(|product| product.weight);
        let slot = stream.next_slot();
        let mut give = |at: usize, weight| {
            let place = PlaceOfC::shared(slot, at, 2);
            let give = Give { product: index + at, block, batch: batch.clone(), place, together: None };
            self.give((weight, part), give, stream.room)
        };
        let (flight, other) = (give(0, one)?, give(1, other)?);
        self.follow(stream, UnderWay { flight, with: With::Alike(other) })
    }

    /// Each product's batches are read as they come; what is made of both, as the second one's are.
    fn in_turns(
        &mut self,
        stream: &mut Stream,
        index: usize,
        part: &Activations,
        block: Block,
    ) -> Result<(), Error> {
        let Some(Pair { of, .. }) = stream.pair(index) else { return Ok(()) };
        let [one, other] = of.map(|product| product.weight);
        let segments = one.plan.segments.len();
        for batch in block.schedule.batches(&one.plan, part.rows) {
            self.advance(stream, index, part, block, batch.clone())?;
            if batch.segments.end < segments {
                self.advance(stream, index + 1, part, block, batch)?;
                continue;
            }
            self.advance_with(stream, (other, part), (index + 1, block, batch), With::After)?;
        }
        Ok(())
    }

    /// `out` = the activation of `gate` times `up`, all of the same length; the same bits as between two products.
    pub fn gate(&self, activation: Activation, [gate, up]: [&[f32]; 2], out: &mut [f32]) {
        let size = out.len().div_ceil(self.pool.threads()).next_multiple_of(16);
        self.stats.stage(Stage::Gate, || {
            self.pool.chunks_if_many(out, size.max(1), |index, out| {
                let at = index * size;
                glu(activation, &gate[at..], &up[at..], out);
            });
        });
    }
}
