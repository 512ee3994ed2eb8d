//! The page that `--save` writes, with its pictures beside it.

use std::fs;
use std::path::{Path, PathBuf};

use super::picture;
use super::rows::{Row, GROUPS};
use crate::error::{Error, IoContext, Result};

/// Checks that the page can be written there.
///
/// # Errors
/// Another ending than `.md`, or no such folder.
pub fn check_path(path: &Path) -> Result<()> {
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("md")) {
        let path = path.display();
        return Err(Error::Refused(format!(
            "--save {path}: the page is Markdown; name a file that ends in .md"
        )));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.is_dir() {
        return Ok(());
    }
    Err(Error::Refused(format!("--save {}: there is no folder {}", path.display(), folder.display())))
}

/// Writes the page and its pictures.
///
/// # Errors
/// What the system says, or a picture that cannot be drawn.
pub fn save(rows: &[Row], path: &Path) -> Result<()> {
    let [shares, batches] = ["prefill", "rows"].map(|name| beside(path, name));
    for (file, svg) in [(&shares, picture::shares(rows)?), (&batches, picture::batches(rows)?)] {
        fs::write(file, svg).at("write the picture", file)?;
    }
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    fs::write(path, text(rows, &name(&shares), &name(&batches))).at("write the page", path)
}

/// "docs/performance-rows.svg" for "docs/performance.md".
fn beside(path: &Path, name: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{name}.svg"))
}

fn text(rows: &[Row], shares: &str, batches: &str) -> String {
    let first = rows.first();
    let soc = first.map_or("", |row| &row.soc);
    let threads = first.map_or(0, |row| row.threads);
    let memcpy = rows.iter().map(|row| row.memcpy_gb_per_second).fold(0.0, f64::max);
    let mut out = format!(
        "# Performance, modelled\n\n\
         Written by `cargo xtask bench --save`. **Nothing here was measured on a board.** Times of the NPU are those of \
         the emulator's modelled clock ({soc}), which is fitted to published figures; *paced* figures are the wall clock of \
         a stock llama-bench on the machine that ran this ({threads} threads, {memcpy:.1} GB/s of memcpy) while the \
         emulated NPU takes its modelled time in real time. Paced runs compute nothing; the host's OpenMP threads sleep \
         when they wait (OMP_WAIT_POLICY=passive), since this machine has no processors to spare for them.\n\n\
         smollm2 is SmolLM2-135M-Instruct. The other models are synthetic: random weights in the llama architecture with \
         the widths of the models that they are named after.\n"
    );
    for group in &GROUPS {
        out += &format!("\n## {}\n\n{}\n\n{}", group.title, group.text, group.markdown(rows));
        out += match group.title {
            "Prefill" => format!("\n![Prefill against the best schedule and the peak]({shares})\n"),
            "Decode" => format!("\n![Time of small batches over that of one token]({batches})\n"),
            _ => String::new(),
        }
        .as_str();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::row;
    use super::*;

    #[test]
    fn the_page_says_modelled_and_its_pictures_are_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("performance.md");
        save(&[row("m", Some(0.5)), row("n", None)], &path).unwrap();
        let page = fs::read_to_string(&path).unwrap();
        assert!(
            page.starts_with("# Performance, modelled\n")
                && page.contains("Nothing here was measured on a board")
        );
        for line in page.lines().filter(|line| line.starts_with("![")) {
            let file = line.rsplit('(').next().unwrap().trim_end_matches(')');
            assert!(dir.path().join(file).exists(), "{line}");
        }
        assert_eq!(page.matches("![").count(), 2);
    }

    #[test]
    fn a_page_that_could_not_be_written_is_refused_at_once() {
        assert!(check_path(Path::new("performance.md")).is_ok());
        let error = check_path(Path::new("a.html")).unwrap_err().to_string();
        assert!(error.contains("a.html: the page is Markdown"), "{error}");
        let error = check_path(Path::new("/nowhere/a.md")).unwrap_err().to_string();
        assert!(error.contains("no folder /nowhere"), "{error}");
    }
}
