//! `cargo xtask architectures`: every architecture that the host knows, with random weights, on the plugin's device and on the
//! CPU. The host's own test-llama-archs makes the models and looks at their logits, once without the plugin and once with
//! it; both runs' logits are written down and compared here. (The test compares too, but with a reference in the same process,
//! whose weights the plugin takes as well.)

mod logits;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde::Serialize;

use self::logits::Compared;
use crate::env::{Npu, NpuOptions};
use crate::error::{Error, IoContext, Result};
use crate::process;
use crate::progress::Step;
use crate::report::PluginReport;
use crate::setup::packages::{self, Need};
use crate::setup::{self, Wants};

/// The host's program.
const PROGRAM: &str = "test-llama-archs";
/// What is preloaded into it.
const PRELOAD: [(&str, &str); 2] =
    [("preload.c", include_str!("preload.c")), ("flush_log.c", include_str!("flush_log.c"))];

/// The options of `architectures`.
#[derive(Debug, Args)]
pub struct Options {
    /// Only these: a name or a regular expression, as the host's test takes it
    #[arg(short, long, value_name = "NAME")]
    arch: Option<String>,
    /// The seed of weights and tokens
    #[arg(long, default_value_t = 1)]
    seed: u32,
    #[command(flatten)]
    npu: NpuOptions,
    /// Write the table to a page
    #[arg(long, value_name = "FILE.md")]
    save: Option<PathBuf>,
    /// Print one JSON object as the last line of stdout instead of the table
    #[arg(long)]
    json: bool,
}

/// What both runs came to.
#[derive(Debug, Serialize)]
struct Outcome {
    description: String,
    /// Tests that the host's program ran with the plugin, and those of them that passed.
    tests: u64,
    passed: u64,
    /// The same on the CPU.
    cpu_tests: u64,
    cpu_passed: u64,
    npu_runs: u64,
    fallbacks: u64,
    architectures: Vec<Compared>,
}

/// Runs the host's test twice and compares.
///
/// # Errors
/// A failed set-up, a host that crashes or computes other rows with the plugin, or a page that cannot be written.
pub fn command(options: &Options) -> Result<()> {
    let npu = options.npu.choose(false)?;
    let ready = setup::prepare(Wants { models: false, plugin: true })?;
    packages::ensure(&[Need::Cxx])?;
    let program = ready.host.program(PROGRAM)?;
    let scratch = tempfile::tempdir().at("create a folder in", &std::env::temp_dir())?;
    let preload = compile(scratch.path())?;
    let report = scratch.path().join("report.json");
    let run = |npu: &Npu, device: &str, what: &str| {
        let step = Step::spinner(format!("every architecture on {what}"));
        let path = scratch.path().join(device);
        let mut test = Command::new(&program);
        npu.apply(ready.plugin.as_ref(), &mut test);
        test.env("LD_PRELOAD", &preload).env("ARCHITECTURES_LOGITS", &path).env("RKNPU_REPORT", &report);
        // Few tokens too are the NPU's here: its results are what is looked at.
        test.env("RKNPU_DECODE", "npu").env("OMP_WAIT_POLICY", "passive");
        test.args(["-b", device, "-s", &options.seed.to_string()]);
        if let Some(arch) = &options.arch {
            test.args(["-a", arch]);
        }
        let mut summary = None;
        // Its exit code only repeats what it sums up.
        let ran = process::run_watched(&mut test, |line| summary = counts(line).or(summary));
        match (summary, ran) {
            (Some(summary), _) => {
                step.done();
                Ok((path, summary))
            }
            (None, Err(error)) => Err(error),
            (None, Ok(())) => Err(Error::Refused(format!(
                "{PROGRAM} ended without summing up, expected some tests: --arch must name an architecture"
            ))),
        }
    };
    let (reference, cpu) = run(&Npu::Cpu, "CPU", "the CPU")?;
    let (path, with_plugin) = run(&npu, "RKNPU", "the plugin's device")?;
    let open = |path: &Path| File::open(path).at("open", path).map(BufReader::new);
    let report = PluginReport::read(&report).at("read the plugin's report", &report)?.unwrap_or_default();
    let outcome = Outcome {
        description: report.description,
        tests: with_plugin.0,
        passed: with_plugin.1,
        cpu_tests: cpu.0,
        cpu_passed: cpu.1,
        npu_runs: report.npu_runs,
        fallbacks: report.fallbacks,
        architectures: logits::compare(open(&reference)?, open(&path)?)?,
    };
    if let Some(path) = &options.save {
        fs::write(path, outcome.page()).at("write the page", path)?;
    }
    if options.json {
        println!("{}", serde_json::to_string(&outcome).unwrap_or_default());
    } else {
        print!("{}", outcome.table());
    }
    Ok(())
}

