//! How far the NPU's logits are from F16 on the CPU: Kullback-Leibler divergence over wiki text, for each pipeline and
//! for each file in the default mode, beside the CPU's own figure for that file.
//!
//! `cargo xtask accuracy` measures the same over more text; the limits are those of the project's goals, for 20 chunks.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::divergence::mean_kl;
use common::{lab, output, skip, Lab};

/// Chunks of 512 tokens.
const CHUNKS: &str = "4";
/// Chunks of 2048, for attention.
const LONG_CHUNKS: &str = "1";

/// The host, and the reference's logits.
struct Bench {
    lab: Lab,
    base: PathBuf,
    dir: tempfile::TempDir,
}

impl Bench {
    /// With F16's logits on the CPU; `None` where the test cannot run, which is then counted.
    fn new(test: &str) -> Option<Self> {
        let lab = lab(test)?;
        let Some(text) = std::env::var_os("GGML_RKNPU_TEST_TEXT").map(PathBuf::from) else {
            skip(test, "GGML_RKNPU_TEST_TEXT names no evaluation text");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("f16.logits");
        let mut host = lab.cpu("llama-perplexity");
        host.arg("-m").arg(lab.model("F16")).arg("-f").arg(text);
        output(host.args(["--chunks", CHUNKS, "--kl-divergence-base"]).arg(&base));
        Some(Self { lab, base, dir })
    }

    fn kl(&self, host: &mut Command, model: &str) -> f64 {
        host.arg("-m").arg(self.lab.model(model));
        host.args(["--chunks", CHUNKS, "--kl-divergence", "--kl-divergence-base"]).arg(&self.base);
        let (out, err) = output(host);
        mean_kl(&(out + &err))
    }

    fn cpu(&self, model: &str) -> f64 {
        self.kl(&mut self.lab.cpu("llama-perplexity"), model)
    }

    /// The divergence on the NPU, and the pipelines that did it.
    fn npu(&self, model: &str, soc: &str, variables: &[(&str, &str)]) -> (f64, Vec<String>) {
        let report: &Path = &self.dir.path().join("report.json");
        let mut host = self.lab.npu("llama-perplexity", soc);
        host.envs(variables.iter().copied()).env("RKNPU_REPORT", report);
        let kl = self.kl(&mut host, model);
        let report = common::report(report);
        assert_eq!(report["fallbacks"], 0, "{report}");
        assert!(report["npu_runs"].as_u64().unwrap() > 0, "{report}");
        let pipelines = report["pipelines"].as_object().unwrap().keys().cloned().collect();
        println!("{model} on the NPU, {variables:?}: mean KL to F16 {kl} by {pipelines:?}");
        (kl, pipelines)
    }
}

#[test]
fn files_are_level_with_the_cpu_in_the_default_mode() {
    let Some(bench) = Bench::new("files_are_level_with_the_cpu_in_the_default_mode") else { return };
    let (kl, pipelines) = bench.npu("F16", "rk3588", &[]);
    assert!(kl <= 0.0005, "F16: mean KL {kl}");
    assert_eq!(pipelines, ["W16A16"]);
    for (model, times) in [("Q8_0", 2.0), ("Q6_K", 1.03), ("Q4_K_M", 1.03), ("Q4_0", 1.03)] {
        let cpu = bench.cpu(model);
        let (kl, pipelines) = bench.npu(model, "rk3588", &[]);
        assert!(kl <= cpu * times, "{model}: mean KL {kl}, expected at most {times} times the CPU's {cpu}");
        assert_eq!(pipelines, ["W8A8"], "{model}");
    }
}

#[test]
fn attention_on_the_npu_is_as_true_as_on_the_cpu() {
    let test = "attention_on_the_npu_is_as_true_as_on_the_cpu";
    let Some(lab) = lab(test) else { return };
    let Some(text) = std::env::var_os("GGML_RKNPU_TEST_TEXT").map(PathBuf::from) else {
        skip(test, "GGML_RKNPU_TEST_TEXT names no evaluation text");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (base, report) = (dir.path().join("logits"), dir.path().join("report.json"));
    let perplexity = |who: &str, flash: &str| {
        let mut host = lab.npu("llama-perplexity", "rk3588");
        host.env("RKNPU_ATTENTION", who).env("RKNPU_REPORT", &report).arg("-m").arg(lab.model("F16"));
        host.args(["-c", "2048", "-b", "2048", "--chunks", LONG_CHUNKS, "-fa", flash]);
        host.arg("--kl-divergence-base").arg(&base);
        host
    };
    output(perplexity("cpu", "on").arg("-f").arg(text));
    for flash in ["on", "off"] {
        let (out, err) = output(perplexity("npu", flash).arg("--kl-divergence"));
        let kl = mean_kl(&(out + &err));
        assert!(kl <= 0.0005, "-fa {flash}: mean KL {kl} to attention on the CPU");
        let report = common::report(&report);
        assert_eq!((&report["fallbacks"], &report["attention"]["fallbacks"]), (&0.into(), &0.into()));
        let nodes = report["attention"]["nodes"].as_u64().unwrap();
        // The host begins each chunk with a batch that is shorter than all, or as long.
        assert_eq!(nodes > 100, flash == "on", "-fa {flash}: {nodes} nodes on the NPU");
        let tensors = report["tensors"].as_array().unwrap();
        let by_cache = |name: &str| {
            let of_cache = |tensor: &&serde_json::Value| tensor["name"].as_str().unwrap().contains(name);
            tensors.iter().filter(of_cache).count()
        };
        assert_eq!([by_cache("cache_k") > 20, by_cache("cache_v") > 20], [flash == "off"; 2], "{report}");
    }
}

#[test]
fn each_pipeline_keeps_its_accuracy() {
    let Some(bench) = Bench::new("each_pipeline_keeps_its_accuracy") else { return };
    // What the CPU's Q8_0 loses of the same text; over 20 chunks it is 0.0043.
    let eight_bits = bench.cpu("Q8_0") * 1.1;
    for (pipeline, limit) in
        [("W8A8", eight_bits), ("W4A8", 0.70), ("W4A4", 1.3), ("W4A8_PADDED", 0.38), ("W4A4_PADDED", 0.73)]
    {
        let (kl, _) = bench.npu("F16", "rk3588", &[("RKNPU_PIPELINE", pipeline)]);
        assert!(kl <= limit, "{pipeline}: mean KL {kl}, expected at most {limit}");
    }
    // Whole activations add no error: at most that of the same weights with 8-bit ones.
    for (pipeline, limit) in [("W8A16", eight_bits), ("W4A16", 0.70)] {
        let (kl, _) = bench.npu("F16", "rk3576", &[("RKNPU_PIPELINE", pipeline)]);
        assert!(kl <= limit, "{pipeline}: mean KL {kl}, expected at most {limit}");
    }
}

#[test]
fn modes_take_four_bits_of_four_bit_files() {
    let Some(bench) = Bench::new("modes_take_four_bits_of_four_bit_files") else { return };
    for (mode, wanted) in [("lean", "W4A8"), ("fast", "W4A4")] {
        let (_, pipelines) = bench.npu("Q4_0", "rk3588", &[("RKNPU_MODE", mode)]);
        assert!(pipelines.iter().any(|pipeline| pipeline == wanted), "{mode}: {pipelines:?}");
        let (_, pipelines) = bench.npu("Q8_0", "rk3588", &[("RKNPU_MODE", mode)]);
        assert_eq!(pipelines, ["W8A8"], "{mode}: an 8-bit file keeps its bits");
    }
}
