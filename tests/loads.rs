//! Unloading a model gives everything back: fifty loads and unloads in one process of the real host.

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::{lab, output, report, skip};

const TEST: &str = "fifty_loads_and_unloads_leave_descriptors_threads_and_memory_where_they_were";
const ROUNDS: usize = 50;
/// The first rounds make what is made once: threads, contexts, arenas, the host's own caches.
const WARM: usize = 5;
/// Memory may be more than after the first rounds by this: the emulator's clock keeps up to some ten rounds' calls before
/// it puts them in order, and allocators keep what they had. The copies of one round are 200 MB.
const SLACK_KB: i64 = 24 * 1024;
/// The least that is resident in so many rounds, which is not to rise by more than this from one lot to the next.
const LOT: usize = 20;
const RISE_KB: i64 = 2 * 1024;

#[test]
fn fifty_loads_and_unloads_leave_descriptors_threads_and_memory_where_they_were() {
    let Some(lab) = lab(TEST) else { return };
    let Some(source) = std::env::var_os("GGML_RKNPU_TEST_HOST_SOURCE").map(PathBuf::from) else {
        skip(TEST, "GGML_RKNPU_TEST_HOST_SOURCE is not set, run cargo xtask test");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("loads");
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/common/loads.c");
    let mut compile = Command::new("cc");
    compile.args(["-std=gnu11", "-Wall", "-Werror", "-O1", "-I"]).arg(source.join("include"));
    compile.arg("-I").arg(source.join("ggml/include")).arg(path).arg("-o").arg(&program);
    compile.arg("-L").arg(&lab.host).args(["-lllama", "-lggml", "-lggml-base"]);
    compile.arg(format!("-Wl,-rpath,{0},-rpath-link,{0}", lab.host.display()));
    output(&mut compile);

    // Every copy that there is: the NPU's, and the host's.
    let told = dir.path().join("report.json");
    // An absolute path stays what it is when a program of the host is asked for.
    let mut command = lab.npu(program.to_str().unwrap(), "rk3588");
    // The host looks for its CPU backend here too.
    command.arg(lab.model("Q4_0")).arg(ROUNDS.to_string()).current_dir(&lab.host);
    command.env("RKNPU_KEEP", "both").env("RKNPU_REPORT", &told);
    let (out, err) = output(&mut command);

    let rounds: Vec<Vec<i64>> = out
        .lines()
        .map(|line| line.split_whitespace().map(|number| number.parse().unwrap()).collect())
        .collect();
    assert_eq!(rounds.len(), ROUNDS, "{out}{err}");
    let first = &rounds[WARM - 1];
    for (index, round) in rounds.iter().enumerate().skip(WARM) {
        assert_eq!(round[..2], first[..2], "descriptors and threads after round {index}: {out}");
        assert!(round[2] <= first[2] + SLACK_KB, "kB after round {index}: {out}");
    }
    let low = |rounds: &[Vec<i64>]| rounds.iter().map(|round| round[2]).min().unwrap();
    let (before, last) = (low(&rounds[ROUNDS - 2 * LOT..ROUNDS - LOT]), low(&rounds[ROUNDS - LOT..]));
    assert!(
        last <= before + RISE_KB,
        "kB of the last {LOT} rounds: {last}, of those before: {before}: {out}"
    );

    // It was us who did it: each round converted all weights, and the copies that were alive at once are one round's.
    let report = report(&told);
    let count = |name: &str| report[name].as_u64().unwrap();
    assert!(count("npu_runs") > 0 && count("kept_products") > 0 && count("fallbacks") == 0);
    assert!(count("kept_bytes") < 100_000_000, "{}", count("kept_bytes"));
}
