//! What the NPU fails at is done by our kernels over the same bytes, and nobody can tell from the results.

use std::sync::atomic::Ordering::Relaxed;

use ggml_rknpu::engine::{
    Activations, Between, Chain, Chained, Decode, Experts, Link, NpuWeight, Product, BLOCK, GROUP,
};
use ggml_rknpu::kernels::glu::Activation;
use ggml_rknpu::policy::Pipeline;
use ggml_rknpu::pool::Divided;
use rknn_sys::Library;

mod common;
use common::emulated::{emulator, engine, numbers, upload, upload_of};

#[test]
fn what_the_npu_failed_at_has_the_same_bits() {
    // Of the runs below, every 47th fails. The emulator asks once; nothing else runs in this process.
    std::env::set_var("RKNPU_EMU_FAULTS", "run@/47:submit");
    let library = emulator();
    products(&library);
    // Two blocks of rows, of which the first is packed ahead; one, of which a part of the columns is; and one of so many columns
    // that results of down are read before the last ones are made.
    fed(&library, [true; 3], (256, 768, 530), 0);
    fed(&library, [true, false, false], (768, 5120, 200), 2 << 30);
    fed(&library, [true, false, false], (512, 20480, 70), 5 << 28);
    expert_blocks(&library);
    for (rows, kept, in_place) in [(1100, true, false), (500, true, false), (500, false, true)] {
        chains(&library, rows, kept, in_place);
    }
}

fn product<'a>(
    weight: &'a NpuWeight,
    activations: Activations<'a>,
    same: bool,
    out: &'a mut [f32],
) -> Product<'a> {
    Product { weight, activations, same, out: Divided::new(out), routed: false, recovered: false }
}

/// An activation times a gate, which is made as the results of both products are read, and the product that is with it; whether
/// somebody else reads what is made or not.
fn fed(library: &Library, cores: [bool; 3], shape: (usize, usize, usize), models: usize) {
    [true, false].into_iter().for_each(|kept| fed_if(library, cores, shape, models, kept));
}

fn fed_if(
    library: &Library,
    cores: [bool; 3],
    (k, n, rows): (usize, usize, usize),
    models: usize,
    kept: bool,
) {
    let (mut engine, stats) = engine(library, cores, 2, Decode::Npu);
    let mut weight = |seed, k_of| upload_of(&mut engine, Pipeline::W8A8, &numbers(seed, k * n), k_of, models);
    let weights = [1, 2].map(|seed| weight(seed, k));
    let down = weight(4, n);
    let x = numbers(3, k * rows);
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    let mut seen: Option<[Vec<u32>; 2]> = None;
    // Whether products failed after, and before, all between them was made; and not at all.
    let mut ways = [0; 3];
    for attempt in 0..60 {
        // Some runs more each time, whatever becomes of them: so that another product is the one that fails.
        for _ in 0..attempt % 7 {
            let row = Activations::new(&x, k, 1);
            let _ = engine.matmul(&weights[0], row, &mut vec![0.0; n]);
        }
        let mut outs = [(); 2].map(|()| vec![f32::NAN; rows * n]);
        let (mut gated, mut results) = (vec![f32::NAN; rows * n], vec![f32::NAN; rows * k]);
        let activations = Activations::new(&x, k, rows);
        let (out, activation) = (Divided::new(&mut gated), Activation::Silu);
        let mut between = Between { feeds: true, kept, ..Between::new(0, activation, false, out) };
        let mut group = [const { None }; GROUP];
        for (index, (of, (weight, out))) in group.iter_mut().zip(weights.iter().zip(&mut outs)).enumerate() {
            *of = Some(product(weight, activations, index > 0, out));
        }
        group[2] = Some(product(&down, Activations::new(&[], n, rows), false, &mut results));
        let failed = engine.products(&mut group, Some(&mut between)).is_err();
        if failed {
            engine.recover(&mut group, Some(&between));
            assert!(group[2].is_none());
        }
        let (made, used) = (between.made, between.used);
        assert!(!used || !failed && !kept);
        ways[if failed { usize::from(!made) } else { 2 }] += 1;
        if made {
            assert!(
                outs.iter().flatten().all(|value| value.is_nan()),
                "nobody reads them, nobody writes them"
            );
        } else {
            assert!(failed);
            // Hosts have them where the rows are that all is now done anew with.
            assert!(results.iter().all(|value| value.is_nan()), "results of down before all is made");
            engine.gate(activation, [&outs[0], &outs[1]], &mut gated);
        }
        // By itself, until it does not fail.
        while failed && engine.matmul(&down, Activations::new(&gated, n, rows), &mut results).is_err() {}
        // What nobody reads need not be written.
        assert!(used || gated.iter().all(|value| value.is_finite()));
        let got = [if kept { bits(&gated) } else { Vec::new() }, bits(&results)];
        assert!(results.iter().all(|value| value.is_finite()));
        assert!(*seen.get_or_insert_with(|| got.clone()) == got, "failed: {failed}, made: {made}");
    }
    // What is not kept is made anew whatever failed, unless down writes results before the last run.
    assert!(ways[1..].iter().all(|way| *way > 0) && (ways[0] > 0 || !kept), "{ways:?}");
    assert!(stats.rows_ahead.load(Relaxed) > 0);
    assert!((stats.rows_as_made.load(Relaxed) > 0) == (rows <= 512));
}