/// Compiles what is preloaded; where it is.
fn compile(folder: &Path) -> Result<PathBuf> {
    let library = folder.join("preload.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&library);
    for (name, text) in PRELOAD {
        let source = folder.join(name);
        fs::write(&source, text).at("write", &source)?;
        cc.arg(&source);
    }
    cc.arg("-ldl");
    process::run_quietly(&mut cc)?;
    Ok(library)
}

/// Tests run and passed, of the line with which the host sums up.
fn counts(line: &str) -> Option<(u64, u64)> {
    let words: Vec<&str> = line.trim().strip_prefix("Summary: ")?.split_whitespace().collect();
    let number = |word: &str| word.parse::<u64>().ok();
    match words[..] {
        ["all", all, "test(s)", "passed"] => Some((number(all)?, number(all)?)),
        [all, "test(s)", "executed,", failed, "failed"] => {
            let all = number(all)?;
            Some((all, all.checked_sub(number(failed)?)?))
        }
        _ => None,
    }
}

impl Outcome {
    fn table(&self) -> String {
        let mut out = String::from(
            "| architecture | experts | rows | KL | NMSE | same top |\n|---|---|---|---|---|---|\n",
        );
        for one in &self.architectures {
            let Compared { architecture, experts, rows, kl, nmse, same_top } = one;
            let experts = if *experts { "yes" } else { "" };
            // Sums of exponentials that are equal may be off by a rounding.
            let (kl, top) = (kl.max(0.0), same_top * 100.0);
            let _ =
                writeln!(out, "| {architecture} | {experts} | {rows} | {kl:.1e} | {nmse:.1e} | {top:.1} % |");
        }
        let _ = write!(
            out,
            "\n{} of {} tests of the host's {PROGRAM} pass on {}, {} of {} on the CPU; {} NPU runs, {} fallbacks.\n",
            self.passed, self.tests, self.description, self.cpu_passed, self.cpu_tests, self.npu_runs, self.fallbacks
        );
        out
    }

    fn page(&self) -> String {
        format!(
            "# Architectures\n\n\
             Made by `cargo xtask architectures --save docs/architectures.md`. Each architecture that llama.cpp knows and whose \
             test model it can make, with random weights (F32 and F16) and random tokens: how far the logits with the plugin are \
             from those of the same host without it. KL is the mean divergence of a row's distribution to the CPU's in nats, \
             NMSE the squared error over the square of the CPU's logits; a device that computes noise has an NMSE of the order \
             of 1. Products of any number of rows are done by the NPU (`RKNPU_DECODE=npu`).\n\n{}",
            self.table()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_of_no_tests_is_none() {
        assert_eq!(counts("Summary: all 133 test(s) passed"), Some((133, 133)));
        assert_eq!(counts("Summary: 133 test(s) executed, 2 failed"), Some((133, 131)));
        assert_eq!(counts("Summary: no tests executed"), None);
        assert_eq!(counts("| llama | emulated RK3588 | Dense |"), None);
    }

    #[test]
    fn the_page_has_a_row_for_each_architecture_and_says_how_it_is_made() {
        let one = Compared {
            architecture: "llama".to_owned(),
            experts: true,
            rows: 640,
            kl: -1e-18,
            nmse: 2.5e-9,
            same_top: 0.996,
        };
        let outcome = Outcome {
            description: "emulated RK3588".to_owned(),
            tests: 133,
            passed: 132,
            cpu_tests: 133,
            cpu_passed: 133,
            npu_runs: 7,
            fallbacks: 0,
            architectures: vec![one],
        };
        let page = outcome.page();
        assert!(page.contains("| llama | yes | 640 | 0.0e0 | 2.5e-9 | 99.6 % |"), "{page}");
        assert!(page.contains("132 of 133 tests") && page.contains("cargo xtask architectures"), "{page}");
    }
}
