//! `cargo xtask bench`: what the plugin's schedules and host-side work cost, by the emulator's modelled clock and by a
//! paced run of the stock llama-bench. Nothing here is measured on a board.
//!
//! * [`host`]: one process of the host, and what it and both reports say;
//! * [`measure`]: all processes of a row; [`derive`]: the row from them;
//! * [`versus`]: a part of a model by the CPU and by the NPU; [`quality`]: what the two ways say of the same text;
//! * [`best`]: the best schedule there is, by exhaustive search with the emulator's formula; [`memcpy`]: the yardstick of
//!   host-side work;
//! * [`rows`]: the rows and their table; [`saved`]: all figures as JSON; [`page`] and [`picture`]: the page that `--save` writes.
//!
//! The emulator's runs are paced (`RKNPU_EMU_PACE`): they take their modelled time in real time and compute nothing.

mod best;
mod derive;
mod figures;
mod host;
mod measure;
mod memcpy;
mod page;
mod picture;
mod quality;
mod rows;
mod saved;
mod versus;

use std::path::PathBuf;
use std::thread;

use clap::{Args, ValueEnum};

use self::measure::Bench;
use self::rows::Row;
use self::versus::{Pair, Part, Versus};
use crate::accuracy::asked::{self, Asked};
use crate::cache::Cache;
use crate::env::{Npu, NpuChoice};
use crate::error::{Error, Result};
use crate::progress::{note, warn};
use crate::setup::{self, models, Ready, Wants};
use crate::synth::blocks::WeightType;
use crate::synth::shape::Shape;
use crate::synth::{self, UPCYCLED};

/// The name of the one model that is real.
const REAL: &str = "smollm2";

/// The options of `bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// What to measure: products with weights, attention (2 layers of the 1 B shapes), experts (of the mixtures)
    #[arg(long, value_name = "PARTS", value_delimiter = ',', value_enum, default_values = ["products", "attention", "experts"])]
    parts: Vec<Measure>,
    /// Tokens of the prompts for attention
    #[arg(long, value_name = "N", value_delimiter = ',', default_values = ["512", "2048", "8192", "32768"], value_parser = clap::value_parser!(u32).range(2..))]
    tokens: Vec<u32>,
    /// Models of the products: smollm2 (real), or synthetic ones with the widths of qwen2.5-1.5b, gemma3-1b, granite-350m (or tiny)
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = Subject::named, default_values = ["smollm2", "granite-350m", "gemma3-1b", "qwen2.5-1.5b"])]
    shapes: Vec<Subject>,
    /// Types of the weights in the files
    #[arg(long, value_name = "TYPES", value_delimiter = ',', value_enum, default_values = ["q8_0", "q4_0", "f16"])]
    types: Vec<WeightType>,
    /// What to ask of the NPU, as for accuracy: default, a mode (accurate, lean, fast) or a pipeline's name
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_values = [asked::DEFAULT])]
    pipelines: Vec<Asked>,
    /// Give synthetic models only this many layers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    layers: Option<u32>,
    /// CPU threads of the host [default: all]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512))]
    threads: Option<u32>,
    /// The chip to emulate [default: rk3588]
    #[arg(long)]
    soc: Option<String>,
    /// Measure nothing: take what --json printed earlier; may be given several times
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["parts", "tokens", "shapes", "types", "pipelines", "layers", "threads", "soc"])]
    from: Vec<PathBuf>,
    /// Print one JSON array as the last line of stdout instead of the table
    #[arg(long)]
    json: bool,
    /// Write tables to this Markdown file and pictures beside it, such as docs/performance.md
    #[arg(long, value_name = "FILE.md")]
    save: Option<PathBuf>,
}

/// A part of the bench.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Measure {
    Products,
    Attention,
    Experts,
}

/// Models whose attention is measured, cut to as many layers unless the user says otherwise.
const ATTENTION: [&str; 2] = ["gemma3-1b", "qwen2.5-1.5b"];
const ATTENTION_LAYERS: u32 = 2;
/// Models whose experts are measured, with prompts of as many tokens.
const EXPERTS: [&str; 3] = ["lfm2-8b-a1b", "qwen3-30b-a3b", UPCYCLED];
const EXPERTS_TOKENS: u32 = 512;

/// What was measured.
#[derive(Debug, Default)]
struct Found {
    rows: Vec<Row>,
    pairs: Vec<Pair>,
    /// What could not be measured.
    failed: Vec<String>,
}

impl Found {
    /// What was measured; `None` if it could not be, which is told now and noted for the end: the others are measured all the same.
    fn measured<T>(&mut self, what: &str, result: Result<T>) -> Option<T> {
        result
            .inspect_err(|error| {
                warn(&format!("{what}: {error}"));
                self.failed.push(what.to_owned());
            })
            .ok()
    }

    /// An error if something could not be measured.
    fn complete(&self) -> Result<()> {
        if self.failed.is_empty() {
            return Ok(());
        }
        let what = self.failed.join(", ");
        Err(Error::Refused(format!(
            "not measured, for what is said above: {what}; all else is above, and no page is written"
        )))
    }
}

/// A model to measure.
#[derive(Debug, Clone, Copy)]
enum Subject {
    Real,
    Synthetic(&'static Shape),
}

impl Subject {
    fn named(name: &str) -> Result<Self, String> {
        if name.eq_ignore_ascii_case(REAL) {
            return Ok(Self::Real);
        }
        let shape = Shape::named(name).map_err(|error| format!("{error}, {REAL}"))?;
        // Its search for the best schedule and its figures of decoding are those of dense models.
        if shape.experts.is_some() {
            return Err(format!("{name} is a mixture of experts, expected a dense model"));
        }
        Ok(Self::Synthetic(shape))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Real => REAL,
            Self::Synthetic(shape) => shape.name,
        }
    }
}

