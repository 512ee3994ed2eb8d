//! What the shared library shows to the world: its names, its soname, what it links to.

mod common;

use std::process::Command;

use common::{lab, output};

#[test]
fn the_plugin_exports_its_names_and_nothing_else() {
    let Some(lab) = lab("the_plugin_exports_its_names_and_nothing_else") else { return };
    let (out, _) =
        output(Command::new("nm").args(["-D", "--defined-only", "--format=posix"]).arg(&lab.plugin));
    let names: Vec<&str> = out.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.contains(&"ggml_backend_init") && names.contains(&"ggml_backend_score"), "{names:?}");
    for name in names {
        assert!(
            ["ggml_backend_init", "ggml_backend_score", "ggml_backend_is_rknpu"].contains(&name)
                || name.starts_with("ggml_backend_rknpu_"),
            "{name}"
        );
    }
    let (out, _) = output(Command::new("readelf").arg("-d").arg(&lab.plugin));
    assert!(out.contains("[libggml-rknpu.so]"), "the soname: {out}");
    assert!(
        !out.contains("libggml-base") && !out.contains("librknnrt"),
        "nothing of the host or the vendor is linked: {out}"
    );
}
