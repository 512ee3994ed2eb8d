//! `cargo xtask run`: a stock llama.cpp answers a prompt through the plugin, and what ran where is shown.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::completion::{watch, Ran, PROGRAM};
use crate::env::{Npu, NpuOptions};
use crate::error::{Error, IoContext, Result};
use crate::flops;
use crate::gguf::Gguf;
use crate::host_output::HostLog;
use crate::model::Model;
use crate::report::{share, Outcome, PluginReport};
use crate::setup::{self, Wants};

/// The context that is used unless another is asked for, bounded by what the model was trained on.
const DEFAULT_CONTEXT: u64 = 4096;

/// The host rounds its context up to this but not its batch, and aborts on a prompt between the two.
const CONTEXT_STEP: u64 = 256;

/// The options of `run`.
#[derive(Debug, Args)]
pub struct Options {
    /// A GGUF file, or a cached model: f16, q8_0, q4_0, q4_k_m, q6_k, q4_1 [default: $RKNPU_MODEL, else f16]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// What to say to the model
    #[arg(
        short,
        long,
        allow_hyphen_values = true,
        default_value = "Hello! Please tell me something nice about small computers."
    )]
    prompt: String,
    /// How many tokens to generate at most
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Tokens of context, rounded up to a multiple of 256 [default: the model's, at most 4096]
    #[arg(short, long, value_name = "CTX", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    #[command(flatten)]
    npu: NpuOptions,
    /// Run the same host without the plugin
    #[arg(long, conflicts_with = "npu")]
    cpu: bool,
    /// Print one JSON object as the last line of stdout instead of the text and the table
    #[arg(long)]
    json: bool,
    /// Continue the prompt as it is, with no chat template
    #[arg(long)]
    raw: bool,
    /// More arguments for llama-completion, after `--`
    #[arg(last = true, value_name = "HOST ARGS")]
    host_args: Vec<String>,
}

/// Runs the host and prints what came of it.
///
/// # Errors
/// Bad input, before anything is built or started; a failed set-up; a failed host; no device.
pub fn command(options: &Options) -> Result<()> {
    if options.prompt.is_empty() {
        return Err(Error::Refused(
            "--prompt \"\" is empty: expected a prompt of at least one character".to_owned(),
        ));
    }
    let npu = options.npu.choose(options.cpu)?;
    let model = Model::named(options.model.clone())?;

    let ready = setup::prepare(Wants { models: model.is_cached(), plugin: npu != Npu::Cpu })?;
    let (path, head) = model.open(&ready.models)?;

    let scratch = tempfile::tempdir().at("create a folder in", &env::temp_dir())?;
    let report_path = scratch.path().join("report.json");
    let mut host = Command::new(ready.host.program(PROGRAM)?);
    npu.apply(ready.plugin.as_ref(), &mut host);
    host.env("RKNPU_REPORT", &report_path);
    // A host that aborts would let a debugger write into the text.
    host.env("GGML_NO_BACKTRACE", "1");
    add_arguments(&mut host, options, &path, &head);
    let ran = watch(host, !options.json)?;

    let report = PluginReport::read(&report_path).at("read the plugin's report", &report_path)?;
    if let Some(own) = env::var_os("RKNPU_REPORT").filter(|own| report.is_some() && !own.is_empty()) {
        let own = Path::new(&own);
        std::fs::copy(&report_path, own).at("write the plugin's report to", own)?;
    }
    let note = explain_absence(&npu, report.as_ref(), &ran.log)?;
    let outcome = outcome(ran, report, &head, &path, npu.soc(), note);
    print(&outcome, options.json);
    Ok(())
}

fn add_arguments(host: &mut Command, options: &Options, path: &Path, head: &Gguf) {
    let trained = head.number("context_length").unwrap_or(DEFAULT_CONTEXT);
    let context = options.context.map_or(DEFAULT_CONTEXT.min(trained), u64::from).max(1);
    let context = context.saturating_add(CONTEXT_STEP - 1) / CONTEXT_STEP * CONTEXT_STEP;
    host.arg("-m").arg(path).arg("-p").arg(&options.prompt);
    host.args(["-n", &options.tokens.to_string(), "-c", &context.to_string(), "--temp", "0"]);
    host.args(if options.raw { &["-no-cnv"][..] } else { &["-cnv", "-st"] });
    // A warm-up would be counted as work of the run. The log level tells which backends were loaded.
    host.args(["--no-display-prompt", "--no-warmup", "-lv", "4"]);
    host.args(&options.host_args);
}

/// A missing report is an error when the plugin gave the host no device against the user's wish.
fn explain_absence(npu: &Npu, report: Option<&PluginReport>, log: &HostLog) -> Result<Option<String>> {
    if *npu == Npu::Cpu {
        return Ok(None);
    }
    if let Some(report) = report {
        let is_idle = report.npu_runs == 0;
        return Ok(is_idle.then(|| "the NPU took no matmul of this model; the CPU did them all".to_owned()));
    }
    if env::var_os("RKNPU_DISABLE").is_some_and(|value| value == "1") {
        return Ok(Some("RKNPU_DISABLE=1 keeps the plugin from registering a device".to_owned()));
    }
    match log.why_no_device() {
        None => Ok(Some("the plugin left no report: it took no matmul of this model".to_owned())),
        Some(why) => Err(Error::Refused(format!(
            "the plugin registered no device: {why}; \
             put that right, or pass --cpu if the CPU is wanted"
        ))),
    }
}

/// Puts the record of the run together.
fn outcome(
    ran: Ran,
    report: Option<PluginReport>,
    head: &Gguf,
    path: &Path,
    soc: Option<&str>,
    note: Option<String>,
) -> Outcome {
    let Ran { text, log, seconds } = ran;
    let tokens = log.tokens();
    let share = share(report.as_ref(), &flops::of_run(head, tokens));
    let said = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let has_device = report.is_some();
    let report = report.unwrap_or_default();
    Outcome {
        text,
        tokens: tokens.generated,
        prompt_tokens: tokens.prompt,
        npu_flops_share: share.fraction(),
        routed_flops_share: share.routed_fraction(),
        npu_flops: share.npu,
        total_flops: share.total,
        pipelines: report.pipelines,
        npu_runs: report.npu_runs,
        contexts: report.contexts,
        fds: report.fds,
        npu_bytes: report.npu_bytes,
        fallbacks: report.fallbacks,
        device: has_device.then_some(report.device),
        description: has_device.then_some(report.description),
        soc: said(&report.soc).or(soc.map(str::to_owned)),
        model: path.display().to_string(),
        prompt_tokens_per_second: log.prompt_per_second(),
        tokens_per_second: log.decode_per_second(),
        seconds,
        note,
    }
}

fn print(outcome: &Outcome, json: bool) {
    let result = if json {
        serde_json::to_string(outcome).map_err(io::Error::from).map(|line| line + "\n")
    } else {
        Ok(format!("\n{}", outcome.table()))
    };
    // Whoever closed our stdout does not want to hear of it.
    let _ = result.and_then(|text| io::stdout().write_all(text.as_bytes()));
}
