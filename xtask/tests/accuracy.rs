//! `accuracy` over a host made of a few lines of shell: what is asked, what is counted, what is saved and drawn.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

/// Held while a script is written and while a process is forked: a fork that still has the script open for
/// writing would keep it from being started.
static FORK: Mutex<()> = Mutex::new(());

/// A model of one weight in a layer, 32×2 of Q8_0, and a norm.
fn model() -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    let text = |file: &mut Vec<u8>, s: &str| {
        file.extend((s.len() as u64).to_le_bytes());
        file.extend(s.as_bytes());
    };
    file.extend(2u64.to_le_bytes());
    file.extend(1u64.to_le_bytes());
    text(&mut file, "general.architecture");
    file.extend(8u32.to_le_bytes());
    text(&mut file, "llama");
    for (name, dims, dtype) in
        [("blk.0.attn_q.weight", &[32u64, 2][..], 8u32), ("output_norm.weight", &[8], 0)]
    {
        text(&mut file, name);
        file.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|extent| file.extend(extent.to_le_bytes()));
        file.extend(dtype.to_le_bytes());
        file.extend(0u64.to_le_bytes());
    }
    file.resize(file.len() + 32 + 68, 0);
    file
}

/// A host that notes what it was asked, and whose plugin holds 130 bytes for 64 weights.
const HOST: &str = r#"#!/bin/sh
echo "mode=$RKNPU_MODE pipeline=$RKNPU_PIPELINE plugin=$GGML_BACKEND_PATH" >>"${0%/*}/asked"
[ "$RKNPU_PIPELINE" = W2A2 ] && echo 'ggml-rknpu: no NPU device, the CPU does everything: RKNPU_PIPELINE is "W2A2"' >&2
[ -n "$GGML_BACKEND_PATH" ] && echo '{"tensors": [{"name": "q", "k": 32, "n": 2, "npu_bytes": 130},
 {"name": "kq", "k": 64, "n": 9, "pipeline": "CPU"}]}' >"$RKNPU_REPORT"
echo "Mean PPL(Q)                   :  28.7 ±   0.9"
echo "Mean    KLD:   0.004257 ±   0.000107"
echo "Same top p: 95.180 ± 0.297 %"
"#;

/// Runs `accuracy` in `dir`, which gets the host and the model.
fn accuracy(dir: &Path, arguments: &[&str]) -> Output {
    let host = dir.join("llama-perplexity");
    let guard = FORK.lock().unwrap_or_else(PoisonError::into_inner);
    if !host.exists() {
        fs::write(&host, HOST).unwrap();
        fs::set_permissions(&host, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.join("m.gguf"), model()).unwrap();
        fs::write(dir.join("text"), "words").unwrap();
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    for name in ["RKNPU_LIBRARY", "RKNPU_MODEL", "RKNPU_EMU_SOC", "RKNPU_SOC", "GGML_BACKEND_PATH"] {
        command.env_remove(name);
    }
    command.env("GGML_RKNPU_TEST_HOST", dir).env("GGML_RKNPU_TEST_MODELS", dir);
    command.env("GGML_RKNPU_TEST_PLUGIN", "/plugin.so").env("GGML_RKNPU_TEST_EMULATOR", "/emulator.so");
    // What the caller's environment asks must not show in any row.
    command.env("RKNPU_PIPELINE", "W1A1").env("RKNPU_MODE", "own").env("RKNPU_REPORT", "/nowhere/report");
    command.current_dir(dir).arg("accuracy").args(arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(guard);
    child.wait_with_output().unwrap()
}

const MEASURE: [&str; 6] = ["-m", "m.gguf", "--reference", "m.gguf", "--text", "text"];

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn each_row_is_asked_for_by_name_and_has_its_bytes_a_weight() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["--pipelines", "default,lean,W4A8_PADDED", "--json"];
    let output = accuracy(dir.path(), &[&MEASURE[..], &names].concat());
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    let rows: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    let of = |key: &str| rows.as_array().unwrap().iter().map(|row| row[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("on"), ["CPU", "default", "lean", "W4A8_PADDED"]);
    assert_eq!(of("bytes_per_weight"), [34.0 / 32.0, 130.0 / 64.0, 130.0 / 64.0, 130.0 / 64.0]);
    assert_eq!((&rows[0]["chunks"], &rows[0]["reference"]), (&20.into(), &"m".into()));
    let asked = fs::read_to_string(dir.path().join("asked")).unwrap();
    let asked: Vec<&str> = asked.lines().skip(2).collect();
    assert_eq!(
        asked,
        [
            "mode= pipeline= plugin=/plugin.so",
            "mode=lean pipeline= plugin=/plugin.so",
            "mode= pipeline=W4A8_PADDED plugin=/plugin.so",
        ]
    );
}

#[test]
fn the_plugins_complaint_about_a_name_is_the_error() {
    let dir = tempfile::tempdir().unwrap();
    let output = accuracy(dir.path(), &[&MEASURE[..], &["--pipelines", "W2A2"]].concat());
    let (_, stderr) = texts(&output);
    assert!(!output.status.success());
    let last = stderr.lines().last().unwrap();
    assert!(last.starts_with("error: ggml-rknpu: no NPU device") && last.contains("W2A2"), "{stderr}");
}

#[test]
fn saved_results_of_several_runs_are_printed_and_drawn_without_measuring() {
    let dir = tempfile::tempdir().unwrap();
    let saved = |name: &str, pipeline: &str| {
        let output = accuracy(dir.path(), &[&MEASURE[..], &["--json", "--pipelines", pipeline]].concat());
        fs::write(dir.path().join(name), output.stdout).unwrap();
    };
    saved("1.json", "W8A8");
    saved("2.json", "W4A4");
    let asked = || fs::read_to_string(dir.path().join("asked")).unwrap().lines().count();
    let before = asked();
    let output = accuracy(dir.path(), &["--from", "1.json", "--from", "2.json", "--picture", "p.svg"]);
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(asked(), before, "nothing was measured");
    assert_eq!(stdout.lines().count(), 4, "the CPU's row is in both files and taken once: {stdout}");
    let picture = fs::read_to_string(dir.path().join("p.svg")).unwrap();
    for label in ["W8A8", "W4A4", "CPU"] {
        assert!(picture.contains(label), "{label}");
    }
}

#[test]
fn a_picture_that_cannot_be_written_is_refused_before_measuring() {
    let dir = tempfile::tempdir().unwrap();
    let output = accuracy(dir.path(), &[&MEASURE[..], &["--picture", "p.png"]].concat());
    assert!(texts(&output).1.contains("error: --picture p.png: only SVG"), "{output:?}");
    assert!(!dir.path().join("asked").exists());
    let output = accuracy(dir.path(), &["--from", "none.json"]);
    assert!(texts(&output).1.contains("error: cannot read the results none.json"), "{output:?}");
}
