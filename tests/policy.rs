//! What the user says about pipelines and cores is what is done: on a device in this process, and through the host.

mod common;

use std::path::{Path, PathBuf};

use common::{lab, output, report};
use ggml_rknpu::engine::Activations;
use ggml_rknpu::host::config::Config;
use ggml_rknpu::host::device::{Device, HostWeight, Job};
use ggml_rknpu::host::host_copy::NoKernels;
use ggml_rknpu::pool::Divided;
use ggml_rknpu::weights::Source;
use ggml_sys::RowReader;

const POLICY: &str = r#"
[[weights]]
name = "blk.0.*"
pipeline = "CPU"

[[weights]]
name = "blk.*.ffn_*.weight"
pipeline = "W8A8"
"#;

/// A device on the emulator with these variables and [`POLICY`] for a file: the one that `cargo xtask test` built,
/// or the one beside this test.
fn device(pairs: &[(&str, &str)]) -> Result<Device, String> {
    let beside = || {
        let here = std::env::current_exe().expect("a test has a path");
        here.parent().expect("in a folder").join("libnpu_emulator.so")
    };
    let library = std::env::var_os("GGML_RKNPU_TEST_EMULATOR").map_or_else(beside, PathBuf::from);
    let get = |name: &str| match name {
        "RKNPU_LIBRARY" => Some(library.clone().into_os_string()),
        _ => pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()),
    };
    Device::open(&Config::read(get, |_: &Path| Ok(POLICY.as_bytes().to_vec()))?, &NoKernels)
}

/// Multiplies a row by a weight of each name, twice, and tells by whom or what that was done.
fn done(device: &Device, names: &[&str]) -> Vec<String> {
    let data: Vec<u8> = (0..64 * 64).flat_map(|i| ((i % 7) as f32).to_ne_bytes()).collect();
    // Weights are told apart by where they lie.
    let weights: Vec<_> = names.iter().map(|_| data.clone()).collect();
    for _ in 0..2 {
        for (name, data) in names.iter().zip(&weights) {
            let weight = Source { data, reader: RowReader::f32(), k: 64, n: 64, row_stride: 256 };
            let activations = Activations::new(&[1.0; 64], 64, 1);
            device.multiply_batches(std::iter::once(Job {
                weight: HostWeight {
                    name,
                    source: weight,
                    constant: true,
                    buffer: None,
                    watched: false,
                    lent: false,
                    computed: false,
                },
                activations,
                same: false,
                out: Divided::new(&mut [0.0; 64]),
            }));
        }
    }
    let report = serde_json::to_value(device.report()).unwrap();
    let of = |name: &&str| {
        let tensors = report["tensors"].as_array().unwrap();
        let tensor = tensors.iter().find(|tensor| tensor["name"] == **name).unwrap();
        tensor["pipeline"].as_str().unwrap().to_owned()
    };
    names.iter().map(of).collect()
}

#[test]
fn each_weight_is_done_as_was_asked_for() {
    let names = ["blk.0.ffn_up.weight", "blk.1.ffn_up.weight", "blk.1.attn_q.weight", "output.weight"];
    for (variable, value, want) in [
        ("RKNPU_MODE", "accurate", ["W16A16", "W16A16", "W16A16", "W16A16"]),
        ("RKNPU_PIPELINE", "w8a8", ["W8A8", "W8A8", "W8A8", "W8A8"]),
        ("RKNPU_PIPELINE", "CPU", ["CPU", "CPU", "CPU", "CPU"]),
        ("RKNPU_POLICY", "policy.toml", ["CPU", "W8A8", "W16A16", "W16A16"]),
        ("RKNPU_HYBRID", "W8A8,CPU,W16A16", ["W8A8", "CPU", "W16A16", "W8A8"]),
    ] {
        assert_eq!(done(&device(&[(variable, value)]).unwrap(), &names), want, "{variable}={value}");
    }
}

#[test]
fn cores_that_are_left_out_do_not_work() {
    let npu = ("RKNPU_DECODE", "npu");
    let runs = |pairs: &[_]| device(pairs).map(|device| runs_of_a_product(&device)).unwrap();
    assert_eq!((runs(&[npu, ("RKNPU_CORES", "2")]), runs(&[npu])), (1, 3));
    let error = device(&[("RKNPU_CORES", "0-3")]).err().unwrap();
    assert!(error.contains("RKNPU_CORES is \"0-3\", the RK3588 has cores 0 to 2"), "{error}");
}

/// The NPU's runs for one product: each core that works runs its share once.
fn runs_of_a_product(device: &Device) -> u64 {
    let data = vec![0; 64 * 192 * 4];
    let weight = Source { data: &data, reader: RowReader::f32(), k: 64, n: 192, row_stride: 256 };
    let activations = Activations::new(&[1.0; 64], 64, 1);
    let mut out = [0.0; 192];
    let job = Job {
        weight: HostWeight {
            name: "w",
            source: weight,
            constant: true,
            buffer: None,
            watched: false,
            lent: false,
            computed: false,
        },
        activations,
        same: false,
        out: Divided::new(&mut out),
    };
    assert!(device.multiply_batches(std::iter::once(job)));
    serde_json::to_value(device.report()).unwrap()["npu_runs"].as_u64().unwrap()
}

#[test]
fn a_policy_file_holds_in_the_host() {
    let Some(lab) = lab("a_policy_file_holds_in_the_host") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (policy, report_path) = (dir.path().join("policy.toml"), dir.path().join("report.json"));
    std::fs::write(&policy, POLICY).unwrap();
    let mut command = lab.npu("llama-completion", "rk3588");
    command.arg("-m").arg(lab.model("F16")).args(["-p", "One", "-n", "1", "-no-cnv", "--no-warmup"]);
    command.env("RKNPU_POLICY", &policy).env("RKNPU_REPORT", &report_path).env("RKNPU_CORES", "0,2");
    let (_, err) = output(&mut command);
    // What was asked for is no reason for a warning.
    assert!(!err.contains("ggml-rknpu:"), "{err}");
    let report = report(&report_path);
    let tensors = report["tensors"].as_array().unwrap();
    assert!(tensors.len() > 100, "{report}");
    for tensor in tensors {
        let name = tensor["name"].as_str().unwrap();
        let want = match name {
            _ if name.starts_with("blk.0.") => "CPU",
            _ if name.contains(".ffn_") => "W8A8",
            _ => "W16A16",
        };
        assert_eq!(tensor["pipeline"], want, "{name}");
    }
}