/// Products that follow from each other, with sums between them: our kernels go on where a tile failed. Of two tiles what is made of
/// gate and up need not be in its place, unless it is to be `kept`, and is made anew for down. The first sum may be `in_place` of the
/// results that it is of, as hosts have it.
fn chains(library: &Library, rows: usize, kept: bool, in_place: bool) {
    let (k, n) = (256, 512);
    let (mut engine, stats) = engine(library, [true; 3], 2, Decode::Npu);
    let mut weight = |seed, k_of| upload(&mut engine, Pipeline::W8A8, &numbers(seed, k * n), k_of);
    let (gate, up, down) = (weight(1, k), weight(2, k), weight(3, n));
    let [first, last] = [4, 5].map(|seed| upload(&mut engine, Pipeline::W8A8, &numbers(seed, k * k), k));
    let x = numbers(6, k * rows);
    let mut seen: Option<Vec<Vec<u32>>> = None;
    // How often nothing failed, and something did.
    let mut ways = [0; 2];
    for attempt in 0..60 {
        for _ in 0..attempt % 7 {
            let _ = engine.matmul(&first, Activations::new(&x, k, 1), &mut vec![0.0; k]);
        }
        let mut results = [k, n, n, k, k].map(|width| vec![f32::NAN; rows * width]);
        let mut sums = [(); 2].map(|()| vec![f32::NAN; rows * k]);
        let mut gated = vec![f32::NAN; rows * n];
        let [of_first, of_gate, of_up, of_down, of_last] = results.each_mut().map(|out| Divided::new(out));
        let [block, next] = sums.each_mut().map(|rows| Divided::new(rows));
        // SAFETY: as long as the results; nobody has two parts of them at once.
        let over_first = unsafe { Divided::at(of_first.pointer(&(0..0)), rows * k) };
        let block = if in_place { over_first } else { block };
        // Each row of a link: a result and what was there before.
        let make = |link: usize, range: std::ops::Range<usize>| {
            let place = range.start * k..range.end * k;
            let (result, to) = if link == 0 { (&of_first, &block) } else { (&of_down, &next) };
            // SAFETY: rows that are there.
            let result = unsafe { result.part(place.clone()) }.to_vec();
            let before: &[f32] = if link == 0 {
                &x[place.clone()]
            } else {
                // SAFETY: as above.
                unsafe { block.part(place.clone()) }
            };
            // SAFETY: nobody else makes these rows, and what they are made of is another one's or was copied.
            let to = unsafe { to.part(place) };
            for ((to, result), before) in to.iter_mut().zip(&result).zip(before) {
                *to = 0.01 * *result + before;
            }
            true
        };
        let made = |width| Activations::new(&[], width, rows);
        let of = |weight, activations, same, out: &Divided<'_, f32>| {
            // SAFETY: as long as the results; nobody has two parts of them at once.
            let out = unsafe { Divided::at(out.pointer(&(0..0)), rows * k.max(n)) };
            Some(Product { weight, activations, same, out, routed: false, recovered: false })
        };
        let mut products = [
            of(&first, Activations::new(&x, k, rows), false, &of_first),
            of(&gate, made(k), false, &of_gate),
            of(&up, made(k), true, &of_up),
            of(&down, made(n), false, &of_down),
            of(&last, made(k), false, &of_last),
        ];
        let links =
            [Some(Link { before: 1, rows: block.after(0) }), Some(Link { before: 4, rows: next.after(0) })];
        let (out, activation) = (Divided::new(&mut gated), Activation::Silu);
        let mut between = Between { feeds: true, kept, ..Between::new(1, activation, false, out) };
        // Two tiles would keep the NPU for longer than two such products may; here they do all the same.
        let size = engine.chain_tile(&products, &links, Some(&between));
        assert_eq!(size.is_some(), rows > 512, "{rows} rows");
        assert!(size.is_none_or(|size| (rows / 3..512).contains(&size)), "{size:?} rows of {rows}");
        let size = size.unwrap_or(rows.div_ceil(2));
        let mut chain = Chain { products: &mut products, links: &links, make: &make };
        let way = match engine.chain(&mut chain, Some(&mut between), size) {
            Chained::Done => 0,
            Chained::Recovered(_) => 1,
            Chained::Broken(error) => panic!("{error}"),
        };
        ways[way] += 1;
        assert!(between.made);
        if way == 0 && !kept {
            assert!(gated.iter().all(|value| value.is_nan()), "nobody reads it, nobody writes it");
        }
        let recovered = products.iter().flatten().any(|product| product.recovered);
        assert_eq!(recovered, way == 1);
        let of_gate = kept.then_some(&gated);
        let all = [&results[0], &results[3], &results[4]].into_iter().chain(&sums).chain(of_gate);
        let got: Vec<Vec<u32>> =
            all.map(|values| values.iter().map(|value| value.to_bits()).collect()).collect();
        assert!(results[4].iter().all(|value| value.is_finite()));
        assert!(*seen.get_or_insert_with(|| got.clone()) == got, "attempt {attempt}, way {way}");
    }
    assert!(ways.iter().all(|way| *way > 0), "{ways:?}");
    assert!(stats.rows_ahead.load(Relaxed) > 0);
    // Of more than two tiles one's rows would have to wait where the next one's are made.
    assert_eq!(stats.rows_as_made.load(Relaxed) > 0, rows <= 512);
}

