//! Counters: what ran where. FLOPs are counted as 2·M·K·N of the unpadded product.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::Serialize;

use super::activity::Activity;
use super::graphs::Graphs;
use super::stages::{Stage, Stages};
use super::trace::{Lane, Trace};
use crate::plan::ROWS_MAX;
use crate::policy::Pipeline;

/// A quantity that rises and falls; the peak is what is reported.
#[derive(Debug, Default)]
pub struct Gauge {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Gauge {
    fn add(&self, amount: u64) {
        let now = self.now.fetch_add(amount, Relaxed) + amount;
        self.peak.fetch_max(now, Relaxed);
    }

    fn subtract(&self, amount: u64) {
        self.now.fetch_sub(amount, Relaxed);
    }

    /// The highest value so far.
    pub fn peak(&self) -> u64 {
        self.peak.load(Relaxed)
    }

    /// The value now.
    pub fn now(&self) -> u64 {
        self.now.load(Relaxed)
    }
}

/// What one weight did.
#[derive(Debug, Clone, Default, Serialize, PartialEq)]
pub struct TensorStats {
    /// The source type.
    #[serde(rename = "type")]
    pub ggml_type: &'static str,
    /// K.
    pub k: usize,
    /// N.
    pub n: usize,
    /// The pipeline's name, or "CPU".
    pub pipeline: &'static str,
    /// Bytes of its converted copy; 0 where none is kept.
    pub npu_bytes: u64,
    /// FLOPs done by the NPU.
    pub npu_flops: u64,
    /// FLOPs that came to the plugin and were done by the CPU.
    pub cpu_flops: u64,
    /// FLOPs done by our kernels on the CPU, over the converted copy.
    pub routed_flops: u64,
    /// FLOPs done by the host's kernels, over its own copy.
    pub kept_flops: u64,
    /// Products, their rows, and the ns that they took.
    pub calls: u64,
    /// Rows of all products.
    pub rows: u64,
    /// ns of the caller's time, that of a group shared out by FLOPs.
    pub ns: u64,
    /// Bytes of the copy that was multiplied by, each time that it was read.
    pub streamed_bytes: u64,
}

/// Who did a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The NPU.
    Npu(Pipeline),
    /// Our kernels on the CPU, since that is faster.
    Routed(Pipeline),
    /// The host's kernels over its own copy of as many bytes, since that is faster.
    Kept(Pipeline, usize),
    /// Our kernels on the CPU, since the NPU failed.
    Recovered(Pipeline),
    /// The host's CPU backend, since nobody else can.
    ByHost,
}

/// Nodes of attention that came to the plugin, by who did them.
#[derive(Debug, Default)]
pub struct AttentionCount {
    /// Done by the NPU and by the CPU since the NPU could not.
    pub nodes: [AtomicU64; 2],
    /// FLOPs of those.
    pub flops: [AtomicU64; 2],
    /// ns of the NPU's.
    pub ns: AtomicU64,
}

impl AttentionCount {
    /// Counts a node, which was begun then.
    pub fn count(&self, by_npu: bool, flops: u64, started: Instant) {
        let who = usize::from(!by_npu);
        self.nodes[who].fetch_add(1, Relaxed);
        self.flops[who].fetch_add(flops, Relaxed);
        if by_npu {
            self.ns.fetch_add(started.elapsed().as_nanos() as u64, Relaxed);
        }
    }
}

