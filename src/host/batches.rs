//! Products of several batches, and among them those of which both matrices are computed: attention's, where the host does
//! it in steps (`-fa off`). Batches that share a matrix convert it once.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Instant;

use super::attention::Who;
use super::device::{Device, GROUP};
use super::multiply::Counted;
use super::product::Product;
use super::weight::{HostWeight, Job, Weight};
use crate::engine;
use crate::observe::Done;
use crate::weights::cache::Key;

/// Matrices of this type are multiplied by though they are computed: keys and values.
const COMPUTED: &str = "f16";

impl Device {
    /// Whether the NPU is to multiply by a matrix that is computed; the same answer for the same product as long as the
    /// process lives.
    pub fn multiplies_computed(&self, product: &Product) -> bool {
        if product.reader.name() != COMPUTED || product.batch_count() < 2 || !self.may_attend(product.rows) {
            return false;
        }
        let engine = self.engine.lock();
        let Product { k, n, rows, .. } = *product;
        let Some(ns) = engine.computed_ns((k, n, rows), product.matrices(), product.batch_count()) else {
            return false;
        };
        if self.attention == Who::Npu {
            return true;
        }
        let Some(costs) = self.attention_costs(&engine) else { return false };
        let flops = 2 * (k * n) as u64 * (rows * product.batch_count()) as u64;
        ns < flops as f64 * costs.product_ns
    }

    /// Does a product's batches; false when the CPU is to do all of them.
    pub fn multiply_batches<'a>(&self, jobs: impl Iterator<Item = Job<'a>>) -> bool {
        let mut engine = self.engine.lock();
        let mut known: Option<(Key, Option<Arc<Weight>>)> = None;
        let mut jobs = jobs.peekable();
        while let Some(first) = jobs.next() {
            let started = Instant::now();
            // What may change before the next product is converted for this one.
            let computed = !first.weight.constant && first.weight.source.reader.name() == COMPUTED;
            let weight = HostWeight { computed, ..first.weight };
            let key = Key::of(&weight.source);
            if known.as_ref().is_none_or(|(of, _)| *of != key) {
                known = Some((key, self.weight(&mut engine, &weight)));
            }
            let converted = known.as_ref().and_then(|(_, converted)| converted.clone());
            let mut products = [const { None }; GROUP];
            let mut rows = [0; GROUP];
            let (mut count, mut next) = (0, Some(first));
            while let Some(Job { activations, out, .. }) = next {
                rows[count] = activations.rows;
                if let Some(Weight { npu: weight, .. }) = converted.as_deref() {
                    let (same, routed, recovered) = (false, false, false);
                    products[count] =
                        Some(engine::Product { weight, activations, same, out, routed, recovered });
                }
                count += 1;
                next =
                    if count < GROUP { jobs.next_if(|job| Key::of(&job.weight.source) == key) } else { None };
            }
            let mut done = [Done::ByHost; GROUP];
            if !self.given_up.load(Relaxed) {
                self.run(&mut engine, &mut products, None, weight.name, &mut done);
            }
            let all = rows.into_iter().zip(done).take(count);
            self.count(started, all.clone().map(|(rows, done)| Counted { weight, rows, done }));
            if all.into_iter().any(|(_, done)| done == Done::ByHost) {
                return false;
            }
        }
        true
    }
}
