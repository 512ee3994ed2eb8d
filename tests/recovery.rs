//! What the NPU fails at is done by our kernels over the same bytes, and nobody can tell from the results.

use std::sync::atomic::Ordering::Relaxed;

use ggml_rknpu::engine::{Activations, Decode, Product, GROUP};
use ggml_rknpu::policy::Pipeline;
use ggml_rknpu::pool::Divided;

mod common;
use common::emulated::{emulator, engine, numbers, upload};

#[test]
fn a_product_that_the_npu_failed_at_has_the_same_bits() {
    // Of the runs below, every seventh fails. The emulator asks once; nothing else runs in this process.
    std::env::set_var("RKNPU_EMU_FAULTS", "run@/7:submit");
    let library = emulator();
    let (k, n) = (1536, 200);
    for (pipeline, rows) in
        [(Pipeline::W8A8, 1), (Pipeline::W8A8, 300), (Pipeline::W4A8, 70), (Pipeline::W4A4, 33)]
    {
        let (mut engine, stats) = engine(&library, [true; 3], 2, Decode::Npu);
        let weight = upload(&mut engine, pipeline, &numbers(1, k * n), k);
        let x = numbers(2, k * rows);
        let mut seen: [Option<Vec<u32>>; 2] = [None, None];
        for _ in 0..20 {
            let mut out = vec![f32::NAN; rows * n];
            let activations = Activations::new(&x, k, rows);
            let mut group = [const { None }; GROUP];
            group[0] = Some(Product {
                weight: &weight,
                activations,
                same: false,
                out: Divided::new(&mut out),
                routed: false,
                recovered: false,
            });
            let failed = engine.products(&mut group, None).is_err();
            if failed {
                engine.recover(&mut group);
            }
            assert_eq!(group[0].as_ref().is_some_and(|product| product.recovered), failed);
            let bits: Vec<u32> = out.iter().map(|value| value.to_bits()).collect();
            let before = seen[usize::from(failed)].get_or_insert_with(|| bits.clone());
            assert!(*before == bits, "{pipeline:?}, {rows} rows, failed: {failed}");
        }
        let [Some(npu), Some(cpu)] = seen else {
            panic!("{pipeline:?}, {rows} rows: not both ways were taken")
        };
        assert!(npu == cpu, "{pipeline:?}, {rows} rows");
        assert!(stats.runs[pipeline.index()].load(Relaxed) > 0);
    }
}
