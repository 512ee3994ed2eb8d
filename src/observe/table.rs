//! The table that `RKNPU_STATS` shows at exit: a line a class of weights, and what the time went into.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;

use super::choices::class_of;
use super::stages::Stage;
use super::stats::{Stats, TensorStats};
use crate::chip::Chip;
use crate::policy::Pipeline;

/// Weights of one class and pipeline.
#[derive(Default)]
struct Row {
    total: TensorStats,
    weights: usize,
}

/// The lines of the table.
pub fn lines(stats: &Stats, chip: &Chip) -> Vec<String> {
    let mut rows: BTreeMap<(String, &'static str), Row> = BTreeMap::new();
    for (name, tensor) in stats.tensors() {
        let row = rows.entry((class_of(&name), tensor.pipeline)).or_default();
        row.weights += 1;
        let total = &mut row.total;
        total.calls += tensor.calls;
        total.rows += tensor.rows;
        total.ns += tensor.ns;
        total.npu_bytes += tensor.npu_bytes;
        total.streamed_bytes += tensor.streamed_bytes;
        total.npu_flops += tensor.npu_flops;
        total.routed_flops += tensor.routed_flops;
        total.kept_flops += tensor.kept_flops;
        total.cpu_flops += tensor.cpu_flops;
    }
    let mut lines = vec![format!(
        "{:28} {:>7} {:>8} {:>9} {:>9} {:>8} {:>7} {:>9} {:>9} {:>9}",
        "weights", "as", "calls", "rows", "ms", "GOPS", "GB/s", "roofline", "on CPU", "as kept"
    )];
    for ((class, pipeline), Row { total, weights }) in rows {
        let flops = total.npu_flops + total.routed_flops + total.kept_flops + total.cpu_flops;
        // Operations and bytes a ns.
        let per_ns = |amount: u64| if total.ns == 0 { 0.0 } else { amount as f64 / total.ns as f64 };
        let share = |part: u64| if flops == 0 { 0.0 } else { part as f64 / flops as f64 * 100.0 };
        let least = Pipeline::by_name(pipeline).map_or(0.0, |pipeline| {
            let peak = chip.timing.peak(pipeline.dtype()) * chip.cores as f64 / pipeline.planes() as f64;
            (flops as f64 / peak).max(total.streamed_bytes as f64 / chip.timing.shared_rate)
        });
        let roofline = if total.ns == 0 { 0.0 } else { least / total.ns as f64 * 100.0 };
        lines.push(format!(
            "{:28} {:>7} {:>8} {:>9} {:>9.1} {:>8.1} {:>7.2} {:>7.0} % {:>7.1} % {:>7.1} %",
            format!("{class} ({weights})"),
            pipeline,
            total.calls,
            total.rows,
            total.ns as f64 / 1e6,
            per_ns(flops),
            per_ns(total.streamed_bytes),
            roofline,
            share(total.routed_flops + total.kept_flops + total.cpu_flops),
            share(total.kept_flops)
        ));
    }
    let ms = |ns: u64| ns as f64 / 1e6;
    let products = stats.products_ns.load(Relaxed);
    let stages =
        Stage::ALL.map(|stage| format!("{} {:.1}", stage.name(), ms(stats.stages.ns(stage)))).join(", ");
    lines.push(format!("ms of the caller in products {:.1}: {stages}", ms(products)));
    lines.push(format!(
        "ms with a core at work {:.1}, without {:.1}; by the host's copies {}, fallbacks {}, contexts {}, fds {}",
        ms(stats.npu.ns()),
        ms(products.saturating_sub(stats.npu.ns())),
        stats.kept_products.load(Relaxed),
        stats.fallbacks.load(Relaxed),
        stats.contexts.peak(),
        stats.fds.peak()
    ));
    lines
}

#[cfg(test)]
mod tests {
    use super::super::stats::Done;
    use super::*;

    #[test]
    fn layers_of_a_class_are_one_line() {
        let (stats, chip) = (Stats::default(), Chip::by_name("rk3588").unwrap());
        for layer in 0..3 {
            let name = format!("blk.{layer}.ffn_up.weight");
            stats.count_product(&name, ("q8_0", 1000, 1000), 2, Done::Npu(Pipeline::W8A8), 1_000_000);
        }
        stats.count_product("output.weight", ("q8_0", 1000, 1000), 1, Done::Routed(Pipeline::W8A8), 10);
        let lines = lines(&stats, chip);
        assert_eq!(lines.len(), 1 + 2 + 2, "{lines:#?}");
        let words: Vec<_> = lines[1].split_whitespace().collect();
        assert_eq!(words[..6], ["blk.*.ffn_up.weight", "(3)", "W8A8", "3", "6", "3.0"], "{lines:#?}");
        assert!(lines[2].contains("100.0 %"), "{lines:#?}");
        stats.count_product("output.weight", ("q4_0", 1000, 1000), 1, Done::Kept(Pipeline::W8A8, 9), 10);
        let lines = super::lines(&stats, chip);
        assert!(lines[2].ends_with("100.0 %    50.0 %"), "{lines:#?}");
        assert!(lines[4].contains("by the host's copies 1,"), "{lines:#?}");
    }
}
