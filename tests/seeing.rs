//! What users see of the engine through a stock host: who did the tokens, the table, the trace.

mod common;
use common::{lab, report, Lab};

/// A greedy continuation of the Q8_0 file; its text, stderr and report.
fn generate(lab: &Lab, variables: &[(&str, &str)]) -> (String, String, serde_json::Value) {
    common::generate(lab, "Q8_0", ("The quick brown fox", 12), variables)
}

#[test]
fn tokens_are_the_same_whoever_does_them() {
    let Some(lab) = lab("tokens_are_the_same_whoever_does_them") else { return };
    let (npu, _, by_npu) = generate(&lab, &[("RKNPU_DECODE", "npu")]);
    let (cpu, _, by_cpu) = generate(&lab, &[("RKNPU_DECODE", "cpu")]);
    let (auto, _, by_auto) = generate(&lab, &[]);
    assert_eq!((&npu, &npu), (&cpu, &auto));
    let number = |report: &serde_json::Value, name: &str| report[name].as_u64().unwrap();
    assert_eq!((number(&by_npu, "routed_flops"), number(&by_npu, "fallbacks")), (0, 0), "{by_npu}");
    assert!(number(&by_npu, "npu_flops") > 0);
    // All rows of this prompt are few.
    assert_eq!((number(&by_cpu, "npu_flops"), number(&by_cpu, "fallbacks")), (0, 0));
    assert_eq!(number(&by_cpu, "routed_flops"), number(&by_npu, "npu_flops"));
    assert!(number(&by_auto, "routed_flops") > 0);
    // Once all is known, nothing is allocated.
    for by in [&by_npu, &by_cpu, &by_auto] {
        assert!(number(by, "late_graphs") * 2 >= number(by, "graphs") && number(by, "graphs") > 100, "{by}");
        assert_eq!(number(by, "late_allocations"), 0, "{by}");
    }
    // Of each of the 30 layers Q, K and V go to the NPU together, then O, then gate, up and down; once a token the output.
    let all = by_npu["tensors"].as_array().unwrap();
    let output = all.iter().find(|tensor| tensor["name"] == "token_embd.weight").unwrap();
    let graphs = number(output, "calls");
    assert_eq!(number(&by_npu, "groups"), (3 * 30 + 1) * graphs, "{by_npu}");
    // Q, K and V are one run on each of the three cores, and so are gate and up, where their weights are neighbours: but at the
    // ends of a few arenas.
    let runs = number(&by_npu, "npu_runs") as f64 / (3 * (4 * 30 + 1) * graphs) as f64;
    assert!((1.0..1.05).contains(&runs), "{runs} times the runs that were expected: {by_npu}");
    // A model of any size in a few arenas, which are full.
    assert!(number(&by_npu, "fds") <= 48 && number(&by_npu, "contexts") <= 128, "{by_npu}");
    let weights = by_npu["tensors"].as_array().unwrap().iter().map(|tensor| number(tensor, "npu_bytes"));
    let (weights, held): (u64, _) = (weights.sum(), number(&by_npu, "npu_bytes"));
    assert!(held * 10 <= weights * 11, "{held} bytes of NPU memory for {weights} bytes of weights");
}

#[test]
fn the_table_and_the_trace_tell_what_was_done() {
    let Some(lab) = lab("the_table_and_the_trace_tell_what_was_done") else { return };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace.json");
    let variables = [("RKNPU_DECODE", "npu"), ("RKNPU_STATS", "1"), ("RKNPU_TRACE", path.to_str().unwrap())];
    let (_, err, _) = generate(&lab, &variables);
    for part in
        ["blk.*.attn_q.weight (30)", "roofline", "ms of the caller in products", "with a core at work"]
    {
        assert!(err.contains(part), "{part:?} is not in {err}");
    }
    let trace = report(&path);
    let events = trace["traceEvents"].as_array().unwrap();
    let names: Vec<_> =
        events.iter().filter(|event| event["ph"] == "M").map(|event| &event["args"]["name"]).collect();
    for lane in ["NPU core 0", "NPU core 1", "NPU core 2", "CPU stages", "host"] {
        assert!(names.iter().any(|name| *name == lane), "{lane} is not among {names:?}");
    }
    let spans = events.iter().filter(|event| event["ph"] == "X");
    for name in ["compare", "pack", "scale", "gap"] {
        assert!(
            spans.clone().any(|span| span["name"] == name && span["dur"].as_f64().unwrap() >= 0.0),
            "{name}"
        );
    }
}
