//! All figures of a bench as one JSON array, and back.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::Found;
use crate::error::{Error, IoContext, Result};

/// What `--json` prints.
pub fn json(found: &Found) -> String {
    let values = |value: Result<Value, serde_json::Error>| value.unwrap_or_default();
    let pairs = found.pairs.iter().map(|pair| values(serde_json::to_value(pair)));
    let rows = found.rows.iter().map(|row| values(serde_json::to_value(row)));
    Value::Array(pairs.chain(rows).collect()).to_string()
}

/// The figures that it printed into `files`, which may hold other lines before them.
///
/// # Errors
/// A file that cannot be read, or holds no figures.
pub fn read(files: &[PathBuf]) -> Result<Found> {
    let mut found = Found::default();
    for file in files {
        let text = fs::read_to_string(file).at("read the results", file)?;
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        let mut take = || {
            for value in serde_json::from_str::<Vec<Value>>(last)? {
                // Only a pair is of a part.
                if value.get("part").is_some() {
                    found.pairs.push(serde_json::from_value(value)?);
                } else {
                    found.rows.push(serde_json::from_value(value)?);
                }
            }
            Ok(())
        };
        take().map_err(|error: serde_json::Error| {
            let file = file.display();
            Error::Refused(format!("--from {file}: not what `cargo xtask bench --json` prints: {error}"))
        })?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::row;
    use super::super::versus::tests::pair;
    use super::super::versus::Part;
    use super::*;

    #[test]
    fn figures_are_read_back_as_they_were_printed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("figures.json");
        let found = Found {
            rows: vec![row("a", Some(0.5)), row("b", None)],
            pairs: vec![pair(Part::Experts)],
            ..Found::default()
        };
        let text = json(&found);
        fs::write(&path, format!("a line before\n{text}\n")).unwrap();
        assert_eq!(json(&read(std::slice::from_ref(&path)).unwrap()), text);
        assert_eq!(read(&[path.clone(), path.clone()]).unwrap().rows.len(), 4);
        fs::write(&path, "no rows\n").unwrap();
        let error = read(&[path]).err().unwrap().to_string();
        assert!(error.contains("not what `cargo xtask bench --json` prints"), "{error}");
    }
}
