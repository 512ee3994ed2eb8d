//! `cargo xtask accuracy`: how far each weight file and pipeline is from the reference's logits, on the stock
//! llama-perplexity, and how many bytes a weight that takes. CPU and NPU stand side by side: the CPU's figure is
//! what the NPU's is to be compared with.

pub mod asked;
mod labels;
pub mod measure;
mod picture;
mod rows;
mod size;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;

use self::asked::Asked;
use self::measure::{Bench, Conditions};
use self::rows::Row;
use crate::env::NpuOptions;
use crate::error::{Error, IoContext, Result};
use crate::model::Model;
use crate::progress::{note, warn};
use crate::setup::{self, plugin, Wants};

/// The options of `accuracy`.
#[derive(Debug, Args)]
pub struct Options {
    /// Files to measure, as `run -m` takes them
    #[arg(short, long = "model", value_name = "MODEL", value_delimiter = ',', default_values = ["f16", "q8_0", "q6_k", "q4_k_m", "q4_0"])]
    models: Vec<PathBuf>,
    /// The file whose logits on the CPU are the reference
    #[arg(long, value_name = "MODEL", default_value = "f16")]
    reference: PathBuf,
    /// What to ask of the NPU: default (the plugin's choice); accurate, lean or fast (a value of RKNPU_MODE); any
    /// other name is a value of RKNPU_PIPELINE, such as W8A8, W4A16 or W8A8_PADDED
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values = [asked::DEFAULT])]
    pipelines: Vec<Asked>,
    /// Chunks of the text
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    chunks: u32,
    /// Tokens of a chunk
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(64..))]
    context: u32,
    /// Who does attention beside the NPU's products (RKNPU_ATTENTION)
    #[arg(long, value_name = "WHO", default_value = "cpu", value_parser = ["cpu", "npu", "auto"])]
    attention: String,
    /// The text; without it the evaluation text beside the checkout
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    #[command(flatten)]
    npu: NpuOptions,
    /// Measure nothing: take what --json printed earlier; may be given several times
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["models", "reference", "pipelines", "chunks", "context", "attention", "text", "soc", "npu"])]
    from: Vec<PathBuf>,
    /// Draw the divergence of each row against its bytes a weight
    #[arg(long, value_name = "FILE.svg")]
    picture: Option<PathBuf>,
    /// Print one JSON array as the last line of stdout instead of the table
    #[arg(long)]
    json: bool,
}

/// Measures, or takes what was measured, prints and draws.
///
/// # Errors
/// Bad input, a failed set-up, a failed host, output that holds no figures, or a picture that cannot be written.
pub fn command(options: &Options) -> Result<()> {
    if let Some(path) = &options.picture {
        // Said now, not after an hour of measuring.
        check_picture_path(path)?;
    }
    let rows = if options.from.is_empty() { measure(options)? } else { rows::saved(&options.from)? };
    if let Some(complaint) = rows::not_comparable(&rows) {
        warn(&complaint);
    }
    if options.json {
        println!("{}", serde_json::to_string(&rows).unwrap_or_default());
    } else {
        print!("{}", rows::table(&rows));
    }
    if let Some(path) = &options.picture {
        let drawn = picture::svg(&rows)?;
        fs::write(path, drawn.svg).at("write the picture", path)?;
        drawn
            .left_out
            .iter()
            .for_each(|label| warn(&format!("not in the picture, bytes a weight unknown: {label}")));
        note(&format!("the picture is {}", path.display()));
    }
    Ok(())
}

fn measure(options: &Options) -> Result<Vec<Row>> {
    let npu = options.npu.choose(false)?;
    let text = text_of(options.text.as_deref())?;
    let models =
        options.models.iter().map(|name| Model::named(Some(name.clone()))).collect::<Result<Vec<_>>>()?;
    let reference = Model::named(Some(options.reference.clone()))?;
    let cached = reference.is_cached() || models.iter().any(Model::is_cached);
    let ready = setup::prepare(Wants { models: cached, plugin: true })?;

    let scratch = tempfile::tempdir().at("create a folder in", &std::env::temp_dir())?;
    let reference = reference.open(&ready.models)?.0;
    let total = models.len() * (1 + options.pipelines.len());
    let conditions =
        Conditions { chunks: options.chunks, context: options.context, attention: options.attention.clone() };
    let mut bench = Bench::new(&ready, &npu, scratch.path(), &reference, conditions, total);
    bench.reference(&reference, &text)?;
    let mut rows = Vec::with_capacity(total);
    for model in models {
        let (path, head) = model.open(&ready.models)?;
        rows.push(bench.row(&path, None, size::of_file(&head))?);
        for pipeline in &options.pipelines {
            rows.push(bench.row(&path, Some(pipeline), None)?);
        }
    }
    Ok(rows)
}

/// The text: the one that is named, or the evaluation text beside the checkout.
///
/// # Errors
/// When there is none.
pub fn text_of(named: Option<&Path>) -> Result<PathBuf> {
    let path = match named {
        Some(path) => path.to_owned(),
        None => plugin::workspace().join(plugin::TEXT),
    };
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::Refused(format!(
        "{}: no such text; name one by --text, WikiText-2's test part for example",
        path.display()
    )))
}

fn check_picture_path(path: &Path) -> Result<()> {
    if !path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("svg")) {
        let path = path.display();
        return Err(Error::Refused(format!(
            "--picture {path}: only SVG is drawn; name a file that ends in .svg"
        )));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.is_dir() {
        return Ok(());
    }
    Err(Error::Refused(format!("--picture {}: there is no folder {}", path.display(), folder.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_text_is_named() {
        let error = text_of(Some(Path::new("/nonexistent/wiki"))).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/wiki") && error.contains("--text"), "{error}");
    }

    #[test]
    fn a_picture_that_could_not_be_written_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(check_picture_path(&dir.path().join("a.svg")).is_ok());
        assert!(check_picture_path(Path::new("a.SVG")).is_ok());
        let error = check_picture_path(&dir.path().join("a.png")).unwrap_err().to_string();
        assert!(error.contains("a.png: only SVG"), "{error}");
        let error = check_picture_path(Path::new("/nowhere/a.svg")).unwrap_err().to_string();
        assert!(error.contains("no folder /nowhere"), "{error}");
    }
}
