//! Mixtures of experts inside the real host, in this process: against an f64 oracle, and with broken ids.

#[path = "common/mod.rs"]
mod common;
#[path = "common/ggml.rs"]
mod ggml;

use std::sync::OnceLock;

use common::Lab;
use ggml::{numbers, Ggml, Mixture};

const Q8_0: i32 = 8;

struct Shared(Ggml);
// SAFETY: a table of functions that may be called from any thread.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

fn host(test: &str) -> Option<&'static Ggml> {
    static HOST: OnceLock<Option<Shared>> = OnceLock::new();
    let shared = HOST.get_or_init(|| common::lab(test).map(|lab: Lab| Shared(Ggml::open(&lab))));
    shared.as_ref().map(|shared| &shared.0)
}

/// Mean squared error over mean square of the results of `ids`, `used` for a token that has `rows` rows.
fn error(mixture: &Mixture, weights: &[f32], x: &[f32], ids: &[i32], rows: usize, got: &[f32]) -> f64 {
    let Mixture { k, n, used, .. } = *mixture;
    let (mut error, mut power) = (0.0, 0.0);
    for (index, (id, got)) in ids.iter().zip(got.chunks(n)).enumerate() {
        let row = index / used * rows + index % used % rows;
        let weight = &weights[*id as usize * n * k..][..n * k];
        for (column, got) in weight.chunks(k).zip(got) {
            let pairs = x[row * k..][..k].iter().zip(column);
            let want: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            error += (f64::from(*got) - want).powi(2);
            power += want * want;
        }
    }
    error / power
}

#[test]
fn every_row_meets_its_own_expert() {
    let Some(ggml) = host("every row meets its own expert") else { return };
    let (k, n, experts, used) = (256, 96, 6, 3);
    for (ggml_type, limit) in [(ggml::F32, 1e-6), (Q8_0, 2e-4)] {
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

#[test]
fn an_id_of_no_expert_fails_the_graph_and_nothing_else() {
    let Some(ggml) = host("an id of no expert fails the graph and nothing else") else { return };
    let mixture = Mixture::new(ggml, ggml.backend(), ggml::F32, (64, 32, 4), (2, 1, 3));
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
    let mixture = Mixture::new(ggml, ggml.backend(), ggml::F32, (64, 32, 4), (2, 1, 0));
    assert!(mixture.compute().is_ok());
}
