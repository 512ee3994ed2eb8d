//! Synthetic models: GGUF files with the widths of models that people run, and random weights, for measuring speed.
//!
//! * [`shape`]: the widths; [`blocks`]: random weights of a type; [`tokenizer`]: a tokenizer, copied and padded;
//! * [`write`]: the file; [`upcycled`]: a mixture of experts made of a real model.
//!
//! What a model of random weights says means nothing. What it costs is that of the real one, as far as matmuls go: all are written
//! in the llama architecture, whatever the original's is. Files live in the cache under `synth`, by shape, type,
//! layers and [`VERSION`]; one that is there is not written again.

pub mod blocks;
pub mod shape;
pub mod tokenizer;
pub mod upcycled;
pub mod write;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use sha2::{Digest, Sha256};

use self::blocks::WeightType;
use self::shape::Shape;
use crate::cache::{hex, Cache};
use crate::error::{Error, IoContext, Result};
use crate::gguf::Gguf;
use crate::progress::Step;
use crate::setup::{self, models, Wants};

/// Changes whenever the content of the files does.
const VERSION: &str = "3";

/// How the mixture made of the cached model is called.
pub const UPCYCLED: &str = "smollm2-8x";

/// What is left on the disk at least.
const SPARE: u64 = 1 << 30;

/// The options of `synth`.
#[derive(Debug, Args)]
pub struct Options {
    /// Whose widths: qwen2.5-1.5b, gemma3-1b, granite-350m, lfm2-8b-a1b (6 layers), qwen3-30b-a3b (2 layers), or tiny,
    /// tiny-moe
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true, value_parser = Shape::named)]
    shapes: Vec<&'static Shape>,
    /// Types of the weights
    #[arg(long, value_name = "TYPES", value_delimiter = ',', value_enum, default_values = ["q8_0"])]
    types: Vec<WeightType>,
    /// Write only this many layers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    layers: Option<u32>,
}

/// Writes what is missing and prints the paths.
///
/// # Errors
/// A failed set-up, a full disk.
pub fn command(options: &Options) -> Result<()> {
    let ready = setup::prepare(Wants { models: true, plugin: false })?;
    let cache = Cache::from_env()?;
    for shape in &options.shapes {
        for kind in &options.types {
            println!("{}", ensure(&cache, &ready.models, shape, *kind, options.layers)?.display());
        }
    }
    Ok(())
}

/// The file of that shape, type and number of layers (all, if `None`), written if it is not there; its tokenizer is
/// that of the cached model.
///
/// # Errors
/// A disk that is too full, or whatever the system refuses; a cached model without a tokenizer.
pub fn ensure(
    cache: &Cache,
    cached_models: &Path,
    shape: &'static Shape,
    kind: WeightType,
    layers: Option<u32>,
) -> Result<PathBuf> {
    let shape = shape.with_layers(layers);
    let path = cache.synth().join(file_name(&shape, kind));
    if is_there(&path) {
        return Ok(path);
    }
    let tokenizer = tokenizer::padded(&models::file_of(cached_models, "q4_1"), shape.vocabulary)?;
    let plan = write::Plan::new(&shape, kind, &tokenizer);
    let what = format!("a synthetic {} {}", shape.name, kind.name());
    make(cache, path, &what, plan.bytes(), |half| plan.write(half))
}

/// The mixture of experts made of the cached model's file of that type, written if it is not there, and its layers.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_upcycled(cache: &Cache, cached_models: &Path, kind: WeightType) -> Result<(PathBuf, u32)> {
    let source = models::file_of(cached_models, kind.name());
    let layers = open(&source)?.number("block_count").unwrap_or(0) as u32;
    let path = cache.synth().join(format!("{UPCYCLED}.{}-{VERSION}.gguf", kind.name()));
    if is_there(&path) {
        return Ok((path, layers));
    }
    let plan = upcycled::Plan::new(&source)?;
    let path =
        make(cache, path, &format!("{UPCYCLED} {}", kind.name()), plan.bytes(), |half| plan.write(half))?;
    Ok((path, layers))
}

/// Whether a whole model is at `path`.
fn is_there(path: &Path) -> bool {
    path.exists() && open(path).is_ok()
}

fn open(path: &Path) -> Result<Gguf> {
    Gguf::open(path).map_err(|source| Error::Model { path: path.to_owned(), source })
}

/// Makes `what`, about so many bytes, in the place of `path`.
fn make(
    cache: &Cache,
    path: PathBuf,
    what: &str,
    bytes: u64,
    write: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let folder = cache.synth();
    fs::create_dir_all(&folder).at("create", &folder)?;
    check_space(&folder, bytes)?;
    let step = Step::spinner(format!("writing {what}, {:.1} GB", bytes as f64 / 1e9));
    let partial = cache.partial()?;
    let half = partial.path().join("model");
    write(&half)?;
    open(&half)?;
    fs::rename(&half, &path).at("move the model to", &path)?;
    step.done();
    Ok(path)
}

/// "granite-350m-28l.Q8_0-1a2b3c4d.gguf": the digits change with anything that the file's content depends on.
fn file_name(shape: &Shape, kind: WeightType) -> String {
    let hash = hex(&Sha256::digest(format!("{VERSION} {shape:?} {}", kind.name())));
    format!("{}-{}l.{}-{}.gguf", shape.name, shape.layers, kind.name(), &hash[..8])
}

fn check_space(folder: &Path, needs: u64) -> Result<()> {
    let disk = rustix::fs::statvfs(folder).map_err(std::io::Error::from).at("look at the disk of", folder)?;
    let has = disk.f_bavail.saturating_mul(disk.f_frsize);
    if has >= needs.saturating_add(SPARE) {
        return Ok(());
    }
    Err(Error::Refused(format!(
        "{}: the disk has {:.1} GB free, and a synthetic model of {:.1} GB and {:.1} GB to spare are needed; make room, \
         pass --layers, or set XDG_CACHE_HOME to another disk",
        folder.display(),
        has as f64 / 1e9,
        needs as f64 / 1e9,
        SPARE as f64 / 1e9
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_shape_type_and_layers() {
        let granite = Shape::named("granite-350m").unwrap();
        let name = |layers, kind| file_name(&granite.with_layers(layers), kind);
        let whole = name(None, WeightType::Q8_0);
        assert!(whole.starts_with("granite-350m-28l.Q8_0-") && whole.ends_with(".gguf"), "{whole}");
        assert!(name(Some(2), WeightType::F16).starts_with("granite-350m-2l.F16-"));
        assert_eq!(name(Some(99), WeightType::Q8_0), whole, "there are no more layers than that");
    }

    #[test]
    fn a_disk_that_is_too_full_is_said_with_both_figures() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_space(dir.path(), 0).is_ok());
        let error = check_space(dir.path(), 1 << 60).unwrap_err().to_string();
        assert!(
            error.contains("GB free") && error.contains("1152921504.6 GB") && error.contains("--layers"),
            "{error}"
        );
    }
}
