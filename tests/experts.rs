//! Mixtures of experts inside the real host, in this process: against an f64 oracle, and with broken ids.

#[path = "common/mod.rs"]
mod common;
#[path = "common/ggml.rs"]
mod ggml;

use ggml::{host, nmse, numbers, oracle, Mixture, F32};

const Q8_0: i32 = 8;

/// Mean squared error over mean square of the results of `ids`, `used` for a token that has `rows` rows.
fn error(mixture: &Mixture, weights: &[f32], x: &[f32], ids: &[i32], rows: usize, got: &[f32]) -> f64 {
    let Mixture { k, n, used, .. } = *mixture;
    let want = ids.iter().enumerate().flat_map(|(index, id)| {
        let row = index / used * rows + index % used % rows;
        oracle(&weights[*id as usize * n * k..][..n * k], &x[row * k..][..k], k)
    });
    nmse(got, &want.collect::<Vec<f64>>())
}

#[test]
fn every_row_meets_its_own_expert() {
    let Some(ggml) = host("every row meets its own expert") else { return };
    let (k, n, experts, used) = (256, 96, 6, 3);
    for (ggml_type, limit) in [(F32, 1e-6), (Q8_0, 2e-4)] {
        for (tokens, rows) in [(1, 1), (1, 3), (50, 1), (50, 3)] {
            let shape = (k, n, experts);
            let mixture = Mixture::new(ggml, ggml.backend(), ggml_type, shape, (used, rows, tokens));
            let weights = numbers(1, k * n * experts);
            mixture.set_weights(&weights);
            let x = numbers(2, k * rows * tokens);
            for (name, id) in [
                ("spread", (|index| (index * 5 % 6) as i32) as fn(usize) -> i32),
                ("all to one", |_| 4),
                ("none to most", |index| i32::from(index % 9 == 2)),
            ] {
                let ids: Vec<i32> = (0..used * tokens).map(id).collect();
                let out = mixture.run(&x, &ids).expect("the graph is computed");
                let error = error(&mixture, &weights, &x, &ids, rows, &out);
                assert!(
                    error < limit,
                    "{name}, type {ggml_type}, {tokens} tokens of {rows} rows: {error:e}, expected below {limit:e}"
                );
            }
        }
    }
}

/// As between the experts' gate and up and their down, here of one product.
#[test]
fn an_activation_times_a_gate_is_the_plugins_too() {
    let Some(ggml) = host("an activation times a gate is the plugin's too") else { return };
    let (shape, rows) = ((256, 96, 6), (3, 1, 50));
    // SAFETY: live objects of the host's.
    let gated = |context, product| unsafe { (ggml.ggml_swiglu_split)(context, product, product) };
    let mixtures = [
        Mixture::new(ggml, ggml.backend(), Q8_0, shape, rows),
        Mixture::with(ggml, ggml.backend(), Q8_0, shape, rows, gated),
    ];
    let (weights, x) = (numbers(1, 256 * 96 * 6), numbers(2, 256 * 50));
    let ids: Vec<i32> = (0..150).map(|index| index * 5 % 6).collect();
    let [products, got] = mixtures.map(|mixture| {
        mixture.set_weights(&weights);
        mixture.run(&x, &ids).expect("the graph is computed")
    });
    for (product, got) in products.into_iter().map(f64::from).zip(got) {
        let want = product * product / (1.0 + (-product).exp());
        assert!((f64::from(got) - want).abs() <= 3e-6 * want.abs() + 1e-9, "{got} of {product}, not {want}");
    }
}

#[test]
fn an_id_of_no_expert_fails_the_graph_and_nothing_else() {
    let Some(ggml) = host("an id of no expert fails the graph and nothing else") else { return };
    let mixture = Mixture::new(ggml, ggml.backend(), F32, (64, 32, 4), (2, 1, 3));
    let weights = numbers(1, 64 * 32 * 4);
    mixture.set_weights(&weights);
    let x = numbers(2, 64 * 3);
    for bad in [-1, 4, i32::MAX, i32::MIN] {
        assert!(mixture.run(&x, &[0, 1, 2, bad, 0, 1]).is_err(), "{bad}");
    }
    let ids = [0, 1, 2, 3, 0, 1];
    let out = mixture.run(&x, &ids).expect("ids are right again");
    assert!(error(&mixture, &weights, &x, &ids, 1, &out) < 1e-6);
}

#[test]
fn no_tokens_are_an_empty_result() {
    let Some(ggml) = host("no tokens are an empty result") else { return };
    let mixture = Mixture::new(ggml, ggml.backend(), F32, (64, 32, 4), (2, 1, 0));
    assert!(mixture.compute().is_ok());
}
