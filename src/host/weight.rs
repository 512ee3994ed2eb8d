//! A weight of the host's, what it is multiplied with, and its copies.

use std::time::Instant;

use crate::engine::{Activations, Engine, NpuWeight, Request};
use crate::log;
use crate::observe::Done;
use crate::pool::Divided;
use crate::weights::Source;

use super::host_copy::Kept;

/// A weight that the NPU multiplies by.
pub struct Weight {
    /// The NPU's copy, which our kernels on the CPU multiply by as well.
    pub npu: NpuWeight,
    /// The host's own copy, which its kernels multiply by.
    pub kept: Option<Kept>,
}

impl Weight {
    /// Whether the host's kernels are to do a product of so many rows, over its copy.
    pub fn is_for_host(&self, engine: &mut Engine, rows: usize) -> bool {
        self.kept.as_ref().is_some_and(|kept| engine.is_for_host(&self.npu, rows, kept.copy.bytes()))
    }

    /// Has the host's kernels do a product over its copy: rows × N results, one row after the other; who did it.
    pub fn by_host(&self, engine: &mut Engine, activations: &Activations, out: &mut [f32]) -> Done {
        let Some(kept) = &self.kept else { return Done::ByHost };
        let (started, bytes) = (Instant::now(), kept.copy.bytes());
        if !kept.copy.multiply(activations, out) {
            return Done::ByHost;
        }
        engine.host_took(&self.npu, activations.rows, bytes, started.elapsed().as_nanos() as f64);
        Done::Kept(self.npu.pipeline, bytes)
    }
}

/// A weight as the host has it.
#[derive(Clone, Copy)]
pub struct HostWeight<'a> {
    /// Its tensor's name.
    pub name: &'a str,
    /// Its matrix.
    pub source: Source<'a>,
    /// Whether its bytes stay until the host says otherwise, so that a converted copy may be kept.
    pub constant: bool,
    /// The addresses of its buffer, if that is one of ours.
    pub buffer: Option<(usize, usize)>,
    /// Whether a graph's write among these addresses ends that it is constant; elsewhere graphs write nothing.
    pub watched: bool,
    /// Whether its bytes are the host's, such as a mapped file's, and not in a buffer of ours.
    pub lent: bool,
    /// Whether it is no weight but what the graph computes, or a cache: keys and values.
    pub computed: bool,
}

/// A product whose matrices are plain slices.
pub struct Job<'a> {
    /// The weight.
    pub weight: HostWeight<'a>,
    /// The rows.
    pub activations: Activations<'a>,
    /// The rows are those of the job before in its group.
    pub same: bool,
    /// rows × N results.
    pub out: Divided<'a, f32>,
}

/// Converts the weight; `None`, said once, if it has to stay with the CPU.
pub fn upload(engine: &mut Engine, weight: &HostWeight, request: &Request) -> Option<NpuWeight> {
    let HostWeight { name, source, .. } = weight;
    match engine.upload(source, request) {
        Ok(weight) => {
            log!(
                Debug,
                "{}: {} {}x{} as {}, K in {}",
                name,
                source.reader.name(),
                source.k,
                source.n,
                weight.pipeline.name(),
                weight.plan.segments.len()
            );
            Some(weight)
        }
        Err(error) if weight.computed => {
            log!(Debug, "the CPU multiplies by {name}: {error}");
            None
        }
        Err(error) => {
            log!(Warn, "{} stays with the CPU: {error}", name);
            None
        }
    }
}

/// The layer that llama.cpp's name of a weight ("blk.3.attn_q.weight") says it is of.
pub fn layer(name: &str) -> Option<u32> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// Whether llama.cpp's name of a weight says that no other one has the same rows: that of a feed-forward block's second product,
/// whose rows are what is made of the first ones' results.
pub fn is_alone(name: &str) -> bool {
    name.contains("ffn_down")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_and_rows_are_told_by_name() {
        assert_eq!(
            (layer("blk.12.attn_q.weight"), layer("output.weight"), layer("blk.x.y")),
            (Some(12), None, None)
        );
        assert!(is_alone("blk.3.ffn_down.weight") && is_alone("blk.0.ffn_down_exps.weight"));
        assert!(!is_alone("blk.3.ffn_up.weight") && !is_alone("blk.3.attn_v.weight"));
    }
}
