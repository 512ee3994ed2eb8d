//! A group's products: by the NPU, by who is faster, and by our own kernels what the NPU failed at.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Instant;

use super::device::{Device, HostWeight, Job};
use super::weight::Weight;
use crate::engine::{Between, Engine, Error, Product, GROUP};
use crate::kernels::glu::Activation;
use crate::log;
use crate::observe::Done;

/// After as many failed products in a row the NPU is left alone.
const FAILURES_MAX: u32 = 3;

/// A product as it is counted.
#[derive(Clone, Copy)]
pub(super) struct Counted<'a> {
    pub weight: HostWeight<'a>,
    pub rows: usize,
    pub done: Done,
}

impl Device {
    /// Does the products of a group, none of which reads what another one writes, and what is made between them if that
    /// can be made meanwhile, and the product of that. Tells which were done; the CPU is to do the others, which are then
    /// counted and, once, said: but the product of what is made, which may be asked for by itself once that is there.
    pub fn multiply(&self, jobs: &mut [Option<Job>; GROUP], between: Option<&mut Between>) -> [bool; GROUP] {
        let started = Instant::now();
        let mut done = [Done::ByHost; GROUP];
        let fed = between.as_ref().and_then(|between| between.fed());
        if !self.given_up.load(Relaxed) {
            self.try_multiply(jobs, between, &mut done);
        }
        let counted = jobs.iter().zip(done).enumerate().filter_map(|(index, (job, done))| {
            let job = job.as_ref().filter(|_| fed != Some(index) || done != Done::ByHost)?;
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
        let fed = between.as_ref().and_then(|between| between.fed());
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
            let (Some(job), Some(weight)) = (job, weight.as_deref()) else {
                unbroken = false;
                continue;
            };
            *by_host = weight.is_for_host(&mut engine, job.activations.rows);
            if *by_host {
                unbroken = false;
                continue;
            }
            let same = job.same && unbroken;
            unbroken = true;
            let (weight, activations, out) = (&weight.npu, job.activations, job.out.after(0));
            *product = Some(Product { weight, activations, same, out, routed: false, recovered: false });
        }
        let named = names.into_iter().flatten().next().unwrap_or_default();
        if let Some(fed) = fed {
            // Its rows are not there yet.
            by_host[fed] = false;
        }
        self.run(&mut engine, &mut products, between, named, done);
        for (index, job) in jobs.iter_mut().enumerate().filter(|(index, _)| by_host[*index]) {
            if let (Some(job), Some(weight)) = (job, weights[index].as_deref()) {
                let len = job.activations.rows * job.weight.source.n;
                // SAFETY: no two products that are done write to the same results.
                done[index] = weight.by_host(&mut engine, &job.activations, unsafe { job.out.part(0..len) });
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
                engine.recover(products, between.as_deref());
                self.note_failure(engine, name, error);
            }
        }
        let made = between.map_or(0, |between| between.done());
        for (index, (done, product)) in done.iter_mut().zip(products).enumerate() {
            let Some(Product { weight, routed, recovered, .. }) = product else { continue };
            *done = match (*routed, *recovered) {
                (true, _) => Done::Routed(weight.pipeline),
                (_, true) => Done::Recovered(weight.pipeline),
                _ if result.is_ok() || index < made => Done::Npu(weight.pipeline),
                _ => Done::ByHost,
            };
        }
    }

    pub(super) fn note_failure(&self, engine: &mut Engine, name: &str, error: &Error) {
        log!(Warn, "the CPU does {name}: {error}");
        if error.is_no_memory() {
            let arenas = engine.make_room();
            if !arenas.is_empty() {
                log!(
                    Info,
                    "weights of {} arenas go to another I/O domain, for there is no room beside them",
                    arenas.len()
                );
                self.weights.lock().forget(|weight| weight.npu.is_in(&arenas));
                return;
            }
        }
        if self.failures.fetch_add(1, Relaxed) + 1 >= FAILURES_MAX && !self.given_up.swap(true, Relaxed) {
            log!(Error, "the NPU failed {FAILURES_MAX} times in a row: the CPU does everything from now on");
        }
    }
}
