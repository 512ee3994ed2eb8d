//! Products that follow from each other, given to the engine as a whole.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Instant;

use super::device::{Device, Job};
use super::multiply::Counted;
use super::weight::Weight;
use crate::engine::{Between, Chain, Chained, Link, Make, Product, CHAIN, FEW};
use crate::observe::Done;

impl Device {
    /// Has `make` make rows, some at a time, by all threads; whether all are made.
    pub fn make_rows(&self, rows: usize, make: &Make) -> bool {
        self.engine.lock().link(make, 0, 0..rows)
    }

    /// Does products that follow from each other, and has `make` make what comes between them, some rows at a time. The rows of
    /// all but the first products are still to be made. `None` if the device does not do them as a whole: nothing is then
    /// done; or whether all is done.
    pub fn chain(
        &self,
        jobs: &mut [Option<Job>],
        links: &[Option<Link>],
        between: Option<&mut Between>,
        make: &Make,
    ) -> Option<bool> {
        let first = jobs.first()?.as_ref()?;
        if self.given_up.load(Relaxed) || first.activations.rows <= FEW {
            return None;
        }
        let (started, name) = (Instant::now(), first.weight.name);
        let mut engine = self.engine.lock();
        let mut weights: [Option<Arc<Weight>>; CHAIN] = Default::default();
        for (weight, job) in weights.iter_mut().zip(jobs.iter()) {
            *weight = Some(self.weight(&mut engine, &job.as_ref()?.weight)?);
        }
        let mut products: [Option<Product>; CHAIN] = Default::default();
        for ((product, job), weight) in
            products.iter_mut().zip(jobs.iter_mut().flatten()).zip(weights.iter().flatten())
        {
            let (out, activations, same) = (job.out.after(0), job.activations, job.same);
            *product = Some(Product {
                weight: &weight.npu,
                activations,
                same,
                out,
                routed: false,
                recovered: false,
            });
        }
        let products = &mut products[..jobs.len()];
        let size = engine.chain_tile(products, links, between.as_deref())?;
        let mut chain = Chain { products: &mut *products, links, make };
        let is_done = match engine.chain(&mut chain, between, size) {
            Chained::Done => {
                self.failures.store(0, Relaxed);
                true
            }
            Chained::Recovered(error) => {
                self.note_failure(&mut engine, name, &error);
                true
            }
            Chained::Broken(error) => {
                self.note_failure(&mut engine, name, &error);
                false
            }
        };
        let counted = jobs.iter().flatten().zip(products.iter().flatten()).map(|(job, product)| {
            let pipeline = product.weight.pipeline;
            let done = if product.recovered { Done::Recovered(pipeline) } else { Done::Npu(pipeline) };
            Counted { weight: job.weight, rows: job.activations.rows, done }
        });
        self.count(started, counted);
        Some(is_done)
    }
}
