//! The file in which tests say that they could not run: what `tests/common/skip.rs` writes, counted.

use std::fs;
use std::path::Path;

use crate::error::{IoContext, Result};

/// Names the file to which a test that cannot run appends a line `test: why`.
pub const VARIABLE: &str = "GGML_RKNPU_SKIPS";

/// Each skip in the file, in the order of their writing.
///
/// # Errors
/// When the file cannot be read.
pub fn read(file: &Path) -> Result<Vec<String>> {
    let content = fs::read_to_string(file).at("read", file)?;
    Ok(content.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
#[allow(dead_code)]
#[path = "../../../tests/common/skip.rs"]
mod writer;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_skip_that_a_test_writes_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("skips");
        writer::append(&file, "one", "no host");
        writer::append(&file, "two", "no model,\nnor a text");
        assert_eq!(read(&file).unwrap(), ["one: no host", "two: no model, nor a text"]);
        assert_eq!(writer::VARIABLE, VARIABLE);
    }

    #[test]
    fn a_file_without_a_line_holds_no_skip() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("skips");
        fs::write(&file, "\n").unwrap();
        assert!(read(&file).unwrap().is_empty());
        assert!(read(&dir.path().join("none")).unwrap_err().to_string().contains("none"));
    }
}
