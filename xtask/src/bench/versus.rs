//! Prefill two ways, one after the other: attention by the CPU and by the NPU, experts by the CPU and by the NPU.
//!
//! The NPU's runs take their modelled time and the CPU's work its real time, so that a prompt's time has both on one
//! clock. The host is the same in both ways, and so is everything else that it does.

use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::host::{Host, Ran, Test};
use super::quality::{Model, Quality};
use crate::accuracy::asked::Asked;
use crate::cache::Cache;
use crate::env::Npu;
use crate::error::{IoContext, Result};
use crate::progress::Step;
use crate::setup::Ready;

/// Up to as many tokens a prompt is repeated, and the median counts.
const SHORT: u32 = 2048;
/// How often.
const REPETITIONS: u32 = 3;
/// What leaves experts to the CPU (RKNPU_POLICY).
const EXPERTS_ON_CPU: &str = "[[weights]]\nname = \"*_exps.weight\"\npipeline = \"CPU\"\n";
/// What leaves the choice of experts to it, where times are measured: paced runs compute nothing, so that else all tokens of a
/// layer would go to the same few.
const ROUTER_ON_CPU: &str = "[[weights]]\nname = \"*ffn_gate_inp.weight\"\npipeline = \"CPU\"\n";

/// Who does which part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Attention, in pieces (RKNPU_ATTENTION=cpu and npu).
    Attention,
    /// The experts' weights (two policies, by both of which the choice of experts is the CPU's).
    Experts,
}

/// A prompt, both ways.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pair {
    /// What was done by the CPU first, and by the NPU then.
    pub part: Part,
    /// The model.
    pub model: String,
    /// The type of the file's weights.
    pub weights: String,
    /// Layers of it.
    pub layers: u32,
    /// Tokens of the prompt.
    pub tokens: u32,
    /// ns of the prompt, the part done by the CPU and by the NPU.
    pub cpu_ns: f64,
    /// By the NPU.
    pub npu_ns: f64,
    /// ns within attention that the NPU did; none where it did none.
    pub attention_ns: Option<f64>,
    /// Of those, ns in which scores became weights.
    pub weigh_ns: Option<f64>,
    /// Contexts, descriptors and bytes of NPU memory at most, without the part and with it.
    pub contexts: [u64; 2],
    /// Descriptors.
    pub fds: [u64; 2],
    /// Bytes.
    pub npu_bytes: [u64; 2],
    /// Real time of the NPU's runs over modelled time, with the part.
    pub pacing: Option<f64>,
    /// Rows of a product of an expert that has any, on average.
    #[serde(default)]
    pub rows: Option<f64>,
    /// How alike the two ways' words are, of experts.
    #[serde(default)]
    pub quality: Option<Quality>,
}

impl Pair {
    /// ns of attention on the CPU: what else there is takes as long both ways.
    fn cpu_attention_ns(&self) -> Option<f64> {
        self.attention_ns.map(|npu| self.cpu_ns - self.npu_ns + npu)
    }

    /// One line of what was found.
    pub fn summary(&self) -> String {
        let Self { model, weights, tokens, cpu_ns, npu_ns, .. } = self;
        let part =
            self.part.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        format!(
            "{model} {weights}, {tokens} tokens, {part}: {:.3} s by the CPU, {:.3} s by the NPU, {:.2} times",
            cpu_ns / 1e9,
            npu_ns / 1e9,
            cpu_ns / npu_ns
        )
    }
}

/// What all pairs share.
pub struct Versus<'a> {
    /// What was set up.
    pub ready: &'a Ready,
    /// The emulated NPU.
    pub npu: &'a Npu,
    /// Where scratch files go.
    pub cache: &'a Cache,
    /// CPU threads.
    pub threads: u32,
}

/// A model to measure.
pub struct Subject<'a> {
    /// Its name, the type of its weights and its layers.
    pub model: &'a str,
    /// The type.
    pub weights: &'a str,
    /// Layers.
    pub layers: u32,
    /// Its file.
    pub path: &'a Path,
}

