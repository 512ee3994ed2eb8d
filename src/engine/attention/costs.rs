//! What attention is believed to take beside the NPU's runs, or is measured to: by it the host layer decides who does it.

use std::time::Instant;

use ggml_sys::RowReader;
use rknn_sys::MatmulType;

use super::rows::{Room, Weighing};
use super::{Attention, Cached, Mask, Masking, Queries, Task};
use crate::engine::Engine;
use crate::plan::{AttentionPlan, AttentionShape, ROWS_MAX};
use crate::policy::Pipeline;

/// What a batch of products costs beside: its first rows and last results have nothing to overlap with; a guess.
const BATCH_NS: f64 = 50_000.0;

impl Engine {
    /// ns that products of `batches` batches of `rows` rows by `matrices` computed ones of K × N are believed to take:
    /// matrices are converted, and rows and results moved, by the CPU; `None` where the NPU cannot.
    pub fn computed_ns(
        &self,
        (k, n, rows): (usize, usize, usize),
        matrices: usize,
        batches: usize,
    ) -> Option<f64> {
        self.mode.pipeline(Pipeline::W16A16).filter(|pipeline| *pipeline == Pipeline::W16A16)?;
        let (timing, cores) = (&self.chip.timing, self.cores.count().max(1));
        let tile = rows.clamp(1, ROWS_MAX);
        let run = timing.run_ns(MatmulType::F16, (tile, k, n.div_ceil(cores)), cores);
        let npu = run * rows.div_ceil(tile) as f64;
        let moved = |elements: usize, bytes: f64| elements as f64 * bytes / timing.cpu_rate;
        // f16 to f32 to f16; f32 to f16; C, and f32 written.
        let cpu = moved(k * n, 12.0) * matrices as f64
            + (moved(rows * k, 6.0) + moved(rows * n, 8.0)) * batches as f64;
        Some((npu * batches as f64).max(cpu) + BATCH_NS * batches as f64)
    }

    /// ns that the CPU's threads take together for a score that becomes a weight, by making some.
    pub fn time_weighing(&self) -> f64 {
        let Some(limits) = self.chip.limits(MatmulType::F16) else { return f64::INFINITY };
        let [tokens, positions] = [128, 512];
        let shape =
            AttentionShape { head: 64, value: 64, tokens, heads: 1, kv_heads: 1, sequences: 1, positions };
        let (plan, _) = AttentionPlan::best(&shape, &self.chip.timing, limits, self.cores.count());
        let cached =
            Cached { data: &[], reader: RowReader::f32(), width: 64, strides: [0; 3], halves: false };
        // Nothing is hidden, and it has to be looked at.
        let zeros = vec![0; tokens * positions];
        let mask = Mask { data: &zeros, strides: [positions, 0, 0], extents: [1, 1] };
        let attention = Attention {
            shape,
            queries: Queries { data: &[], strides: [0; 3] },
            keys: cached,
            values: cached,
            mask: Some(mask),
            sinks: None,
            scale: 1.0,
            softcap: 0.0,
            max_bias: 0.0,
            out: &mut [],
        };
        let mut room = Room::default();
        room.reserve(&shape, &plan, 0, plan.tiles(&shape));
        let c = vec![0f32; plan.rows * plan.longest()];
        let mut a = vec![0u32; c.len() / 2];
        let mut best = f64::INFINITY;
        // The first time makes room.
        for _ in 0..4 {
            let (started, mut scores) = (Instant::now(), 0);
            for piece in plan.pieces(positions) {
                for tile in 0..plan.tiles(&shape) {
                    let masking = Masking::Something;
                    let (band, packed) = (0, 0);
                    let task = Task {
                        sequence: 0,
                        kv_head: 0,
                        tile,
                        piece,
                        packed,
                        band,
                        masking,
                        first: false,
                        last: false,
                    };
                    let weighing = Weighing {
                        attention: &attention,
                        mask: Some(&mask),
                        plan: &plan,
                        limits,
                        task: &task,
                    };
                    let (c, a) = (bytemuck::cast_slice(&c), bytemuck::cast_slice_mut(&mut a));
                    let bytes = plan.rows * piece.padded * 2;
                    weighing.weigh(
                        &self.pool,
                        &mut room,
                        (0, 0, plan.tiles(&shape)),
                        &c[..bytes * 2],
                        &mut a[..bytes],
                    );
                    scores += plan.tokens_of(&shape, tile).len() * piece.len;
                }
            }
            best = best.min(started.elapsed().as_nanos() as f64 / scores as f64);
        }
        best
    }
}
