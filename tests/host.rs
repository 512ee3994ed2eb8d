//! The plugin inside the real host, in this process: products against an f64 oracle, buffers, broken input.

#[path = "common/mod.rs"]
mod common;
#[path = "common/ggml.rs"]
mod ggml;

use std::ffi::c_int;

use ggml::{host, nmse, numbers, oracle, Product, F32};

const Q8_0: c_int = 8;
const ACCEL: c_int = 3;

/// Writes the weight, and gives the values that it then holds.
fn set_weight(product: &Product, values: &[f32]) -> Vec<f32> {
    let data = product.set_weight(values);
    if product.ggml_type() == F32 {
        values.to_vec()
    } else {
        dequantize_q8_0(&data)
    }
}

/// Blocks of an f16 scale and 32 i8, by the format's definition.
fn dequantize_q8_0(data: &[u8]) -> Vec<f32> {
    data.chunks(34)
        .flat_map(|block| {
            let scale = half::f16::from_le_bytes([block[0], block[1]]).to_f32();
            block[2..].iter().map(move |q| f32::from(*q as i8) * scale)
        })
        .collect()
}

#[test]
fn the_host_sees_one_accelerator_that_names_itself_emulated() {
    let Some(ggml) = host("the_host_sees_one_accelerator") else { return };
    let (mut free, mut total) = (0, 0);
    // SAFETY: a live device and two places to write to.
    let kind = unsafe {
        (ggml.ggml_backend_dev_memory)(ggml.device(), &mut free, &mut total);
        (ggml.ggml_backend_dev_type)(ggml.device())
    };
    assert_eq!((ggml.description().as_str(), kind), ("emulated RK3588", ACCEL));
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let kib: usize = meminfo.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(total <= kib * 1024, "the memory is the board's, or the part that this process may have");
    assert!(free > 0 && free <= total);
}

#[test]
fn fitting_a_model_counts_the_converted_copies_and_allocating_it_does_not() {
    let Some(ggml) = host("fitting_a_model_counts_the_converted_copies") else { return };
    let (k, n) = (1024usize, 512usize);
    // Bytes of the file and of the NPU's copy.
    for (ggml_type, file, copy) in [(Q8_0, k * n / 32 * 34, k * n), (F32, k * n * 4, k * n * 2)] {
        // SAFETY: the host's functions on its own live objects.
        unsafe {
            let (context, backend) = (ggml.context(), ggml.backend());
            (ggml.ggml_new_tensor_4d)(context, ggml_type, k as i64, n as i64, 1, 1);
            let buft = (ggml.ggml_backend_dev_buffer_type)(ggml.device());
            // What llama.cpp asks when it fits, before it allocates.
            let fitted = (ggml.ggml_backend_alloc_ctx_tensors_from_buft_size)(context, buft);
            let buffer = ggml.ours(context);
            let allocated = (ggml.ggml_backend_buffer_get_size)(buffer);
            assert_eq!((fitted, allocated), (file + copy, file), "type {ggml_type}");
            (ggml.ggml_backend_buffer_free)(buffer);
            (ggml.ggml_backend_free)(backend);
            (ggml.ggml_free)(context);
        }
    }
}

#[test]
fn products_of_odd_shapes_are_right() {
    let Some(ggml) = host("products_of_odd_shapes_are_right") else { return };
    // K above the segment limit, N below the alignment, more rows than a tile, one row.
    for (ggml_type, k, n, rows, limit) in [
        (F32, 8500, 50, 3, 1e-6),
        (F32, 33, 7, 1, 1e-6),
        (F32, 64, 100, 700, 1e-6),
        (Q8_0, 8544, 70, 5, 2e-4),
        (Q8_0, 576, 192, 33, 2e-4),
        (Q8_0, 32, 1, 1, 1e-3),
    ] {
        let product = Product::new(ggml, ggml.backend(), ggml_type, (k, n, rows));
        let weight = set_weight(&product, &numbers(1, k * n));
        let activations = numbers(2, k * rows);
        let error = nmse(&product.run(&activations), &oracle(&weight, &activations, k));
        assert!(error < limit, "type {ggml_type}, K={k}, N={n}, {rows} rows: NMSE {error}");
    }
}

