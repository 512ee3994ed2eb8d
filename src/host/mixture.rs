//! Products of a mixture of experts: each expert's rows by that expert's weight, all as one stream; and whole feed-forward
//! blocks of experts.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Instant;

use super::device::Device;
use super::multiply::Counted;
use super::weight::{HostWeight, Weight};
use crate::engine::{Activations, Between, Engine, Experts, Product, BLOCK, FEW};
use crate::observe::Done;
use crate::pool::Divided;
use crate::weights::Source;

/// As many nodes with the same rows and experts are done together: gate and up.
pub const NODES: usize = 2;
/// Products that the engine is given at once; between them the NPU waits for the CPU once.
const STREAM: usize = 64;

/// A node with experts whose matrices are plain slices.
pub struct ExpertJob<'a> {
    /// The first expert's weight.
    pub first: HostWeight<'a>,
    /// The bytes of all experts.
    pub all: &'a [u8],
    /// Bytes from one expert's matrix to the next.
    pub stride: usize,
    /// Tokens × experts used × N results.
    pub out: Divided<'a, f32>,
}

/// How a node's experts are found.
pub struct Mixture<'a, I> {
    /// All rows of activations.
    pub activations: Activations<'a>,
    /// Experts that there are.
    pub experts: usize,
    /// Experts that a token has.
    pub used: usize,
    /// Rows of activations that a token has.
    pub rows: usize,
    /// The experts of each token.
    pub ids: I,
}

/// What is kept from one node to the next.
#[derive(Default)]
pub struct MixtureRoom {
    experts: Experts,
    /// Those that have rows; empty between two nodes.
    order: Vec<AtWork>,
    /// Rows, and results, of an expert that the host's kernels multiply by.
    gathered: [Vec<f32>; 2],
}

/// An expert that has rows.
struct AtWork {
    /// The I/O domain of its weights.
    domain: usize,
    expert: usize,
    /// Its weight in each node.
    weights: [Option<Arc<Weight>>; BLOCK],
    /// The products of its block that the CPU did as the cheaper way.
    routed: [bool; BLOCK],
    /// Those that the host's kernels are to do over its own copy.
    by_host: [bool; BLOCK],
}

impl<'a> ExpertJob<'a> {
    /// An expert's weight.
    fn of(&self, expert: usize) -> HostWeight<'a> {
        let source = self.first.source;
        let data = &self.all[expert * self.stride..][..source.data.len()];
        HostWeight { source: Source { data, ..source }, ..self.first }
    }
}

impl<I> Mixture<'_, I> {
    /// Which products of `rows` rows of an expert the host's kernels are to do. Only of few tokens: in a prompt an expert with
    /// few rows has neighbours, which go to the NPU together.
    fn by_host(
        &self,
        engine: &mut Engine,
        weights: &[Option<Arc<Weight>>; BLOCK],
        rows: usize,
    ) -> [bool; BLOCK] {
        let is_few = self.activations.rows <= FEW * self.rows;
        weights
            .each_ref()
            .map(|weight| weight.as_deref().is_some_and(|weight| is_few && weight.is_for_host(engine, rows)))
    }
}