/// All counters of a device.
#[derive(Debug, Default)]
pub struct Stats {
    /// Runs of the NPU by [`Pipeline::index`].
    pub runs: [AtomicU64; Pipeline::ALL.len()],
    /// FLOPs done by the NPU.
    pub npu_flops: AtomicU64,
    /// FLOPs of products that came to the plugin and were done by the CPU since the NPU could not.
    pub cpu_flops: AtomicU64,
    /// Products that came to the plugin and were done by the CPU.
    pub fallbacks: AtomicU64,
    /// Groups of products that went to the engine together.
    pub groups: AtomicU64,
    /// Rows of activations that were rotated.
    pub rows_rotated: AtomicU64,
    /// Rows that an earlier product had rotated already.
    pub rows_shared: AtomicU64,
    /// Rows that were packed, whole or in part, while others, or parts, of the same product were still to be made, by two
    /// products before it.
    pub rows_ahead: AtomicU64,
    /// Rows that were packed as they were made of two products' results.
    pub rows_as_made: AtomicU64,
    /// Converted weights that came from the disk.
    pub weights_loaded: AtomicU64,
    /// Contexts alive.
    pub contexts: Gauge,
    /// The most I/O domains that were open.
    pub domains: AtomicU64,
    /// Allocations alive; each is a file descriptor.
    pub fds: Gauge,
    /// Bytes of the allocations alive.
    pub bytes: Gauge,
    /// Graphs computed, and allocations meanwhile.
    pub graphs: Graphs,
    /// Threads started so far.
    pub threads_created: AtomicU64,
    /// Contexts made so far.
    pub contexts_created: AtomicU64,
    /// Bytes of f32 that products had as rows.
    pub activation_bytes: AtomicU64,
    /// Bytes of f32 that products gave as results.
    pub result_bytes: AtomicU64,
    /// Bytes of A that were packed, as the NPU has them: all segments, planes and padding.
    pub a_bytes: AtomicU64,
    /// Bytes of C that were read, likewise.
    pub c_bytes: AtomicU64,
    /// FLOPs of products that were sent to our kernels on the CPU, since that is faster.
    pub routed_flops: AtomicU64,
    /// Products that were sent to the host's kernels over its own copy, since that is faster.
    pub kept_products: AtomicU64,
    /// FLOPs of those.
    pub kept_flops: AtomicU64,
    /// Bytes of the host's copies alive.
    pub kept_bytes: Gauge,
    /// Attention that came to the plugin.
    pub attention: AttentionCount,
    /// What the caller's time went into.
    pub stages: Stages,
    /// ns within products.
    pub products_ns: AtomicU64,
    /// When the NPU was at work.
    pub npu: Activity,
    /// What happened when.
    pub trace: Trace,
    tensors: Mutex<BTreeMap<String, TensorStats>>,
}

impl Stats {
    /// Does `work` as a stage of a product.
    pub fn stage<R>(&self, stage: Stage, work: impl FnOnce() -> R) -> R {
        let started = Instant::now();
        let result = work();
        self.stages.add(stage, started);
        self.trace.span(Lane::Cpu, started, || stage.name().to_owned());
        result
    }

    /// Notes a thread that was started.
    pub fn count_thread(&self) {
        self.threads_created.fetch_add(1, Relaxed);
    }

    /// Counts one product of the weight called `name`, which took `ns`.
    pub fn count_product(
        &self,
        name: &str,
        (ggml_type, k, n): (&'static str, usize, usize),
        rows: usize,
        done: Done,
        ns: u64,
    ) {
        let flops = 2 * (rows * k) as u64 * n as u64;
        match done {
            Done::Npu(_) => self.npu_flops.fetch_add(flops, Relaxed),
            Done::Routed(_) => self.routed_flops.fetch_add(flops, Relaxed),
            Done::Kept(..) => {
                self.kept_products.fetch_add(1, Relaxed);
                self.kept_flops.fetch_add(flops, Relaxed)
            }
            Done::Recovered(_) | Done::ByHost => {
                self.fallbacks.fetch_add(1, Relaxed);
                self.cpu_flops.fetch_add(flops, Relaxed)
            }
        };
        let mut tensors = self.tensors.lock();
        if !tensors.contains_key(name) {
            tensors.insert(name.to_owned(), TensorStats::default());
        }
        let entry = tensors.get_mut(name).expect("inserted above");
        if entry.pipeline.is_empty() {
            (entry.ggml_type, entry.k, entry.n, entry.pipeline) = (ggml_type, k, n, "CPU");
        }
        entry.calls += 1;
        entry.rows += rows as u64;
        entry.ns += ns;
        if let Done::Npu(pipeline) | Done::Routed(pipeline) | Done::Recovered(pipeline) = done {
            entry.pipeline = pipeline.name();
            entry.streamed_bytes += entry.npu_bytes * rows.div_ceil(ROWS_MAX) as u64;
        }
        if let Done::Kept(pipeline, bytes) = done {
            entry.pipeline = pipeline.name();
            entry.streamed_bytes += bytes as u64;
        }
        match done {
            Done::Npu(_) => entry.npu_flops += flops,
            Done::Routed(_) => entry.routed_flops += flops,
            Done::Kept(..) => entry.kept_flops += flops,
            Done::Recovered(_) | Done::ByHost => entry.cpu_flops += flops,
        }
    }

    /// A line that says who did the products so far, by FLOPs; none before the first.
    pub fn ways(&self) -> Option<String> {
        let all = [&self.npu_flops, &self.routed_flops, &self.kept_flops, &self.cpu_flops];
        let [npu, routed, kept, cpu] = all.map(|flops| flops.load(Relaxed));
        let total = npu + routed + kept + cpu;
        let share = |part: u64| part as f64 / total as f64 * 100.0;
        (total > 0).then(|| {
            format!(
                "products so far: {:.1} % by the NPU, {:.1} % by our kernels on the CPU, {:.1} % ({} products) by the \
                 host's over its own copies, {:.1} % by the CPU since the NPU could not",
                share(npu),
                share(routed),
                share(kept),
                self.kept_products.load(Relaxed),
                share(cpu)
            )
        })
    }

    /// Notes the bytes of a weight's converted copy.
    pub fn set_bytes(&self, name: &str, bytes: usize) {
        self.tensors.lock().entry(name.to_owned()).or_default().npu_bytes = bytes as u64;
    }

    /// Each weight so far, by name.
    pub fn tensors(&self) -> BTreeMap<String, TensorStats> {
        self.tensors.lock().clone()
    }
}

/// Counts an allocation, a context or a copy as long as it is held.
pub struct Held {
    stats: Arc<Stats>,
    contexts: u64,
    bytes: Option<u64>,
    kept_bytes: u64,
}

impl Held {
    /// An allocation of `bytes`.
    pub fn allocation(stats: &Arc<Stats>, bytes: usize) -> Self {
        stats.fds.add(1);
        stats.bytes.add(bytes as u64);
        Self { stats: stats.clone(), contexts: 0, bytes: Some(bytes as u64), kept_bytes: 0 }
    }