/// Measures, or takes what was measured, prints and saves.
///
/// # Errors
/// Bad input, a failed set-up, a full disk; once all else is measured and printed, a failed host and reports that hold no
/// figures.
pub fn command(options: &Options) -> Result<()> {
    if let Some(path) = &options.save {
        // Said now, not after an hour of measuring.
        page::check_path(path)?;
    }
    let found = if options.from.is_empty() { measure(options)? } else { saved::read(&options.from)? };
    if options.json {
        println!("{}", saved::json(&found));
    } else {
        if !found.rows.is_empty() {
            print!("{}", rows::table(&found.rows));
        }
        found.pairs.iter().for_each(|pair| println!("{}", pair.summary()));
    }
    found.complete()?;
    if let Some(path) = &options.save {
        page::save(&found, path)?;
        note(&format!("the page is {}", path.display()));
    }
    Ok(())
}

fn measure(options: &Options) -> Result<Found> {
    let npu = Npu::choose(false, NpuChoice::Emulated, options.soc.as_deref())?;
    let ready = setup::prepare(Wants { models: true, plugin: true })?;
    let cache = Cache::from_env()?;
    let threads =
        options.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, |all| all.get() as u32));
    if options.layers.is_some() && options.shapes.iter().any(|subject| matches!(subject, Subject::Real)) {
        warn(&format!("--layers does not change {REAL}, which is a real model"));
    }

    let wanted = |part| options.parts.contains(&part);
    let mut found = Found::default();
    let versus = Versus { ready: &ready, npu: &npu, cache: &cache, threads };
    // Experts of 16 bits too: there both ways compute nearly the same.
    let (eight, both) = (&[WeightType::Q8_0][..], &[WeightType::Q8_0, WeightType::F16][..]);
    let lengths = [
        (
            Measure::Attention,
            Part::Attention,
            &ATTENTION[..],
            &options.tokens[..],
            Some(ATTENTION_LAYERS),
            eight,
        ),
        (Measure::Experts, Part::Experts, &EXPERTS[..], &[EXPERTS_TOKENS][..], None, both),
    ];
    for (measure, part, models, tokens, layers, kinds) in lengths {
        for model in models.iter().copied().filter(|_| wanted(measure)) {
            for kind in kinds {
                let (path, layers) = if model == UPCYCLED {
                    synth::ensure_upcycled(&cache, &ready.models, *kind)?
                } else {
                    let (shape, layers) =
                        (Shape::named(model).map_err(Error::Refused)?, options.layers.or(layers));
                    let path = synth::ensure(&cache, &ready.models, shape, *kind, layers)?;
                    (path, shape.with_layers(layers).layers)
                };
                let subject = versus::Subject { model, weights: kind.name(), layers, path: &path };
                for tokens in tokens {
                    let what = format!("{model} {}, {tokens} tokens", kind.name());
                    let pair = versus.pair(part, &subject, &options.pipelines[0], *tokens);
                    if let Some(pair) = found.measured(&what, pair) {
                        note(&pair.summary());
                        found.pairs.push(pair);
                    }
                }
            }
        }
    }
    if wanted(Measure::Products) {
        products(options, &ready, &npu, &cache, threads, &mut found)?;
    }
    Ok(found)
}

fn products(
    options: &Options,
    ready: &Ready,
    npu: &Npu,
    cache: &Cache,
    threads: u32,
    found: &mut Found,
) -> Result<()> {
    let total = options.shapes.len() * options.types.len() * options.pipelines.len();
    let mut bench = Bench::new(ready, npu, cache, threads, total);
    for subject in &options.shapes {
        for kind in &options.types {
            let path = match subject {
                Subject::Real => models::file_of(&ready.models, kind.name()),
                Subject::Synthetic(shape) => {
                    synth::ensure(cache, &ready.models, shape, *kind, options.layers)?
                }
            };
            for asked in &options.pipelines {
                let what = format!("{} {} {asked}", subject.name(), kind.name());
                let row = bench.row(subject.name(), kind.name(), &path, asked);
                // An hour's measuring should not be lost with one row.
                let Some(row) = found.measured(&what, row) else { continue };
                note(&rows::summary(&row));
                if let Some(complaint) = rows::unsteady(&row) {
                    warn(&complaint);
                }
                found.rows.push(row);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_told_at_the_end_and_the_rest_is_measured() {
        let mut found = Found::default();
        assert_eq!(found.measured("a Q8_0", Ok(7)), Some(7));
        assert!(found.complete().is_ok());
        for what in ["b F16", "c F16"] {
            assert_eq!(found.measured::<()>(what, Err(Error::Refused("no figures".to_owned()))), None);
        }
        let error = found.complete().unwrap_err().to_string();
        assert!(error.contains("b F16, c F16; all else is above"), "{error}");
    }

    #[test]
    fn models_go_by_name_and_an_unknown_one_is_refused_with_the_list() {
        assert_eq!(Subject::named("SmolLM2").unwrap().name(), "smollm2");
        assert_eq!(Subject::named("gemma3-1b").unwrap().name(), "gemma3-1b");
        let error = Subject::named("llama").unwrap_err();
        assert_eq!(error, "expected one of qwen2.5-1.5b, gemma3-1b, granite-350m, lfm2-8b-a1b, qwen3-30b-a3b, tiny, tiny-moe, smollm2");
    }
}
