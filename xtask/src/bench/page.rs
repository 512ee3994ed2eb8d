//! The page that `--save` writes, with its pictures beside it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::picture;
use super::rows::{Group, Row, GROUPS};
use super::versus::{self, Part};
use super::Found;
use crate::error::{Error, IoContext, Result};

/// The sections, in their order.
const TITLES: [&str; 5] = ["Prefill", "Decode", "What it takes", "Attention", "Experts"];

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

/// Writes the page and its pictures; sections of which nothing was measured stay as they are in an existing page.
///
/// # Errors
/// What the system says, or a picture that cannot be drawn.
pub fn save(found: &Found, path: &Path) -> Result<()> {
    let before = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).at("read the page", path),
    };
    let (head_before, sections_before) = parts(&before);
    let mut head = head_before.to_owned();
    let mut sections = Vec::new();
    if let Some(first) = found.rows.first() {
        let [shares, batches] = ["prefill", "rows"].map(|name| beside(path, name));
        let rows = &found.rows;
        for (file, svg) in [(&shares, picture::shares(rows)?), (&batches, picture::batches(rows)?)] {
            fs::write(file, svg).at("write the picture", file)?;
        }
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let memcpy = rows.iter().map(|row| row.memcpy_gb_per_second).fold(0.0, f64::max);
        head = heading(&first.soc, first.threads, &format!("{memcpy:.1} GB/s of memcpy"));
        sections = products(rows, &name(&shares), &name(&batches));
    } else if head.is_empty() {
        head = heading("rk3588", 0, "see the tables");
    }
    let versus = [Part::Attention, Part::Experts].map(|part| versus::section(part, &found.pairs));
    sections.extend(versus.into_iter().flatten());
    let mut page = head.trim_end().to_owned() + "\n";
    for title in TITLES {
        let text = sections.iter().find(|(of, _)| *of == title).map(|(_, text)| text.as_str());
        let text =
            text.or_else(|| sections_before.iter().find(|(of, _)| *of == title).map(|(_, text)| *text));
        if let Some(text) = text {
            page += &format!("\n## {title}\n\n{}\n", text.trim());
        }
    }
    fs::write(path, page).at("write the page", path)
}

/// What is before the first section of a page, and its sections: title and text.
fn parts(page: &str) -> (&str, Vec<(&str, &str)>) {
    let mut parts = page.split("\n## ");
    let head = parts.next().unwrap_or_default();
    (head, parts.map(|part| part.split_once('\n').unwrap_or((part, ""))).collect())
}

/// "docs/performance-rows.svg" for "docs/performance.md".
fn beside(path: &Path, name: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{name}.svg"))
}

fn heading(soc: &str, threads: u32, memcpy: &str) -> String {
    format!(
        "# Performance, modelled\n\n\
         Written by `cargo xtask bench --save`. **Nothing here was measured on a board.** Times of the NPU are those of \
         the emulator's modelled clock ({soc}), which is fitted to published figures; *paced* figures are the wall clock of \
         a stock llama-bench on the machine that ran this ({threads} threads, {memcpy}) while the \
         emulated NPU takes its modelled time in real time. Paced runs compute nothing; the host's OpenMP threads sleep \
         when they wait (OMP_WAIT_POLICY=passive), since this machine has no processors to spare for them.\n\n\
         smollm2 is SmolLM2-135M-Instruct. The other models are synthetic: random weights in the llama architecture with \
         the widths of the models that they are named after.\n"
    )
}

/// The sections on products with weights.
fn products(rows: &[Row], shares: &str, batches: &str) -> Vec<(&'static str, String)> {
    let section = |group: &Group| {
        let picture = match group.title {
            "Prefill" => format!("\n![Prefill against the best schedule and the peak]({shares})\n"),
            "Decode" => format!("\n![Time of small batches over that of one token]({batches})\n"),
            _ => String::new(),
        };
        (group.title, format!("{}\n\n{}{picture}", group.text, group.markdown(rows)))
    };
    GROUPS.iter().map(section).collect()
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::row;
    use super::super::versus::tests::pair;
    use super::super::versus::Pair;
    use super::*;

    #[test]
    fn the_page_says_modelled_and_its_pictures_are_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("performance.md");
        let rows = vec![row("m", Some(0.5)), row("n", None)];
        save(&Found { rows, ..Found::default() }, &path).unwrap();
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
        // What is measured later joins it, and is replaced when measured again.
        for model in ["first", "second"] {
            let pair = Pair { model: model.into(), ..pair(Part::Attention) };
            save(&Found { pairs: vec![pair], ..Found::default() }, &path).unwrap();
            let with = fs::read_to_string(&path).unwrap();
            assert!(with.starts_with(page.trim_end()) && with.contains("## Attention\n\nA prompt"), "{with}");
            assert!(with.contains(&format!("| {model} |")) && with.matches("## ").count() == 4, "{with}");
        }
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