#[test]
fn a_weight_that_is_written_again_is_converted_again() {
    let Some(ggml) = host("a_weight_that_is_written_again_is_converted_again") else { return };
    let (k, n, rows) = (256, 64, 4);
    let product = Product::new(ggml, ggml.backend(), F32, (k, n, rows));
    let activations = numbers(2, k * rows);
    for seed in 3..6 {
        let weight = set_weight(&product, &numbers(seed, k * n));
        let error = nmse(&product.run(&activations), &oracle(&weight, &activations, k));
        assert!(error < 1e-6, "after write {seed}: NMSE {error}");
    }
    // A part of it, one element in the middle.
    let mut weight = numbers(5, k * n);
    weight[1000] = 40.0;
    // SAFETY: element 1000 lies in the tensor.
    unsafe { (ggml.ggml_backend_tensor_set)(product.weight, weight[1000..].as_ptr().cast(), 4000, 4) };
    assert!(nmse(&product.run(&activations), &oracle(&weight, &activations, k)) < 1e-6);
    // All of it, by clearing the buffer.
    // SAFETY: a live buffer.
    unsafe { (ggml.ggml_backend_buffer_clear)(product.buffers[0], 0) };
    assert!(product.run(&activations).iter().all(|value| *value == 0.0));
}

/// What an RPC server gives us: a whole graph, whose buffers nobody marked. It multiplies by a leaf, writes to a part of it
/// through a view, multiplies again, and by a sum that it has just computed.
#[test]
fn a_weight_that_a_served_graph_writes_is_converted_again() {
    let Some(ggml) = host("a_weight_that_a_served_graph_writes_is_converted_again") else { return };
    let (k, n, rows) = (256usize, 64usize, 4usize);
    let (context, backend) = (ggml.context(), ggml.backend());
    let old = numbers(1, k * n);
    let activations = numbers(2, k * rows);
    let new_rows = numbers(3, k * 8);
    let mut new = old.clone();
    new[k * 16..k * 24].copy_from_slice(&new_rows);
    let doubled: Vec<f32> = new.iter().map(|value| value * 2.0).collect();
    // SAFETY: the host's functions on its own live objects; what is copied fits.
    unsafe {
        let tensor = |n: usize| (ggml.ggml_new_tensor_4d)(context, F32, k as i64, n as i64, 1, 1);
        let (weight, x, source) = (tensor(n), tensor(rows), tensor(8));
        let row = k * 4;
        let part = (ggml.ggml_view_4d)(context, weight, k as i64, 8, 1, 1, row, row * 8, row * 8, 16 * row);
        let before = (ggml.ggml_mul_mat)(context, weight, x);
        let written = (ggml.ggml_cpy)(context, source, part);
        let after = (ggml.ggml_mul_mat)(context, weight, x);
        let sum = (ggml.ggml_add)(context, weight, weight);
        let by_sum = (ggml.ggml_mul_mat)(context, sum, x);
        let graph = (ggml.ggml_new_graph)(context);
        for node in [before, written, after, sum, by_sum] {
            (ggml.ggml_build_forward_expand)(graph, node);
        }
        let buffer = ggml.ours(context);
        for _ in 0..2 {
            for (tensor, values) in [(weight, &old), (x, &activations), (source, &new_rows)] {
                ggml.set(tensor, k, values);
            }
            assert_eq!((ggml.ggml_backend_graph_compute)(backend, graph), 0);
            for (out, weight, what) in
                [(before, &old, "before"), (after, &new, "after"), (by_sum, &doubled, "by a sum")]
            {
                let mut got = vec![0f32; rows * n];
                (ggml.ggml_backend_tensor_get)(out, got.as_mut_ptr().cast(), 0, got.len() * 4);
                let error = nmse(&got, &oracle(weight, &activations, k));
                assert!(error < 1e-6, "{what}: NMSE {error}");
            }
        }
        (ggml.ggml_backend_buffer_free)(buffer);
        (ggml.ggml_backend_free)(backend);
        (ggml.ggml_free)(context);
    }
}

#[test]
fn infinities_and_nans_stay_in_their_rows() {
    let Some(ggml) = host("infinities_and_nans_stay_in_their_rows") else { return };
    let (k, n, rows) = (64, 48, 5);
    for ggml_type in [F32, Q8_0] {
        let product = Product::new(ggml, ggml.backend(), ggml_type, (k, n, rows));
        let weight = set_weight(&product, &numbers(1, k * n));
        let mut activations = numbers(2, k * rows);
        let clean = oracle(&weight, &activations, k);
        activations[k + 7] = f32::NAN;
        activations[3 * k + 9] = f32::INFINITY;
        let out = product.run(&activations);
        for (row, (got, want)) in out.chunks(n).zip(clean.chunks(n)).enumerate() {
            if row == 1 || row == 3 {
                assert!(got.iter().all(|value| !value.is_finite()), "row {row} of type {ggml_type}");
            } else {
                assert!(nmse(got, want) < 1e-3, "row {row} of type {ggml_type}");
            }
        }
    }
}

