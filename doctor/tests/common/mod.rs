//! How the tests start the doctor and read what it says.
#![allow(dead_code)]

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

/// The emulator: named by the environment, or beside this test.
pub fn emulator() -> PathBuf {
    std::env::var_os("GGML_RKNPU_TEST_EMULATOR").map(PathBuf::from).unwrap_or_else(|| {
        let exe = std::env::current_exe().expect("a test knows its path");
        exe.parent().expect("target/profile/deps").join("libnpu_emulator.so")
    })
}

/// The doctor with the emulator, unless the arguments name another library.
pub fn doctor(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rknpu-doctor"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("RKNPU_") {
            command.env_remove(name);
        }
    }
    command.args(arguments).env("RKNPU_LIBRARY", emulator());
    command
}

/// What `--json` prints, and the exit code.
pub fn json(command: &mut Command) -> (Value, i32) {
    let output = command.output().expect("the doctor starts");
    let code = output.status.code().expect("an exit code");
    let text = String::from_utf8_lossy(&output.stdout);
    (serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")), code)
}

/// The item of that name in a report.
pub fn item<'a>(report: &'a Value, name: &str) -> &'a Value {
    let sections = report["sections"].as_array().expect("sections");
    let items = sections.iter().flat_map(|section| section["items"].as_array().expect("items"));
    items.into_iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("no {name} in {report:#}"))
}

/// The lines of an output.
pub fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
}
