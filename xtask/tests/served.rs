//! `cluster` and `architectures` with a real host and the emulated NPU. The paths come from `cargo xtask test`; without them
//! these tests say that they were skipped.

mod common;

use std::process::Command;

use common::{last_json, texts, xtask};

/// The command with the emulated NPU.
fn emulated(command: &str, arguments: &[&str]) -> Option<Command> {
    xtask(&[&[command, "--npu", "emulated", "--json"], arguments].concat())
}

#[test]
fn a_model_over_two_servers_says_what_one_process_says() {
    for model in ["f16", "q4_0"] {
        let Some(mut cluster) = emulated("cluster", &["-m", model, "-n", "24", "--runs", "1"]) else {
            return;
        };
        let result = last_json(&cluster.env("RKNPU_DECODE", "npu").output().unwrap());
        assert!(result["same_text"] == true && result["text"].as_str().unwrap().len() > 20, "{result}");
        let nodes = result["nodes"].as_array().unwrap();
        assert_eq!(nodes.len(), 2);
        for node in nodes {
            assert_eq!(node["description"], "emulated RK3588", "{result}");
            assert!(node["npu_runs"].as_u64().unwrap() > 50, "{result}");
        }
        // Each has its part of the layers.
        let bytes = |index: usize| nodes[index]["npu_bytes"].as_u64().unwrap() as f64;
        assert!((0.2..5.0).contains(&(bytes(0) / bytes(1))), "{result}");
        assert!(
            result["hop_ms"]["median"].is_number() && result["one_node_ms"].as_f64().unwrap() > 0.0,
            "{result}"
        );
    }
}

#[test]
fn servers_that_cannot_be_joined_are_one_clear_line() {
    for (address, why) in [("board", "expected host:port"), ("board:x", "expected host:port")] {
        let Some(mut cluster) = xtask(&["cluster", "--join", address]) else { return };
        let output = cluster.output().unwrap();
        let (_, stderr) = texts(&output);
        assert!(!output.status.success() && stderr.contains(why), "{stderr}");
    }
}

/// By the host's own suite, and by us against the same suite on the CPU.
#[test]
fn every_architecture_of_the_host_says_what_the_cpu_says() {
    let Some(mut architectures) = emulated("architectures", &[]) else { return };
    let result = last_json(&architectures.output().unwrap());
    let number = |key: &str| result[key].as_u64().unwrap();
    assert!(number("tests") >= 133, "only {} tests ran", number("tests"));
    assert_eq!(number("passed"), number("tests"), "{result}");
    assert_eq!((number("cpu_tests"), number("cpu_passed")), (number("tests"), number("tests")), "{result}");
    assert!(number("npu_runs") > 10_000 && number("fallbacks") == 0, "{result}");
    let architectures = result["architectures"].as_array().unwrap();
    assert!(architectures.len() > 100, "{}", architectures.len());
    for one in architectures {
        let value = |key: &str| one[key].as_f64().unwrap();
        assert!(value("rows") >= 100.0, "{one}");
        // Of F16 and F32 weights: noise would be an error of 1, and a product in 8 bits one of 1e-4.
        assert!(value("kl") < 1e-4 && value("nmse") < 5e-5 && value("same_top") > 0.95, "{one}");
    }
}