/// Feed-forward blocks of experts: those that do not fail are not changed by those that did.
fn expert_blocks(library: &Library) {
    let (k, n, experts, used, tokens) = (256, 320, 2, 1, 64);
    let (mut engine, _) = engine(library, [true; 3], 2, Decode::Npu);
    let of = |at: usize| if at + 1 < BLOCK { k } else { n };
    let weights: Vec<NpuWeight> = (0..experts * BLOCK)
        .map(|index| upload(&mut engine, Pipeline::W8A8, &numbers(index as u32, k * n), of(index % BLOCK)))
        .collect();
    let x = numbers(3, k * tokens);
    let mut gathered = Experts::default();
    let ids = (0..used * tokens).map(|index| (index % 3 % experts) as i32);
    gathered.gather(experts, used, 1, ids).unwrap();
    let mut seen: Option<[Vec<u32>; 2]> = None;
    let mut failures = 0;
    for _ in 0..40 {
        let (mut made, mut results) = (vec![f32::NAN; used * tokens * n], vec![f32::NAN; used * tokens * k]);
        let mut unwritten = vec![f32::NAN; used * tokens * n];
        {
            let (out, activation) = (Divided::new(&mut made), Activation::Silu);
            let between = Between { feeds: true, ..Between::new(0, activation, false, out) };
            let [nowhere, down] = [Divided::new(&mut unwritten), Divided::new(&mut results)];
            let mut products = [const { None }; 2 * BLOCK];
            for (index, (place, weight)) in products.iter_mut().zip(&weights).enumerate() {
                let picks = gathered.picks(index / BLOCK);
                let rows = picks.count();
                let is_down = index % BLOCK + 1 == BLOCK;
                let activations = if is_down {
                    Activations { data: &[], stride: n, rows, picks: Some(picks.again(used * tokens)) }
                } else {
                    Activations { data: &x, stride: k, rows, picks: Some(picks) }
                };
                let out = if is_down { down.after(0) } else { nowhere.after(0) };
                let (routed, recovered) = (false, false);
                *place = Some(Product { weight, activations, same: index > 0, out, routed, recovered });
            }
            if engine.expert_blocks(&mut products, &between).is_err() {
                failures += 1;
                continue;
            }
        }
        assert!(unwritten.iter().all(|value| value.is_nan()), "nobody reads them, nobody writes them");
        assert!(results.iter().all(|value| value.is_finite()));
        let got = [&made, &results].map(|values| values.iter().map(|value| value.to_bits()).collect());
        assert!(*seen.get_or_insert_with(|| got.clone()) == got);
    }
    assert!((1..40).contains(&failures), "{failures} of 40 failed");
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
        for _ in 0..40 {
            let mut out = vec![f32::NAN; rows * n];
            let activations = Activations::new(&x, k, rows);
            let mut group = [const { None }; GROUP];
            group[0] = Some(product(&weight, activations, false, &mut out));
            let failed = engine.products(&mut group, None).is_err();
            if failed {
                engine.recover(&mut group, None);
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
