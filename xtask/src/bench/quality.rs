//! What a model says with its experts on the NPU, against what it says with them on the CPU, on the same text.
//!
//! Nothing is paced here: the emulated NPU computes. Attention is the CPU's both ways, and so is everything else alike.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::host::clear;
use crate::accuracy::asked::Asked;
use crate::accuracy::measure::{Conditions, Figures, PROGRAM};
use crate::accuracy::text_of;
use crate::completion;
use crate::env::Npu;
use crate::error::{Error, Result};
use crate::process;
use crate::setup::Ready;

/// Tokens of the text: what the host takes for a chunk, the second half of which counts.
const TOKENS: u32 = 512;
/// Tokens that each way generates, the likeliest one each time.
const GENERATED: u32 = 32;

/// How alike the two ways are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Perplexity with the experts on the CPU, and on the NPU.
    pub perplexity: [f64; 2],
    /// The mean divergence of the NPU's from the CPU's.
    pub kl: f64,
    /// Of how many tokens both hold the same one for the most likely, in percent.
    pub same_top: f64,
    /// What both ways generated, if it was noted.
    #[serde(default)]
    pub generated: Option<[String; 2]>,
}

impl Quality {
    /// By how much the perplexities differ, in percent of the CPU's.
    pub fn difference(&self) -> f64 {
        let [cpu, npu] = self.perplexity;
        (npu / cpu - 1.0) * 100.0
    }

    /// As cells of a table: both perplexities, by how much they differ, the divergence, the same tokens, and whether the
    /// generated ones are.
    pub fn cells(&self) -> [String; 6] {
        let [cpu, npu] = self.perplexity.map(|perplexity| format!("{perplexity:.2}"));
        let differs = format!("{:+.3} %", self.difference());
        // Rounding may leave a divergence of nothing a little below it.
        let kl = format!("{:.2e}", self.kl.max(0.0));
        let generated = match &self.generated {
            Some([cpu, npu]) if cpu == npu => format!("the same {GENERATED}"),
            Some([cpu, npu]) => {
                let same = cpu.bytes().zip(npu.bytes()).take_while(|(cpu, npu)| cpu == npu).count();
                format!("others after {same} of {} bytes", cpu.len())
            }
            None => "–".to_owned(),
        };
        [cpu, npu, differs, kl, format!("{:.1} %", self.same_top), generated]
    }
}

/// What is the same both ways.
pub struct Model<'a> {
    /// What was set up.
    pub ready: &'a Ready,
    /// The emulated NPU.
    pub npu: &'a Npu,
    /// Where the logits go.
    pub scratch: &'a Path,
    /// The model.
    pub path: &'a Path,
    /// What is asked of the NPU.
    pub asked: &'a Asked,
    /// CPU threads.
    pub threads: u32,
}

impl Model<'_> {
    /// Has the host judge the text both ways, and go on from a prompt; `policy` leaves the experts to the CPU.
    ///
    /// # Errors
    /// A missing text, a host that fails, or figures that are missing.
    pub fn compare(&self, policy: &Path) -> Result<Quality> {
        let generated = Some([self.generate(Some(policy))?, self.generate(None)?]);
        let text = text_of(None)?;
        let logits = self.scratch.join("logits");
        let mut reference = self.host()?;
        reference.env("RKNPU_POLICY", policy).arg("-f").arg(&text).arg("--kl-divergence-base").arg(&logits);
        process::run_quietly(&mut reference)?;
        let mut host = self.host()?;
        host.args(["--kl-divergence", "--kl-divergence-base"]).arg(&logits);
        let mut figures = Figures::default();
        process::run_watched(&mut host, |line| figures.read(line))?;
        match figures {
            Figures {
                kl: Some(kl),
                same_top: Some(same_top),
                perplexity: Some(npu),
                reference: Some(cpu),
            } => Ok(Quality { perplexity: [cpu, npu], kl, same_top, generated }),
            _ => {
                let file = self.path.display();
                Err(Error::Refused(format!("{PROGRAM} printed not all figures for {file}: {figures:?}")))
            }
        }
    }

    /// The text that the model goes on with.
    fn generate(&self, policy: Option<&Path>) -> Result<String> {
        let mut host = Command::new(self.ready.host.program(completion::PROGRAM)?);
        self.npu.apply(self.ready.plugin.as_ref(), &mut host);
        self.prepare(&mut host);
        if let Some(policy) = policy {
            host.env("RKNPU_POLICY", policy);
        }
        host.env("GGML_NO_BACKTRACE", "1").env("RKNPU_ATTENTION", "cpu");
        host.args([
            "-no-cnv",
            "--no-display-prompt",
            "--no-warmup",
            "--ignore-eos",
            "--temp",
            "0",
            "-lv",
            "4",
        ]);
        host.args(["-c", "512", "-n", &GENERATED.to_string(), "-p", completion::PROMPT])
            .arg("-m")
            .arg(self.path);
        Ok(completion::watch(host, false)?.text)
    }

    fn host(&self) -> Result<Command> {
        let conditions = Conditions { chunks: 1, context: TOKENS, attention: "cpu".to_owned() };
        let mut host = conditions.host(self.ready, self.npu, self.path)?;
        self.prepare(&mut host);
        Ok(host)
    }

    /// What is the same for both of the host's programs.
    fn prepare(&self, host: &mut Command) {
        clear(host);
        self.asked.apply(host);
        host.args(["-t", &self.threads.to_string()]);
    }
}
