//! Products of a mixture of experts: each expert's rows by that expert's weight, all as one stream.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Instant;

use super::device::Device;
use super::weight::{Job, Weight};
use crate::engine::{Activations, Experts, Out, Product};
use crate::observe::Done;
use crate::pool::Divided;
use crate::weights::Source;

/// As many nodes with the same rows and experts are done together: gate and up.
pub const NODES: usize = 2;
/// Products that the engine is given at once; between them the NPU waits for the CPU once.
const STREAM: usize = 64;

/// A node with experts whose matrices are plain slices.
pub struct ExpertJob<'a> {
    /// The weights' tensor name.
    pub name: &'a str,
    /// The first expert's matrix; its data are those of all.
    pub weights: Source<'a>,
    /// Bytes from one expert's matrix to the next, and of one of them.
    pub expert_stride: usize,
    /// Bytes of an expert's matrix.
    pub expert_bytes: usize,
    /// As [`Job::constant`].
    pub constant: bool,
    /// As [`Job::lent`].
    pub lent: bool,
    /// Tokens × experts used × N results.
    pub out: &'a mut [f32],
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
}

/// An expert that has rows.
struct AtWork {
    /// The I/O domain of its weights.
    domain: usize,
    expert: usize,
    /// Its weight in each node.
    weights: [Option<Arc<Weight>>; NODES],
}

impl<'a> ExpertJob<'a> {
    /// An expert's weight, and no rows yet.
    fn of(&self, expert: usize) -> Job<'a> {
        let at = expert * self.expert_stride;
        Job {
            name: self.name,
            weight: Source { data: &self.weights.data[at..at + self.expert_bytes], ..self.weights },
            constant: self.constant,
            lent: self.lent,
            expert: true,
            activations: Activations::new(&[], 0, 0),
            same: false,
            out: &mut [],
        }
    }
}

impl Device {
    /// Does nodes with the same rows and experts. Tells which were done; the CPU is to do the others.
    ///
    /// # Errors
    /// The first id that is no expert's.
    pub fn multiply_experts<I: Iterator<Item = i32> + Clone>(
        &self,
        jobs: &mut [Option<ExpertJob>; NODES],
        mixture: &Mixture<I>,
    ) -> Result<[bool; NODES], i32> {
        let mut room = self.mixture.lock();
        let MixtureRoom { experts, order } = &mut *room;
        order.clear();
        experts.gather(mixture.experts, mixture.used, mixture.rows, mixture.ids.clone())?;
        let mut done = jobs.each_ref().map(|job| job.is_some() && !self.given_up.load(Relaxed));
        let mut engine = self.engine.lock();
        for expert in (0..mixture.experts).filter(|expert| experts.picks(*expert).count() > 0) {
            let mut weights: [Option<Arc<Weight>>; NODES] = Default::default();
            for ((job, weight), done) in jobs.iter().zip(&mut weights).zip(&mut done) {
                if let (Some(job), true) = (job, *done) {
                    *weight = self.weight(&mut engine, &job.of(expert));
                    // A node is the CPU's if one of its experts is.
                    *done = weight.is_some();
                }
            }
            let domain = weights.iter().flatten().next().map_or(0, |weight| weight.npu.domain());
            order.push(AtWork { domain, expert, weights });
        }
        // Those of a domain together: going to another one concerns the whole NPU.
        order.sort_unstable_by_key(|at_work| (at_work.domain, at_work.expert));
        let shapes = jobs.each_ref().map(|job| {
            job.as_ref().map(|job| (job.name, job.weights.reader.name(), job.weights.k, job.weights.n))
        });
        let outs = jobs.each_mut().map(|job| job.as_mut().map(|job| Divided::new(job.out)));
        let mut first = true;
        for some in order.chunks(STREAM / NODES) {
            let started = Instant::now();
            let mut products = [const { None::<Product> }; STREAM];
            let mut ways = [Done::ByHost; STREAM];
            for (AtWork { expert, weights, .. }, products) in some.iter().zip(products.chunks_mut(NODES)) {
                let picks = experts.picks(*expert);
                let activations =
                    Activations { rows: picks.count(), picks: Some(picks), ..mixture.activations };
                for (node, product) in products.iter_mut().enumerate() {
                    let (Some(weight), Some(out), true) = (&weights[node], &outs[node], done[node]) else {
                        continue;
                    };
                    let (weight, out, same) = (&weight.npu, Out::Picked(out), !first);
                    *product =
                        Some(Product { weight, activations, same, out, routed: false, recovered: false });
                    first = false;
                }
            }
            let name = shapes.iter().flatten().next().map_or("", |shape| shape.0);
            self.run(&mut engine, &mut products, name, &mut ways);
            let ns = started.elapsed().as_nanos();
            let flops =
                |one: &Product| (one.activations.rows * one.weight.plan.k * one.weight.plan.n) as u128;
            let all: u128 = products.iter().flatten().map(flops).sum();
            for (index, (product, way)) in products.iter().zip(ways).enumerate() {
                let (Some(product), Some((name, ggml_type, k, n))) = (product, shapes[index % NODES]) else {
                    continue;
                };
                let ns = (ns * flops(product) / all.max(1)) as u64;
                self.stats.count_product(name, (ggml_type, k, n), product.activations.rows, way, ns);
                done[index % NODES] &= way != Done::ByHost;
            }
        }
        order.clear();
        Ok(done)
    }
}
