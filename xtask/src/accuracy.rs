//! `cargo xtask accuracy`: how far each weight file and pipeline is from the reference's logits, on the stock
//! llama-perplexity. CPU and NPU stand side by side: the CPU's figure is what the NPU's is to be compared with.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde::Serialize;

use crate::env::{Npu, NpuOptions};
use crate::error::{Error, IoContext, Result};
use crate::model::Model;
use crate::process;
use crate::progress::Step;
use crate::setup::{self, plugin, Ready, Wants};

/// The host's program that measures.
const PROGRAM: &str = "llama-perplexity";
/// The pipeline that is no pipeline: the plugin's own choice.
const DEFAULT: &str = "default";

/// The options of `accuracy`.
#[derive(Debug, Args)]
pub struct Options {
    /// Files to measure, as `run -m` takes them
    #[arg(short, long = "model", value_name = "MODEL", value_delimiter = ',', default_values = ["f16", "q8_0", "q6_k", "q4_k_m", "q4_0"])]
    models: Vec<PathBuf>,
    /// The file whose logits on the CPU are the reference
    #[arg(long, value_name = "MODEL", default_value = "f16")]
    reference: PathBuf,
    /// Pipelines to force on the NPU: default (the plugin's choice), W16A16, W8A8
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values = [DEFAULT])]
    pipelines: Vec<String>,
    /// Chunks of 512 tokens
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    chunks: u32,
    /// The text; without it the evaluation text beside the checkout
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    #[command(flatten)]
    npu: NpuOptions,
    /// Print one JSON array as the last line of stdout instead of the table
    #[arg(long)]
    json: bool,
}

/// One measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    model: String,
    /// "CPU", or the pipeline that was asked of the NPU.
    on: String,
    /// Mean Kullback–Leibler divergence to the reference.
    kl: f64,
    /// Percent of tokens whose likeliest next token is the reference's.
    same_top: f64,
    perplexity: f64,
}

/// Measures and prints.
///
/// # Errors
/// Bad input, a failed set-up, a failed host, or output that holds no figures.
pub fn command(options: &Options) -> Result<()> {
    let npu = options.npu.choose(false)?;
    let text = text_of(options.text.as_deref())?;
    let models =
        options.models.iter().map(|name| Model::named(Some(name.clone()))).collect::<Result<Vec<_>>>()?;
    let reference = Model::named(Some(options.reference.clone()))?;
    let cached = reference.is_cached() || models.iter().any(Model::is_cached);
    let ready = setup::prepare(Wants { models: cached, plugin: true })?;

    let scratch = tempfile::tempdir().at("create a folder in", &std::env::temp_dir())?;
    let bench =
        Bench { ready: &ready, npu: &npu, logits: scratch.path().join("logits"), chunks: options.chunks };
    bench.reference(&reference.open(&ready.models)?.0, &text)?;
    let mut rows = Vec::new();
    for model in models {
        let path = model.open(&ready.models)?.0;
        rows.push(bench.row(&path, None)?);
        for pipeline in &options.pipelines {
            rows.push(bench.row(&path, Some(pipeline))?);
        }
    }
    if options.json {
        println!("{}", serde_json::to_string(&rows).unwrap_or_default());
    } else {
        print!("{}", table(&rows));
    }
    Ok(())
}

fn text_of(named: Option<&Path>) -> Result<PathBuf> {
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

/// What all measurements share.
struct Bench<'a> {
    ready: &'a Ready,
    npu: &'a Npu,
    logits: PathBuf,
    chunks: u32,
}

