//! I/O domains that are smaller than the weights, in the real host: these go on in the next one, work is ordered by domain,
//! and where products find no room beside the weights, weights make it.
//!
//! The emulator asks for its faults once in a process, so that each test has one of its own. Domains other than 0 are one
//! process's at a time: the tests take turns.

#[path = "common/mod.rs"]
mod common;
#[path = "common/ggml.rs"]
mod ggml;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;

use common::{generate, lab};
use ggml::{host, nmse, numbers, oracle, Ggml, Mixture, Product};

static TURN: Mutex<()> = Mutex::new(());

const Q8_0: i32 = 8;
/// Set in a process that a test has started: how often the last graph is computed.
const REPEATS: &str = "RKNPU_TEST_REPEATS";

/// The reports, ours and the emulator's, of a test of this file in a process of its own, with these faults; and what it said.
fn in_process(test: &str, repeats: u32, environment: &[(&str, &str)]) -> ([serde_json::Value; 2], String) {
    let folder = tempfile::tempdir().unwrap();
    let [ours, emulators] = ["ours.json", "emulators.json"].map(|name| folder.path().join(name));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(REPEATS, repeats.to_string());
    command.env("RKNPU_REPORT", &ours).env("RKNPU_EMU_REPORT", &emulators).env("RKNPU_DECODE", "npu");
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let [out, said] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said).into_owned());
    assert!(output.status.success() && out.contains("1 passed"), "{out}{said}");
    ([&ours, &emulators].map(|path: &PathBuf| common::report(path)), said)
}

/// How often the last graph is computed, and the host; `None` where no test has started this process.
fn child() -> Option<(u32, &'static Ggml)> {
    Some((std::env::var(REPEATS).ok()?.parse().expect("a number"), host("child")?))
}

#[test]
fn a_model_fills_one_domain_after_the_other() {
    let Some(lab) = lab("a model fills one domain after the other") else { return };
    let _turn = TURN.lock();
    let asked = ("The capital of France is", 12);
    // 279 MB of weights, and contexts and scratch memory beside them.
    let domains = [("RKNPU_EMU_FAULTS", "domain=120"), ("RKNPU_DECODE", "npu"), ("RKNPU_LOG", "info")];
    let (text, said, report) = generate(&lab, "F16", asked, &domains);
    let mut cpu = lab.cpu("llama-completion");
    cpu.arg("-m").arg(lab.model("F16")).args(["-p", asked.0, "-n", "12"]);
    let (cpu, _) = common::output(cpu.args(["--temp", "0", "-no-cnv", "-t", "2", "--seed", "1"]));
    assert_eq!((text, &report["domains"]), (cpu, &3.into()));
    assert!(said.contains("I/O domain 0 has no room beside") && !said.contains("I/O domain 2 has"), "{said}");
    // Products of a domain in which a context finds no room: once.
    assert!(report["fallbacks"].as_u64() < Some(10), "{said}");
}

/// Experts of two domains in turns: without an order each would be a switch.
#[test]
fn experts_are_ordered_by_domain() {
    if lab("experts are ordered by domain").is_none() {
        return;
    }
    let _turn = TURN.lock();
    for (cores, most) in [("0", 2), ("0-2", 2 * 5)] {
        let environment = [("RKNPU_EMU_FAULTS", "domain=40"), ("RKNPU_CORES", cores)];
        let [once, often] = [1, 11].map(|repeats| in_process("child_has_experts", repeats, &environment).0);
        for [ours, _] in [&once, &often] {
            assert_eq!((&ours["domains"], &ours["fallbacks"]), (&2.into(), &0.into()), "{cores}");
        }
        let switches =
            |[_, emulators]: &[serde_json::Value; 2]| emulators["domain_switches"].as_u64().unwrap();
        let each = (switches(&often) - switches(&once)) / 10;
        // There and back; cores that are ahead may be in the next domain before the others, and back.
        assert!(
            (2..=most).contains(&each),
            "cores {cores}: {each} switches a graph, at most {most} expected"
        );
    }
}

