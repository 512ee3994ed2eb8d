//! Where `cargo xtask test` put the host, the models and the libraries; how a test says that it could not run.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;

pub mod divergence;
pub mod emulated;
mod skip;
pub use skip::skip;

/// What the tests that need a real host work with.
#[derive(Debug, Clone)]
pub struct Lab {
    /// The host's programs and libraries.
    pub host: PathBuf,
    /// The derived models.
    pub models: PathBuf,
    /// The plugin.
    pub plugin: PathBuf,
    /// The emulator.
    pub emulator: PathBuf,
}

/// The lab; `None`, with the reason where `cargo xtask test` counts it, when the environment does not name one.
pub fn lab(test: &str) -> Option<Lab> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from).ok_or_else(|| name.to_owned());
    let lab = || -> Result<Lab, String> {
        Ok(Lab {
            host: path("GGML_RKNPU_TEST_HOST")?,
            models: path("GGML_RKNPU_TEST_MODELS")?,
            plugin: path("GGML_RKNPU_TEST_PLUGIN")?,
            emulator: path("GGML_RKNPU_TEST_EMULATOR")?,
        })
    };
    lab().map_err(|missing| skip(test, &format!("{missing} is not set, run cargo xtask test"))).ok()
}

impl Lab {
    /// A model by the name of its type: "F16", "Q8_0" …
    pub fn model(&self, name: &str) -> PathBuf {
        self.models.join(format!("SmolLM2-135M-Instruct.{name}.gguf"))
    }

    /// The folder in which cargo built the plugin: a build of it there compiles nothing twice.
    pub fn cargo_dir(&self) -> &Path {
        self.plugin.parent().and_then(Path::parent).expect("it lies in a folder of a profile")
    }

    /// A program of the host with the plugin and the emulated `soc`.
    pub fn npu(&self, program: &str, soc: &str) -> Command {
        let mut command = Command::new(self.host.join(program));
        self.apply(&mut command, Some(soc));
        command
    }

    /// Lets any program see the plugin with the emulated `soc`, or nothing of us.
    pub fn apply(&self, command: &mut Command, soc: Option<&str>) {
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("RKNPU_") || text == "GGML_BACKEND_PATH" {
                command.env_remove(&name);
            }
        }
        let Some(soc) = soc else { return };
        command
            .env("GGML_BACKEND_PATH", &self.plugin)
            .env("RKNPU_LIBRARY", &self.emulator)
            .env("RKNPU_EMU_SOC", soc)
            // By itself the plugin measures who does attention: its tests name somebody.
            .env("RKNPU_ATTENTION", "cpu")
            // Any misuse of the vendor's calls aborts the host, and with it the test.
            .env("RKNPU_EMU_STRICT", "1");
    }

    /// A program of the host alone.
    pub fn cpu(&self, program: &str) -> Command {
        let mut command = Command::new(self.host.join(program));
        self.apply(&mut command, None);
        command
    }
}

/// Passed and all tests of `test-backend-ops` by its summary line ("  1044/1044 tests passed").
pub fn summary(text: &str) -> (usize, usize) {
    let line = text
        .lines()
        .find(|line| line.contains("tests passed"))
        .unwrap_or_else(|| panic!("no summary:\n{text}"));
    let fraction = line.split_whitespace().next().unwrap();
    let (passed, all) = fraction.split_once('/').unwrap();
    (passed.parse().unwrap(), all.parse().unwrap())
}

/// Runs a command to its end; its stdout, and stderr after it. Fails the test when the command fails.
pub fn output(command: &mut Command) -> (String, String) {
    let output = command.stdin(std::process::Stdio::null()).output().expect("the program starts");
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(output.status.success(), "{command:?} ended with {}:\n{out}\n{err}", output.status);
    (out, err)
}

/// A number out of a report.
pub fn report(path: &Path) -> serde_json::Value {
    let text = std::fs::read(path).unwrap_or_else(|error| panic!("no report at {}: {error}", path.display()));
    serde_json::from_slice(&text).expect("the report is JSON")
}

/// A greedy continuation of the prompt by so many tokens, with the plugin; its text, stderr and report.
pub fn generate(
    lab: &Lab,
    model: &str,
    (prompt, tokens): (&str, u32),
    variables: &[(&str, &str)],
) -> (String, String, serde_json::Value) {
    generate_with(lab, model, (prompt, tokens), variables, |command| command)
}

/// As [`generate`], with a last change of the command.
pub fn generate_with(
    lab: &Lab,
    model: &str,
    (prompt, tokens): (&str, u32),
    variables: &[(&str, &str)],
    change: impl FnOnce(&mut Command) -> &mut Command,
) -> (String, String, serde_json::Value) {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("report.json");
    let mut command = lab.npu("llama-completion", "rk3588");
    command.arg("-m").arg(lab.model(model)).args(["-p", prompt, "-n", &tokens.to_string()]);
    command.args(["--temp", "0", "-no-cnv", "-t", "2", "--seed", "1"]);
    command.envs(variables.iter().copied()).env("RKNPU_REPORT", &path);
    let (text, err) = output(change(&mut command));
    (text, err, report(&path))
}
