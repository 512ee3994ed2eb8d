//! Unloading a model gives everything back: fifty loads and unloads in one process of the real host.

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::{lab, output, report, skip};

const TEST: &str = "fifty_loads_and_unloads_leave_descriptors_threads_and_memory_where_they_were";
const ROUNDS: usize = 50;
/// The first rounds make what is made once: threads, contexts, arenas, the host's own caches.
const WARM: usize = 10;
/// Memory may be more than after the first rounds by this, since allocators do not find a place for everything where it
/// was before. The copies of one round are 200 MB.
const SLACK_KB: i64 = 3 * 1024;

/// What a process has after a round: descriptors, threads, resident kB.
type Round = [i64; 3];

/// Says in which round something was not given back.
fn leak(rounds: &[Round]) -> Result<(), String> {
    let first = rounds[WARM - 1];
    for (index, round) in rounds.iter().enumerate().skip(WARM) {
        if round[..2] != first[..2] {
            return Err(format!("descriptors and threads after round {index}: {round:?}, before: {first:?}"));
        }
        if round[2] > first[2] + SLACK_KB {
            return Err(format!("kB after round {index}: {round:?}, before: {first:?}"));
        }
    }
    Ok(())
}

#[test]
fn what_is_not_given_back_is_found() {
    let rounds = |each: Round| -> Vec<Round> {
        let at = |round: i64, each: i64, first: i64| first + round * each;
        let [files, threads, kb] = each;
        (0..ROUNDS as i64).map(|i| [at(i, files, 40), at(i, threads, 9), at(i, kb, 20_000)]).collect()
    };
    // Some kB of what allocators leave in between are borne; a descriptor, a thread, or a tenth of a MB a round are not.
    assert_eq!(leak(&rounds([0, 0, 20])), Ok(()));
    for each in [[1, 0, 0], [0, 1, 0], [0, 0, 100], [-1, 0, 0]] {
        assert!(leak(&rounds(each)).is_err(), "{each:?}");
    }
}

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

    let numbers = |line: &str| {
        let numbers: Vec<i64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
        Round::try_from(numbers).unwrap()
    };
    let rounds: Vec<Round> = out.lines().map(numbers).collect();
    assert_eq!(rounds.len(), ROUNDS, "{out}{err}");
    leak(&rounds).unwrap_or_else(|error| panic!("{error}: {out}"));

    // It was us who did it: each round converted all weights, and the copies that were alive at once are one round's.
    let report = report(&told);
    let count = |name: &str| report[name].as_u64().unwrap();
    assert!(count("npu_runs") > 0 && count("kept_products") > 0 && count("fallbacks") == 0);
    assert!(count("kept_bytes") < 100_000_000, "{}", count("kept_bytes"));
}
