//! `run` and `exec` with a real host, on its CPU and with a plugin that is none. The paths come from
//! `cargo xtask test`; without them these tests say that they were skipped.

mod common;
#[path = "../../tests/common/divergence.rs"]
mod divergence;

use std::env;

use common::{last_json, skip, texts, xtask};
use divergence::mean_kl;

#[test]
fn the_cpu_alone_generates_and_its_share_of_the_npu_is_nothing() {
    let Some(mut run) = xtask(&["run", "--cpu", "-m", "q8_0", "-n", "5", "--json"]) else { return };
    let result = last_json(&run.output().unwrap());
    assert_eq!(result["tokens"], 5);
    assert_eq!(result["npu_flops_share"], 0.0);
    assert!(result["device"].is_null());
    assert!(result["text"].as_str().unwrap().len() > 5, "{result}");
    // 134.5 million parameters, two FLOPs each: some 0.27 GFLOP a token.
    let tokens = result["prompt_tokens"].as_f64().unwrap() + 4.0;
    let per_token = result["total_flops"].as_f64().unwrap() / tokens;
    assert!((1.9e8..2.8e8).contains(&per_token), "{per_token}");
}

#[test]
fn one_token_is_counted_as_one() {
    let Some(mut run) = xtask(&["run", "--cpu", "-n", "1", "--raw", "-p", "Once upon a time", "--json"])
    else {
        return;
    };
    assert_eq!(last_json(&run.output().unwrap())["tokens"], 1);
}

#[test]
fn the_text_comes_first_and_the_table_last() {
    let Some(mut run) = xtask(&["run", "--cpu", "-n", "4"]) else { return };
    let (stdout, stderr) = texts(&run.output().unwrap());
    let (text, table) = stdout.split_once("\n\n").unwrap_or_else(|| panic!("{stdout}\n{stderr}"));
    assert!(!text.trim().is_empty());
    assert!(table.contains("NPU share  0.0 %"), "{table}");
}

#[test]
fn a_plugin_that_is_none_ends_in_an_error_with_the_hosts_line() {
    let Some(mut run) = xtask(&["run", "-n", "2"]) else { return };
    let emulator = env::var_os("GGML_RKNPU_TEST_EMULATOR").unwrap();
    // The emulator is a library that loads, and no backend of ggml.
    let output = run.env("GGML_RKNPU_TEST_PLUGIN", emulator).output().unwrap();
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1));
    let last = stderr.lines().last().unwrap();
    assert!(
        last.starts_with("error: the plugin registered no device") && last.contains("load_backend: "),
        "{stderr}"
    );
}

#[test]
fn a_failing_host_is_named_with_its_last_lines() {
    let Some(mut run) = xtask(&["run", "--cpu", "-n", "2", "--", "--no-such-option"]) else { return };
    let output = run.output().unwrap();
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("no-such-option"), "{stderr}");
    assert!(
        stderr.lines().last().unwrap().starts_with("error: llama-completion ended with exit code"),
        "{stderr}"
    );
}

#[test]
fn a_prompt_too_long_for_the_context_ends_in_the_hosts_own_words() {
    let prompt = "word ".repeat(400);
    let Some(mut run) = xtask(&["run", "--cpu", "-n", "2", "-c", "300", "-p", &prompt]) else { return };
    assert!(run.output().unwrap().status.success(), "512 tokens hold it");
    let Some(mut run) = xtask(&["run", "--cpu", "-n", "2", "-c", "16", "-p", &prompt]) else { return };
    let output = run.output().unwrap();
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("prompt is too long"), "{stderr}");
}

#[test]
fn exec_hands_the_exit_code_and_the_environment_through() {
    let script = "echo $GGML_BACKEND_PATH; echo $RKNPU_LIBRARY; echo $RKNPU_EMU_SOC; exit 7";
    let Some(mut exec) = xtask(&["exec", "--npu", "emulated", "--soc", "RK3576", "--", "sh", "-c", script])
    else {
        return;
    };
    let output = exec.output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let wanted =
        ["GGML_RKNPU_TEST_PLUGIN", "GGML_RKNPU_TEST_EMULATOR"].map(|name| env::var(name).unwrap()).join("\n");
    assert_eq!(texts(&output).0.trim(), format!("{wanted}\nrk3576"));

    let Some(mut exec) = xtask(&["exec", "--cpu", "--", "sh", "-c", script]) else { return };
    assert_eq!(texts(&exec.output().unwrap()).0.trim(), "");
}

