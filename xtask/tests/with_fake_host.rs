//! `run` over a host made of a few lines of shell: what is passed, what is shown, what is counted.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

/// Held while a script is written and while a process is forked: a fork that still has the script open for
/// writing would keep it from being started.
static FORK: Mutex<()> = Mutex::new(());

/// A model of one layer: 2 heads of 4, a tied output of 100 rows, two weights; 32 positions of context.
fn model() -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    let text = |file: &mut Vec<u8>, s: &str| {
        file.extend((s.len() as u64).to_le_bytes());
        file.extend(s.as_bytes());
    };
    file.extend(3u64.to_le_bytes());
    file.extend(5u64.to_le_bytes());
    text(&mut file, "general.architecture");
    file.extend(8u32.to_le_bytes());
    text(&mut file, "llama");
    let numbers =
        [("block_count", 1u32), ("embedding_length", 8), ("attention.head_count", 2), ("context_length", 32)];
    for (key, number) in numbers {
        text(&mut file, &format!("llama.{key}"));
        file.extend(4u32.to_le_bytes());
        file.extend(number.to_le_bytes());
    }
    let tensors = [("token_embd.weight", 100u64), ("blk.0.attn_q.weight", 8), ("blk.0.ffn_up.weight", 16)];
    for (name, n) in tensors {
        text(&mut file, name);
        file.extend(2u32.to_le_bytes());
        file.extend(8u64.to_le_bytes());
        file.extend(n.to_le_bytes());
        file.extend([0; 12]); // F32, all at offset 0
    }
    file.resize(file.len() + 32 + 8 * 100 * 4, 0);
    file
}

