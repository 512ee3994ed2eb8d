//! Feed-forward blocks inside the real host, in this process: what is made of gate and up as they are read is, to the bit,
//! what is made of them one by one and in single rows, and what the host makes of them but for rounding.

#[path = "common/mod.rs"]
mod common;
#[path = "common/ggml.rs"]
mod ggml;

use std::ffi::c_int;

use ggml::{differ, free, host, numbers, read, Context, Ggml, Product, Tensor, F32};

const Q8_0: c_int = 8;

/// K, N and rows of a block, the type of its weights, and how its graph lies.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Shape {
    k: usize,
    n: usize,
    rows: usize,
    ggml_type: c_int,
    /// The activation is of the second product.
    swapped: bool,
    /// The activation times the gate is written where the rows are read.
    over_rows: bool,
    /// Where the block's results are written.
    results: Results,
    /// Bytes of other weights of the model, which nobody reads: an eightieth of all is the room of what is read together.
    beside: usize,
    /// Somebody reads gate and up after the graph.
    seen: bool,
    /// The graph ends with the block. Else nobody can ask for what is made of gate and up.
    ends: bool,
    activation: Activation,
}

/// Hosts have them where something was that nobody needs after gate and up.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Results {
    Apart,
    OverRows,
    /// Over the first product's results.
    OverFirst,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Activation {
    Relu,
    Gelu,
    Silu,
}

impl Activation {
    /// The node of two others.
    unsafe fn node(self, ggml: &Ggml, context: Context, gate: Tensor, up: Tensor) -> Tensor {
        let make = match self {
            Self::Relu => ggml.ggml_reglu_split,
            Self::Gelu => ggml.ggml_geglu_split,
            Self::Silu => ggml.ggml_swiglu_split,
        };
        // SAFETY: live, says the caller.
        unsafe { make(context, gate, up) }
    }

    /// By the definition, in f64.
    fn of(self, x: f64) -> f64 {
        match self {
            Self::Relu => x.max(0.0),
            Self::Gelu => {
                x / (1.0 + (-(8.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).exp())
            }
            Self::Silu => x / (1.0 + (-x).exp()),
        }
    }
}

/// Weights of gate, up and down.
type Weights = [Vec<f32>; 3];

/// What a graph of the whole block computes: gate and up, as far as they are seen, the activation times the gate, and the
/// block's results.
struct Computed {
    sources: [Vec<f32>; 2],
    gated: Vec<f32>,
    down: Vec<f32>,
}

/// What gate and up hold before the graph is computed.
const UNTOUCHED: f32 = 12345.0;

fn whole(ggml: &Ggml, shape: &Shape, weights: &Weights, x: &[f32]) -> Computed {
    let Shape { k, n, rows, ggml_type, swapped, over_rows, results, beside, seen, ends, activation } = *shape;
    let (contexts, backend) = ([ggml.context(), ggml.context()], ggml.backend());
    let tensor = |context, ggml_type, ne: [usize; 2]| {
        // SAFETY: a live context.
        unsafe { (ggml.ggml_new_tensor_4d)(context, ggml_type, ne[0] as i64, ne[1] as i64, 1, 1) }
    };
    // SAFETY: the host's functions on the host's live objects, as its headers say.
    unsafe {
        let all = [[k, n], [k, n], [n, k]].map(|ne| tensor(contexts[0], ggml_type, ne));
        if beside > 0 {
            tensor(contexts[0], F32, [1024, beside / 4096]);
        }
        let constant = ggml.weights(contexts[0], backend);
        for (tensor, (values, k)) in all.into_iter().zip(weights.iter().zip([k, k, n])) {
            ggml.set(tensor, k, values);
        }
        let input = tensor(contexts[1], F32, [k, rows]);
        let gate = (ggml.ggml_mul_mat)(contexts[1], all[0], input);
        let up = (ggml.ggml_mul_mat)(contexts[1], all[1], input);
        let (one, other) = if swapped { (up, gate) } else { (gate, up) };
        let gated = activation.node(ggml, contexts[1], one, other);
        let down = (ggml.ggml_mul_mat)(contexts[1], all[2], gated);
        assert!((ggml.ggml_backend_dev_supports_op)(ggml.device(), gated), "the plugin takes it");
        if seen {
            [gate, up].into_iter().for_each(|tensor| (ggml.ggml_set_output)(tensor));
        }
        let graph = (ggml.ggml_new_graph)(contexts[1]);
        [gate, up, gated, down].into_iter().for_each(|node| (ggml.ggml_build_forward_expand)(graph, node));
        if !ends {
            (ggml.ggml_set_output)(down);
            let next = (ggml.ggml_mul_mat)(contexts[1], all[0], down);
            (ggml.ggml_build_forward_expand)(graph, next);
        }
        let compute = (ggml.ggml_backend_alloc_ctx_tensors)(contexts[1], backend);
        if over_rows {
            (*gated).data = (*input).data;
        }
        match results {
            Results::Apart => (),
            Results::OverRows => (*down).data = (*input).data,
            Results::OverFirst => (*down).data = (*gate).data,
        }
        let before = vec![UNTOUCHED; rows * n];
        for tensor in [gate, up, gated] {
            (ggml.ggml_backend_tensor_set)(tensor, before.as_ptr().cast(), 0, before.len() * 4);
        }
        (ggml.ggml_backend_tensor_set)(input, x.as_ptr().cast(), 0, size_of_val(x));
        assert_eq!((ggml.ggml_backend_graph_compute)(backend, graph), 0);
        let sources = [one, other].map(|tensor| read(ggml, tensor, rows * n));
        let (gated, down) = (read(ggml, gated, rows * n), read(ggml, down, rows * k));
        free(ggml, [constant, compute], contexts, backend);
        Computed { sources, gated, down }
    }
}

/// A product by itself.
fn product(ggml: &Ggml, shape: &Shape, (k, n): (usize, usize), weight: &[f32], x: &[f32]) -> Vec<f32> {
    let product = Product::new(ggml, ggml.backend(), shape.ggml_type, (k, n, shape.rows));
    product.set_weight(weight);
    product.run(x)
}

/// How the activation times the gate is made.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    /// As both products' results are read.
    Together,
    /// As the second one's are read; those of the first one were written.
    InTurns,
    /// Of results that were written.
    ByItself,
}

