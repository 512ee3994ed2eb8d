//! What llama.cpp does besides plain generation, each with the plugin against the same without it: options of the KV cache and
//! of loading, adapters, states, embeddings, parallel sequences, long contexts, and the host's own suites for threads,
//! cancelled loads and states.

mod common;
#[path = "common/http.rs"]
mod http;

use std::path::Path;
use std::process::Command;

use common::{lab, output, report, skip, Lab};
use http::Server;
use serde_json::{json, Value};

const PROMPT: &str = "The three largest cities of Italy, with one sentence on each, are";
/// It goes on as it began, whoever rounds how: in the eight bits of a cache, too, where the other one has two likeliest words.
const STEADY: &str = "Rome, Florence, Venice; Rome, Florence, Venice; Rome, Florence, Venice; Rome,";

/// A greedy continuation of [`PROMPT`], or of another one that is among `more` arguments, by the host's completion program; with
/// the plugin, its report too.
fn text(lab: &Lab, npu: bool, model: &Path, more: &[&str]) -> (String, Option<Value>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let mut host = if npu { lab.npu("llama-completion", "rk3588") } else { lab.cpu("llama-completion") };
    host.env("RKNPU_DECODE", "npu").env("RKNPU_REPORT", &path);
    host.arg("-m")
        .arg(model)
        .args(["-n", "20", "-c", "512", "--temp", "0", "-no-cnv", "-t", "2", "-p", PROMPT]);
    let (out, _) = output(host.args(more));
    (out, npu.then(|| report(&path)))
}

/// Both ways give the same text, the NPU did its part, and nothing fell back.
fn same_text(lab: &Lab, more: &[&str]) -> String {
    let model = lab.model("F16");
    let (want, _) = text(lab, false, &model, more);
    let (got, report) = text(lab, true, &model, more);
    let report = report.unwrap();
    assert_eq!(got, want, "{more:?}");
    assert!(want.len() > PROMPT.len() + 40, "{more:?}: {want}");
    assert!(report["npu_runs"].as_u64().unwrap() > 1000 && report["fallbacks"] == 0, "{more:?}: {report}");
    got
}

#[test]
fn options_of_the_cache_and_of_loading_change_nothing() {
    let Some(lab) = lab("options_of_the_cache_and_of_loading_change_nothing") else { return };
    for more in [
        &["-nkvo"][..],
        &["-ctk", "q8_0", "-fa", "on"],
        &["-ctk", "q8_0", "-ctv", "q8_0", "-fa", "on"],
        &["-fa", "on"],
        &["-fa", "off"],
        &["--load-mode", "none"],
        &["--no-host"],
        // As the device that layers are offloaded to, with their cache in its buffers.
        &["-ngl", "99", "-ub", "8"],
    ] {
        same_text(&lab, &[more, &["-p", STEADY]].concat());
    }
}

/// The device by name is what llama.cpp does with a GPU: the cache and all that surrounds it come to the plugin's buffers.
#[test]
fn the_device_may_be_named() {
    let Some(lab) = lab("the_device_may_be_named") else { return };
    let model = lab.model("F16");
    let (want, _) = text(&lab, false, &model, &[]);
    for attention in ["cpu", "npu"] {
        let mut host = lab.npu("llama-completion", "rk3588");
        host.env("RKNPU_DECODE", "npu").env("RKNPU_ATTENTION", attention).arg("-m").arg(&model);
        host.args(["-n", "20", "-c", "512", "--temp", "0", "-no-cnv", "-t", "2", "-p", PROMPT]);
        let (got, _) = output(host.args(["-dev", "RKNPU", "-ngl", "99"]));
        assert_eq!(got, want, "attention by the {attention}");
    }
}

