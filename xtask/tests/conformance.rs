//! `cargo xtask conformance` with a doctor of a few lines of shell, and with the real one where it is built.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

fn xtask(doctor: &PathBuf, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("conformance")
        .args(arguments)
        .env("GGML_RKNPU_TEST_DOCTOR", doctor)
        .env("GGML_RKNPU_TEST_EMULATOR", "/e.so")
        .env_remove("RKNPU_LIBRARY")
        .env_remove("RKNPU_SOC")
        .env_remove("RKNPU_EMU_SOC")
        .output()
        .expect("xtask starts")
}

fn fake(script: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("doctor");
    std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    (dir, path)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_emulator_plays_every_chip_and_the_counts_add_up() {
    let (_dir, doctor) = fake("echo \"✓ $*\"; echo '3 passed; 0 failed; 1 unknown'");
    let output = xtask(&doctor, &[]);
    let out = text(&output.stdout);
    assert!(output.status.success(), "{out}{}", text(&output.stderr));
    assert!(out.contains("✓ --contract --library /e.so --soc rk3562"), "{out}");
    assert_eq!(out.lines().last(), Some("15 passed; 0 failed; 5 unknown"));
}

#[test]
fn a_failed_check_fails_the_command() {
    let (_dir, doctor) = fake("echo '✗ type.1'; echo '3 passed; 2 failed; 1 unknown'; exit 1");
    let output = xtask(&doctor, &["--soc", "rk3588"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout).lines().last(), Some("3 passed; 2 failed; 1 unknown"));
    assert_eq!(text(&output.stderr).trim(), "error: 2 checks failed, marked ✗ above");
}

#[test]
fn a_named_library_is_checked_once_for_the_board() {
    let (_dir, doctor) = fake("echo \"✓ $*\"; echo '3 passed; 0 failed; 0 unknown'");
    let out = text(&xtask(&doctor, &["--library", "/usr/lib/librknnrt.so"]).stdout);
    assert_eq!(out.lines().next(), Some("/usr/lib/librknnrt.so"));
    assert_eq!(out.lines().nth(1), Some("  ✓ --contract --library /usr/lib/librknnrt.so"));
    assert_eq!(out.lines().count(), 3, "{out}");
}

#[test]
fn an_unknown_chip_is_refused() {
    let (_dir, doctor) = fake("exit 1");
    let output = xtask(&doctor, &["--soc", "rk9999"]);
    assert!(text(&output.stderr).contains("\"rk9999\""), "{}", text(&output.stderr));
}
