//! What the NPU fails at is done by our kernels over the same bytes, and nobody can tell from the results.

use std::sync::atomic::Ordering::Relaxed;

use ggml_rknpu::engine::{Activations, Between, Decode, NpuWeight, Product, GROUP};
use ggml_rknpu::kernels::glu::Activation;
use ggml_rknpu::policy::Pipeline;
use ggml_rknpu::pool::Divided;
use rknn_sys::Library;

mod common;
use common::emulated::{emulator, engine, numbers, upload};

#[test]
fn what_the_npu_failed_at_has_the_same_bits() {
    // Of the runs below, every seventh fails. The emulator asks once; nothing else runs in this process.
    std::env::set_var("RKNPU_EMU_FAULTS", "run@/7:submit");
    let library = emulator();
    products(&library);
    gated(&library);
}

fn product<'a>(
    weight: &'a NpuWeight,
    activations: Activations<'a>,
    same: bool,
    out: &'a mut [f32],
) -> Product<'a> {
    Product { weight, activations, same, out: Divided::new(out), routed: false, recovered: false }
}

/// An activation times a gate, which is made as the results of both products are read.
fn gated(library: &Library) {
    let (k, n, rows) = (512, 200, 64);
    let (mut engine, _) = engine(library, [true; 3], 2, Decode::Npu);
    let weights = [1, 2].map(|seed| upload(&mut engine, Pipeline::W8A8, &numbers(seed, k * n), k));
    let x = numbers(3, k * rows);
    let mut seen: [Option<Vec<u32>>; 2] = [None, None];
    for _ in 0..20 {
        let mut outs = [(); 2].map(|()| vec![f32::NAN; rows * n]);
        let mut gated = vec![f32::NAN; rows * n];
        let activations = Activations::new(&x, k, rows);
        let (out, activation) = (Divided::new(&mut gated), Activation::Silu);
        let mut between = Between { first: 0, activation, swapped: false, out, seen: false, made: false };
        let mut group = [const { None }; GROUP];
        for (index, (product_of, (weight, out))) in
            group.iter_mut().zip(weights.iter().zip(&mut outs)).enumerate()
        {
            *product_of = Some(product(weight, activations, index > 0, out));
        }
        let failed = engine.products(&mut group, Some(&mut between)).is_err();
        if failed {
            engine.recover(&mut group);
        } else {
            assert!(between.made);
        }
        if failed {
            engine.gate(activation, [&outs[0], &outs[1]], &mut gated);
        } else {
            assert!(
                outs.iter().flatten().all(|value| value.is_nan()),
                "nobody reads them, nobody writes them"
            );
        }
        let bits: Vec<u32> = gated.iter().map(|value| value.to_bits()).collect();
        let before = seen[usize::from(failed)].get_or_insert_with(|| bits.clone());
        assert!(*before == bits, "failed: {failed}");
    }
    let [Some(npu), Some(cpu)] = seen else { panic!("not both ways were taken") };
    assert!(npu == cpu);
    assert!(npu.iter().all(|bits| f32::from_bits(*bits).is_finite()));
}

fn products(library: &Library) {
    let (k, n) = (1536, 200);
    for (pipeline, rows) in
        [(Pipeline::W8A8, 1), (Pipeline::W8A8, 300), (Pipeline::W4A8, 70), (Pipeline::W4A4, 33)]
    {
        let (mut engine, stats) = engine(library, [true; 3], 2, Decode::Npu);
        let weight = upload(&mut engine, pipeline, &numbers(1, k * n), k);
        let x = numbers(2, k * rows);
        let mut seen: [Option<Vec<u32>>; 2] = [None, None];
        for _ in 0..20 {
            let mut out = vec![f32::NAN; rows * n];
            let activations = Activations::new(&x, k, rows);
            let mut group = [const { None }; GROUP];
            group[0] = Some(product(&weight, activations, false, &mut out));
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
