//! An NPU that is not as believed, or fails under way: the text stays the CPU's, and what it cost is said.

mod common;

use std::process::Command;

use common::{lab, output, report, Lab};

fn completion(lab: &Lab, npu: bool, model: &str) -> Command {
    let mut command = if npu { lab.npu("llama-completion", "rk3588") } else { lab.cpu("llama-completion") };
    command.arg("-m").arg(lab.model(model)).args([
        "-p",
        "The capital of France is",
        "-n",
        "6",
        "--temp",
        "0",
    ]);
    command.args(["-no-cnv", "--no-warmup"]);
    // Few rows as they are, all products are to meet the NPU's faults.
    command.env("RKNPU_DECODE", "npu");
    command
}

/// The text, the plugin's lines and the report of F16 with `faults` in the emulator.
fn with_faults(lab: &Lab, model: &str, faults: &str) -> (String, Vec<String>, serde_json::Value) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let mut command = completion(lab, true, model);
    let (text, err) = output(command.env("RKNPU_EMU_FAULTS", faults).env("RKNPU_REPORT", &path));
    let lines = err.lines().filter(|line| line.starts_with("ggml-rknpu:")).map(str::to_owned).collect();
    let mut report = report(&path);
    // Two hundred tensors are no help in a failure's message.
    report.as_object_mut().unwrap().remove("tensors");
    (text, lines, report)
}

#[test]
fn a_quirk_costs_speed_and_leaves_the_text_right() {
    let Some(lab) = lab("a_quirk_costs_speed_and_leaves_the_text_right") else { return };
    let (want, _) = output(&mut completion(&lab, false, "F16"));
    for (quirk, said) in [
        ("views", "wrong views of an allocation"),
        ("create_mem_from_fd:null", "wrong views of an allocation"),
        ("native-b", "another layout of weights"),
        ("native-ac", "another layout of activations"),
        ("native-b; native-ac; views", "another layout of weights"),
        ("core=1", "core 1"),
        ("core=0; core=2", "core 0"),
        ("run:wrong=2", "core 2"),
        ("i8=-5", "8-bit products"),
    ] {
        let (text, lines, report) = with_faults(&lab, "F16", quirk);
        assert_eq!(text, want, "{quirk}");
        assert!(lines.iter().any(|line| line.contains(said)), "{quirk}: {lines:?}");
        // It costs speed, not the NPU.
        assert!(report["npu_runs"].as_u64().unwrap() > 0, "{quirk}: {report}");
        assert_eq!(report["fallbacks"], 0, "{quirk}: {report}");
    }
}

#[test]
fn a_missing_type_is_replaced_by_a_truer_one_or_by_the_cpu() {
    let Some(lab) = lab("a_missing_type_is_replaced_by_a_truer_one_or_by_the_cpu") else { return };
    let (_, _, report) = with_faults(&lab, "Q8_0", "i8=-5");
    assert!(
        report["pipelines"]["W16A16"].as_u64().unwrap() > 0 && report["pipelines"]["W8A8"].is_null(),
        "{report}"
    );
    let (want, _) = output(&mut completion(&lab, false, "F16"));
    let (text, lines, report) = with_faults(&lab, "F16", "f16=-5");
    assert_eq!(text, want);
    assert!(report["fallbacks"].as_u64().unwrap() > 0 && report["npu_runs"] == 0, "{report}");
    assert!(lines.iter().any(|line| line.contains("16-bit products")), "{lines:?}");
    // With neither there is no device, hence no report.
    let (text, err) = output(completion(&lab, true, "F16").env("RKNPU_EMU_FAULTS", "f16=-5; i8=-5"));
    assert_eq!(text, want);
    assert!(err.contains("ggml-rknpu: no NPU device"), "{err}");
}

#[test]
fn a_failure_under_way_is_made_up_for_by_the_cpu() {
    let Some(lab) = lab("a_failure_under_way_is_made_up_for_by_the_cpu") else { return };
    let (want, _) = output(&mut completion(&lab, false, "F16"));
    for fault in [
        "run@400:-1",
        "run@400:hang",
        "run@400:submit",
        "run@400+:-3",
        "run@p0.01~3:-2",
        "any@3000:lost=40",
        "create@20:-4",
        "set_io_mem@500:space",
        "create_mem@20+:fds",
        "mem_sync@700:-1",
        "create_mem@p0.3~9:null",
    ] {
        let (text, lines, report) = with_faults(&lab, "F16", fault);
        assert_eq!(text, want, "{fault}");
        assert!(report["fallbacks"].as_u64().unwrap() > 0, "{fault}: {report}");
        assert!(!lines.is_empty(), "{fault}: nothing was said");
        assert!(lines.len() < 250, "{fault}: {} lines", lines.len());
    }
}

#[test]
fn trust_can_be_given_without_a_probe() {
    let Some(lab) = lab("trust_can_be_given_without_a_probe") else { return };
    let contexts = |probe: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("emulator.json");
        let mut command = lab.npu("llama-bench", "rk3588");
        output(command.arg("--list-devices").env("RKNPU_PROBE", probe).env("RKNPU_EMU_REPORT", &path));
        report(&path)
    };
    let created =
        |report: &serde_json::Value| report["calls"]["create"]["count"].as_u64().unwrap_or_default();
    assert_eq!(created(&contexts("off")), 1, "only the context that memories are made with");
    assert!(created(&contexts("quick")) > 1);
}
