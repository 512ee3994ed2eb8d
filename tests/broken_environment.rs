//! What is wrong outside of the plugin gives one clear line, and the host goes on.

mod common;

use std::os::unix::process::CommandExt as _;

use common::{lab, output, report, Lab};

/// Runs `llama-bench --list-devices` with one variable changed: the devices, and the plugin's lines.
fn devices(lab: &Lab, name: &str, value: &str) -> (String, Vec<String>) {
    let (out, err) = output(lab.npu("llama-bench", "rk3588").arg("--list-devices").env(name, value));
    // llama-bench loads its backends twice; a line is said once, since the plugin starts once.
    let lines = err.lines().filter(|line| line.starts_with("ggml-rknpu:")).map(str::to_owned).collect();
    (out, lines)
}

#[test]
fn the_device_is_listed_when_all_is_well() {
    let Some(lab) = lab("the_device_is_listed_when_all_is_well") else { return };
    let (out, lines) = devices(&lab, "RKNPU_LOG", "warn");
    assert_eq!(out.matches("RKNPU: emulated RK3588").count(), 1, "{out}");
    assert!(lines.is_empty(), "{lines:?}");
}

#[test]
fn one_line_and_no_device_when_something_is_missing() {
    let Some(lab) = lab("one_line_and_no_device_when_something_is_missing") else { return };
    for (name, value, said) in [
        ("RKNPU_LIBRARY", "/nonexistent/librknnrt.so", "/nonexistent/librknnrt.so"),
        ("RKNPU_LIBRARY", "/", "cannot open"),
        ("RKNPU_LIBRARY", "libm.so.6", "has no function rknn_matmul_create"),
        ("RKNPU_EMU_SOC", "rk9999", "rk9999"),
        ("RKNPU_SOC", "rk9999", "expected one of rk3588"),
        ("RKNPU_PIPELINE", "W2A2", "expected one of W4A4, W4A8"),
        (
            "RKNPU_POLICY",
            "/nonexistent/policy.toml",
            "RKNPU_POLICY is \"/nonexistent/policy.toml\": cannot read it",
        ),
        ("RKNPU_HYBRID", "W8A8,W2A2", "its entry \"W2A2\" is unknown"),
        ("RKNPU_CORES", "3", "RKNPU_CORES is \"3\", the RK3588 has cores 0 to 2"),
        ("RKNPU_PROBE", "maybe", "expected off, quick or full"),
        ("RKNPU_LOG", "loud", "expected error, warn, info or debug"),
    ] {
        let (out, lines) = devices(&lab, name, value);
        assert!(!out.contains("RKNPU"), "{name}={value}: {out}");
        assert_eq!(lines.len(), 1, "{name}={value}: {lines:?}");
        assert!(lines[0].contains(said) || name == "RKNPU_EMU_SOC", "{name}={value}: {lines:?}");
    }
    let (out, lines) = devices(&lab, "RKNPU_DISABLE", "1");
    assert!(!out.contains("RKNPU") && lines.is_empty(), "{out} {lines:?}");
}

fn completion(lab: &Lab, npu: bool) -> std::process::Command {
    let mut command = if npu { lab.npu("llama-completion", "rk3588") } else { lab.cpu("llama-completion") };
    command.arg("-m").arg(lab.model("F16")).args([
        "-p",
        "The capital of France is",
        "-n",
        "8",
        "--temp",
        "0",
        "-no-cnv",
        "--no-warmup",
    ]);
    command
}

#[test]
fn without_a_library_the_cpu_says_the_same() {
    let Some(lab) = lab("without_a_library_the_cpu_says_the_same") else { return };
    let (want, _) = output(&mut completion(&lab, false));
    let (got, err) = output(completion(&lab, true).env("RKNPU_LIBRARY", "/nonexistent/librknnrt.so"));
    assert_eq!(got, want);
    assert_eq!(err.matches("ggml-rknpu:").count(), 1, "{err}");
}

#[test]
fn out_of_file_descriptors_the_cpu_takes_over() {
    let Some(lab) = lab("out_of_file_descriptors_the_cpu_takes_over") else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    let (want, _) = output(&mut completion(&lab, false));
    let mut command = completion(&lab, true);
    command.env("RKNPU_REPORT", &path);
    // SAFETY: setrlimit is async-signal-safe and concerns the child alone.
    unsafe {
        command.pre_exec(|| {
            let limit = libc::rlimit { rlim_cur: 14, rlim_max: 14 };
            match libc::setrlimit(libc::RLIMIT_NOFILE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    let (got, err) = output(&mut command);
    assert_eq!(got, want, "{err}");
    let report = report(&path);
    // What has a converted copy is still done over it.
    let count = |name: &str| report[name].as_u64().unwrap();
    assert!(count("fallbacks") > 0 && count("npu_flops") + count("routed_flops") > 0, "{report}");
    assert!(err.contains("stays with the CPU"), "{err}");
}