#[test]
fn exec_without_a_program_lists_those_of_the_host() {
    let Some(mut exec) = xtask(&["exec"]) else { return };
    let (stdout, _) = texts(&exec.output().unwrap());
    assert!(stdout.contains("llama-completion"), "{stdout}");
    let Some(mut exec) = xtask(&["exec", "--cpu", "--", "llama-nothing"]) else { return };
    let (_, stderr) = texts(&exec.output().unwrap());
    assert!(
        stderr.starts_with("error: llama-nothing: neither a program of the host nor on PATH"),
        "{stderr}"
    );
}

#[test]
fn through_the_plugin_nearly_all_of_the_work_is_the_npus() {
    for (weights, pipeline) in [("f16", "W16A16"), ("q8_0", "W8A8")] {
        let arguments = ["run", "--npu", "emulated", "-m", weights, "-n", "3", "--json"];
        let Some(mut run) = xtask(&arguments) else { return };
        let npu = last_json(&run.env("RKNPU_DECODE", "npu").output().unwrap());
        assert!(npu["npu_flops_share"].as_f64().unwrap() >= 0.95, "{npu}");
        assert!(npu["pipelines"][pipeline].as_u64().unwrap() > 0, "{npu}");
        assert!(npu["description"].as_str().unwrap().contains("emulated"), "{npu}");
        assert_eq!(npu["tokens"], 3, "{npu}");

        // What the plugin counted and what the shapes call for are the same work.
        let Some(mut run) = xtask(&["run", "--cpu", "-m", weights, "-n", "3", "--json"]) else { return };
        assert_eq!(last_json(&run.output().unwrap())["total_flops"], npu["total_flops"]);
    }
}

#[test]
fn a_disabled_plugin_leaves_the_work_to_the_cpu() {
    let Some(mut run) = xtask(&["run", "--npu", "emulated", "-m", "q4_0", "-n", "2", "--json"]) else {
        return;
    };
    let result = last_json(&run.env("RKNPU_DISABLE", "1").output().unwrap());
    assert_eq!(result["npu_flops_share"], 0.0);
    assert!(result["note"].as_str().unwrap().contains("RKNPU_DISABLE=1"), "{result}");
}

#[test]
fn accuracy_puts_cpu_and_npu_side_by_side() {
    let Some(text) = env::var_os("GGML_RKNPU_TEST_TEXT") else {
        skip("accuracy_puts_cpu_and_npu_side_by_side", "GGML_RKNPU_TEST_TEXT names no text");
        return;
    };
    let arguments =
        ["accuracy", "-m", "q8_0", "--pipelines", "default,W16A16", "--chunks", "1", "--json", "--text"];
    let Some(mut accuracy) = xtask(&arguments) else { return };
    let rows = last_json(&accuracy.arg(&text).output().unwrap());
    let rows = rows.as_array().unwrap();
    let on: Vec<_> = rows.iter().map(|row| row["on"].as_str().unwrap()).collect();
    assert_eq!(on, ["CPU", "default", "W16A16"]);
    for row in rows {
        let (kl, top) = (row["kl"].as_f64().unwrap(), row["same_top"].as_f64().unwrap());
        assert!(
            (0.0..0.02).contains(&kl) && top > 90.0 && row["perplexity"].as_f64().unwrap() > 1.0,
            "{row}"
        );
    }
    // The file has 34 bytes for 32 weights throughout.
    assert_eq!(rows[0]["bytes_per_weight"], 34.0 / 32.0);
    // 16 bits lose nothing that the file has, 8 bits do.
    assert!(rows[2]["kl"].as_f64() < rows[1]["kl"].as_f64(), "{rows:?}");

    let Some(mut accuracy) =
        xtask(&["accuracy", "-m", "q8_0", "--pipelines", "W2A2", "--chunks", "1", "--text"])
    else {
        return;
    };
    let output = accuracy.arg(&text).output().unwrap();
    let (_, stderr) = texts(&output);
    assert!(
        !output.status.success() && stderr.contains("RKNPU_PIPELINE is \"W2A2\", expected one of W4A4"),
        "{stderr}"
    );
}

