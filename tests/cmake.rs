//! The CMake door: configure, build and install give the plugin, its header and its package; other projects link it, boards
//! are built for. Inside llama.cpp: `cmake_in_llama_cpp.rs`.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{lab, output, skip, Lab};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// cmake that configures `source` in `build`.
fn configure(lab: &Lab, source: &Path, build: &Path) -> Command {
    let mut cmake = Command::new("cmake");
    cmake.arg("-S").arg(source).arg("-B").arg(build);
    cmake.arg(format!("-DGGML_RKNPU_CARGO_DIR={}", lab.cargo_dir().display()));
    cmake
}

fn build(dir: &Path, target: &str) {
    output(Command::new("cmake").arg("--build").arg(dir).args(["--target", target]));
}

/// Configures, builds and installs the project by itself.
fn install(lab: &Lab, options: &[&str], prefix: &Path) {
    let dir = tempfile::tempdir().unwrap();
    output(configure(lab, Path::new(ROOT), dir.path()).args(options));
    build(dir.path(), "all");
    output(Command::new("cmake").arg("--install").arg(dir.path()).arg("--prefix").arg(prefix));
}

/// Builds a program that links the plugin, and runs it.
fn consume(lab: &Lab, source: &Path, options: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let consumer = Path::new(ROOT).join("tests/common/consumer");
    let mut cmake = configure(lab, &consumer, dir.path());
    cmake.arg(format!("-DGGML_BIN={}", lab.host.display()));
    cmake.arg(format!("-DGGML_SOURCE={}", source.display()));
    output(cmake.args(options));
    build(dir.path(), "all");
    let mut program = Command::new(dir.path().join("consumer"));
    lab.apply(&mut program, Some("rk3588"));
    let (out, err) = output(program.env_remove("GGML_BACKEND_PATH"));
    assert_eq!(out, "emulated RK3588\n", "{options:?}: {err}");
}

#[test]
fn cmake_builds_and_installs_the_plugin_and_others_link_it() {
    let test = "cmake_builds_and_installs_the_plugin_and_others_link_it";
    let Some(lab) = lab(test) else { return };
    let Some(source) = std::env::var_os("GGML_RKNPU_TEST_HOST_SOURCE").map(PathBuf::from) else {
        skip(test, "GGML_RKNPU_TEST_HOST_SOURCE is not set, run cargo xtask test");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    for (kind, shared) in [("shared", "ON"), ("static", "OFF")] {
        let prefix = dir.path().join(kind);
        install(&lab, &[&format!("-DBUILD_SHARED_LIBS={shared}")], &prefix);
        assert!(prefix.join("include/ggml-rknpu.h").is_file());
        output(Command::new(prefix.join("bin/rknpu-doctor")).arg("--version"));
        let found = format!("-DCMAKE_PREFIX_PATH={}", prefix.display());
        consume(&lab, &source, &["-DHOW=package", &found]);
        let root = format!("-DGGML_RKNPU={ROOT}");
        consume(&lab, &source, &["-DHOW=subdirectory", &root, &format!("-DBUILD_SHARED_LIBS={shared}")]);
    }
    let library = walk(&dir.path().join("shared"))
        .into_iter()
        .find(|path| path.ends_with("libggml-rknpu.so"))
        .expect("the library is installed");
    let (out, _) =
        output(lab.npu("llama-bench", "rk3588").arg("--list-devices").env("GGML_BACKEND_PATH", &library));
    assert!(out.contains("RKNPU: emulated RK3588"), "{out}");
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir)
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path)
            } else {
                vec![path]
            }
        })
        .collect()
}

/// Debian's rustc has the boards' standard library, where `cargo xtask test` has installed it.
const DEBIANS_RUSTC: &str = "/usr/bin/rustc";
const BOARDS_CC: &str = "/usr/bin/aarch64-linux-gnu-gcc";
/// As the tests for boards are built, in the same folder.
const CARGO_FLAGS: &str = "--config;profile.dev.package.\"*\".opt-level=0;--config;\
    profile.dev.package.half.opt-level=2;--config;profile.dev.package.proptest.opt-level=2";

#[test]
fn a_toolchain_file_builds_for_a_board() {
    let test = "a_toolchain_file_builds_for_a_board";
    let Some(lab) = lab(test) else { return };
    if cfg!(target_arch = "aarch64") || !Path::new(BOARDS_CC).exists() || !Path::new(DEBIANS_RUSTC).exists() {
        skip(test, &format!("{BOARDS_CC} or {DEBIANS_RUSTC} is not there, or this is a board"));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (build_dir, toolchain) = (dir.path().join("build"), dir.path().join("board.cmake"));
    let text = |processor: &str| {
        format!(
            "set(CMAKE_SYSTEM_NAME Linux)\nset(CMAKE_SYSTEM_PROCESSOR {processor})\nset(CMAKE_C_COMPILER {BOARDS_CC})\n"
        )
    };
    let cmake = |processor: &str, rustc: &str| {
        std::fs::write(&toolchain, text(processor)).unwrap();
        let _ = std::fs::remove_dir_all(&build_dir);
        let mut cmake = configure(&lab, Path::new(ROOT), &build_dir);
        // A debug build, which cargo is told of too.
        let cargo_dir = lab.cargo_dir().join("aarch64");
        cmake.arg(format!("-DGGML_RKNPU_CARGO_DIR={}", cargo_dir.display()));
        cmake.arg(format!("-DCMAKE_TOOLCHAIN_FILE={}", toolchain.display()));
        cmake.arg(format!("-DGGML_RKNPU_CARGO_FLAGS={CARGO_FLAGS}"));
        cmake.arg("-DCMAKE_BUILD_TYPE=Debug").arg(format!("-DGGML_RKNPU_RUSTC={rustc}"));
        cmake
    };
    let refused = |processor: &str, rustc: &str, expected: &str| {
        let result = cmake(processor, rustc).output().unwrap();
        let text = String::from_utf8_lossy(&result.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(!result.status.success() && text.contains(expected), "{text}");
    };
    refused("riscv64", DEBIANS_RUSTC, "CMAKE_SYSTEM_PROCESSOR is 'riscv64'; expected aarch64 or x86_64");
    refused("aarch64", "/nowhere/rustc", "/nowhere/rustc is ''; expected Rust 1.");

    let (out, _) = output(&mut cmake("aarch64", DEBIANS_RUSTC));
    assert!(out.contains("ggml-rknpu: debug for aarch64-unknown-linux-gnu"), "{out}");
    build(&build_dir, "ggml-rknpu-cargo");
    let bytes = std::fs::read(build_dir.join("libggml-rknpu.so")).unwrap();
    // e_machine of an ELF file: EM_AARCH64.
    assert_eq!((&bytes[..4], bytes[18]), (&b"\x7fELF"[..], 183));
}