impl Bench<'_> {
    /// Writes the reference's logits.
    fn reference(&self, model: &Path, text: &Path) -> Result<()> {
        let mut host = self.host(model, &Npu::Cpu)?;
        host.arg("-f").arg(text).arg("--kl-divergence-base").arg(&self.logits);
        let step = Step::spinner(format!("the reference's logits, {} chunks", self.chunks));
        process::run_quietly(&mut host)?;
        step.done();
        Ok(())
    }

    /// Measures one file, on the CPU or by one pipeline.
    fn row(&self, model: &Path, pipeline: Option<&String>) -> Result<Row> {
        let name = model.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
        let on = pipeline.map_or("CPU", String::as_str).to_owned();
        let npu = if pipeline.is_some() { self.npu } else { &Npu::Cpu };
        let mut host = self.host(model, npu)?;
        host.args(["--kl-divergence", "--kl-divergence-base"]).arg(&self.logits);
        if let Some(pipeline) = pipeline.filter(|name| *name != DEFAULT) {
            host.env("RKNPU_PIPELINE", pipeline);
        }
        let step = Step::spinner(format!("{name} on {on}"));
        let mut figures = Figures::default();
        let mut complaint = None;
        process::run_watched(&mut host, |line| {
            figures.read(line);
            if line.starts_with("ggml-rknpu: no NPU device") {
                complaint = Some(line.to_owned());
            }
        })?;
        step.done();
        if let Some(line) = complaint {
            return Err(Error::Refused(line));
        }
        match figures {
            Figures { kl: Some(kl), same_top: Some(same_top), perplexity: Some(perplexity) } => {
                Ok(Row { model: name, on, kl, same_top, perplexity })
            }
            _ => Err(Error::Refused(format!("{PROGRAM} printed no divergence for {name} on {on}"))),
        }
    }

    fn host(&self, model: &Path, npu: &Npu) -> Result<Command> {
        let mut host = Command::new(self.ready.host.program(PROGRAM)?);
        npu.apply(self.ready.plugin.as_ref(), &mut host);
        host.env("GGML_NO_BACKTRACE", "1").arg("-m").arg(model).args(["--chunks", &self.chunks.to_string()]);
        Ok(host)
    }
}

/// The figures among the host's lines.
#[derive(Debug, Default, PartialEq)]
struct Figures {
    kl: Option<f64>,
    same_top: Option<f64>,
    perplexity: Option<f64>,
}

impl Figures {
    /// Takes the figure of a line such as `Mean    KLD:   0.004257 ±   0.000107`.
    fn read(&mut self, line: &str) {
        let Some((name, value)) = line.split_once(':') else { return };
        let value = value.split_whitespace().next().and_then(|number| number.parse().ok());
        let words: Vec<&str> = name.split_whitespace().collect();
        match words[..] {
            ["Mean", "KLD"] => self.kl = value,
            ["Same", "top", "p"] => self.same_top = value,
            ["Mean", "PPL(Q)"] => self.perplexity = value,
            _ => {}
        }
    }
}

fn table(rows: &[Row]) -> String {
    let width = rows.iter().map(|row| row.model.len()).max().unwrap_or(0).max(5);
    let mut out =
        format!("{:width$}  {:8} {:>10} {:>9} {:>11}\n", "model", "on", "KL", "same top", "perplexity");
    for row in rows {
        out += &format!(
            "{:width$}  {:8} {:>10.6} {:>7.2} % {:>11.4}\n",
            row.model, row.on, row.kl, row.same_top, row.perplexity
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_found_among_the_hosts_lines() {
        let mut figures = Figures::default();
        for line in [
            "====== Perplexity statistics ======",
            "Mean PPL(Q)                   :  28.761234 ±   0.9",
            "Mean PPL(base)                :  28.626 ±   0.9",
            "Mean    KLD:   0.004257 ±   0.000107",
            "Maximum KLD:   0.4",
            "Same top p: 95.180 ± 0.297 %",
        ] {
            figures.read(line);
        }
        let want = Figures { kl: Some(0.004257), same_top: Some(95.18), perplexity: Some(28.761234) };
        assert_eq!(figures, want);
    }

    #[test]
    fn the_table_lines_up() {
        let row = Row { model: "m".into(), on: "W8A8".into(), kl: 0.0051, same_top: 95.0, perplexity: 28.5 };
        let text = table(&[row]);
        assert_eq!(text.lines().map(str::len).max(), text.lines().map(str::len).min());
    }

    #[test]
    fn a_missing_text_is_named() {
        let error = text_of(Some(Path::new("/nonexistent/wiki"))).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/wiki") && error.contains("--text"), "{error}");
    }
}
