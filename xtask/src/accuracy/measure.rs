//! The measuring itself: the host's llama-perplexity, once for the reference's logits and once for each row.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::asked::Asked;
use super::rows::Row;
use super::size;
use crate::env::Npu;
use crate::error::{Error, IoContext, Result};
use crate::process;
use crate::progress::Step;
use crate::report::PluginReport;
use crate::setup::Ready;

/// The host's program that measures.
pub const PROGRAM: &str = "llama-perplexity";

/// What is the same for all rows.
pub struct Conditions {
    /// Chunks of the text.
    pub chunks: u32,
    /// Tokens of a chunk.
    pub context: u32,
    /// Who does attention beside the NPU's products.
    pub attention: String,
}

/// What all measurements share.
pub struct Bench<'a> {
    ready: &'a Ready,
    npu: &'a Npu,
    scratch: &'a Path,
    reference: String,
    conditions: Conditions,
    /// Rows that were begun, and rows that there will be.
    begun: usize,
    total: usize,
}

impl<'a> Bench<'a> {
    /// A bench that keeps its files in `scratch` and will measure `total` rows.
    pub fn new(
        ready: &'a Ready,
        npu: &'a Npu,
        scratch: &'a Path,
        reference: &Path,
        conditions: Conditions,
        total: usize,
    ) -> Self {
        Self { ready, npu, scratch, reference: name_of(reference), conditions, begun: 0, total }
    }

    /// Writes the reference's logits.
    ///
    /// # Errors
    /// When the host is missing or fails.
    pub fn reference(&self, model: &Path, text: &Path) -> Result<()> {
        let mut host = self.host(model, &Npu::Cpu)?;
        host.arg("-f").arg(text).arg("--kl-divergence-base").arg(self.logits());
        let step = Step::spinner(format!("the reference's logits, {} chunks", self.conditions.chunks));
        process::run_quietly(&mut host)?;
        step.done();
        Ok(())
    }

    /// Measures one file: on the CPU, with the file's bytes a weight, or as asked of the NPU, whose bytes a weight the
    /// plugin reports.
    ///
    /// # Errors
    /// When the host fails or prints no figures, or the plugin finds no NPU.
    pub fn row(&mut self, model: &Path, asked: Option<&Asked>, of_file: Option<f64>) -> Result<Row> {
        self.begun += 1;
        let name = name_of(model);
        let of_npu = |asked: &Asked| match &*self.conditions.attention {
            "cpu" => asked.to_string(),
            who => format!("{asked}, attention {who}"),
        };
        let on = asked.map_or_else(|| "CPU".to_owned(), of_npu);
        let mut host = self.host(model, if asked.is_some() { self.npu } else { &Npu::Cpu })?;
        host.args(["--kl-divergence", "--kl-divergence-base"]).arg(self.logits());
        let report = self.scratch.join(format!("report-{}.json", self.begun));
        if let Some(asked) = asked {
            asked.apply(&mut host);
            host.env("RKNPU_REPORT", &report);
        }
        let step = Step::spinner(format!("{name} on {on} ({} of {})", self.begun, self.total));
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
        let bytes_per_weight = match asked {
            None => of_file,
            Some(_) => PluginReport::read(&report)
                .at("read the plugin's report", &report)?
                .and_then(|report| size::of_report(&report)),
        };
        let Figures { kl: Some(kl), same_top: Some(same_top), perplexity: Some(perplexity), .. } = figures
        else {
            return Err(Error::Refused(format!("{PROGRAM} printed no divergence for {name} on {on}")));
        };
        Ok(Row {
            model: name,
            on,
            kl,
            same_top,
            perplexity,
            bytes_per_weight,
            reference: Some(self.reference.clone()),
            chunks: Some(self.conditions.chunks),
        })
    }

    fn logits(&self) -> PathBuf {
        self.scratch.join("logits")
    }

    fn host(&self, model: &Path, npu: &Npu) -> Result<Command> {
        self.conditions.host(self.ready, npu, model)
    }
}

impl Conditions {
    /// The host's program that measures, with its model.
    ///
    /// # Errors
    /// When the host has no such program.
    pub fn host(&self, ready: &Ready, npu: &Npu, model: &Path) -> Result<Command> {
        let mut host = Command::new(ready.host.program(PROGRAM)?);
        npu.apply(ready.plugin.as_ref(), &mut host);
        let Self { chunks, context, attention } = self;
        host.env("GGML_NO_BACKTRACE", "1").env("RKNPU_ATTENTION", attention).arg("-m").arg(model);
        host.args(["--chunks", &chunks.to_string(), "-c", &context.to_string()]);
        Ok(host)
    }
}

/// The file's name as rows have it, without the folder and `.gguf`.
fn name_of(model: &Path) -> String {
    model.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned())
}

/// The figures among the host's lines.
#[derive(Debug, Default, PartialEq)]
pub struct Figures {
    /// The mean divergence from the reference.
    pub kl: Option<f64>,
    /// Of how many tokens the most likely one is the same, in percent.
    pub same_top: Option<f64>,
    /// Perplexity, and that of the reference.
    pub perplexity: Option<f64>,
    /// Of the reference.
    pub reference: Option<f64>,
}

impl Figures {
    /// Takes the figure of a line such as `Mean    KLD:   0.004257 ±   0.000107`; one that is no number is none.
    pub fn read(&mut self, line: &str) {
        let Some((name, value)) = line.split_once(':') else { return };
        let value = value.split_whitespace().next().and_then(|number| number.parse().ok());
        let value = value.filter(|value: &f64| value.is_finite());
        let words: Vec<&str> = name.split_whitespace().collect();
        match words[..] {
            ["Mean", "KLD"] => self.kl = value,
            ["Same", "top", "p"] => self.same_top = value,
            ["Mean", "PPL(Q)"] => self.perplexity = value,
            ["Mean", "PPL(base)"] => self.reference = value,
            _ => {}
        }
    }
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
        let want = Figures {
            kl: Some(0.004257),
            same_top: Some(95.18),
            perplexity: Some(28.761234),
            reference: Some(28.626),
        };
        assert_eq!(figures, want);
        figures.read("Mean    KLD:   nan ±   nan");
        assert_eq!(figures.kl, None, "no divergence is not a divergence");
    }
}
