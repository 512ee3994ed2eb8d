//! The report: one JSON object in the file that `RKNPU_REPORT` names.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

use super::stages::Stage;
use super::stats::{Stats, TensorStats};
use crate::policy::Pipeline;

/// What a device did in the life of the process. Contexts, domains, fds and bytes are the peaks.
#[derive(Debug, Serialize)]
pub struct Report {
    device: String,
    description: String,
    soc: &'static str,
    npu_runs: u64,
    npu_flops: u64,
    cpu_flops: u64,
    contexts: u64,
    domains: u64,
    fds: u64,
    npu_bytes: u64,
    /// Groups of products that went to the engine together.
    groups: u64,
    /// Rows of activations rotated, and rows that an earlier product had rotated already.
    rows_rotated: u64,
    rows_shared: u64,
    /// Rows that were packed, whole or in part, while others, or parts, of the same product were still to be made.
    rows_ahead: u64,
    /// Rows that were packed as they were made of two products' results.
    rows_as_made: u64,
    /// Converted weights that came from the disk.
    weights_loaded: u64,
    fallbacks: u64,
    /// FLOPs of products that our kernels on the CPU did, since that is faster.
    routed_flops: u64,
    /// Products, and their FLOPs, that the host's kernels did over its own copies, since that is faster; and the bytes of
    /// these copies.
    kept_products: u64,
    kept_flops: u64,
    kept_bytes: u64,
    /// Threads started and contexts made, and allocations of the plugin's own, so far.
    threads_created: u64,
    contexts_created: u64,
    allocations: u64,
    /// Graphs computed, the later ones of them, and the allocations since the others.
    graphs: u64,
    late_graphs: u64,
    late_allocations: u64,
    attention: Attention,
    engine: Engine,
    /// Runs by pipeline, without those that had none.
    pipelines: BTreeMap<&'static str, u64>,
    tensors: Vec<Tensor>,
}

/// Nodes of attention, FLOPs and ns: of the NPU, and of the CPU where the NPU could not.
#[derive(Debug, Serialize)]
struct Attention {
    nodes: u64,
    flops: u64,
    ns: u64,
    fallbacks: u64,
    cpu_flops: u64,
}

impl Attention {
    fn new(stats: &Stats) -> Self {
        let count = &stats.attention;
        let [nodes, fallbacks] = [0, 1].map(|who| count.nodes[who].load(Relaxed));
        let [flops, cpu_flops] = [0, 1].map(|who| count.flops[who].load(Relaxed));
        Self { nodes, flops, ns: count.ns.load(Relaxed), fallbacks, cpu_flops }
    }
}

/// What the time within products went into, ns; the stages are the caller's time.
#[derive(Debug, Serialize)]
struct Engine {
    compare_ns: u64,
    pack_ns: u64,
    sync_ns: u64,
    weigh_ns: u64,
    scale_ns: u64,
    gate_ns: u64,
    link_ns: u64,
    multiply_ns: u64,
    /// The caller had nothing to do.
    idle_ns: u64,
    /// At least one core of the NPU was at work, and none was.
    busy_ns: u64,
    wait_ns: u64,
    /// f32 bytes of the products' rows and results.
    activation_bytes: u64,
    result_bytes: u64,
    /// Bytes of A that were packed and of C that were read, as the NPU has them.
    a_bytes: u64,
    c_bytes: u64,
}

impl Engine {
    fn new(stats: &Stats) -> Self {
        let ns = |stage| stats.stages.ns(stage);
        let (busy_ns, products_ns) = (stats.npu.ns(), stats.products_ns.load(Relaxed));
        Self {
            compare_ns: ns(Stage::Compare),
            pack_ns: ns(Stage::Pack),
            sync_ns: ns(Stage::Sync),
            weigh_ns: ns(Stage::Weigh),
            scale_ns: ns(Stage::Scale),
            gate_ns: ns(Stage::Gate),
            link_ns: ns(Stage::Link),
            multiply_ns: ns(Stage::Multiply),
            idle_ns: ns(Stage::Wait),
            busy_ns,
            wait_ns: products_ns.saturating_sub(busy_ns),
            activation_bytes: stats.activation_bytes.load(Relaxed),
            result_bytes: stats.result_bytes.load(Relaxed),
            a_bytes: stats.a_bytes.load(Relaxed),
            c_bytes: stats.c_bytes.load(Relaxed),
        }
    }
}

