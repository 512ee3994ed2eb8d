//! Small hosts in C, compiled against the headers of each generation of the plugin ABI and run with its libraries: tables as
//! the header lays them out, each way to a buffer's bytes, products by the scheduler against an f64 oracle.
//!
//! All of ggml here is real. What is made up is a host of a generation that nobody has yet (`common/unknown.c`).

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{lab, output, report, skip, Lab};

/// Compiles a C host of `tests/common`.
fn compile(source: &str, program: &Path, arguments: &[&str]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common").join(source);
    let mut cc = Command::new("cc");
    cc.args(["-std=gnu11", "-Wall", "-Werror", "-O1"]).arg(path).arg("-o").arg(program).args(arguments);
    output(&mut cc);
}

/// Runs the small host with the libraries in `bin`, compiled against the headers of `source`; the ggml that it found.
fn serves(lab: &Lab, source: &Path, bin: &Path, defines: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (program, told) = (dir.path().join("generation"), dir.path().join("report.json"));
    let include = |part: &str| format!("-I{}", source.join("ggml").join(part).display());
    let libraries = format!("-L{}", bin.display());
    let rpath = format!("-Wl,-rpath,{0},-rpath-link,{0}", bin.display());
    let (public, private) = (include("include"), include("src"));
    let mut arguments = defines.to_vec();
    arguments.extend([&*public, &*private, &*libraries, "-lggml", "-lggml-base", "-lm", &*rpath]);
    compile("generation.c", &program, &arguments);

    // An absolute path stays what it is when a program of the host is asked for.
    let mut command = lab.npu(program.to_str().unwrap(), "rk3588");
    command.env_remove("GGML_BACKEND_PATH").env("RKNPU_DECODE", "npu").env("RKNPU_REPORT", &told);
    let (out, err) = output(command.arg(&lab.plugin).arg(bin.join("libggml-cpu.so")));
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((&lines[0][..], &lines[1][..]), (&["tables"][..], &["buffers"][..]), "{out}{err}");
    let products: Vec<_> = lines.iter().filter(|line| line[0].starts_with("mul_mat")).collect();
    assert_eq!(products.len(), 7, "{out}{err}");
    for product in products {
        let limit = if product[1].starts_with('f') { 1e-6 } else { 2e-4 };
        assert!(product[2].parse::<f64>().unwrap() < limit, "{product:?}: {out}");
    }
    let report = report(&told);
    assert!(report["npu_runs"].as_u64().unwrap() >= 7 && report["fallbacks"] == 0, "{report}");
    lines.last().unwrap()[1].to_owned()
}

/// Folders of libraries and of sources that `cargo xtask test` names, or nothing, counted as skipped.
fn host(variable: &str, test: &str) -> Option<(PathBuf, PathBuf)> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let found = path(variable).zip(path(&format!("{variable}_SOURCE")));
    if found.is_none() {
        skip(test, &format!("{variable} is not set, run cargo xtask test"));
    }
    found
}

#[test]
fn a_host_of_v3_in_c() {
    let test = "a_host_of_v3_in_c";
    let (Some(lab), Some((bin, source))) = (lab(test), host("GGML_RKNPU_TEST_HOST", test)) else { return };
    serves(&lab, &source, &bin, &["-DHOST_HAS_2D"]);
}

#[test]
fn a_host_of_v2_with_2d_copies_in_c() {
    let test = "a_host_of_v2_with_2d_copies_in_c";
    let Some((bin, source)) = host("GGML_RKNPU_TEST_HOST_V2_2D", test) else { return };
    let Some(lab) = lab(test) else { return };
    assert_eq!(serves(&lab, &source, &bin, &["-DHOST_HAS_2D"]), "0.25.3");
}

#[test]
fn a_host_of_v2_in_c() {
    let test = "a_host_of_v2_in_c";
    let (Some(lab), Some((bin, source))) = (lab(test), host("GGML_RKNPU_TEST_HOST_V2", test)) else { return };
    serves(&lab, &source, &bin, &[]);
}

#[test]
fn a_host_that_does_not_mark_the_nodes_that_are_to_be_computed_has_all_of_them_computed() {
    let test = "a_host_that_does_not_mark_the_nodes_that_are_to_be_computed";
    let Some((bin, source)) = host("GGML_RKNPU_TEST_HOST_V2_UNMARKED", test) else { return };
    let Some(lab) = lab(test) else { return };
    let header = std::fs::read_to_string(source.join("ggml/include/ggml.h")).unwrap();
    assert!(!header.contains("GGML_TENSOR_FLAG_COMPUTE"), "this is the host that has no mark");
    assert_eq!(serves(&lab, &source, &bin, &[]), "0.9.5");
}

#[test]
fn an_unknown_generation_is_declined_in_one_line() {
    let Some(lab) = lab("an_unknown_generation_is_declined_in_one_line") else { return };
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("unknown");
    compile("unknown.c", &program, &["-rdynamic", "-ldl"]);
    let mut command = lab.npu(program.to_str().unwrap(), "rk3588");
    let (out, err) = output(command.arg(&lab.plugin));
    assert_eq!(out, "null\n", "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    for part in ["ggml 0.99.0", "version 4", "v2 and v2-2d (version 2) and v3 (version 3)"] {
        assert!(err.contains(part), "{part}: {err}");
    }
}