    /// A context.
    pub fn context(stats: &Arc<Stats>) -> Self {
        stats.contexts.add(1);
        stats.contexts_created.fetch_add(1, Relaxed);
        Self { stats: stats.clone(), contexts: 1, bytes: None, kept_bytes: 0 }
    }

    /// A weight's copy of `bytes` for the host's kernels.
    pub fn host_copy(stats: &Arc<Stats>, bytes: usize) -> Self {
        stats.kept_bytes.add(bytes as u64);
        Self { stats: stats.clone(), contexts: 0, bytes: None, kept_bytes: bytes as u64 }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.stats.contexts.subtract(self.contexts);
        self.stats.kept_bytes.subtract(self.kept_bytes);
        if let Some(bytes) = self.bytes {
            self.stats.fds.subtract(1);
            self.stats.bytes.subtract(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_counted_by_who_did_them() {
        let stats = Stats::default();
        stats.count_product("a", ("f16", 4, 5), 3, Done::Npu(Pipeline::W16A16), 5);
        stats.count_product("a", ("f16", 4, 5), 1, Done::ByHost, 6);
        stats.count_product("b", ("q4_0", 4, 5), 2, Done::Kept(Pipeline::W8A8, 10), 6);
        assert_eq!(stats.npu_flops.load(Relaxed), 120);
        assert_eq!((stats.cpu_flops.load(Relaxed), stats.fallbacks.load(Relaxed)), (40, 1));
        assert_eq!((stats.kept_flops.load(Relaxed), stats.kept_products.load(Relaxed)), (80, 1));
        let tensors = stats.tensors();
        assert_eq!((tensors["b"].kept_flops, tensors["b"].streamed_bytes), (80, 10));
        assert_eq!(
            (tensors["a"].pipeline, tensors["a"].npu_flops, tensors["a"].cpu_flops),
            ("W16A16", 120, 40)
        );
    }

    #[test]
    fn peaks_stay_when_what_was_held_is_gone() {
        let stats = Arc::new(Stats::default());
        let held = (Held::allocation(&stats, 100), Held::allocation(&stats, 50), Held::context(&stats));
        drop(held);
        assert_eq!((stats.fds.now(), stats.bytes.now(), stats.contexts.now()), (0, 0, 0));
        assert_eq!((stats.fds.peak(), stats.bytes.peak(), stats.contexts.peak()), (2, 150, 1));
    }
}
