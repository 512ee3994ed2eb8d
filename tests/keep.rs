//! `RKNPU_KEEP`: products of few rows by the host's own kernels over a second copy of the weight.

mod common;
#[path = "common/ggml.rs"]
mod ggml;

use std::ffi::c_int;

use common::{lab, report, Lab};
use ggml::{numbers, Ggml, Mixture, Product};

const Q4_0: c_int = 2;
const Q8_0: c_int = 8;
const Q6_K: c_int = 14;
const CPU: c_int = 0;

/// The device, or the host's CPU alone.
fn backend(ggml: &Ggml, on_cpu: bool) -> ggml_sys::sys::ggml_backend_t {
    if on_cpu {
        // SAFETY: the host has a CPU; no parameters.
        unsafe { (ggml.ggml_backend_init_by_type)(CPU, std::ptr::null()) }
    } else {
        ggml.backend()
    }
}

/// Multiplies rows by a quantised weight of random numbers, on the device or, alone, by the host's CPU.
fn product(ggml: &Ggml, on_cpu: bool, ggml_type: c_int, (k, n, rows): (usize, usize, usize)) -> Vec<f32> {
    let product = Product::new(ggml, backend(ggml, on_cpu), ggml_type, (k, n, rows));
    product.set_weight(&numbers(1, k * n));
    let activations = numbers(2, k * rows);
    // Twice: the second time everything is known.
    product.run(&activations);
    product.run(&activations)
}

/// Mean squared difference over mean square.
fn difference(got: &[f32], want: &[f32]) -> f64 {
    let square = |value: f32| f64::from(value).powi(2);
    let error: f64 = got.iter().zip(want).map(|(got, want)| square(got - want)).sum();
    error / want.iter().map(|want| square(*want)).sum::<f64>()
}

#[test]
fn few_rows_of_few_bits_have_the_hosts_own_results() {
    let Some(lab) = lab("few_rows_of_few_bits_have_the_hosts_own_results") else { return };
    // Written once more as the process ends, so that the folder has to outlive the test.
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("keep.json");
    std::env::set_var("RKNPU_KEEP", "both");
    std::env::set_var("RKNPU_REPORT", &path);
    let ggml = Ggml::open(&lab);
    // The report is written whenever a backend is freed.
    let kept = || report(&path)["kept_products"].as_u64().unwrap();
    let mut before = 0;
    // A layout of the host's own, an odd N that it does not take, a type that it takes on some machines only.
    for (ggml_type, k, n, rows, by_host) in [
        (Q4_0, 2048, 1024, 1, true),
        (Q4_0, 2048, 1024, 2, true),
        (Q4_0, 2048, 1001, 2, true),
        (Q6_K, 2048, 1024, 1, true),
        // More rows than are few, and more bits than are copied.
        (Q4_0, 2048, 1024, 20, false),
        (Q8_0, 2048, 1024, 1, false),
    ] {
        let what = format!("type {ggml_type}, {k}x{n}, {rows} rows");
        let got = product(&ggml, false, ggml_type, (k, n, rows));
        let want = product(&ggml, true, ggml_type, (k, n, rows));
        let now = kept();
        assert_eq!(now - before, if by_host { 2 } else { 0 }, "{what}");
        before = now;
        // The same integers in another order of sums; our own rounding is elsewhere, and differs by far more.
        let difference = difference(&got, &want);
        assert_eq!(difference < 1e-10, by_host, "{what}: {difference}");
        assert!(difference < 1e-3, "{what}: {difference}");
    }
    // Experts: one token's, few tokens', of which some share one, and as many as go to the NPU.
    for (tokens, by_host) in [(1, 2), (3, 4), (20, 0)] {
        let (k, n, experts, used) = (2048, 1024, 4, 2);
        let ids: Vec<i32> = (0..used * tokens).map(|index| ((index + index / 2) % experts) as i32).collect();
        let [got, want] = [false, true].map(|on_cpu| {
            let mixture =
                Mixture::new(&ggml, backend(&ggml, on_cpu), Q4_0, (k, n, experts), (used, 1, tokens));
            mixture.set_weights(&numbers(1, k * n * experts));
            mixture.run(&numbers(2, k * tokens), &ids).expect("the graph is computed")
        });
        let now = kept();
        assert_eq!(now - before, by_host, "{tokens} tokens");
        before = now;
        let difference = difference(&got, &want);
        assert_eq!(difference < 1e-10, by_host > 0, "{tokens} tokens: {difference}");
        assert!(difference < 1e-3, "{tokens} tokens: {difference}");
    }
    // What the copies took is given back with their weights: the peak is that of the four experts.
    let largest = (4 * 2048 * 1024 / 32 * 18) as u64;
    assert_eq!(report(&path)["kept_bytes"], largest);
}

/// A greedy continuation of the Q4_0 file; its text, what it said, its report.
fn generate(lab: &Lab, variables: &[(&str, &str)]) -> (String, String, serde_json::Value) {
    common::generate(lab, "Q4_0", ("The capital of France is", 6), variables)
}

#[test]
fn the_hosts_copies_are_seen_and_can_be_turned_off() {
    let Some(lab) = lab("the_hosts_copies_are_seen_and_can_be_turned_off") else { return };
    let variables = [("RKNPU_KEEP", "both"), ("RKNPU_STATS", "1"), ("RKNPU_LOG", "info")];
    let (_, said, both) = generate(&lab, &variables);
    assert!(both["kept_products"].as_u64().unwrap() > 0 && both["fallbacks"] == 0, "{said}");
    assert!(both["kept_bytes"].as_u64().unwrap() > 0, "{said}");
    for line in
        ["copies for the host's kernels, RKNPU_KEEP: ", " products) by the host's over its own copies"]
    {
        assert!(said.contains(line), "{line:?} is not in {said}");
    }
    assert!(said.contains(&format!("by the host's copies {},", both["kept_products"])), "{said}");
    // By itself an emulated NPU has none, and a forced route has none whatever is kept.
    let (npu, _, none) = generate(&lab, &[("RKNPU_KEEP", "npu")]);
    let (auto, _, by_default) = generate(&lab, &[]);
    assert_eq!(npu, auto);
    let (_, _, forced) = generate(&lab, &[("RKNPU_KEEP", "both"), ("RKNPU_DECODE", "npu")]);
    for report in [none, by_default, forced] {
        assert_eq!((&report["kept_products"], &report["kept_bytes"]), (&0.into(), &0.into()));
    }
}