impl Device {
    /// Does nodes with the same rows and experts. Tells which were done; the CPU is to do the others.
    ///
    /// # Errors
    /// The first id that is no expert's.
    pub fn multiply_experts<I: Iterator<Item = i32> + Clone>(
        &self,
        jobs: &[Option<ExpertJob>; NODES],
        mixture: &Mixture<I>,
    ) -> Result<[bool; NODES], i32> {
        let mut room = self.mixture.lock();
        let MixtureRoom { experts, order, gathered } = &mut *room;
        order.clear();
        experts.gather(mixture.experts, mixture.used, mixture.rows, mixture.ids.clone())?;
        let mut done = jobs.each_ref().map(|job| job.is_some() && !self.given_up.load(Relaxed));
        let mut engine = self.engine.lock();
        for expert in (0..mixture.experts).filter(|expert| experts.picks(*expert).count() > 0) {
            let mut weights: [Option<Arc<Weight>>; BLOCK] = Default::default();
            for ((job, weight), done) in jobs.iter().zip(&mut weights).zip(&mut done) {
                if let (Some(job), true) = (job, *done) {
                    *weight = self.weight(&mut engine, &job.of(expert));
                    // A node is the CPU's if one of its experts is.
                    *done = weight.is_some();
                }
            }
            let domain = weights.iter().flatten().next().map_or(0, |weight| weight.npu.domain());
            let by_host = mixture.by_host(&mut engine, &weights, experts.picks(expert).count());
            order.push(AtWork { domain, expert, weights, routed: [false; BLOCK], by_host });
        }
        by_domain(order);
        let firsts = jobs.each_ref().map(|job| job.as_ref().map(|job| job.first));
        let name = firsts.iter().flatten().next().map_or("", |first| first.name);
        let outs = jobs.each_ref().map(|job| job.as_ref().map(|job| job.out.after(0)));
        let mut first = true;
        for some in order.chunks(STREAM / NODES) {
            let started = Instant::now();
            let mut products = [const { None::<Product> }; STREAM];
            let mut ways = [Done::ByHost; STREAM];
            for (AtWork { expert, weights, by_host, .. }, products) in
                some.iter().zip(products.chunks_mut(NODES))
            {
                let picks = experts.picks(*expert);
                let activations =
                    Activations { rows: picks.count(), picks: Some(picks), ..mixture.activations };
                for (node, product) in products.iter_mut().enumerate() {
                    let (Some(weight), Some(out), true) = (&weights[node], &outs[node], done[node]) else {
                        continue;
                    };
                    if by_host[node] {
                        continue;
                    }
                    let (weight, out, same) = (&weight.npu, out.after(0), !first);
                    *product =
                        Some(Product { weight, activations, same, out, routed: false, recovered: false });
                    first = false;
                }
            }
            self.run(&mut engine, &mut products, None, name, &mut ways);
            for (index, (product, way)) in products.iter().zip(&mut ways).enumerate() {
                let Some(AtWork { expert, weights, by_host, .. }) = some.get(index / NODES) else { break };
                let (node, picks) = (index % NODES, experts.picks(*expert));
                if let (Some(weight), Some(job), true) =
                    (&weights[node], &jobs[node], by_host[node] && done[node])
                {
                    let weight = (&**weight, [job.first.source.k, job.first.source.n]);
                    let activations = Activations { picks: Some(picks), ..mixture.activations };
                    *way = multiply_kept(&mut engine, weight, &activations, &job.out, gathered);
                }
                done[node] &= *way != Done::ByHost || product.is_none() && !by_host[node];
            }
            let counted = ways.into_iter().enumerate().filter_map(|(index, done)| {
                let rows = experts.picks(some.get(index / NODES)?.expert).count();
                // A node that is not done is counted as a whole.
                (done != Done::ByHost).then_some(Counted { weight: firsts[index % NODES]?, rows, done })
            });
            self.count(started, counted);
        }
        let left = firsts.iter().zip(done).filter_map(|(first, done)| {
            let rows = mixture.used * mixture.activations.rows / mixture.rows;
            first.filter(|_| !done).map(|weight| Counted { weight, rows, done: Done::ByHost })
        });
        self.count(Instant::now(), left);
        order.clear();
        Ok(done)
    }

    /// Does the feed-forward block of all experts: gate, up, what is made between them, and down, of which `jobs` are in this
    /// order. `mixture` has the rows of gate and up; down has a row for each of a token's experts. Nothing is written of
    /// gate and up. False if this is not how it can be done, or the NPU fails: the nodes are then to be done one by one.
    ///
    /// # Errors
    /// The first id that is no expert's.
    pub fn expert_blocks<I: Iterator<Item = i32> + Clone>(
        &self,
        jobs: &[ExpertJob; BLOCK],
        mixture: &Mixture<I>,
        between: &Between,
    ) -> Result<bool, i32> {
        if self.given_up.load(Relaxed) {
            return Ok(false);
        }
        let mut room = self.mixture.lock();
        let done = self.try_expert_blocks(&mut room, jobs, mixture, between);
        room.order.clear();
        done
    }