/// Runs `run` with the script as the host's llama-completion.
fn run(script: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("llama-completion");
    let guard = FORK.lock().unwrap_or_else(PoisonError::into_inner);
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let file = dir.path().join("m.gguf");
    fs::write(&file, model()).unwrap();

    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    for name in
        ["RKNPU_LIBRARY", "RKNPU_MODEL", "RKNPU_EMU_SOC", "RKNPU_SOC", "RKNPU_REPORT", "RKNPU_DISABLE"]
    {
        command.env_remove(name);
    }
    command.env("GGML_RKNPU_TEST_HOST", dir.path()).env("GGML_RKNPU_TEST_MODELS", dir.path());
    command.env("GGML_RKNPU_TEST_PLUGIN", "/plugin.so").env("GGML_RKNPU_TEST_EMULATOR", "/emulator.so");
    command.envs(variables.iter().copied());
    command.arg("run").arg("-m").arg(&file).args(arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(guard);
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// 5 tokens of prompt and 3 generated: the FLOPs are 896 (attn_q), 768 (ffn_up), 4800 (output), 896 (attention).
const PERF: &str = r#"
echo "I perf: samplers time = 0.77 ms / 8 tokens" >&2
echo "I perf: prompt eval time = 1 ms / 5 tokens ( 3.36 ms per token, 297.85 tokens per second)" >&2
echo "I perf:        eval time = 1 ms / 2 runs ( 7.04 ms per token, 142.11 tokens per second)" >&2
"#;

const REPORT: &str = r#"
printf 'Hello there [end of text]\n\n\n'
cat >"$RKNPU_REPORT" <<'END'
{"device": "RKNPU", "description": "emulated RK3588", "soc": "rk3588", "npu_runs": 7, "npu_flops": 5568,
 "cpu_flops": 896, "contexts": 3, "fds": 2, "npu_bytes": 1500000, "fallbacks": 1,
 "pipelines": {"W16A16": 7}, "tensors": [
 {"name": "token_embd.weight", "type": "f16", "k": 8, "n": 100, "pipeline": "W16A16", "npu_flops": 4800},
 {"name": "blk.0.ffn_up.weight", "npu_flops": 768}, {"name": "blk.0.attn_q.weight", "cpu_flops": 896}]}
END
"#;

#[test]
fn the_json_is_the_last_line_with_every_figure() {
    let output = run(&format!("{REPORT}{PERF}"), &["--json"], &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    let result: serde_json::Value = serde_json::from_str(stdout(&output).lines().last().unwrap()).unwrap();
    assert_eq!(result["text"], "Hello there");
    assert_eq!((&result["tokens"], &result["prompt_tokens"]), (&3.into(), &5.into()));
    assert_eq!((&result["npu_flops"], &result["total_flops"]), (&5568.into(), &7360.into()));
    assert!((result["npu_flops_share"].as_f64().unwrap() - 5568.0 / 7360.0).abs() < 1e-12);
    assert_eq!(result["pipelines"], serde_json::json!({"W16A16": 7}));
    let counts =
        ["npu_runs", "contexts", "fds", "npu_bytes", "fallbacks"].map(|key| result[key].as_u64().unwrap());
    assert_eq!(counts, [7, 3, 2, 1_500_000, 1]);
    let names = ["device", "description", "soc"].map(|key| result[key].as_str().unwrap());
    assert_eq!(names, ["RKNPU", "emulated RK3588", "rk3588"]);
    assert!(
        result["model"].as_str().unwrap().ends_with("m.gguf") && result["seconds"].as_f64().unwrap() > 0.0
    );
}

#[test]
fn the_text_is_followed_by_the_table() {
    let output = run(&format!("{REPORT}{PERF}"), &[], &[]);
    let text = stdout(&output);
    assert!(text.starts_with("Hello there\n\ndevice     RKNPU (emulated RK3588)\n"), "{text}");
    assert!(text.contains("NPU share  75.7 % of 0.00 GFLOP of matmul\npipelines  W16A16 × 7\n"), "{text}");
    assert!(text.contains("NPU        7 runs, 3 contexts, 2 fds, 1.5 MB\nfallbacks  1\n"), "{text}");
    assert!(text.contains("5 prompt tokens at 297.9/s, 3 generated at 142.1/s"), "{text}");
}

#[test]
fn the_users_own_report_file_is_written_and_an_old_one_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    fs::write(&path, "{\"device\": \"stale\"}").unwrap();
    let own = [("RKNPU_REPORT", path.to_str().unwrap())];
    let output = run("echo 'I load_backend: loaded RKNPU backend from /plugin.so' >&2", &[], &own);
    assert!(output.status.success() && stdout(&output).contains("took no matmul"), "{}", stderr(&output));
    assert_eq!(fs::read_to_string(&path).unwrap(), "{\"device\": \"stale\"}");
    run(REPORT, &[], &own);
    assert!(fs::read_to_string(&path).unwrap().contains("emulated RK3588"));
}

#[test]
fn the_hosts_arguments_are_those_of_one_greedy_turn() {
    let script = "echo \"$@\"; echo \"$GGML_BACKEND_PATH $RKNPU_LIBRARY $RKNPU_EMU_SOC\"";
    let arguments = ["--cpu", "-p", "-Hi", "-n", "9", "--", "-t", "3"];
    let text = stdout(&run(script, &arguments, &[("GGML_BACKEND_PATH", "/x")]));
    // The model was trained on 32, which the host would round up by itself but for its batch.
    assert!(text.contains("-p -Hi -n 9 -c 256 --temp 0 -cnv -st "), "{text}");
    assert!(text.lines().next().unwrap().ends_with(" -t 3") && !text.contains("/x"), "{text}");
    let text = stdout(&run(script, &["--cpu", "--raw", "-c", "300"], &[]));
    assert!(text.contains("-c 512 --temp 0 -no-cnv "), "{text}");
    let report = format!("{script}{REPORT}");
    let text = stdout(&run(&report, &["--npu", "emulated", "--soc", "rk3562"], &[]));
    assert!(text.contains("/plugin.so /emulator.so rk3562"), "{text}");
}

#[test]
fn a_missing_device_is_an_error_with_the_plugins_own_line() {
    let output = run("echo Hi; echo 'ggml-rknpu: no NPU library: x' >&2", &[], &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    let last = text.lines().last().unwrap();
    assert!(last.starts_with("error: the plugin registered no device"), "{text}");
    assert!(last.contains("ggml-rknpu: no NPU library: x") && text.lines().count() == 2, "{text}");
    assert!(stdout(&output).starts_with("Hi"), "what the CPU wrote is shown all the same");

    let disabled = run("echo Hi", &[], &[("RKNPU_DISABLE", "1")]);
    assert!(
        disabled.status.success() && stdout(&disabled).contains("RKNPU_DISABLE=1"),
        "{}",
        stderr(&disabled)
    );
}

#[test]
fn a_host_that_dies_is_named_with_its_signal_and_last_lines() {
    let output = run("echo 'E out of luck' >&2; kill -ABRT $$", &[], &[]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("  E out of luck\nerror: llama-completion was killed by signal 6 (SIGABRT)"),
        "{text}"
    );
}

#[test]
fn a_report_that_is_none_is_an_error() {
    let output = run("echo nonsense >\"$RKNPU_REPORT\"", &[], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot read the plugin's report"), "{}", stderr(&output));
}
