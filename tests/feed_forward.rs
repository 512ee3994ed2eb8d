//! Feed-forward blocks inside the real host, in this process: what is made of gate and up while the NPU runs on is, to the
//! bit, what the host makes of them afterwards.

#[path = "common/mod.rs"]
mod common;
#[path = "common/ggml.rs"]
mod ggml;

use std::ffi::c_int;

use ggml::{free, host, numbers, Ggml, Product, Tensor, F32, WEIGHTS};
use ggml_sys::sys;

const Q8_0: c_int = 8;
/// The host's number of this kind of device.
const CPU: c_int = 0;

/// K, N and rows of a block, the type of its weights, and how its graph lies.
#[derive(Debug, Clone, Copy)]
struct Shape {
    k: usize,
    n: usize,
    rows: usize,
    ggml_type: c_int,
    /// The activation is of the second product.
    swapped: bool,
    /// The activation times the gate is written where the rows are read.
    over_rows: bool,
}

/// Weights of gate, up and down.
type Weights = [Vec<f32>; 3];

/// What a graph of the whole block computes: the activation times the gate, and the block's results.
fn whole(ggml: &Ggml, shape: &Shape, weights: &Weights, x: &[f32]) -> [Vec<f32>; 2] {
    let Shape { k, n, rows, ggml_type, swapped, over_rows } = *shape;
    let (contexts, backend) = ([ggml.context(), ggml.context()], ggml.backend());
    let tensor = |context, ggml_type, ne: [usize; 2]| {
        // SAFETY: a live context.
        unsafe { (ggml.ggml_new_tensor_4d)(context, ggml_type, ne[0] as i64, ne[1] as i64, 1, 1) }
    };
    // SAFETY: the host's functions on the host's live objects, as its headers say.
    unsafe {
        let all = [[k, n], [k, n], [n, k]].map(|ne| tensor(contexts[0], ggml_type, ne));
        let constant = (ggml.ggml_backend_alloc_ctx_tensors)(contexts[0], backend);
        (ggml.ggml_backend_buffer_set_usage)(constant, WEIGHTS);
        for (tensor, (values, k)) in all.into_iter().zip(weights.iter().zip([k, k, n])) {
            ggml.set(tensor, k, values);
        }
        let input = tensor(contexts[1], F32, [k, rows]);
        let gate = (ggml.ggml_mul_mat)(contexts[1], all[0], input);
        let up = (ggml.ggml_mul_mat)(contexts[1], all[1], input);
        let (one, other) = if swapped { (up, gate) } else { (gate, up) };
        let gated = (ggml.ggml_swiglu_split)(contexts[1], one, other);
        let down = (ggml.ggml_mul_mat)(contexts[1], all[2], gated);
        assert!((ggml.ggml_backend_dev_supports_op)(ggml.device(), gated), "the plugin takes it");
        let graph = (ggml.ggml_new_graph)(contexts[1]);
        [gate, up, gated, down].into_iter().for_each(|node| (ggml.ggml_build_forward_expand)(graph, node));
        let compute = (ggml.ggml_backend_alloc_ctx_tensors)(contexts[1], backend);
        if over_rows {
            (*gated).data = (*input).data;
        }
        (ggml.ggml_backend_tensor_set)(input, x.as_ptr().cast(), 0, size_of_val(x));
        assert_eq!((ggml.ggml_backend_graph_compute)(backend, graph), 0);
        let out = [(gated, n), (down, k)].map(|(tensor, columns)| read(ggml, tensor, rows * columns));
        free(ggml, [constant, compute], contexts, backend);
        out
    }
}

