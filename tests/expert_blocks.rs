//! Feed-forward blocks of experts inside the real host, in this process: gate, up, the activation times the gate, and down in
//! one graph are, to the bit, what they are one by one; also where runs of the NPU fail among them.

#[path = "common/mod.rs"]
mod common;
#[path = "common/ggml.rs"]
mod ggml;

use std::ffi::c_int;

use ggml::{differ, free, host, numbers, read, Ggml, Mixture, F32, I32};

const Q8_0: c_int = 8;
/// Experts, and how many of them a token has.
const EXPERTS: usize = 6;
const USED: usize = 3;
/// Has runs of the emulated NPU fail.
const FAULTS: &str = "RKNPU_EMU_FAULTS";
/// What gate and up hold before the graph is computed.
const UNTOUCHED: f32 = 12345.0;

/// A block, and how its graph lies.
#[derive(Debug, Clone, Copy)]
struct Shape {
    k: usize,
    n: usize,
    tokens: usize,
    ggml_type: c_int,
    /// The activation is of the second product.
    swapped: bool,
    /// Down's results are written over gate's, which nobody reads any more, as hosts have it.
    over_gate: bool,
    /// Down's results are written over the rows, which later experts read.
    over_rows: bool,
    /// Somebody reads gate and up after the graph.
    seen: bool,
    /// The expert of each of a token's places.
    expert: fn(usize) -> usize,
}

/// Results of gate and up, the activation times the gate, and down's results.
struct Computed {
    products: [Vec<f32>; 2],
    gated: Vec<f32>,
    down: Vec<f32>,
}

/// Computes the whole block in one graph, twice: the second time all that is kept is there.
fn whole(ggml: &Ggml, shape: &Shape, weights: &[Vec<f32>; 3], x: &[f32], ids: &[i32]) -> Computed {
    let Shape { k, n, tokens, ggml_type, swapped, over_gate, over_rows, seen, .. } = *shape;
    let (contexts, backend) = ([ggml.context(), ggml.context()], ggml.backend());
    let tensor = |context, ggml_type, ne: [usize; 3]| {
        let [a, b, c] = ne.map(|extent| extent as i64);
        // SAFETY: a live context.
        unsafe { (ggml.ggml_new_tensor_4d)(context, ggml_type, a, b, c, 1) }
    };
    // SAFETY: the host's functions on the host's live objects, as its headers say.
    unsafe {
        let all = [[k, n], [k, n], [n, k]].map(|[k, n]| tensor(contexts[0], ggml_type, [k, n, EXPERTS]));
        let constant = ggml.weights(contexts[0], backend);
        for (tensor, (values, k)) in all.into_iter().zip(weights.iter().zip([k, k, n])) {
            ggml.set(tensor, k, values);
        }
        let input = tensor(contexts[1], F32, [k, 1, tokens]);
        let chosen = tensor(contexts[1], I32, [USED, tokens, 1]);
        let gate = (ggml.ggml_mul_mat_id)(contexts[1], all[0], input, chosen);
        let up = (ggml.ggml_mul_mat_id)(contexts[1], all[1], input, chosen);
        let (one, other) = if swapped { (up, gate) } else { (gate, up) };
        let gated = (ggml.ggml_swiglu_split)(contexts[1], one, other);
        let down = (ggml.ggml_mul_mat_id)(contexts[1], all[2], gated, chosen);
        if seen {
            [gate, up].into_iter().for_each(|tensor| (ggml.ggml_set_output)(tensor));
        }
        let graph = (ggml.ggml_new_graph)(contexts[1]);
        [gate, up, gated, down].into_iter().for_each(|node| (ggml.ggml_build_forward_expand)(graph, node));
        // Room for results as large as down's wherever they are written.
        let room = tensor(contexts[1], F32, [k.max(n), USED, tokens]);
        let compute = (ggml.ggml_backend_alloc_ctx_tensors)(contexts[1], backend);
        if over_rows {
            (*input).data = (*room).data;
            (*down).data = (*room).data;
        }
        if over_gate {
            (*gate).data = (*room).data;
            (*down).data = (*room).data;
        }
        let rows = USED * tokens;
        let before = vec![UNTOUCHED; rows * n];
        for _ in 0..2 {
            for tensor in [gate, up] {
                (ggml.ggml_backend_tensor_set)(tensor, before.as_ptr().cast(), 0, before.len() * 4);
            }
            (ggml.ggml_backend_tensor_set)(input, x.as_ptr().cast(), 0, size_of_val(x));
            (ggml.ggml_backend_tensor_set)(chosen, ids.as_ptr().cast(), 0, size_of_val(ids));
            assert_eq!((ggml.ggml_backend_graph_compute)(backend, graph), 0);
        }
        let products = [one, other].map(|tensor| read(ggml, tensor, rows * n));
        let (gated, down) = (read(ggml, gated, rows * n), read(ggml, down, rows * k));
        free(ggml, [constant, compute], contexts, backend);
        Computed { products, gated, down }
    }
}

