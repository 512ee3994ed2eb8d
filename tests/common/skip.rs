//! How a test says that it could not run. The one writer of the file whose lines `cargo xtask test` counts: test
//! programs of other packages include this file by its path, and so does the reader's own test.

use std::io::Write as _;
use std::path::Path;

/// Names the file to which each test that cannot run appends a line.
pub const VARIABLE: &str = "GGML_RKNPU_SKIPS";

/// Says why a test did not run, on stderr and where `cargo xtask test` counts it.
pub fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    if let Some(file) = std::env::var_os(VARIABLE) {
        append(Path::new(&file), test, reason);
    }
}

/// Appends one line, `test: reason`, to the file.
pub fn append(file: &Path, test: &str, reason: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).unwrap();
    // Each line counts, so a reason is one; and one write, since tests of one program skip at the same time.
    let line = format!("{test}: {reason}").replace('\n', " ");
    file.write_all((line + "\n").as_bytes()).unwrap();
}
