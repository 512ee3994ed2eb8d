//! The doctor with the emulator as the library: a sound chip, a chip that is not what it is believed to be, a
//! library that dies.

mod common;

use common::{doctor, emulator, item, json, lines};

/// Every chip that the emulator plays, as its name is typed.
const CHIPS: [&str; 5] = ["rk3588", "rk3576", "rk3566", "rk3568", "rk3562"];

#[test]
fn each_emulated_chip_holds_the_contract() {
    for soc in CHIPS {
        let output = doctor(&["--contract"]).env("RKNPU_EMU_SOC", soc).output().unwrap();
        let lines = lines(&output.stdout);
        let failed: Vec<&String> = lines.iter().filter(|line| line.starts_with('✗')).collect();
        assert!(failed.is_empty() && output.status.success(), "{soc}: {failed:#?}");
        // What could not be told says why.
        assert!(lines.iter().filter(|line| line.starts_with('–')).all(|line| line.contains(" · ")));
        let last = lines.last().unwrap();
        assert!(last.ends_with(" unknown") && last.contains("; 0 failed; "), "{last}");
    }
}

#[test]
fn the_report_of_the_emulator_says_that_it_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.json");
    let output = doctor(&["--report", file.to_str().unwrap()]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.starts_with("rknpu-doctor ") && text.lines().next().unwrap().ends_with("emulated RK3588"));
    assert!(text.contains("emulator, not of a board)"), "{text}");
    assert!(!text.contains('✗'), "{text}");

    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(report["emulated"], true);
    assert_eq!(report["well"], true);
    assert_eq!(report["quick"]["native_b"], true);
    assert_eq!(report["differences"], serde_json::json!([]));
    assert!(report["library_version"].as_str().unwrap().contains("emulated"));
    assert_eq!(item(&report, "layout.b.i8")["state"], "well");
    assert!(item(&report, "layout.b.i8")["source"].is_string());
    assert_ne!(item(&report, "cost.create")["state"], "wrong");
}

#[test]
fn wrong_layouts_are_found_and_the_right_ones_named() {
    let (report, code) =
        json(doctor(&["--json", "--no-times", "--soc", "rk3562"]).env("RKNPU_EMU_SOC", "rk3588"));
    assert_eq!(code, 1);
    assert_eq!(report["well"], false);
    let layout = item(&report, "layout.b.i8");
    assert_eq!(layout["state"], "wrong");
    assert!(layout["found"].as_str().unwrap().ends_with("(N/32, K/32, 32, 32) fits"), "{layout}");
    assert!(layout["advice"].as_str().unwrap().contains("row-major"));
    // What both chips have in common holds all the same.
    for name in ["layout.a.i8", "layout.c.f16", "layout.norm.i8", "numbers.f16"] {
        assert_eq!(item(&report, name)["state"], "well", "{name}");
    }
    let differences = report["differences"].as_array().unwrap();
    assert!(differences.contains(&"layout.b.f16".into()) && differences.contains(&"type.10".into()));
    assert_eq!(report["quick"]["native_b"], false);
}

#[test]
fn a_chip_that_is_not_there_takes_no_context() {
    let (report, code) = json(doctor(&["--json", "--soc", "rk3588"]).env("RKNPU_EMU_SOC", "rk0000"));
    assert_eq!(code, 1);
    assert_eq!(item(&report, "context")["state"], "wrong");
    assert!(report["library_log"]
        .as_array()
        .unwrap()
        .iter()
        .any(|line| { line.as_str().is_some_and(|line| line.contains("rk0000")) }));
}

#[test]
fn a_library_that_is_none_is_said_in_one_line() {
    let output = doctor(&["--contract", "--library", "/nowhere/librknnrt.so"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let lines = lines(&output.stdout);
    assert!(lines[0].starts_with("✗ library") && lines[0].contains("/nowhere/librknnrt.so"), "{lines:?}");
    assert_eq!(lines.last().unwrap(), "0 passed; 1 failed; 0 unknown");
}

#[test]
fn a_wrong_command_line_is_exit_code_two() {
    for arguments in [&["--soc", "rk9999"][..], &["--json", "--contract"], &["--loud"]] {
        assert_eq!(doctor(arguments).output().unwrap().status.code(), Some(2), "{arguments:?}");
    }
    let output = doctor(&[]).env("RKNPU_SOC", "rk9999").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(emulator().exists());
}

#[test]
fn a_check_in_which_the_library_dies_fails_and_the_others_go_on() {
    // Strict, the emulator aborts where it would refuse.
    let output = doctor(&["--contract"]).env("RKNPU_EMU_STRICT", "1").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let lines = lines(&output.stdout);
    let line = |name: &str| lines.iter().find(|line| line[3..].trim_start().starts_with(name)).unwrap();
    assert!(line("align.k.i8").ends_with("the library took the process down: signal 6"), "{lines:#?}");
    assert!(
        line("layout.all.i8").starts_with('✓') && line("memory.views.f16").starts_with('✓'),
        "{lines:#?}"
    );
}
