//! How far the NPU's logits are from F16 on the CPU: Kullback-Leibler divergence over wiki text.

mod common;

use std::path::PathBuf;

use common::{lab, output, skip};

/// Chunks of 512 tokens.
const CHUNKS: &str = "4";

/// The mean KL divergence that `llama-perplexity --kl-divergence` prints.
fn mean_kl(text: &str) -> f64 {
    text.lines()
        .find(|line| line.trim_start().starts_with("Mean") && line.contains("KLD"))
        .and_then(|line| line.split(':').nth(1)?.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| panic!("no mean KLD:\n{text}"))
}

#[test]
fn the_npus_logits_are_near_the_cpus() {
    let test = "the_npus_logits_are_near_the_cpus";
    let Some(lab) = lab(test) else { return };
    let Some(text) = std::env::var_os("GGML_RKNPU_TEST_TEXT").map(PathBuf::from) else {
        return skip(test, "GGML_RKNPU_TEST_TEXT names no evaluation text");
    };
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("f16.logits");
    output(
        lab.cpu("llama-perplexity")
            .arg("-m")
            .arg(lab.model("F16"))
            .arg("-f")
            .arg(&text)
            .args(["--chunks", CHUNKS, "--kl-divergence-base"])
            .arg(&base),
    );
    for (model, limit) in [("F16", 0.001), ("Q8_0", 0.0085)] {
        let report = dir.path().join("report.json");
        let (out, err) = output(
            lab.npu("llama-perplexity", "rk3588")
                .arg("-m")
                .arg(lab.model(model))
                .args(["--chunks", CHUNKS, "--kl-divergence", "--kl-divergence-base"])
                .arg(&base)
                .env("RKNPU_REPORT", &report),
        );
        let kl = mean_kl(&(out + &err));
        println!("{model} on the NPU: mean KL to F16 {kl}");
        assert!(kl <= limit, "{model}: mean KL {kl}, expected at most {limit}");
        let report = common::report(&report);
        assert_eq!(report["fallbacks"], 0, "{report}");
        assert!(report["npu_runs"].as_u64().unwrap() > 0, "{report}");
    }
}