/// The same from a graph for each product, and one of the host's CPU backend.
fn in_pieces(ggml: &Ggml, shape: &Shape, weights: &Weights, x: &[f32]) -> [Vec<f32>; 2] {
    let Shape { k, n, rows, ggml_type, swapped, .. } = *shape;
    let product = |(k, n), weight: &[f32], x: &[f32]| {
        let product = Product::new(ggml, ggml.backend(), ggml_type, (k, n, rows));
        product.set_weight(weight);
        product.run(x)
    };
    let (gate, up) = (product((k, n), &weights[0], x), product((k, n), &weights[1], x));
    let (one, other) = if swapped { (up, gate) } else { (gate, up) };
    // SAFETY: as above.
    let gated = unsafe {
        let backend = (ggml.ggml_backend_init_by_type)(CPU, std::ptr::null());
        let context = ggml.context();
        let sources = [0, 1].map(|_| (ggml.ggml_new_tensor_4d)(context, F32, n as i64, rows as i64, 1, 1));
        let gated = (ggml.ggml_swiglu_split)(context, sources[0], sources[1]);
        let graph: *mut sys::ggml_cgraph = (ggml.ggml_new_graph)(context);
        (ggml.ggml_build_forward_expand)(graph, gated);
        let buffer = (ggml.ggml_backend_alloc_ctx_tensors)(context, backend);
        for (tensor, values) in sources.into_iter().zip([&one, &other]) {
            (ggml.ggml_backend_tensor_set)(tensor, values.as_ptr().cast(), 0, values.len() * 4);
        }
        assert_eq!((ggml.ggml_backend_graph_compute)(backend, graph), 0);
        let values = read(ggml, gated, rows * n);
        free(ggml, [buffer, std::ptr::null_mut()], [context, std::ptr::null_mut()], backend);
        values
    };
    let down = product((n, k), &weights[2], &gated);
    [gated, down]
}

/// The values of a tensor of f32.
unsafe fn read(ggml: &Ggml, tensor: Tensor, len: usize) -> Vec<f32> {
    let mut values = vec![0f32; len];
    // SAFETY: the tensor is live and has as many values, says the caller.
    unsafe { (ggml.ggml_backend_tensor_get)(tensor, values.as_mut_ptr().cast(), 0, len * 4) };
    values
}

#[test]
fn what_is_made_meanwhile_is_what_is_made_afterwards() {
    let report = tempfile::NamedTempFile::new().unwrap();
    std::env::set_var("RKNPU_REPORT", report.path());
    let Some(ggml) = host("what is made meanwhile is what is made afterwards") else { return };
    let gate_ns =
        || common::report(report.path())["engine"]["gate_ns"].as_u64().expect("the report's gate_ns");
    let plain = Shape { k: 256, n: 768, rows: 64, ggml_type: Q8_0, swapped: false, over_rows: false };
    for (shape, meanwhile) in [
        (plain, true),
        (Shape { swapped: true, ..plain }, true),
        (Shape { ggml_type: F32, ..plain }, true),
        // More than one block of rows; the last has one.
        (Shape { rows: 513, ..plain }, true),
        // Wide enough for parts of the columns, and a number that no part divides.
        (Shape { k: 1536, n: 8992, rows: 512, ..plain }, true),
        // Few rows may be the CPU's, and rows may not be written over while they are read.
        (Shape { rows: 1, ..plain }, false),
        (Shape { n: 256, over_rows: true, ..plain }, false),
    ] {
        let Shape { k, n, rows, .. } = shape;
        let weights = [1, 2, 3].map(|seed| numbers(seed, k * n));
        let mut x = numbers(4, k * rows);
        if rows > 2 {
            // A row without a number, and one of zeros.
            x[k + 7] = f32::NAN;
            x[2 * k..3 * k].fill(0.0);
        }
        let want = in_pieces(ggml, &shape, &weights, &x);
        let before = gate_ns();
        let got = whole(ggml, &shape, &weights, &x);
        assert_eq!(gate_ns() > before, meanwhile, "{shape:?}: made while the NPU ran");
        for (what, got, want) in [("gated", &got[0], &want[0]), ("down", &got[1], &want[1])] {
            let differ = got
                .iter()
                .zip(want)
                .filter(|(got, want)| got.to_bits() != want.to_bits() && !(got.is_nan() && want.is_nan()));
            assert_eq!(differ.count(), 0, "{shape:?}: values of {what} that differ, of {}", got.len());
        }
    }
}
