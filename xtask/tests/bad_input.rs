//! Bad input to the commands: one clear line, a non-zero exit, and nothing built or started before it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The tool with an empty cache and nobody's variables, so that a set-up that started would be seen.
fn xtask(arguments: &[&str], cache: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments).env("XDG_CACHE_HOME", cache);
    for name in
        ["RKNPU_LIBRARY", "RKNPU_MODEL", "RKNPU_EMU_SOC", "RKNPU_SOC", "RKNPU_REPORT", "LLAMA_CPP_DIR"]
    {
        command.env_remove(name);
    }
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The one error line of a refusal.
fn refusal(arguments: &[&str], prepare: impl FnOnce(&mut Command)) -> String {
    let cache = tempfile::tempdir().unwrap();
    let mut command = xtask(arguments, cache.path());
    prepare(&mut command);
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    assert!(output.stdout.is_empty());
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0, "nothing was set up");
    text.strip_prefix("error: ").unwrap_or_else(|| panic!("{text}")).trim_end().to_owned()
}

#[test]
fn a_missing_model_is_named_with_the_ones_there_are() {
    let text = refusal(&["run", "-m", "/nowhere/m.gguf"], |_| {});
    assert!(
        text.starts_with("model /nowhere/m.gguf: no such file; give a GGUF file or one of q4_1, f16"),
        "{text}"
    );
    let by_variable = refusal(&["run"], |command| {
        command.env("RKNPU_MODEL", "/nowhere/own.gguf");
    });
    assert!(by_variable.starts_with("model /nowhere/own.gguf: no such file"), "{by_variable}");
}

#[test]
fn a_file_that_is_no_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, "PK\x03\x04").unwrap();
    let text = refusal(&["run", "-m", path.to_str().unwrap()], |_| {});
    assert!(text.contains("not a GGUF file") && text.contains("expected \"GGUF\""), "{text}");
    let text = refusal(&["run", "-m", dir.path().to_str().unwrap()], |_| {});
    assert!(text.contains("it is a folder"), "{text}");
}

#[test]
fn a_truncated_model_is_named_with_both_sizes() {
    // Version 3, one tensor, no metadata: 1000 F32 of which nothing follows.
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    for count in [1u64, 0, 1] {
        file.extend(count.to_le_bytes());
    }
    file.extend(b"w");
    file.extend(1u32.to_le_bytes());
    file.extend(1000u64.to_le_bytes());
    file.extend(0u32.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    fs::write(&path, &file).unwrap();
    let text = refusal(&["run", "-m", path.to_str().unwrap()], |_| {});
    assert!(text.contains(&format!("truncated: it needs 4064 bytes and has {}", file.len())), "{text}");
    fs::write(&path, &file[..30]).unwrap();
    let text = refusal(&["run", "-m", path.to_str().unwrap()], |_| {});
    assert!(text.contains("truncated: the file ends at byte 30"), "{text}");
}

#[test]
fn an_unknown_chip_is_refused_with_the_list() {
    for command in ["run", "exec"] {
        let text = refusal(&[command, "--soc", "rk3399"], |_| {});
        assert!(
            text.contains("\"rk3399\"") && text.ends_with("rk3588, rk3576, rk3566, rk3568, rk3562"),
            "{text}"
        );
    }
    let text = refusal(&["run"], |command| {
        command.env("RKNPU_EMU_SOC", "rk1");
    });
    assert!(text.starts_with("RKNPU_EMU_SOC \"rk1\""), "{text}");
}

#[test]
fn an_empty_prompt_is_refused() {
    let text = refusal(&["run", "-p", ""], |_| {});
    assert!(text.contains("is empty"), "{text}");
}

#[test]
fn a_bench_that_could_not_be_saved_is_refused_before_it_begins() {
    let text = refusal(&["bench", "--save", "a.html"], |_| {});
    assert!(text.starts_with("--save a.html: the page is Markdown"), "{text}");
    let text = refusal(&["bench", "--save", "/nowhere/a.md"], |_| {});
    assert!(text.contains("no folder /nowhere"), "{text}");
    let text = refusal(&["bench", "--soc", "rk1"], |_| {});
    assert!(text.starts_with("--soc \"rk1\""), "{text}");
}

#[test]
fn a_wrong_library_path_is_refused() {
    let text = refusal(&["run"], |command| {
        command.env("RKNPU_LIBRARY", "/nowhere/librknnrt.so");
    });
    assert!(text.starts_with("RKNPU_LIBRARY=/nowhere/librknnrt.so: No such file"), "{text}");
    let text = refusal(&["exec", "--npu", "vendor", "--", "true"], |command| {
        command.env("RKNPU_LIBRARY", env!("CARGO_MANIFEST_PATH"));
    });
    assert!(text.contains("not a shared library"), "{text}");
}

#[test]
fn a_folder_that_is_no_llama_cpp_is_refused() {
    let text = refusal(&["exec", "--cpu"], |command| {
        command.env("LLAMA_CPP_DIR", "/nowhere").env_remove("GGML_RKNPU_TEST_HOST");
    });
    assert!(text.starts_with("LLAMA_CPP_DIR=/nowhere: no llama-completion"), "{text}");
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    let cache = tempfile::tempdir().unwrap();
    for arguments in [
        &["run", "-n", "0"][..],
        &["run", "--npu", "gpu"],
        &["run", "--cpu", "--npu", "auto"],
        &["walk"],
        &["bench", "--shapes", "llama"],
        &["bench", "--types", "q5_9"],
        &["bench", "--layers", "0"],
        &["synth"],
    ] {
        let output = xtask(arguments, cache.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
    }
}
