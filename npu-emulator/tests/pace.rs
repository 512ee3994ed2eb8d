//! Paced runs: they take their modelled time in real time, side by side on several cores, and compute nothing.
//!
//! Only lower bounds are held: a busy machine makes runs longer.

mod common;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use common::{in_child_on_rk3588, is_child, library, spec, Random, Rig};
use rknn_sys::MatmulType;

/// A K that collapses: a quarter of a second with little memory.
const ROWS: usize = 128;
const K: usize = 9216;
const N: usize = 2048;

/// The run's modelled time: 2·M·K·N at 0.02 T, and what every run costs.
fn modelled() -> Duration {
    Duration::from_nanos((2.0 * (ROWS * K * N) as f64 / 20.0 + 33_000.0) as u64)
}

#[test]
fn child_runs_on_two_cores() {
    if !is_child() {
        return;
    }
    let (library, start) = (library(), Barrier::new(2));
    let work = |core: usize| {
        let mut rig = Rig::new(&library, spec(MatmulType::I8, ROWS, K, N));
        rig.context.set_core(core).expect("a core of rk3588");
        let mut random = Random(core as u64);
        let (a, b) = (random.matrix(MatmulType::I8, ROWS * K), random.matrix(MatmulType::I8, K * N));
        rig.write(&a, &b);
        start.wait();
        let begin = Instant::now();
        let c = rig.run();
        assert!(c.iter().all(|value| *value == 0.0), "C stays as it was");
        (begin, Instant::now())
    };
    let [(begin_0, end_0), (begin_1, end_1)] = std::thread::scope(|scope| {
        let threads = [0, 1].map(|core| scope.spawn(move || work(core)));
        threads.map(|thread| thread.join().expect("no panic"))
    });
    for took in [end_0 - begin_0, end_1 - begin_1] {
        assert!(took >= modelled(), "{took:?} is less than {:?}", modelled());
    }
    assert!(begin_0 < end_1 && begin_1 < end_0, "one ran after the other");
}

#[test]
fn two_paced_runs_take_their_time_side_by_side_and_the_report_says_so() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = file.path().to_str().expect("UTF-8");
    let variables = [("RKNPU_EMU_PACE", "1"), ("RKNPU_EMU_REPORT", path)];
    let (passed, text) = in_child_on_rk3588("child_runs_on_two_cores", &variables);
    assert!(passed, "{text}");
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("written")).expect("JSON");
    assert_eq!(report["paced"], true);
    assert!(report["results"].as_str().is_some_and(|text| text.starts_with("not computed")), "{report}");
    for core in 0..3 {
        let core = &report["cores"][core];
        let (paced, modelled) = (core["paced_busy_ns"].as_u64(), core["busy_ns"].as_u64());
        assert!(paced >= modelled && paced.is_some(), "{report}");
    }
    // Two cores at once keep the NPU busy no longer than one: the virtual clock goes on as ever.
    assert_eq!(report["any_core_busy_ns"], report["cores"][0]["busy_ns"]);
}

#[test]
fn a_run_that_is_not_paced_has_no_real_time_in_the_report() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let path = file.path().to_str().expect("UTF-8");
    let variables = [("RKNPU_EMU_PACE", "0"), ("RKNPU_EMU_REPORT", path)];
    let (passed, text) = in_child_on_rk3588("child_computes", &variables);
    assert!(passed, "{text}");
    let report: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("written")).expect("JSON");
    assert_eq!(report["paced"], false);
    assert!(report["cores"][0]["paced_busy_ns"].is_null() && report["results"].is_null(), "{report}");
    assert!(report["any_core_busy_ns"].as_u64() > Some(0));
}

#[test]
fn child_computes() {
    if is_child() {
        common::compare(&library(), spec(MatmulType::I8, 2, 64, 64), 1);
    }
}
