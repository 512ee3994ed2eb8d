//! The host's own op tests, on every chip that the emulator plays.

mod common;

use common::{lab, output, summary};

/// Cases of MUL_MAT_ID but those whose random weights take the host minutes to make: 512 or more experts in IQ3_S, and
/// 128 experts of 4096 × 2048.
const EXPERTS: &str = "^(?!.*(type_a=iq3_s.*n_mats=(512|1024)|n_mats=128.*m=4096)).*$";

/// Runs those of MUL_MAT; products of few rows are done by who `decode` says.
fn mul_mat(soc: &str, decode: &str) {
    products("MUL_MAT", ".*", soc, decode);
}

/// Runs the cases of `op` whose parameters the pattern `cases` finds.
fn products(op: &str, cases: &str, soc: &str, decode: &str) {
    let Some(lab) = lab(&format!("{op} of test-backend-ops on {soc}")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.json");
    let (out, err) = output(
        lab.npu("test-backend-ops", soc)
            .args(["test", "-b", "RKNPU", "-o", op, "-p", cases])
            .env("RKNPU_DECODE", decode)
            .env("RKNPU_REPORT", &report),
    );
    let (passed, all) = summary(&(out + &err));
    assert_eq!(passed, all);
    assert!(all > 500, "a suite that ran {all} tests is no pass");
    // The host's CPU had no part in them.
    let report = common::report(&report);
    let least = if decode == "npu" { all as u64 / 2 } else { 1 };
    assert!(report["npu_runs"].as_u64().unwrap() >= least, "{report}");
    assert_eq!(report["routed_flops"] == 0, decode == "npu", "{report}");
    assert_eq!(report["fallbacks"], 0, "{report}");
    assert!(report["description"].as_str().unwrap().starts_with("emulated RK"), "{report}");
}

/// Attention of two tokens and more, whose keys and values are f16 or q8_0.
fn attention(soc: &str) {
    let Some(lab) = lab(&format!("FLASH_ATTN_EXT of test-backend-ops on {soc}")) else { return };
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.json");
    let (out, err) = output(
        lab.npu("test-backend-ops", soc)
            .args(["test", "-b", "RKNPU", "-o", "FLASH_ATTN_EXT"])
            .env("RKNPU_ATTENTION", "npu")
            .env("RKNPU_REPORT", &report),
    );
    let (passed, all) = summary(&(out + &err));
    assert_eq!(passed, all);
    assert!(all > 1000, "a suite that ran {all} tests is no pass");
    let report = common::report(&report);
    assert!(report["attention"]["nodes"].as_u64().unwrap() >= all as u64, "{report}");
    assert_eq!(report["attention"]["fallbacks"], 0, "{report}");
}

#[test]
fn attention_on_rk3588() {
    attention("rk3588");
}

#[test]
fn attention_on_rk3566() {
    attention("rk3566");
}

#[test]
fn mul_mat_on_rk3588() {
    mul_mat("rk3588", "npu");
}

#[test]
fn mul_mat_on_rk3588_by_who_is_faster() {
    mul_mat("rk3588", "auto");
}

#[test]
fn mul_mat_on_rk3566() {
    mul_mat("rk3566", "npu");
}

#[test]
fn mul_mat_id_on_rk3588() {
    products("MUL_MAT_ID", EXPERTS, "rk3588", "npu");
}

#[test]
fn mul_mat_id_on_rk3588_by_who_is_faster() {
    products("MUL_MAT_ID", EXPERTS, "rk3588", "auto");
}

/// What the suite says that we do is what it then tests: as many cases as pass above.
#[test]
fn the_suite_lists_what_is_supported() {
    let Some(lab) = lab("the_suite_lists_what_is_supported") else { return };
    let (out, err) =
        output(lab.npu("test-backend-ops", "rk3588").args(["support", "-b", "RKNPU", "-o", "MUL_MAT"]));
    let said = out + &err;
    let count =
        |word: &str| said.lines().filter(|line| line.contains("MUL_MAT(") && line.contains(word)).count();
    let refused = count("NOT SUPPORTED");
    assert!(count("SUPPORTED") - refused > 1500 && refused > 0, "{said}");
    assert!(said.contains("2/2 backends passed"), "{said}");
}

/// The suite's timings run, of a token and of eight, and the NPU does them. What it times here is the emulator.
#[test]
fn the_suite_times_products() {
    let Some(lab) = lab("the_suite_times_products") else { return };
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.json");
    let cases = "type_a=(q8_0|f16),.*m=4096,n=(1|8),k=14336";
    let mut suite = lab.npu("test-backend-ops", "rk3588");
    suite.args(["perf", "-b", "RKNPU", "-o", "MUL_MAT", "-p", cases]);
    let (out, err) = output(suite.env("RKNPU_DECODE", "npu").env("RKNPU_REPORT", &report));
    let said = out + &err;
    let timed = said.lines().filter(|line| line.contains("MUL_MAT(") && line.contains("FLOPS")).count();
    assert_eq!(timed, 4, "{said}");
    let report = common::report(&report);
    assert!(report["npu_runs"].as_u64().unwrap() > 1000 && report["fallbacks"] == 0, "{report}");
}
