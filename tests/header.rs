//! `include/ggml-rknpu.h` is what cbindgen makes of `src/ffi/exports.rs`, and a C compiler takes it.
//!
//! After a change of the exports: `UPDATE_HEADER=1 cargo test -p ggml-rknpu --test header`.

use std::path::Path;
use std::process::Command;

fn generated() -> String {
    let config = cbindgen::Config {
        language: cbindgen::Language::C,
        include_guard: Some("GGML_RKNPU_H".to_owned()),
        header: Some(
            "/*\n * The C interface of libggml-rknpu: a ggml backend for the NPU of Rockchip boards.\n *\n \
             * Made by cbindgen from src/ffi/exports.rs; see tests/header.rs. Do not edit.\n */"
                .to_owned(),
        ),
        cpp_compat: true,
        no_includes: true,
        sys_includes: vec!["stdbool.h".to_owned()],
        documentation_style: cbindgen::DocumentationStyle::C,
        ..cbindgen::Config::default()
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut out = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(root.join("src/ffi/exports.rs"))
        .generate()
        .expect("cbindgen reads the exports")
        .write(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn the_header_is_what_cbindgen_makes_of_the_exports() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/ggml-rknpu.h");
    let made = generated();
    if std::env::var_os("UPDATE_HEADER").is_some() {
        std::fs::write(&path, made).unwrap();
        return;
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == made,
        "include/ggml-rknpu.h is out of step: run UPDATE_HEADER=1 cargo test -p ggml-rknpu --test header"
    );
}

#[test]
fn c_and_cpp_compilers_take_the_header() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/ggml-rknpu.h");
    for language in ["c", "c++"] {
        let output = Command::new("cc")
            .args(["-Wall", "-Werror", "-fsyntax-only", "-x", language])
            .arg(&header)
            .output()
            .expect("cc runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
