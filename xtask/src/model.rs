//! The model that a command line or a variable names: a cached one, or a file with all its parts.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::setup::models;

/// A model as named.
#[derive(Debug)]
pub enum Model {
    /// By its short name; set up first, read then.
    Cached(&'static str),
    /// By its path, and read at once, so that a bad one is refused before anything is built.
    File(PathBuf, Gguf),
}

impl Model {
    /// The model of the option, else of `RKNPU_MODEL`, else the cached F16.
    ///
    /// # Errors
    /// When a named file is missing or damaged.
    pub fn named(option: Option<PathBuf>) -> Result<Self> {
        let own = || env::var_os("RKNPU_MODEL").filter(|value| !value.is_empty()).map(PathBuf::from);
        let Some(name) = option.or_else(own) else {
            return Ok(Self::Cached("f16"));
        };
        match name.to_str().and_then(models::short_name) {
            Some(short) if !name.exists() => Ok(Self::Cached(short)),
            _ => read_all_parts(&name).map(|head| Self::File(name, head)),
        }
    }

    /// Whether the cached models are needed.
    pub fn is_cached(&self) -> bool {
        matches!(self, Self::Cached(_))
    }

    /// The file for the host, and its head with the tensors of all parts.
    ///
    /// # Errors
    /// When a cached file is missing or damaged.
    pub fn open(self, cached_models: &Path) -> Result<(PathBuf, Gguf)> {
        match self {
            Self::File(path, head) => Ok((path, head)),
            Self::Cached(name) => {
                let path = models::file_of(cached_models, name);
                read_all_parts(&path).map(|head| (path, head))
            }
        }
    }
}

/// Reads the head of a model and appends the tensors of its further files, if it is split into several.
fn read_all_parts(path: &Path) -> Result<Gguf> {
    let mut head = read(path)?;
    let parts = head.parts();
    // A split that goes by another name is the host's to judge: it finds the parts in the same way.
    let first = format!("-{:05}-of-{parts:05}.gguf", 1);
    let stem = path.to_str().and_then(|path| path.strip_suffix(&first)).filter(|_| parts > 1);
    if let Some(stem) = stem {
        for part in 2..=parts {
            let next = PathBuf::from(format!("{stem}-{part:05}-of-{parts:05}.gguf"));
            head.tensors.extend(read(&next)?.tensors);
        }
    }
    Ok(head)
}

fn read(path: &Path) -> Result<Gguf> {
    if !path.exists() {
        return Err(Error::Refused(format!(
            "model {}: no such file; give a GGUF file or one of {}",
            path.display(),
            models::SHORT_NAMES.join(", ")
        )));
    }
    Gguf::open(path).map_err(|source| Error::Model { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// One of two files, with one empty tensor.
    fn part(tensor: &str) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        let text = |file: &mut Vec<u8>, s: &str| {
            file.extend((s.len() as u64).to_le_bytes());
            file.extend(s.as_bytes());
        };
        file.extend(1u64.to_le_bytes());
        file.extend(1u64.to_le_bytes());
        text(&mut file, "split.count");
        file.extend([2, 0, 0, 0, 2, 0]); // the type u16, and 2
        text(&mut file, tensor);
        file.extend([0; 4 + 4 + 8]); // no dimensions, F32, at offset 0: 4 bytes of data
        file.extend([0; 64]);
        file
    }

    #[test]
    fn the_tensors_of_all_parts_are_read_and_a_missing_part_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let first = dir.path().join("m-00001-of-00002.gguf");
        let second = dir.path().join("m-00002-of-00002.gguf");
        fs::write(&first, part("a")).unwrap();
        let text = Model::named(Some(first.clone())).unwrap_err().to_string();
        assert!(text.starts_with(&format!("model {}: no such file", second.display())), "{text}");
        fs::write(&second, part("b")).unwrap();
        let (path, head) = Model::named(Some(first.clone())).unwrap().open(Path::new("/nowhere")).unwrap();
        assert_eq!(path, first);
        assert_eq!(head.tensors.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_short_name_is_a_cached_model_unless_a_file_has_it() {
        assert!(Model::named(Some("Q4_0".into())).unwrap().is_cached());
        let text = Model::named(Some("q5_9".into())).unwrap_err().to_string();
        assert!(text.starts_with("model q5_9: no such file"), "{text}");
    }
}
