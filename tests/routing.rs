//! A row's results are the same bits wherever and with whatever it is computed: on the NPU or by our kernels on the
//! CPU, on any number of threads and cores, alone or with other rows, alone or in a group of products.

use std::sync::atomic::Ordering::Relaxed;

use ggml_rknpu::engine::{Activations, Decode, Engine, Experts, NpuWeight, Product, Route, GROUP};
use ggml_rknpu::observe::Stats;
use ggml_rknpu::policy::Pipeline;
use ggml_rknpu::pool::Divided;

mod common;
use common::emulated::{emulator, engine, numbers, upload};

/// `rows` at a time.
fn multiply(engine: &mut Engine, weight: &NpuWeight, x: &[f32], k: usize, rows: usize) -> Vec<u32> {
    let n = weight.plan.n;
    let mut out = vec![f32::NAN; x.len() / k * n];
    for (x, out) in x.chunks(rows * k).zip(out.chunks_mut(rows * n)) {
        let activations = Activations::new(x, k, x.len() / k);
        engine.matmul(weight, activations, out).unwrap();
    }
    out.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_row_has_the_same_bits_wherever_it_is_computed() {
    let library = emulator();
    for pipeline in [Pipeline::W8A8, Pipeline::W4A8, Pipeline::W4A4] {
        // One segment, several, and more than cores; narrow and odd; enough rows for several tiles.
        for (k, n, rows) in [(576, 192, 130), (2048, 70, 67), (4600, 200, 30), (1536, 50, 600)] {
            let (weight, x) = (numbers(1, k * n), numbers(2, k * rows));
            let (mut first, _) = engine(&library, [true; 3], 2, Decode::Npu);
            let npu = upload(&mut first, pipeline, &weight, k);
            let want = multiply(&mut first, &npu, &x, k, rows);
            for (cores, threads, decode, at_once) in [
                ([true; 3], 1, Decode::Npu, rows),
                ([true; 3], 3, Decode::Npu, 33),
                ([true, false, true], 2, Decode::Npu, rows),
                ([false, true, false], 2, Decode::Npu, 7),
                ([true; 3], 2, Decode::Npu, 1),
                ([true; 3], 1, Decode::Cpu, 1),
                ([true; 3], 3, Decode::Cpu, 1),
                ([true, true, false], 2, Decode::Cpu, 2),
                ([true; 3], 2, Decode::Cpu, 5),
                ([true; 3], 2, Decode::Cpu, 16),
            ] {
                let (mut engine, stats) = engine(&library, cores, threads, decode);
                let weight = upload(&mut engine, pipeline, &weight, k);
                // A few rows stand for all where each is a product of its own.
                let some = if at_once < 8 { rows.min(40) } else { rows };
                let got = multiply(&mut engine, &weight, &x[..some * k], k, at_once);
                let what =
                    format!("{pipeline:?} {k}x{n}, {cores:?}, {threads} threads, {decode:?}, {at_once} rows");
                assert!(got == want[..some * n], "{what}");
                let runs = stats.runs[pipeline.index()].load(Relaxed);
                assert_eq!(runs == 0, decode == Decode::Cpu, "{what}: {runs} runs");
            }
        }
    }
}

#[test]
fn a_group_gives_what_its_products_give_alone() {
    let library = emulator();
    for decode in [Decode::Npu, Decode::Cpu] {
        for rows in [1, 3, 16, 200, 700] {
            let k = 1536;
            let (mut engine, stats) = engine(&library, [true; 3], 2, decode);
            let x = numbers(5, k * rows);
            let weights: Vec<NpuWeight> =
                [(1536, Pipeline::W8A8), (256, Pipeline::W8A8), (96, Pipeline::W4A8), (40, Pipeline::W16A16)]
                    .into_iter()
                    .enumerate()
                    .map(|(seed, (n, pipeline))| {
                        upload(&mut engine, pipeline, &numbers(seed as u32, k * n), k)
                    })
                    .collect();
            let want: Vec<Vec<u32>> =
                weights.iter().map(|weight| multiply(&mut engine, weight, &x, k, rows)).collect();
            let mut outs: Vec<Vec<f32>> =
                weights.iter().map(|weight| vec![0.0; weight.plan.n * rows]).collect();
            let rotated = stats.rows_rotated.load(Relaxed);
            let mut products: [Option<Product>; GROUP] = Default::default();
            for (index, ((weight, out), product)) in
                weights.iter().zip(&mut outs).zip(&mut products).enumerate()
            {
                let activations = Activations::new(&x, k, rows);
                let (same, out) = (index > 0, Divided::new(out));
                *product = Some(Product { weight, activations, same, out, routed: false, recovered: false });
            }
            engine.products(&mut products, None).unwrap();
            for (out, want) in outs.iter().zip(&want) {
                let got: Vec<u32> = out.iter().map(|value| value.to_bits()).collect();
                assert!(got == *want, "{decode:?}, {rows} rows");
            }
            if rows <= 512 {
                assert!(stats.rows_rotated.load(Relaxed) - rotated <= rows as u64, "rotated once");
            }
        }
    }
}

/// The emulator takes far longer than an NPU would: where that is measured, the CPU gets products that by the formula alone are
/// all the NPU's.
#[test]
fn an_npu_that_is_slower_than_believed_gets_fewer_products() {
    let library = emulator();
    let (k, n, rows) = (4096, 4096, 8);
    let (mut engine, stats) = engine(&library, [true; 3], 2, Decode::Npu);
    let weight = upload(&mut engine, Pipeline::W8A8, &numbers(1, k * n), k);
    let x = numbers(2, k * rows);
    let runs = || stats.runs[Pipeline::W8A8.index()].load(Relaxed);
    let want = multiply(&mut engine, &weight, &x, k, rows);
    let one = runs();
    for (learns, all) in [(false, true), (true, false)] {
        engine.set_route(Route::new(Decode::Auto, learns));
        let before = runs();
        for _ in 0..200 {
            assert!(multiply(&mut engine, &weight, &x, k, rows) == want);
        }
        assert_eq!(runs() - before == 200 * one, all, "learns: {learns}");
    }
}

/// Weights of the same rows that lie one after the other share their runs: fewer, with the same bits. 4096 bytes are 64 rows of
/// 64 elements, so that all of these but the odd one have whole pages.
#[test]
fn products_that_are_run_together_have_the_bits_of_each_alone() {
    let library = emulator();
    for (pipeline, k, ns, cores) in [
        (Pipeline::W8A8, 576, &[576, 192, 192][..], [true; 3]),
        (Pipeline::W8A8, 576, &[576, 192, 192], [true, false, true]),
        (Pipeline::W8A8, 1024, &[64, 512], [false, true, false]),
        (Pipeline::W8A8, 2560, &[512, 256, 256, 64], [true; 3]),
        (Pipeline::W16A16, 576, &[576, 192, 192], [true; 3]),
        (Pipeline::W4A8, 1536, &[256, 128, 128], [true; 3]),
        (Pipeline::W4A4, 1536, &[256, 128, 128], [true; 3]),
        (Pipeline::W4A4, 2048, &[256, 512], [true, true, false]),
        // Padding between two of them: the first two only.
        (Pipeline::W8A8, 576, &[64, 96, 64], [true; 3]),
    ] {
        let (mut engine, stats) = engine(&library, cores, 2, Decode::Npu);
        let weights: Vec<NpuWeight> = ns
            .iter()
            .enumerate()
            .map(|(seed, n)| upload(&mut engine, pipeline, &numbers(seed as u32, k * n), k))
            .collect();
        for rows in [1, 2, 7, 16, 17, 130, 512, 700] {
            let mut x = numbers(9, k * rows);
            if rows == 7 {
                x[3 * k + 5] = f32::NAN;
            }
            let runs = || stats.runs[pipeline.index()].load(Relaxed);
            let before = runs();
            let want: Vec<Vec<u32>> =
                weights.iter().map(|weight| multiply(&mut engine, weight, &x, k, rows)).collect();
            let singly = runs() - before;
            let mut outs: Vec<Vec<f32>> = ns.iter().map(|n| vec![0.0; n * rows]).collect();
            let mut products: [Option<Product>; GROUP] = Default::default();
            for (index, (weight, out)) in weights.iter().zip(&mut outs).enumerate() {
                let (activations, out) = (Activations::new(&x, k, rows), Divided::new(out));
                let same = index > 0;
                products[index] =
                    Some(Product { weight, activations, same, out, routed: false, recovered: false });
            }
            engine.products(&mut products, None).unwrap();
            let together = runs() - before - singly;
            let what = format!("{pipeline:?}, {k}x{ns:?} on {cores:?}, {rows} rows");
            for (index, (out, want)) in outs.iter().zip(&want).enumerate() {
                let alike = |(got, want): (&f32, &u32)| {
                    got.to_bits() == *want || got.is_nan() && f32::from_bits(*want).is_nan()
                };
                assert!(out.iter().zip(want).all(alike), "{what}: product {index}");
            }
            assert!(together <= singly, "{what}: {together} runs instead of {singly}");
            if rows <= 16 {
                assert!(together < singly, "{what}: {together} runs instead of {singly}");
            }
        }
    }
}

#[test]
fn a_row_that_is_not_finite_is_nan_and_no_other_is() {
    let library = emulator();
    let (k, n) = (640, 70);
    for decode in [Decode::Npu, Decode::Cpu] {
        for pipeline in [Pipeline::W16A16, Pipeline::W8A8, Pipeline::W4A8, Pipeline::W4A4] {
            for rows in [1, 6, 40] {
                let (mut engine, _) = engine(&library, [true; 3], 2, decode);
                let weight = upload(&mut engine, pipeline, &numbers(3, k * n), k);
                let mut x = numbers(4, k * rows);
                let bad = rows / 2;
                x[bad * k + 300] = if rows == 6 { f32::INFINITY } else { f32::NAN };
                let got = multiply(&mut engine, &weight, &x, k, rows);
                for (row, out) in got.chunks(n).enumerate() {
                    let nan = out.iter().all(|bits| f32::from_bits(*bits).is_nan());
                    let finite = out.iter().all(|bits| f32::from_bits(*bits).is_finite());
                    assert!(
                        if row == bad { nan } else { finite },
                        "{decode:?} {pipeline:?} row {row} of {rows}"
                    );
                }
            }
        }
    }
}

#[test]
fn ones_and_nothing_are_products_too() {
    let library = emulator();
    let (mut engine, _) = engine(&library, [true; 3], 2, Decode::Npu);
    for (k, n) in [(1, 1), (1, 40), (40, 1), (33, 65)] {
        for pipeline in [Pipeline::W16A16, Pipeline::W8A8] {
            let weight = upload(&mut engine, pipeline, &vec![1.0; k * n], k);
            let mut out = vec![0.0; 2 * n];
            let x = vec![1.0; 2 * k];
            engine.matmul(&weight, Activations::new(&x, k, 2), &mut out).unwrap();
            assert!(
                out.iter().all(|sum| (sum / k as f32 - 1.0).abs() < 0.02),
                "{k}x{n} {pipeline:?}: {out:?}"
            );
            engine.matmul(&weight, Activations::new(&[], k, 0), &mut []).unwrap();
        }
    }
}

#[test]
fn fifty_loads_and_unloads_leave_nothing() {
    let library = emulator();
    let (mut engine, stats) = engine(&library, [true; 3], 2, Decode::Npu);
    let (k, n) = (512, 256);
    let (weight, x) = (numbers(1, k * n), numbers(2, k * 20));
    let held = |stats: &Stats| (stats.contexts.now(), stats.fds.now(), stats.bytes.now());
    let mut after_first = None;
    for _ in 0..50 {
        let weights: Vec<NpuWeight> =
            (0..5).map(|_| upload(&mut engine, Pipeline::W8A8, &weight, k)).collect();
        for weight in &weights {
            multiply(&mut engine, weight, &x, k, 20);
        }
        drop(weights);
        engine.release();
        let now = held(&stats);
        assert_eq!(*after_first.get_or_insert(now), now);
    }
    assert_eq!(stats.contexts.now(), 1, "the one that memories are made with");
}

/// Rows picked by expert, from shared rows and from rows of their own, give the bits of the same rows by themselves.
#[test]
fn picked_rows_are_those_of_a_product_of_their_own() {
    let library = emulator();
    let (k, n, experts, used) = (640, 1100, 3, 2);
    for decode in [Decode::Npu, Decode::Cpu] {
        for pipeline in [Pipeline::W16A16, Pipeline::W8A8, Pipeline::W4A8] {
            if (decode, pipeline) == (Decode::Cpu, Pipeline::W16A16) {
                // Sums of f16 depend on their order.
                continue;
            }
            for (tokens, rows) in [(1, 1), (9, 2), (40, 1), (700, 1), (700, 2)] {
                let (mut engine, stats) = engine(&library, [true; 3], 2, decode);
                let weights: Vec<NpuWeight> = (0..experts)
                    .map(|seed| {
                        // Not flat, so that rows are rotated.
                        let peaked: Vec<f32> =
                            numbers(seed as u32, k * n).iter().map(|value| value.powi(5)).collect();
                        upload(&mut engine, pipeline, &peaked, k)
                    })
                    .collect();
                assert_eq!(weights[0].rotation.is_some(), pipeline != Pipeline::W16A16);
                let x = numbers(9, k * rows * tokens);
                // Nearly all go to the first expert, none to the last.
                let ids: Vec<i32> = (0..used * tokens).map(|index| i32::from(index % 7 == 3)).collect();
                let mut gathered = Experts::default();
                gathered.gather(experts, used, rows, ids.iter().copied()).unwrap();
                let mut out = vec![f32::NAN; used * tokens * n];
                let rotated = stats.rows_rotated.load(Relaxed);
                {
                    let out = Divided::new(&mut out);
                    let mut products: [Option<Product>; 4] = Default::default();
                    for (expert, product) in products.iter_mut().take(experts).enumerate() {
                        let picks = gathered.picks(expert);
                        if picks.count() == 0 {
                            continue;
                        }
                        let all = Activations::new(&x, k, rows * tokens);
                        let activations = Activations { rows: picks.count(), picks: Some(picks), ..all };
                        let (weight, same, out) = (&weights[expert], expert > 0, out.after(0));
                        *product =
                            Some(Product { weight, activations, same, out, routed: false, recovered: false });
                    }
                    engine.products(&mut products, None).unwrap();
                }
                if rows == 1 && decode == Decode::Npu {
                    let most = if pipeline == Pipeline::W16A16 { 0 } else { tokens as u64 };
                    assert_eq!(stats.rows_rotated.load(Relaxed) - rotated, most, "{pipeline:?}");
                }
                for (index, out) in out.chunks(n).enumerate().step_by(if tokens > 100 { 37 } else { 1 }) {
                    let from = index / used * rows + index % used % rows;
                    let weight = &weights[ids[index] as usize];
                    let want = multiply(&mut engine, weight, &x[from * k..(from + 1) * k], k, 1);
                    let got: Vec<u32> = out.iter().map(|value| value.to_bits()).collect();
                    assert!(got == want, "{decode:?} {pipeline:?} {tokens} tokens of {rows}: row {index}");
                }
            }
        }
    }
}
