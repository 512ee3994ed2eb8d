//! Text through the user's door, `cargo xtask run`: the same as the CPU's, by the NPU, on every weight type.

mod common;

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Command;

use common::{lab, skip};

const PROMPT: &str = "Why is the sky blue?";

/// The JSON of `xtask run … --json`; `None`, with a reason, when this is not a run of `cargo xtask test`.
fn run(test: &str, arguments: &[&str]) -> Option<serde_json::Value> {
    lab(test)?;
    let Some(xtask) = std::env::var_os("GGML_RKNPU_XTASK").map(PathBuf::from) else {
        skip(test, "GGML_RKNPU_XTASK is not set, run cargo xtask test");
        return None;
    };
    let mut command = Command::new(xtask);
    command.args(["run", "-p", PROMPT, "--json"]).args(arguments);
    // Few rows too; `tests/seeing.rs` has them done by who is faster.
    command.env("RKNPU_DECODE", "npu");
    let (out, _) = common::output(&mut command);
    Some(serde_json::from_str(out.lines().last().unwrap()).expect("the last line is JSON"))
}

#[test]
fn greedy_f16_text_is_the_cpus() {
    let test = "greedy_f16_text_is_the_cpus";
    let Some(npu) = run(test, &["-m", "f16", "-n", "64"]) else { return };
    let Some(cpu) = run(test, &["-m", "f16", "-n", "64", "--cpu"]) else { return };
    assert_eq!(npu["text"], cpu["text"]);
    assert_eq!(npu["tokens"], 64);
    assert_eq!(npu["fallbacks"], 0);
}

#[test]
fn q8_0_text_is_english() {
    let test = "q8_0_text_is_english";
    let Some(npu) = run(test, &["-m", "q8_0", "-n", "64"]) else { return };
    let Some(wiki) = std::env::var_os("GGML_RKNPU_TEST_TEXT") else {
        return skip(test, "GGML_RKNPU_TEST_TEXT names no text to take the dictionary from");
    };
    let words = |text: &str| -> Vec<String> {
        text.split(|c: char| !c.is_alphabetic())
            .filter(|word| word.len() > 1)
            .map(str::to_lowercase)
            .collect()
    };
    let dictionary: HashSet<String> = words(&std::fs::read_to_string(wiki).unwrap()).into_iter().collect();
    let text = npu["text"].as_str().unwrap();
    let said = words(text);
    let known = said.iter().filter(|word| dictionary.contains(*word)).count();
    assert!(
        said.len() > 30 && known * 10 >= said.len() * 8,
        "{known} of {} words are English: {text}",
        said.len()
    );
    // No loop of a broken model either.
    let different: HashSet<_> = said.iter().collect();
    assert!(different.len() * 3 > said.len(), "it repeats itself: {text}");
}

#[test]
fn the_plugin_does_the_matmuls_of_every_weight_type() {
    let test = "the_plugin_does_the_matmuls_of_every_weight_type";
    for (model, pipeline) in [
        ("f16", "W16A16"),
        ("q8_0", "W8A8"),
        ("q6_k", "W8A8"),
        ("q4_k_m", "W8A8"),
        ("q4_1", "W8A8"),
        ("q4_0", "W8A8"),
    ] {
        let Some(json) = run(test, &["-m", model, "-n", "8"]) else { return };
        let share = json["npu_flops_share"].as_f64().unwrap();
        assert!(share >= 0.95, "{model}: the NPU did {share} of the FLOPs");
        assert!(json["pipelines"][pipeline].as_u64().unwrap() > 0, "{json}");
        assert_eq!(json["fallbacks"], 0, "{json}");
        for key in ["npu_runs", "contexts", "fds", "npu_bytes", "tokens"] {
            assert!(json[key].as_u64().unwrap() > 0, "{key} of {json}");
        }
    }
}

#[test]
fn every_chip_gives_the_text_of_f16() {
    let test = "every_chip_gives_the_text_of_f16";
    let Some(cpu) = run(test, &["-m", "f16", "-n", "12", "--cpu"]) else { return };
    for soc in ["rk3576", "rk3566", "rk3562"] {
        let Some(npu) = run(test, &["-m", "f16", "-n", "12", "--soc", soc]) else { return };
        assert_eq!(npu["text"], cpu["text"], "{soc}");
        assert_eq!(npu["soc"], soc);
    }
}