#[test]
fn child_has_experts() {
    let Some((repeats, ggml)) = child() else { return };
    // 67 MB of weights, of which a domain has half.
    let (k, n, experts, used, tokens) = (2048, 2048, 16, 2, 80);
    let mixture = Mixture::new(ggml, ggml.backend(), Q8_0, (k, n, experts), (used, 1, tokens));
    let (weights, x) = (numbers(1, k * n * experts), numbers(2, k * tokens));
    mixture.set_weights(&weights);
    let even: Vec<i32> = (0..used * tokens).map(|index| (index % 8 * 2) as i32).collect();
    let odd: Vec<i32> = even.iter().map(|id| id + 1).collect();
    let all: Vec<i32> = (0..used * tokens).map(|index| (index % experts) as i32).collect();
    for (at, ids) in [&even, &odd].into_iter().chain(std::iter::repeat_n(&all, repeats as usize)).enumerate()
    {
        let got = mixture.run(&x, ids).expect("the graph is computed");
        if at > 3 {
            continue;
        }
        let want = ids.iter().enumerate().flat_map(|(index, id)| {
            oracle(&weights[*id as usize * n * k..][..n * k], &x[index / used * k..][..k], k)
        });
        let error = nmse(&got, &want.collect::<Vec<f64>>());
        assert!(error < 2e-4, "{error:e}");
    }
}

/// A long prompt's scratch memory after a short one's, beside weights that left none: some of them go to another domain,
/// and after that nothing fails.
#[test]
fn weights_make_room_for_products() {
    if lab("weights make room for products").is_none() {
        return;
    }
    let _turn = TURN.lock();
    let run = |domains, repeats| {
        let environment =
            [("RKNPU_EMU_FAULTS", "domain=24"), ("RKNPU_DOMAINS", domains), ("RKNPU_LOG", "info")];
        let ([ours, _], said) = in_process("child_has_long_prompts", repeats, &environment);
        let moved = said.matches("there is no room beside them").count() as u64;
        (ours["fallbacks"].as_u64().unwrap(), moved, ours["npu_runs"].as_u64().unwrap())
    };
    // One product for each domain that has no room.
    let (fallbacks, moved, _) = run("0-3", 1);
    assert!((1..4).contains(&fallbacks) && moved == fallbacks, "{fallbacks} products failed, {moved} times");
    let (later, ..) = run("0-3", 3);
    assert_eq!(later, fallbacks, "products that fail later");
    // Where there is no other one, the CPU multiplies by the weights that had to go, and the NPU by the others.
    let [once, often] = [1, 3].map(|repeats| run("0", repeats));
    assert_eq!((once.1, often.1), (1, 1), "weights go once");
    assert!(once.0 > 4 && often.2 > once.2, "{once:?} and {often:?}: products by the CPU, times, and runs");
}

#[test]
fn child_has_long_prompts() {
    let Some((repeats, ggml)) = child() else { return };
    let (k, n, rows) = (1024, 1024, 512);
    // More than a domain has, less than two.
    let weights: Vec<Vec<f32>> = (0..28).map(|seed| numbers(seed, k * n)).collect();
    let few: Vec<Product> = weights
        .iter()
        .map(|weight| {
            let product = Product::new(ggml, ggml.backend(), Q8_0, (k, n, 1));
            product.set_weight(weight);
            product
        })
        .collect();
    let x = numbers(99, k * rows);
    for (weight, product) in weights.iter().zip(&few) {
        let error = nmse(&product.run(&x[..k]), &oracle(weight, &x[..k], k));
        assert!(error < 2e-4, "a row: {error:e}");
    }
    for _ in 0..repeats {
        for (weight, product) in weights.iter().zip(&few) {
            // Of all rows the first and the last few are looked at.
            let got = product.again(rows).run(&x);
            for at in [0, rows - 3] {
                let error = nmse(&got[at * n..][..3 * n], &oracle(weight, &x[at * k..][..3 * k], k));
                assert!(error < 2e-4, "rows from {at} on: {error:e}");
            }
        }
    }
}