    fn try_expert_blocks<I: Iterator<Item = i32> + Clone>(
        &self,
        room: &mut MixtureRoom,
        jobs: &[ExpertJob; BLOCK],
        mixture: &Mixture<I>,
        between: &Between,
    ) -> Result<bool, i32> {
        let started = Instant::now();
        let MixtureRoom { experts, order, .. } = room;
        experts.gather(mixture.experts, mixture.used, mixture.rows, mixture.ids.clone())?;
        let mut engine = self.engine.lock();
        for expert in 0..mixture.experts {
            let rows = experts.picks(expert).count();
            if rows == 0 {
                continue;
            }
            let weights = jobs.each_ref().map(|job| self.weight(&mut engine, &job.of(expert)));
            let [Some(gate), Some(up), Some(down)] = &weights else { return Ok(false) };
            if !engine.does_block([&gate.npu, &up.npu, &down.npu], rows) {
                return Ok(false);
            }
            let by_host = mixture.by_host(&mut engine, &weights, rows);
            if by_host.contains(&true) {
                return Ok(false);
            }
            let domain = gate.npu.domain();
            order.push(AtWork { domain, expert, weights, routed: [false; BLOCK], by_host });
        }
        by_domain(order);
        let made = mixture.used * mixture.activations.rows / mixture.rows;
        let stride = jobs[0].first.source.n;
        let mut same = false;
        for some in order.chunks_mut(STREAM / BLOCK) {
            let mut products = [const { None::<Product> }; STREAM];
            for (AtWork { expert, weights, .. }, products) in some.iter().zip(products.chunks_mut(BLOCK)) {
                let picks = experts.picks(*expert);
                let rows = picks.count();
                let shared = Activations { rows, picks: Some(picks), ..mixture.activations };
                let own = Activations { data: &[], stride, rows, picks: Some(picks.again(made)) };
                for (at, (product, weight)) in products.iter_mut().zip(weights).enumerate() {
                    let Some(weight) = weight.as_deref().map(|weight| &weight.npu) else { continue };
                    let activations = if at + 1 < BLOCK { shared } else { own };
                    let out = jobs[at].out.after(0);
                    *product =
                        Some(Product { weight, activations, same, out, routed: false, recovered: false });
                    same = true;
                }
            }
            if let Err(error) = engine.expert_blocks(&mut products, between) {
                self.note_failure(&mut engine, jobs[0].first.name, &error);
                return Ok(false);
            }
            self.failures.store(0, Relaxed);
            let routed: [bool; STREAM] =
                std::array::from_fn(|index| products[index].as_ref().is_some_and(|product| product.routed));
            for (at_work, routed) in some.iter_mut().zip(routed.chunks(BLOCK)) {
                at_work.routed.copy_from_slice(routed);
            }
        }
        let counted = order.iter().flat_map(|AtWork { expert, weights, routed, .. }| {
            let rows = experts.picks(*expert).count();
            jobs.iter().zip(weights.iter().flatten()).zip(routed).map(move |((job, weight), routed)| {
                let pipeline = weight.npu.pipeline;
                let done = if *routed { Done::Routed(pipeline) } else { Done::Npu(pipeline) };
                Counted { weight: job.first, rows, done }
            })
        });
        self.count(started, counted);
        Ok(true)
    }
}

/// Multiplies the rows that are picked by the host's copy of their expert's weight; who did it. `gathered` is room.
fn multiply_kept(
    engine: &mut Engine,
    (weight, [k, n]): (&Weight, [usize; 2]),
    activations: &Activations,
    out: &Divided<f32>,
    [gathered, results]: &mut [Vec<f32>; 2],
) -> Done {
    let Some(picks) = activations.picks else { return Done::ByHost };
    let rows = picks.count();
    gathered.clear();
    for from in picks.from(0..rows) {
        gathered.extend_from_slice(&activations.data[*from as usize * activations.stride..][..k]);
    }
    results.resize(rows * n, 0.0);
    let done = weight.by_host(engine, &Activations::new(gathered, k, rows), results);
    if done != Done::ByHost {
        for (to, row) in picks.to(0..rows).iter().zip(results.chunks_exact(n)) {
            let to = *to as usize * n;
            // SAFETY: each row of the output is one expert's.
            unsafe { out.part(to..to + n) }.copy_from_slice(row);
        }
    }
    done
}

/// Those of a domain together: going to another one concerns the whole NPU.
fn by_domain(order: &mut [AtWork]) {
    order.sort_unstable_by_key(|at_work| (at_work.domain, at_work.expert));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_domain_is_gone_to_once(domains in proptest::collection::vec(0usize..4, 0..128)) {
            let at_work = |(expert, domain)| AtWork { domain, expert, weights: Default::default(), routed: [false; BLOCK], by_host: [false; BLOCK] };
            let mut order: Vec<AtWork> = domains.iter().copied().enumerate().map(at_work).collect();
            by_domain(&mut order);
            let known: std::collections::BTreeSet<usize> = domains.iter().copied().collect();
            let changes = order.windows(2).filter(|two| two[0].domain != two[1].domain).count();
            prop_assert_eq!(changes, known.len().saturating_sub(1));
            let mut experts: Vec<usize> = order.iter().map(|at_work| at_work.expert).collect();
            prop_assert!(order.iter().all(|at_work| domains[at_work.expert] == at_work.domain));
            experts.sort_unstable();
            prop_assert_eq!(experts, (0..domains.len()).collect::<Vec<_>>());
        }
    }
}