/// A GGUF file of an adapter for every query and every down projection, whose numbers are large enough to change the text.
fn adapter(path: &Path) {
    const RANK: usize = 4;
    const LAYERS: usize = 30;
    let mut out = b"GGUF".to_vec();
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    // Query: 576 to 576. Down: 1536 to 576.
    let matrices = (0..LAYERS).flat_map(|layer| {
        [("attn_q", 576usize, 576usize), ("ffn_down", 1536, 576)].into_iter().flat_map(move |(name, k, n)| {
            [("a", [k, RANK]), ("b", [RANK, n])]
                .map(|(part, extents)| (format!("blk.{layer}.{name}.weight.lora_{part}"), extents))
        })
    });
    let matrices: Vec<_> = matrices.collect();
    out.extend(3u32.to_le_bytes());
    out.extend((matrices.len() as u64).to_le_bytes());
    out.extend(4u64.to_le_bytes());
    for (key, value) in
        [("general.type", "adapter"), ("general.architecture", "llama"), ("adapter.type", "lora")]
    {
        text(&mut out, key);
        out.extend(8u32.to_le_bytes());
        text(&mut out, value);
    }
    text(&mut out, "adapter.lora.alpha");
    out.extend(6u32.to_le_bytes());
    out.extend((RANK as f32).to_le_bytes());
    let mut offset = 0u64;
    for (name, extents) in &matrices {
        text(&mut out, name);
        out.extend(2u32.to_le_bytes());
        out.extend(extents.iter().flat_map(|extent| (*extent as u64).to_le_bytes()));
        // F32.
        out.extend(0u32.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += (extents[0] * extents[1] * 4) as u64;
    }
    out.resize(out.len().next_multiple_of(32), 0);
    for (seed, (_, [k, n])) in matrices.iter().enumerate() {
        let numbers = common::emulated::numbers(seed as u32 + 1, k * n);
        out.extend(numbers.iter().flat_map(|number| (number * 0.06).to_le_bytes()));
    }
    std::fs::write(path, out).unwrap();
}

#[test]
fn an_adapter_is_added() {
    let Some(lab) = lab("an_adapter_is_added") else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("adapter.gguf");
    adapter(&path);
    let (plain, _) = text(&lab, true, &lab.model("F16"), &[]);
    let adapted = same_text(&lab, &["--lora", path.to_str().unwrap()]);
    assert_ne!(adapted, plain, "an adapter that changes nothing tests nothing");
}

#[test]
fn a_saved_prompt_goes_on() {
    let Some(lab) = lab("a_saved_prompt_goes_on") else { return };
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let with_state = ["--prompt-cache", state.to_str().unwrap()];
    let first = same_text(&lab, &[]);
    let (saved, _) = text(&lab, true, &lab.model("F16"), &with_state);
    assert!(state.metadata().unwrap().len() > 10_000);
    let (restored, _) = text(&lab, true, &lab.model("F16"), &with_state);
    // And what the NPU's run saved, the CPU goes on with.
    let (on_cpu, _) = text(&lab, false, &lab.model("F16"), &with_state);
    assert_eq!([&saved, &restored, &on_cpu], [&first; 3]);
}

#[test]
fn the_hosts_suites_for_states_threads_and_cancelled_loads_pass() {
    let Some(lab) = lab("the_hosts_suites_for_states_threads_and_cancelled_loads_pass") else { return };
    // They leave files where they run.
    let dir = tempfile::tempdir().unwrap();
    let flush = dir.path().join("flush_log.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/xtask/src/architectures/flush_log.c");
    output(Command::new("cc").args(["-shared", "-fPIC", source, "-ldl", "-o"]).arg(&flush));
    for model in ["F16", "Q4_0"] {
        let model = lab.model(model);
        let run = |program: &str, arguments: &[&str]| {
            let mut suite = lab.npu(program, "rk3588");
            suite.env("RKNPU_DECODE", "npu").env("OMP_WAIT_POLICY", "passive").args(arguments);
            suite.current_dir(dir.path()).env("LD_PRELOAD", &flush);
            let (out, err) = output(&mut suite);
            out + &err
        };
        let path = model.to_str().unwrap();
        let states = run("test-save-load-state", &["-m", path, "-n", "16", "-p", "The quick brown fox"]);
        assert!(states.contains("All tests passed."), "{states}");
        let arguments = ["-m", path, "-ngl", "99", "-p", "The meaning of life is", "-n", "16", "-c", "256"];
        let threads = run(
            "test-thread-safety",
            &[&arguments[..], &["-ub", "32", "-np", "4", "-t", "2", "-s", "1", "--temp", "0"]].concat(),
        );
        assert!(threads.contains("All threads finished without errors"), "{threads}");
        // Two models of four contexts each, which all say the same.
        let said = |line: &str| line.split_once("/4: ").map(|(_, text)| text.to_owned());
        let mut texts: Vec<String> = threads.lines().filter_map(said).collect();
        assert_eq!(texts.len(), 8, "{threads}");
        texts.dedup();
        assert_eq!(texts.len(), 1, "{texts:?}");
        run("test-model-load-cancel", &[path]);
    }
}

/// A server on the NPU, or on the CPU.
fn server(lab: &Lab, npu: bool, model: &str, more: &[&str]) -> Server {
    let mut command = if npu { lab.npu("llama-server", "rk3588") } else { lab.cpu("llama-server") };
    command.env("RKNPU_DECODE", "npu").env("OMP_WAIT_POLICY", "passive");
    command.arg("-m").arg(lab.model(model)).args(["-t", "2", "--no-webui"]).args(more);
    Server::start(&mut command)
}

#[test]
fn embeddings_are_the_cpus() {
    let Some(lab) = lab("embeddings_are_the_cpus") else { return };
    let of = |npu: bool, text: &str| -> Vec<f64> {
        let server = server(&lab, npu, "F16", &["--embedding", "--pooling", "mean", "-c", "512"]);
        let answer = server.post("/v1/embeddings", &json!({ "input": text, "model": "any" }));
        let numbers = answer["data"][0]["embedding"].as_array().unwrap();
        numbers.iter().map(|number| number.as_f64().unwrap()).collect()
    };
    // Both are of length 1.
    let cosine = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (want, got) = (of(false, PROMPT), of(true, PROMPT));
    assert_eq!((want.len(), got.len()), (576, 576));
    assert!(1.0 - cosine(&want, &got) < 1e-6, "{}", cosine(&want, &got));
    let other = of(true, "A recipe for pancakes, in three steps.");
    assert!(cosine(&got, &other) < 0.999, "texts that differ have embeddings that differ");
}

#[test]
fn parallel_sequences_say_what_each_says_alone() {
    let Some(lab) = lab("parallel_sequences_say_what_each_says_alone") else { return };
    let prompts = [PROMPT, "Once upon a time, there was", "The capital of France is", "To bake bread, first"];
    let server = server(&lab, true, "Q8_0", &["-np", "4", "-c", "1024", "-fa", "on"]);
    let ask = |prompt: &str| {
        let body = json!({ "prompt": prompt, "n_predict": 16, "temperature": 0, "cache_prompt": false });
        server.post("/completion", &body)["content"].as_str().unwrap().to_owned()
    };
    let alone = prompts.map(ask);
    let together = std::thread::scope(|scope| {
        prompts.map(|prompt| scope.spawn(move || ask(prompt))).map(|thread| thread.join().unwrap())
    });
    assert!(alone.iter().all(|text| text.len() > 20), "{alone:?}");
    assert_eq!(together, alone);
}

/// The tiny synthetic model, whose products and attention a test has the time for.
fn tiny(dir: &Path, test: &str) -> Option<String> {
    let Some(xtask) = std::env::var_os("GGML_RKNPU_XTASK") else {
        skip(test, "GGML_RKNPU_XTASK is not set, run cargo xtask test");
        return None;
    };
    let mut synth = Command::new(xtask);
    synth.args(["synth", "--shapes", "tiny", "--types", "f16"]).env("XDG_CACHE_HOME", dir);
    Some(output(&mut synth).0.trim().to_owned())
}

#[test]
fn a_context_of_32768_tokens_is_the_npus() {
    let test = "a_context_of_32768_tokens_is_the_npus";
    let (Some(lab), Some(evaluation)) = (lab(test), std::env::var_os("GGML_RKNPU_TEST_TEXT")) else {
        skip(test, "GGML_RKNPU_TEST_TEXT names no text");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let Some(model) = tiny(dir.path(), test) else { return };
    let path = dir.path().join("report.json");
    let perplexity = |npu: bool| {
        let mut host = if npu { lab.npu("llama-perplexity", "rk3588") } else { lab.cpu("llama-perplexity") };
        host.env("RKNPU_ATTENTION", "npu").env("RKNPU_REPORT", &path).env("OMP_WAIT_POLICY", "passive");
        host.args(["-m", &model, "-c", "32768", "--chunks", "1", "-t", "2", "-fa", "on", "-f"])
            .arg(&evaluation);
        let (out, err) = output(&mut host);
        let said = out + &err;
        let (_, rest) = said.split_once("Final estimate: PPL = ").unwrap_or_else(|| panic!("{said}"));
        rest.split_whitespace().next().unwrap().parse::<f64>().unwrap()
    };
    let (want, got) = (perplexity(false), perplexity(true));
    assert!((got / want - 1.0).abs() < 1e-4, "{got}, on the CPU {want}");
    let report = report(&path);
    assert!(report["attention"]["nodes"].as_u64().unwrap() >= 64, "{report}");
    assert_eq!((&report["fallbacks"], &report["attention"]["fallbacks"]), (&0.into(), &0.into()), "{report}");
}