#[test]
fn a_weight_with_a_nan_is_left_to_the_cpu() {
    let Some(ggml) = host("a_weight_with_a_nan_is_left_to_the_cpu") else { return };
    let (k, n, rows) = (64, 32, 2);
    let product = Product::new(ggml, ggml.backend(), F32, (k, n, rows));
    let mut weight = numbers(1, k * n);
    weight[5 * k] = f32::NAN;
    set_weight(&product, &weight);
    let activations = numbers(2, k * rows);
    let out = product.run(&activations);
    let want = oracle(&weight, &activations, k);
    for (index, (got, want)) in out.iter().zip(&want).enumerate() {
        assert_eq!(got.is_nan(), want.is_nan(), "element {index}");
        assert!(want.is_nan() || (f64::from(*got) - want).abs() < 1e-4, "element {index}: {got}, not {want}");
    }
}

#[test]
fn zero_rows_are_accepted_and_do_nothing() {
    let Some(ggml) = host("zero_rows_are_accepted_and_do_nothing") else { return };
    let product = Product::new(ggml, ggml.backend(), F32, (64, 32, 0));
    set_weight(&product, &numbers(1, 64 * 32));
    // SAFETY: live objects of the host.
    unsafe {
        assert!((ggml.ggml_backend_dev_supports_op)(ggml.device(), product.out));
        assert_eq!((ggml.ggml_backend_graph_compute)(product.backend, product.graph), 0);
    }
}

#[test]
fn transposed_weights_and_computed_weights_are_declined() {
    let Some(ggml) = host("transposed_weights_and_computed_weights_are_declined") else { return };
    let context = ggml.context();
    // SAFETY: the host's functions on its own live context.
    unsafe {
        let square = (ggml.ggml_new_tensor_4d)(context, F32, 64, 64, 1, 1);
        let rows = (ggml.ggml_new_tensor_4d)(context, F32, 64, 3, 1, 1);
        let plain = (ggml.ggml_mul_mat)(context, square, rows);
        assert!((ggml.ggml_backend_dev_supports_op)(ggml.device(), plain));
        let batched = (ggml.ggml_new_tensor_4d)(context, F32, 64, 2, 5, 1);
        let permuted = (ggml.ggml_permute)(context, batched, 0, 2, 1, 3);
        let out = (ggml.ggml_mul_mat)(context, square, permuted);
        assert!((ggml.ggml_backend_dev_supports_op)(ggml.device(), out), "permuted rows are taken");
        let chained = (ggml.ggml_mul_mat)(context, plain, out);
        assert!(
            !(ggml.ggml_backend_dev_supports_op)(ggml.device(), chained),
            "a computed weight is declined"
        );
        // ggml itself refuses a transposed first operand; as the node's source it must be declined.
        (*plain).src[0] = (ggml.ggml_transpose)(context, square);
        assert!(
            !(ggml.ggml_backend_dev_supports_op)(ggml.device(), plain),
            "a transposed weight is declined"
        );
        (*plain).src[1] = std::ptr::null_mut();
        assert!(
            !(ggml.ggml_backend_dev_supports_op)(ggml.device(), plain),
            "a node without a source is declined"
        );
        (ggml.ggml_free)(context);
    }
}

#[test]
fn several_threads_share_the_device() {
    let Some(ggml) = host("several_threads_share_the_device") else { return };
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            scope.spawn(move || {
                for round in 0..5u32 {
                    let (k, n, rows) = (128 + 32 * thread as usize, 96, 1 + round as usize);
                    let product = Product::new(ggml, ggml.backend(), F32, (k, n, rows));
                    let weight = set_weight(&product, &numbers(10 * thread + round, k * n));
                    let activations = numbers(99 + round, k * rows);
                    let error = nmse(&product.run(&activations), &oracle(&weight, &activations, k));
                    assert!(error < 1e-6, "thread {thread}, round {round}: NMSE {error}");
                }
            });
        }
    });
}