impl Versus<'_> {
    /// Measures a prompt of so many tokens both ways.
    ///
    /// # Errors
    /// A host that fails, or reports without what is needed.
    pub fn pair(&self, part: Part, subject: &Subject, asked: &Asked, tokens: u32) -> Result<Pair> {
        let step = Step::spinner(format!("{} {}, {tokens} tokens both ways", subject.model, subject.weights));
        let scratch = self.cache.partial()?;
        let repetitions = if tokens <= SHORT { REPETITIONS } else { 1 };
        // The host's own --cpu-moe gives weights to the CPU and its accelerators, and we are one.
        let policy = |name: &str, text: &str| -> Result<PathBuf> {
            let path = scratch.path().join(name);
            fs::write(&path, text).at("write", &path)?;
            Ok(path)
        };
        let experts = policy("experts.toml", EXPERTS_ON_CPU)?;
        let router = policy("router.toml", ROUTER_ON_CPU)?;
        let both = policy("both.toml", &format!("{EXPERTS_ON_CPU}{ROUTER_ON_CPU}"))?;
        let run = |attention: &'static str, policy: Option<&Path>| {
            let host = Host {
                ready: self.ready,
                npu: self.npu,
                threads: self.threads,
                scratch: scratch.path(),
                attention,
                policy,
            };
            host.run(subject.path, asked, Test::Warm(tokens), repetitions)
        };
        let quality = match part {
            Part::Attention => None,
            Part::Experts => {
                let (ready, npu, scratch, path) = (self.ready, self.npu, scratch.path(), subject.path);
                Some(Model { ready, npu, scratch, path, asked, threads: self.threads }.compare(&experts)?)
            }
        };
        let [cpu, npu] = match part {
            Part::Attention => [run("cpu", None)?, run("npu", None)?],
            Part::Experts => [run("cpu", Some(&both))?, run("cpu", Some(&router))?],
        };
        step.done();
        let number = |ran: &Ran, name: &str| ran.plugin.number(name).unwrap_or(0.0);
        let both = |name: &str| [number(&cpu, name) as u64, number(&npu, name) as u64];
        let a_prompt = |ns: Option<f64>| ns.filter(|ns| *ns > 0.0).map(|ns| ns / f64::from(repetitions));
        Ok(Pair {
            part,
            model: subject.model.to_owned(),
            weights: subject.weights.to_owned(),
            layers: subject.layers,
            tokens,
            cpu_ns: median(&cpu.samples_ns),
            npu_ns: median(&npu.samples_ns),
            attention_ns: a_prompt(npu.plugin.0["attention"]["ns"].as_f64()),
            weigh_ns: a_prompt(npu.plugin.number("weigh_ns")),
            contexts: both("contexts"),
            fds: both("fds"),
            npu_bytes: both("npu_bytes"),
            pacing: npu.emulator.pacing(),
            rows: npu.plugin.rows_an_expert(),
            quality,
        })
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The section of the page on a part, with its title; nothing without pairs of it.
pub fn section(part: Part, pairs: &[Pair]) -> Option<(&'static str, String)> {
    let pairs: Vec<&Pair> = pairs.iter().filter(|pair| pair.part == part).collect();
    pairs.first()?;
    let (title, text) = match part {
        Part::Attention => (
            "Attention",
            "A prompt in batches of 512 tokens, with attention by the CPU (RKNPU_ATTENTION=cpu) and by the NPU (npu), one \
             after the other: paced, CPU of this machine + modelled NPU. The models are cut to a few layers. *Attention by \
             the NPU*: the time within it, and of that *weights*, in which the CPU made weights of scores; *by the CPU*: what \
             the prompt took longer, plus that. Contexts, descriptors and MB of NPU memory are the most at once, without \
             and with it.",
        ),
        Part::Experts => (
            "Experts",
            "A prompt with the experts' weights left to the CPU (RKNPU_POLICY) and on the NPU, one after the other: paced, CPU \
             of this machine + modelled NPU. Attention is the CPU's both ways, and so is the choice of experts: paced runs compute \
             nothing, so that else all tokens would go to the same few. *Rows*: those of a product of an expert that has any, on \
             average of the prompt and of the short ones before. *Perplexity*, *KL* and *same token*: of 512 tokens \
             of text, computed and not paced, the NPU's way against the CPU's. *Generated*: whether both ways go on from a prompt \
             by the same 32 tokens, the likeliest each time. smollm2-8x is SmolLM2-135M with eight experts, each its feed-forward \
             block in another order and without a few hidden units: it says about what SmolLM2 does. The others have random \
             weights, are cut to a few layers, and say nothing: their output matrices have a few rows that are clearly longer \
             than others, as favourite tokens of trained ones, but the text has few of these, so that its perplexity tells \
             little.",
        ),
    };
    let mut out =
        format!("{text}\n\n| model | weights | layers | tokens | by the CPU, s | by the NPU, s | times |");
    let attention = part == Part::Attention;
    out +=
        if attention { " attention by the CPU, s | by the NPU, s | weights, s | times |" } else { " rows |" };
    out += " contexts | descriptors | NPU MB |";
    if !attention {
        out += " perplexity by the CPU | by the NPU | differs | KL | same token | generated |";
    }
    out += "\n|---|---|";
    out += &"---:|".repeat(if attention { 12 } else { 15 });
    out.push('\n');
    let seconds = |ns: Option<f64>| ns.map_or_else(|| "–".to_owned(), |ns| format!("{:.3}", ns / 1e9));
    for pair in pairs {
        let mut cells = vec![
            pair.model.clone(),
            pair.weights.clone(),
            pair.layers.to_string(),
            pair.tokens.to_string(),
            seconds(Some(pair.cpu_ns)),
            seconds(Some(pair.npu_ns)),
            format!("{:.2}", pair.cpu_ns / pair.npu_ns),
        ];
        if attention {
            let cpu = pair.cpu_attention_ns();
            let times = cpu.zip(pair.attention_ns).map(|(cpu, npu)| format!("{:.2}", cpu / npu));
            cells.extend([seconds(cpu), seconds(pair.attention_ns), seconds(pair.weigh_ns)]);
            cells.push(times.unwrap_or_else(|| "–".to_owned()));
        } else {
            cells.push(pair.rows.map_or_else(|| "–".to_owned(), |rows| format!("{rows:.0}")));
        }
        let both = |[without, with]: [u64; 2]| format!("{without}, {with}");
        let mb = pair.npu_bytes.map(|bytes| bytes.div_ceil(1_000_000));
        cells.extend([both(pair.contexts), both(pair.fds), both(mb)]);
        if !attention {
            let none = || ["–"; 6].map(str::to_owned);
            cells.extend(pair.quality.as_ref().map_or_else(none, Quality::cells));
        }
        out += &format!("| {} |\n", cells.join(" | "));
    }
    Some((title, out))
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn pair(part: Part) -> Pair {
        Pair {
            part,
            model: "m".into(),
            weights: "Q8_0".into(),
            layers: 2,
            tokens: 8192,
            cpu_ns: 9e9,
            npu_ns: 6e9,
            attention_ns: Some(1.5e9),
            weigh_ns: Some(1e9),
            contexts: [1, 2],
            fds: [3, 4],
            npu_bytes: [5_000_000, 6_000_000],
            pacing: None,
            rows: Some(31.6),
            quality: Some(Quality {
                perplexity: [200.0, 201.0],
                kl: 1.5e-5,
                same_top: 98.04,
                generated: Some(["a".into(), "a".into()]),
            }),
        }
    }

    #[test]
    fn attention_on_the_cpu_is_what_the_prompt_takes_longer() {
        assert_eq!(pair(Part::Attention).cpu_attention_ns(), Some(4.5e9));
        let (title, text) = section(Part::Attention, &[pair(Part::Attention), pair(Part::Experts)]).unwrap();
        assert_eq!(title, "Attention");
        let row = "| m | Q8_0 | 2 | 8192 | 9.000 | 6.000 | 1.50 | 4.500 | 1.500 | 1.000 | 3.00 | 1, 2 | 3, 4 | 5, 6 |\n";
        assert!(text.ends_with(row), "{text}");
        let bars =
            |text: &str| text.lines().skip(2).map(|line| line.matches('|').count()).collect::<Vec<_>>();
        assert_eq!(bars(&text), [15; 3]);
        let without = Pair { quality: None, ..pair(Part::Experts) };
        let (_, text) = section(Part::Experts, &[pair(Part::Experts), without]).unwrap();
        assert_eq!(bars(&text), [18; 4]);
        assert!(text.contains("| 1.50 | 32 | 1, 2 |"), "{text}");
        assert!(text.contains("| 200.00 | 201.00 | +0.500 % | 1.50e-5 | 98.0 % | the same 32 |\n"), "{text}");
        assert!(section(Part::Experts, &[pair(Part::Attention)]).is_none());
    }

    #[test]
    fn the_middle_one_of_several_counts() {
        assert_eq!((median(&[3.0, 1.0, 2.0]), median(&[7.0])), (2.0, 7.0));
        assert!(median(&[]).is_nan());
    }
}