#[test]
fn what_is_made_as_results_are_read_is_what_is_made_of_them_one_by_one() {
    let report = tempfile::NamedTempFile::new().unwrap();
    std::env::set_var("RKNPU_REPORT", report.path());
    let Some(ggml) = host("what is made as results are read is what is made of them one by one") else {
        return;
    };
    // Of an activation times a gate that is made by itself.
    let gate_ns =
        || common::report(report.path())["engine"]["gate_ns"].as_u64().expect("the report's gate_ns");
    // Of down, that were packed before all of them were made.
    let rows_ahead =
        || common::report(report.path())["rows_ahead"].as_u64().expect("the report's rows_ahead");
    // Of down, that were packed as they were made.
    let rows_as_made =
        || common::report(report.path())["rows_as_made"].as_u64().expect("the report's rows_as_made");
    let plain = Shape {
        k: 256,
        n: 768,
        rows: 64,
        ggml_type: Q8_0,
        swapped: false,
        over_rows: false,
        results: Results::Apart,
        beside: 0,
        seen: false,
        ends: true,
        activation: Activation::Silu,
    };
    let in_tiles = Shape { k: 1024, n: 2048, rows: 512, beside: 400 << 20, ..plain };
    // Of several segments, so that the two are not run as one.
    let woven = Shape { k: 1536, n: 5120, rows: 200, ..in_tiles };
    let runs = || common::report(report.path())["npu_runs"].as_u64().expect("the report's npu_runs");
    let mut unwritten = 0;
    for (shape, way) in [
        (plain, Way::Together),
        (Shape { swapped: true, activation: Activation::Gelu, ..plain }, Way::Together),
        (Shape { ggml_type: F32, activation: Activation::Relu, ..plain }, Way::Together),
        (Shape { seen: true, ..plain }, Way::Together),
        (Shape { rows: 17, ..plain }, Way::Together),
        (Shape { k: 512, n: 1024, rows: 48, ..plain }, Way::Together),
        // More than one block of rows; the last has one.
        (Shape { rows: 513, ..plain }, Way::Together),
        (Shape { rows: 1030, results: Results::OverRows, ..plain }, Way::Together),
        (Shape { k: 512, n: 768, rows: 300, ggml_type: F32, ..plain }, Way::Together),
        // Of several segments, and a number of columns that no part divides.
        (Shape { k: 1536, n: 1056, rows: 100, ..plain }, Way::Together),
        (Shape { k: 1536, n: 1056, rows: 40, ggml_type: F32, seen: true, ..plain }, Way::Together),
        // In tiles of rows.
        (Shape { results: Results::OverRows, ..in_tiles }, Way::Together),
        (Shape { results: Results::OverFirst, ..in_tiles }, Way::Together),
        (Shape { seen: true, ..in_tiles }, Way::Together),
        // In parts of the columns, between which down comes.
        (Shape { results: Results::OverRows, ..woven }, Way::Together),
        (Shape { results: Results::OverFirst, swapped: true, ..woven }, Way::Together),
        (Shape { seen: true, ..woven }, Way::Together),
        (Shape { k: 1024, n: 8192, ggml_type: F32, results: Results::OverRows, ..woven }, Way::Together),
        // Too much to be read together: in parts of the columns.
        (
            Shape { k: 1536, n: 8992, rows: 512, swapped: true, results: Results::OverFirst, ..plain },
            Way::InTurns,
        ),
        (Shape { k: 1536, n: 8992, rows: 512, seen: true, ..plain }, Way::InTurns),
        // Few rows may be the CPU's, and rows may not be written over while they are read.
        (Shape { rows: 1, ..plain }, Way::ByItself),
        (Shape { n: 256, over_rows: true, ..plain }, Way::ByItself),
    ] {
        let Shape { k, n, rows, ggml_type, seen, activation, swapped, .. } = shape;
        let weights = [1, 2, 3].map(|seed| numbers(seed, k * n));
        let mut x = numbers(4, k * rows);
        if rows > 2 {
            // A row without a number, and one of zeros.
            x[k + 7] = f32::NAN;
            x[2 * k..3 * k].fill(0.0);
        }
        let mut sources = [0, 1].map(|at| product(ggml, &shape, (k, n), &weights[at], &x));
        if swapped {
            sources.swap(0, 1);
        }
        let (before, ahead, as_made) = (gate_ns(), rows_ahead(), rows_as_made());
        let runs_before = runs();
        let got = whole(ggml, &shape, &weights, &x);
        if shape == plain {
            // The first call converts the three; gate and up are one run on each core, and so is down.
            assert_eq!(runs() - runs_before, 2 * 3, "gate and up are run as one");
        }
        assert_eq!(gate_ns() == before, way != Way::ByItself, "{shape:?}: made as results were read");
        // A block of rows, or a tile, before the last one; or a part of the columns.
        let several = rows > 512 || shape.beside > 0;
        assert_eq!(rows_ahead() > ahead, several, "{shape:?}: rows of down are packed ahead");
        // Of one block of many rows.
        let is_fed = (17..=512).contains(&rows) && way != Way::ByItself;
        let fed = if is_fed { rows as u64 } else { 0 };
        assert_eq!(rows_as_made() - as_made, fed, "{shape:?}: rows of down are packed as they are made");
        for (at, want) in sources.iter().enumerate() {
            if shape.results == Results::OverFirst && at == usize::from(swapped) {
                continue;
            }
            // Of two in turns the first one's are written.
            let is_first = at == usize::from(swapped);
            if seen || way == Way::ByItself || way == Way::InTurns && is_first {
                assert_eq!(differ(&got.sources[at], want), 0, "{shape:?}: results of product {at}");
            } else {
                // Nobody reads them, so that nothing is written.
                assert!(got.sources[at].iter().all(|value| *value == UNTOUCHED), "{shape:?}: product {at}");
            }
        }
        for ((got, gate), up) in got.gated.iter().zip(&sources[0]).zip(&sources[1]) {
            let want = activation.of(f64::from(*gate)) * f64::from(*up);
            let near = (f64::from(*got) - want).abs() <= 3e-6 * want.abs() + 1e-9;
            assert!(near || got.is_nan() && want.is_nan(), "{shape:?}: {got} of {gate} and {up}, not {want}");
        }
        let want = product(ggml, &shape, (n, k), &weights[2], &got.gated);
        assert_eq!(differ(&got.down, &want), 0, "{shape:?}: values of down");
        // Where nobody reads what is made it need not be written, but the results are the same.
        if way != Way::ByItself {
            let unread = whole(ggml, &Shape { ends: false, ..shape }, &weights, &x);
            assert_eq!(differ(&unread.down, &got.down), 0, "{shape:?}: values of down of unread rows");
            let untouched = unread.gated.iter().filter(|value| **value == UNTOUCHED).count();
            assert!(is_fed || untouched == 0, "{shape:?}: {untouched} untouched of {}", rows * n);
            unwritten += usize::from(untouched > 0);
        }
        // A row by itself, whoever computes it then: the same for integers, of which sums have no order.
        if ggml_type != Q8_0 {
            continue;
        }
        let row = rows - 1;
        let alone = whole(ggml, &Shape { rows: 1, over_rows: false, ..shape }, &weights, &x[row * k..]);
        assert_eq!(differ(&alone.gated, &got.gated[row * n..]), 0, "{shape:?}: the last row by itself");
        assert_eq!(differ(&alone.down, &got.down[row * k..]), 0, "{shape:?}: down of the last row by itself");
    }
    // Of those whose down writes all of its results at last.
    assert!(unwritten >= 10, "what is made was written but for {unwritten} shapes");
}
