//! One file for hosts of every generation of the plugin ABI and in other languages: the same model through the same plugin,
//! and the host's own op tests, in real hosts of v3, v2 with 2-D copies, and v2; node-llama-cpp and llama-cpp-python.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{lab, output, report, skip, summary, Lab};

/// Cases of the op tests that are few and see all that differs: f16 and quantised weights, batches, rows few and many.
const CASES: &str = "type_a=(f16|q8_0|q4_K)";

/// The lab with another host; `None`, counted as skipped, where there is none.
fn with_host(variable: &str, test: &str) -> Option<Lab> {
    let lab = lab(test)?;
    match std::env::var_os(variable).map(PathBuf::from) {
        Some(host) => Some(Lab { host, ..lab }),
        None => {
            skip(test, &format!("{variable} is not set, run cargo xtask test"));
            None
        }
    }
}

/// The text is the host's own, and the NPU did the products; the op tests pass.
fn serves(lab: &Lab) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let text = |npu: bool| {
        let mut host = if npu { lab.npu("llama-completion", "rk3588") } else { lab.cpu("llama-completion") };
        // Attention of prompts too.
        host.env("RKNPU_ATTENTION", "npu").env("RKNPU_DECODE", "npu").env("RKNPU_REPORT", &path);
        host.arg("-m").arg(lab.model("F16")).args(["-n", "24", "--temp", "0", "-no-cnv", "-t", "2"]);
        host.args(["-p", "The three largest cities of Italy, with one sentence on each, are", "-fa", "on"]);
        output(&mut host)
    };
    let ((want, _), (got, err)) = (text(false), text(true));
    assert!(want.len() > 80, "{want}");
    assert_eq!(got, want, "{err}");
    let seen = report(&path);
    assert!(seen["npu_runs"].as_u64().unwrap() > 1000, "{seen}");
    assert!(seen["attention"]["nodes"].as_u64().unwrap() >= 30, "{seen}");
    assert_eq!((&seen["fallbacks"], &seen["attention"]["fallbacks"]), (&0.into(), &0.into()), "{seen}");

    let mut suite = lab.npu("test-backend-ops", "rk3588");
    suite.args(["test", "-b", "RKNPU", "-o", "MUL_MAT", "-p", CASES]).env("RKNPU_REPORT", &path);
    let (out, err) = output(&mut suite);
    let (passed, all) = summary(&(out + &err));
    assert_eq!(passed, all);
    assert!(all > 100, "a suite that ran {all} tests is no pass");
    assert_eq!(report(&path)["fallbacks"], 0);
}

#[test]
fn a_host_of_v3_is_served() {
    let Some(lab) = lab("a_host_of_v3_is_served") else { return };
    serves(&lab);
}

#[test]
fn a_host_of_v2_with_2d_copies_is_served() {
    let test = "a_host_of_v2_with_2d_copies_is_served";
    let Some(lab) = with_host("GGML_RKNPU_TEST_HOST_V2_2D", test) else { return };
    serves(&lab);
}

#[test]
fn a_host_of_v2_is_served() {
    let Some(lab) = with_host("GGML_RKNPU_TEST_HOST_V2", "a_host_of_v2_is_served") else { return };
    serves(&lab);
}

/// A host of another language: its text is its own, and the NPU did the products.
fn speaks(lab: &Lab, start: impl Fn() -> Command) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let text = |npu: bool| {
        let mut host = start();
        lab.apply(&mut host, npu.then_some("rk3588"));
        host.env("RKNPU_DECODE", "npu").env("RKNPU_REPORT", &path);
        let (out, err) = output(&mut host);
        assert!(out.trim().len() > 30, "{out}{err}");
        out
    };
    let (want, got) = (text(false), text(true));
    assert_eq!(got, want);
    let seen = report(&path);
    assert!(seen["npu_runs"].as_u64().unwrap() > 1000 && seen["fallbacks"] == 0, "{seen}");
}

/// A folder that `cargo xtask test` names, or nothing, counted as skipped.
fn folder(variable: &str, test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os(variable).map(PathBuf::from);
    if folder.is_none() {
        skip(test, &format!("{variable} is not set, run cargo xtask test"));
    }
    folder
}

const PROMPT: &str = "The three largest cities of Italy are";

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common").join(name)
}

#[test]
fn node_llama_cpp_is_served_through_its_own_api() {
    let test = "node_llama_cpp_is_served_through_its_own_api";
    let (Some(lab), Some(node)) = (lab(test), folder("GGML_RKNPU_TEST_NODE", test)) else { return };
    speaks(&lab, || {
        let mut host = Command::new("node");
        host.arg(script("complete.mjs")).arg(&node).arg(lab.model("F16")).args([PROMPT, "20"]);
        host
    });
}

#[test]
fn llama_cpp_python_is_served() {
    let test = "llama_cpp_python_is_served";
    let (Some(lab), Some(python)) = (lab(test), folder("GGML_RKNPU_TEST_PYTHON", test)) else { return };
    let Some(libraries) = folder("GGML_RKNPU_TEST_HOST_V2_2D", test) else { return };
    speaks(&lab, || {
        let mut host = Command::new("python3");
        host.env("PYTHONPATH", &python).env("PYTHONDONTWRITEBYTECODE", "1");
        // The CPU backend of this build is looked for beside the program, and here.
        host.current_dir(&libraries);
        host.arg(script("complete.py")).arg(lab.model("F16")).args([PROMPT, "20"]);
        host
    });
}
