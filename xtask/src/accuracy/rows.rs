//! The rows of figures: how they are printed, saved and read again.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Result};

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The file's name, without `.gguf`.
    pub model: String,
    /// "CPU", or what was asked of the NPU.
    pub on: String,
    /// Mean Kullback–Leibler divergence to the reference.
    pub kl: f64,
    /// Percent of tokens whose likeliest next token is the reference's.
    pub same_top: f64,
    /// The perplexity of the text.
    pub perplexity: f64,
    /// See [`super::size`]; `None` if it is not known.
    #[serde(default)]
    pub bytes_per_weight: Option<f64>,
    /// The file that was the reference; results saved before it was written have none.
    #[serde(default)]
    pub reference: Option<String>,
    /// How many chunks of 512 tokens were measured.
    #[serde(default)]
    pub chunks: Option<u32>,
}

impl Row {
    /// Whether it was measured without the NPU.
    pub fn is_cpu(&self) -> bool {
        self.on == "CPU"
    }
}

/// What a saved file consists of: arrays as `--json` prints them, or rows.
#[derive(Deserialize)]
#[serde(untagged)]
enum Saved {
    Run(Vec<Row>),
    Row(Row),
}

/// The rows of all files, in their order; one that is there twice is taken once.
///
/// # Errors
/// Names the file that cannot be read, is not what `--json` prints, or holds no row.
pub fn saved(files: &[PathBuf]) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).at("read the results", file)?;
        let read = parse(&text).map_err(|error| {
            Error::Refused(format!(
                "--from {}: not what `cargo xtask accuracy --json` prints: {error}",
                file.display()
            ))
        })?;
        if read.is_empty() {
            return Err(Error::Refused(format!("--from {}: it holds no results", file.display())));
        }
        for row in read {
            if !rows.contains(&row) {
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

fn parse(text: &str) -> serde_json::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for part in serde_json::Deserializer::from_str(text).into_iter::<Saved>() {
        match part? {
            Saved::Run(run) => rows.extend(run),
            Saved::Row(row) => rows.push(row),
        }
    }
    Ok(rows)
}

/// What is wrong with comparing these rows, if they are of different references or lengths.
pub fn not_comparable(rows: &[Row]) -> Option<String> {
    let mut kinds: Vec<String> = rows
        .iter()
        .filter_map(|row| Some(format!("{} chunks against {}", row.chunks?, row.reference.as_ref()?)))
        .collect();
    kinds.sort();
    kinds.dedup();
    (kinds.len() > 1).then(|| format!("the results do not compare: some are of {}", kinds.join(", some of ")))
}

/// The rows as a table.
pub fn table(rows: &[Row]) -> String {
    let widest = |of: fn(&Row) -> &str, least: usize| {
        rows.iter().map(|row| of(row).chars().count()).max().unwrap_or(0).max(least)
    };
    let (model, on) = (widest(|row| &row.model, 5), widest(|row| &row.on, 8));
    let mut out = format!(
        "{:model$}  {:on$} {:>10} {:>9} {:>11} {:>12}\n",
        "model", "on", "KL", "same top", "perplexity", "bytes/weight"
    );
    for row in rows {
        let bytes = row.bytes_per_weight.map_or_else(|| "–".to_owned(), |bytes| format!("{bytes:.4}"));
        out += &format!(
            "{:model$}  {:on$} {:>10.6} {:>7.2} % {:>11.4} {bytes:>12}\n",
            row.model, row.on, row.kl, row.same_top, row.perplexity
        );
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn row(model: &str, on: &str, kl: f64, bytes_per_weight: Option<f64>) -> Row {
        Row {
            model: model.into(),
            on: on.into(),
            kl,
            same_top: 95.0,
            perplexity: 28.5,
            bytes_per_weight,
            reference: Some("f16".into()),
            chunks: Some(20),
        }
    }

    #[test]
    fn the_table_lines_up() {
        let rows = [
            row("m", "CPU", 0.0051, Some(1.0625)),
            row("a.longer.name", "W16A16_STANDARD", 0.0, None),
            row("m", "default", 1.5, Some(2.0)),
        ];
        let text = table(&rows);
        let lengths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert_eq!(lengths, [lengths[0]; 4], "{text}");
        let last = |line: usize| text.lines().nth(line).unwrap().split_whitespace().last().unwrap();
        assert_eq!([last(0), last(1), last(2)], ["bytes/weight", "1.0625", "–"]);
    }

    #[test]
    fn what_was_saved_is_read_from_arrays_lines_and_several_files() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b, c) = (
            row("m", "CPU", 0.1, Some(1.0)),
            row("m", "W8A8", 0.2, None),
            row("m", "W4A4_HADAMARD", 0.3, Some(0.5)),
        );
        let json = |rows: &[&Row]| serde_json::to_string(rows).unwrap();
        let first = dir.path().join("1.json");
        fs::write(&first, format!("{}\n{}", json(&[&a, &b]), json(&[&a, &c]))).unwrap();
        let second = dir.path().join("2.json");
        let d = Row { kl: 0.4, ..c.clone() };
        fs::write(&second, format!("{}\n{}\n", serde_json::to_string(&b).unwrap(), json(&[&d]))).unwrap();
        assert_eq!(saved(&[first, second]).unwrap(), [a, b, c, d]);

        // As it was written before a row had its bytes.
        let old = r#"[{"model":"m","on":"CPU","kl":0.1,"same_top":95.0,"perplexity":28.5}]"#;
        assert_eq!(parse(old).unwrap()[0].bytes_per_weight, None);
    }

    #[test]
    fn files_that_hold_something_else_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        let refusal = |content: &str| {
            fs::write(&path, content).unwrap();
            saved(std::slice::from_ref(&path)).unwrap_err().to_string()
        };
        for content in ["model  on  KL", "{\"a\": 1}", "[1]", "[{\"model\": \"m\"}]"] {
            let error = refusal(content);
            assert!(error.contains("x.json: not what"), "{content}: {error}");
        }
        assert!(refusal(" \n").contains("no results") && refusal("[]").contains("no results"));
        let missing = saved(&["/nowhere/x.json".into()]).unwrap_err().to_string();
        assert!(missing.starts_with("cannot read the results /nowhere/x.json"), "{missing}");
    }

    #[test]
    fn rows_of_different_lengths_are_said_not_to_compare() {
        let a = row("m", "CPU", 0.1, None);
        let short = Row { chunks: Some(2), ..a.clone() };
        let unknown = Row { chunks: None, ..a.clone() };
        assert_eq!(not_comparable(&[a.clone(), a.clone(), unknown]), None);
        let complaint = not_comparable(&[a, short]).unwrap();
        assert!(complaint.contains("2 chunks against f16, some of 20 chunks"), "{complaint}");
    }
}
