//! `src/sys.rs` is what bindgen makes of `include/ggml_host_abi.h`.
//!
//! After a change of the header: `UPDATE_BINDINGS=1 cargo test -p ggml-sys --test bindings`.

use std::path::Path;

#[test]
fn sys_is_what_bindgen_makes_of_the_header() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let made = bindgen::builder()
        .header(root.join("include/ggml_host_abi.h").to_str().unwrap())
        .allowlist_file(".*ggml_host_abi.h")
        .raw_line("// Made by bindgen from include/ggml_host_abi.h; see tests/bindings.rs. Do not edit.")
        .use_core()
        // tests/layout.rs checks sizes and offsets against the host itself.
        .layout_tests(false)
        .disable_header_comment()
        .generate()
        .expect("bindgen reads the header")
        .to_string();
    let path = root.join("src/sys.rs");
    if std::env::var_os("UPDATE_BINDINGS").is_some() {
        std::fs::write(&path, made).unwrap();
    } else {
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(kept == made, "src/sys.rs is out of step with the header: run UPDATE_BINDINGS=1 cargo test -p ggml-sys --test bindings");
    }
}
