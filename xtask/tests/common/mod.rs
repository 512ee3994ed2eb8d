//! The tool as tests start it, and what it printed.
#![allow(dead_code)]

use std::env;
use std::process::{Command, Output};

#[path = "../../../tests/common/skip.rs"]
mod skip;
pub use skip::skip;

/// The tool, if there is a host to run.
pub fn xtask(arguments: &[&str]) -> Option<Command> {
    let needed = [
        "GGML_RKNPU_TEST_HOST",
        "GGML_RKNPU_TEST_MODELS",
        "GGML_RKNPU_TEST_PLUGIN",
        "GGML_RKNPU_TEST_EMULATOR",
    ];
    if let Some(missing) = needed.into_iter().find(|name| env::var_os(name).is_none()) {
        // libtest names the thread of a test by the test.
        let test = std::thread::current().name().unwrap_or("with_host").to_owned();
        skip(&test, &format!("{missing} is not set, run cargo xtask test"));
        return None;
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments);
    for name in
        ["RKNPU_LIBRARY", "RKNPU_MODEL", "RKNPU_EMU_SOC", "RKNPU_SOC", "RKNPU_REPORT", "RKNPU_DISABLE"]
    {
        command.env_remove(name);
    }
    Some(command)
}

/// Stdout and stderr.
pub fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The JSON that the last line of stdout is; fails the test when the command failed.
pub fn last_json(output: &Output) -> serde_json::Value {
    let (stdout, stderr) = texts(output);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_str(stdout.lines().last().unwrap_or_default()).unwrap()
}