#[test]
fn a_block_of_experts_of_which_runs_fail_is_the_same() {
    if host("a block of experts of which runs fail is the same").is_none() {
        return;
    }
    // The emulator asks once in a process.
    let mut test = std::process::Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", "a_block_of_experts_is_what_its_products_are_one_by_one", "--nocapture"]);
    // Without a probe, which would find them.
    let output = test.env(FAULTS, "run@/251:submit").env("RKNPU_PROBE", "off").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_block_of_experts_is_what_its_products_are_one_by_one() {
    let faults = std::env::var_os(FAULTS).is_some();
    let mut failed_blocks = 0;
    let report = tempfile::NamedTempFile::new().unwrap();
    std::env::set_var("RKNPU_REPORT", report.path());
    let Some(ggml) = host("a block of experts is what its products are one by one") else { return };
    let number = |name: &str| common::report(report.path())[name].as_u64().expect("a number of the report");
    let plain = Shape {
        k: 256,
        n: 768,
        tokens: 80,
        ggml_type: Q8_0,
        swapped: false,
        over_gate: false,
        over_rows: false,
        seen: false,
        expert: |index| index * 5 % EXPERTS,
    };
    // Whether it is done as one block, and whether rows of down are packed while a pair is on the NPU.
    let shapes = [
        (plain, true, false),
        (Shape { over_gate: true, swapped: true, ..plain }, true, false),
        (Shape { ggml_type: F32, ..plain }, true, false),
        // Experts of more than one block of rows; all to one, which is nobody's neighbour.
        (Shape { tokens: 400, expert: |index| index % USED * 2, ..plain }, true, false),
        (Shape { tokens: 230, expert: |_| 4, over_gate: true, ..plain }, true, true),
        // Most experts have few rows, which may be the CPU's.
        (Shape { expert: |index| if index % 20 == 3 { 1 + index % 4 } else { 5 }, ..plain }, true, false),
        (Shape { tokens: 1, over_gate: true, ..plain }, true, false),
        // Results that are seen, and rows that may not be written over.
        (Shape { seen: true, ..plain }, false, false),
        (Shape { over_rows: true, ..plain }, false, false),
    ];
    // Where runs fail, another block has them each time; in 16 bits nobody promises the same bits.
    let shapes = shapes.iter().cycle().take(shapes.len() * if faults { 3 } else { 1 });
    for (shape, is_block, is_ahead) in
        shapes.copied().filter(|(shape, ..)| !faults || shape.ggml_type == Q8_0)
    {
        let Shape { k, n, tokens, ggml_type, swapped, over_gate, over_rows, expert, .. } = shape;
        let weights = [1, 2, 3].map(|seed| numbers(seed, k * n * EXPERTS));
        let ids: Vec<i32> = (0..USED * tokens).map(|index| expert(index) as i32).collect();
        let mut x = numbers(4, k * tokens);
        if tokens > 2 {
            // A row without a number, and one of zeros.
            x[k + 7] = f32::NAN;
            x[2 * k..3 * k].fill(0.0);
        }
        let product = |at: usize, (k, n): (usize, usize), rows: usize, x: &[f32]| {
            let mixture =
                Mixture::new(ggml, ggml.backend(), ggml_type, (k, n, EXPERTS), (USED, rows, tokens));
            mixture.set_weights(&weights[at]);
            mixture.run(x, &ids).expect("the graph is computed")
        };
        let mut products = [0, 1].map(|at| product(at, (k, n), 1, &x));
        if swapped {
            products.swap(0, 1);
        }
        let (ahead, fallbacks) = (number("rows_ahead"), number("fallbacks"));
        let got = whole(ggml, &shape, &weights, &x, &ids);
        assert!(faults || number("fallbacks") == fallbacks, "{shape:?}");
        let untouched = |values: &[f32]| values.iter().all(|value| *value == UNTOUCHED);
        for (at, want) in products.iter().enumerate() {
            if over_gate && at == usize::from(swapped) {
                continue;
            }
            let is_untouched = untouched(&got.products[at]);
            assert!(faults || is_untouched == is_block, "{shape:?}: who reads product {at}?");
            // What is done one by one, anew, is written.
            if !is_untouched {
                failed_blocks += usize::from(is_block);
                assert_eq!(differ(&got.products[at], want), 0, "{shape:?}: results of product {at}");
            }
        }
        if is_ahead && !faults {
            assert!(number("rows_ahead") > ahead, "{shape:?}: rows of down are packed ahead");
        }
        for ((got, gate), up) in got.gated.iter().zip(&products[0]).zip(&products[1]) {
            let gate = f64::from(*gate);
            let want = gate / (1.0 + (-gate).exp()) * f64::from(*up);
            let near = (f64::from(*got) - want).abs() <= 3e-6 * want.abs() + 1e-9;
            assert!(near || got.is_nan() && want.is_nan(), "{shape:?}: {got} of {gate} and {up}, not {want}");
        }
        let want = product(2, (n, k), USED, &got.gated);
        // The rows of the second computation were written over by the first one's results, but set anew.
        assert_eq!(differ(&got.down, &want), 0, "{shape:?}: values of down, over rows: {over_rows}");
    }
    assert_eq!(failed_blocks > 0, faults, "products of blocks in which runs failed: {failed_blocks}");
}
