//! The CMake door: configure, build and install give the plugin and its header.

mod common;

use std::process::Command;

use common::{lab, output};

#[test]
fn cmake_builds_and_installs_the_plugin() {
    let Some(lab) = lab("cmake_builds_and_installs_the_plugin") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (build, prefix) = (dir.path().join("build"), dir.path().join("prefix"));
    // Cargo's own folder is taken along, so that nothing is compiled twice.
    let cargo_dir = lab.plugin.parent().and_then(|release| release.parent()).unwrap();
    output(
        Command::new("cmake")
            .args(["-S", env!("CARGO_MANIFEST_DIR"), "-B"])
            .arg(&build)
            .arg(format!("-DGGML_RKNPU_CARGO_DIR={}", cargo_dir.display())),
    );
    output(Command::new("cmake").arg("--build").arg(&build));
    output(
        Command::new("cmake")
            .arg("--install")
            .arg(&build)
            .arg("--prefix")
            .arg(&prefix)
            .args(["--component", "Unspecified"]),
    );
    let installed = |name: &str| {
        walk(&prefix)
            .into_iter()
            .find(|path| path.ends_with(name))
            .unwrap_or_else(|| panic!("{name} is installed"))
    };
    assert!(installed("include/ggml-rknpu.h").is_file());
    output(Command::new(installed("bin/rknpu-doctor")).arg("--version"));
    let library = installed("libggml-rknpu.so");
    let (out, _) =
        output(lab.npu("llama-bench", "rk3588").arg("--list-devices").env("GGML_BACKEND_PATH", &library));
    assert!(out.contains("RKNPU: emulated RK3588"), "{out}");
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
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