#[derive(Debug, Serialize)]
struct Tensor {
    name: String,
    #[serde(flatten)]
    stats: TensorStats,
}

impl Report {
    /// The report of a device by its counters.
    pub fn new(device: &str, description: &str, soc: &'static str, stats: &Stats) -> Self {
        let runs = |pipeline: Pipeline| stats.runs[pipeline.index()].load(Relaxed);
        let (late_graphs, late_allocations) = stats.graphs.late();
        Self {
            device: device.to_owned(),
            description: description.to_owned(),
            soc,
            npu_runs: Pipeline::ALL.into_iter().map(runs).sum(),
            npu_flops: stats.npu_flops.load(Relaxed),
            cpu_flops: stats.cpu_flops.load(Relaxed),
            contexts: stats.contexts.peak(),
            domains: stats.domains.load(Relaxed),
            fds: stats.fds.peak(),
            npu_bytes: stats.bytes.peak(),
            groups: stats.groups.load(Relaxed),
            rows_rotated: stats.rows_rotated.load(Relaxed),
            rows_shared: stats.rows_shared.load(Relaxed),
            rows_ahead: stats.rows_ahead.load(Relaxed),
            rows_as_made: stats.rows_as_made.load(Relaxed),
            weights_loaded: stats.weights_loaded.load(Relaxed),
            fallbacks: stats.fallbacks.load(Relaxed),
            routed_flops: stats.routed_flops.load(Relaxed),
            kept_products: stats.kept_products.load(Relaxed),
            kept_flops: stats.kept_flops.load(Relaxed),
            kept_bytes: stats.kept_bytes.peak(),
            threads_created: stats.threads_created.load(Relaxed),
            contexts_created: stats.contexts_created.load(Relaxed),
            allocations: crate::allocations(),
            graphs: stats.graphs.count(),
            late_graphs,
            late_allocations,
            attention: Attention::new(stats),
            engine: Engine::new(stats),
            pipelines: Pipeline::ALL
                .into_iter()
                .filter(|pipeline| runs(*pipeline) > 0)
                .map(|pipeline| (pipeline.name(), runs(pipeline)))
                .collect(),
            tensors: stats.tensors().into_iter().map(|(name, stats)| Tensor { name, stats }).collect(),
        }
    }

    /// Writes it to `path`, whole or not at all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let mut json = serde_json::to_vec(self)?;
        json.push(b'\n');
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        std::fs::write(&partial, json)?;
        std::fs::rename(&partial, path)
    }
}

#[cfg(test)]
mod tests {
    use super::super::stats::Done;
    use super::*;

    #[test]
    fn the_report_is_one_json_object_with_flat_tensors() {
        let stats = Stats::default();
        stats.runs[Pipeline::W8A8.index()].store(7, Relaxed);
        stats.count_product("blk.0.\"q\"", ("q8_0", 2, 3), 1, Done::Npu(Pipeline::W8A8), 1);
        let json = serde_json::to_value(Report::new("RKNPU", "emulated RK3588", "rk3588", &stats)).unwrap();
        assert_eq!((&json["npu_runs"], &json["npu_flops"]), (&7.into(), &12.into()));
        assert_eq!(json["pipelines"], serde_json::json!({"W8A8": 7}));
        assert_eq!(json["tensors"][0]["name"], "blk.0.\"q\"");
        assert_eq!(json["tensors"][0]["type"], "q8_0");
    }
}