#[test]
fn a_synthetic_model_loads_in_the_host_and_is_written_once() {
    let cache = tempfile::tempdir().unwrap();
    for kind in ["q8_0", "f16", "q4_0"] {
        let synth = || {
            let mut command = xtask(&["synth", "--shapes", "tiny", "--types", kind])?;
            let output = command.env("XDG_CACHE_HOME", cache.path()).output().unwrap();
            let (stdout, stderr) = texts(&output);
            assert!(output.status.success(), "{stderr}");
            Some((stdout.trim().to_owned(), stderr))
        };
        let Some((path, stderr)) = synth() else { return };
        assert!(stderr.contains("writing a synthetic tiny"), "{stderr}");
        let (again, stderr) = synth().unwrap();
        assert_eq!((again.as_str(), stderr.as_str()), (path.as_str(), ""));

        let Some(mut run) = xtask(&["run", "--cpu", "-m", &path, "-n", "2", "--raw", "-p", "a b", "--json"])
        else {
            return;
        };
        assert_eq!(last_json(&run.output().unwrap())["tokens"], 2, "{path}");
    }
}

/// By the host's own measure: the divergence of what the plugin says of each next token from what the CPU says.
#[test]
fn a_mixture_of_experts_is_the_npus_and_says_what_the_cpu_says() {
    let Some(text) = env::var_os("GGML_RKNPU_TEST_TEXT") else {
        skip(
            "a_mixture_of_experts_is_the_npus_and_says_what_the_cpu_says",
            "GGML_RKNPU_TEST_TEXT names no text",
        );
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    for (kind, limit) in [("f16", 1e-5), ("q8_0", 1e-4), ("q4_0", 1e-4)] {
        let Some(mut synth) = xtask(&["synth", "--shapes", "tiny-moe", "--types", kind]) else { return };
        let (stdout, stderr) = texts(&synth.env("XDG_CACHE_HOME", dir.path()).output().unwrap());
        let model = stdout.trim();
        assert!(!model.is_empty(), "{stderr}");

        let arguments = ["run", "--npu", "emulated", "-m", model, "-n", "3", "--raw", "-p", "a b", "--json"];
        let Some(mut run) = xtask(&arguments) else { return };
        let npu = last_json(&run.env("RKNPU_DECODE", "npu").output().unwrap());
        assert!(npu["npu_flops_share"].as_f64().unwrap() >= 0.95 && npu["fallbacks"] == 0, "{npu}");

        let base = dir.path().join("base");
        let perplexity = |way: &[&str], more: &[&str]| {
            let mut exec = xtask(&["exec"])?;
            exec.args(way).args(["--", "llama-perplexity", "-m", model, "-c", "256", "--chunks", "2", "-f"]);
            exec.arg(&text).arg("--kl-divergence-base").arg(&base).args(more);
            let output = exec.output().unwrap();
            let (stdout, stderr) = texts(&output);
            assert!(output.status.success(), "{stderr}");
            Some(stdout + &stderr)
        };
        if perplexity(&["--cpu"], &[]).is_none() {
            return;
        }
        let said = perplexity(&["--npu", "emulated"], &["--kl-divergence"]).unwrap();
        let divergence = mean_kl(&said);
        assert!(divergence.abs() < limit, "{kind}: {divergence}, expected below {limit}");
    }
}

#[test]
fn bench_has_modelled_figures_of_a_tiny_model_and_writes_its_page() {
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("performance.md");
    let arguments = [
        "bench",
        "--parts",
        "products",
        "--shapes",
        "tiny",
        "--types",
        "q8_0",
        "--pipelines",
        "default,W4A8",
        "--json",
    ];
    let Some(mut bench) = xtask(&arguments) else { return };
    bench.env("XDG_CACHE_HOME", dir.path()).arg("--save").arg(&page);
    let rows = last_json(&bench.output().unwrap());
    let asked: Vec<_> = rows.as_array().unwrap().iter().map(|row| row["pipelines"].as_str()).collect();
    assert_eq!(asked, [Some("default"), Some("W4A8")]);
    for row in rows.as_array().unwrap() {
        let share = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
        // The search does not foresee that a core's traffic is faster while another begins: a little may be beaten.
        for key in ["prefill_together_share", "prefill_peak_share", "decode_bandwidth_share"] {
            assert!((0.001..1.1).contains(&share(key)), "{key} in {row}");
        }
        assert!(share("prefill_peak_share") < share("prefill_together_share"), "{row}");
        assert!(share("prefill_together_share") <= share("prefill_roofline_share"), "{row}");
        assert!(share("decode_total_ns") > share("decode_npu_ns"), "{row}");
        assert_eq!(row["rows_ratio"].as_object().unwrap().len(), 4, "{row}");
        assert!(share("pacing") >= 1.0, "{row}");
        assert!(row["rss_peak_bytes"].as_u64() > row["weight_bytes"].as_u64(), "{row}");
    }
    assert!(std::fs::read_to_string(&page).unwrap().contains("| tiny | Q8_0 | W4A8 |"));
}
