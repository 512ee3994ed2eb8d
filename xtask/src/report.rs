//! What ran where: the plugin's own report, held against the work of the whole model.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

use crate::flops::Work;

/// The object that the plugin writes to `RKNPU_REPORT` when its host ends.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PluginReport {
    /// The device's name.
    pub device: String,
    /// Its description; an emulator names itself here.
    pub description: String,
    /// The chip.
    pub soc: String,
    /// Runs of the NPU.
    #[serde(deserialize_with = "count")]
    pub npu_runs: u64,
    /// FLOPs that the NPU did.
    #[serde(deserialize_with = "count")]
    pub npu_flops: u64,
    /// FLOPs of nodes given to the plugin that the CPU did all the same.
    #[serde(deserialize_with = "count")]
    pub cpu_flops: u64,
    /// FLOPs that the plugin's own kernels did on the CPU, since that is faster.
    #[serde(deserialize_with = "count")]
    pub routed_flops: u64,
    /// Contexts of the vendor's library.
    #[serde(deserialize_with = "count")]
    pub contexts: u64,
    /// File descriptors that the NPU's memory took.
    #[serde(deserialize_with = "count")]
    pub fds: u64,
    /// Bytes of the NPU's memory.
    #[serde(deserialize_with = "count")]
    pub npu_bytes: u64,
    /// Nodes that fell back to the CPU.
    #[serde(deserialize_with = "count")]
    pub fallbacks: u64,
    /// Runs by pipeline.
    pub pipelines: BTreeMap<String, u64>,
    /// The weights that were seen.
    pub tensors: Vec<SeenTensor>,
}

/// One weight in the plugin's report.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct SeenTensor {
    /// Its name in the model.
    pub name: String,
    /// Its K.
    #[serde(deserialize_with = "count")]
    pub k: u64,
    /// Its N.
    #[serde(deserialize_with = "count")]
    pub n: u64,
    /// Bytes of its copy on the NPU; 0 when it has none.
    #[serde(deserialize_with = "count")]
    pub npu_bytes: u64,
    /// FLOPs with it on the NPU.
    #[serde(deserialize_with = "count")]
    pub npu_flops: u64,
    /// FLOPs with it in the plugin's fallback.
    #[serde(deserialize_with = "count")]
    pub cpu_flops: u64,
    /// FLOPs with it by the plugin's own kernels on the CPU.
    #[serde(deserialize_with = "count")]
    pub routed_flops: u64,
}

impl PluginReport {
    /// Reads the report; `None` if the plugin wrote none.
    ///
    /// # Errors
    /// When there is a file that cannot be read or is not such an object.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(content) if content.is_empty() => Ok(None),
            Ok(content) => Ok(Some(serde_json::from_slice(&content)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// A count that may have been written as a float.
fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    Ok(number.as_u64().unwrap_or_else(|| number.as_f64().unwrap_or(0.0).max(0.0).round() as u64))
}

/// FLOPs of a run by who did them.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Share {
    /// By the NPU.
    pub npu: u64,
    /// By the plugin's own kernels on the CPU.
    pub routed: u64,
    /// By anyone.
    pub total: u64,
}

impl Share {
    /// The NPU's part, 0 to 1.
    pub fn fraction(self) -> f64 {
        self.of_total(self.npu)
    }

    /// The part of the plugin's own kernels on the CPU, 0 to 1.
    pub fn routed_fraction(self) -> f64 {
        self.of_total(self.routed)
    }

    fn of_total(self, part: u64) -> f64 {
        if self.total == 0 {
            0.0
        } else {
            part as f64 / self.total as f64
        }
    }
}

/// The NPU's share of a run.
///
/// For a weight that the plugin saw, what it saw is the truth and only the rest, up to the work that the
/// shapes call for, is the host's. What the plugin did beyond the weights is taken for attention.
pub fn share(report: Option<&PluginReport>, work: &Work) -> Share {
    let nothing = PluginReport::default();
    let report = report.unwrap_or(&nothing);
    let reached = report.npu_flops.saturating_add(report.cpu_flops).saturating_add(report.routed_flops);

    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in &report.tensors {
        let flops = seen.entry(&tensor.name).or_default();
        for part in [tensor.npu_flops, tensor.cpu_flops, tensor.routed_flops] {
            *flops = flops.saturating_add(part);
        }
    }
    let (mut kept_by_host, mut reached_as_weights) = (0u64, 0u64);
    for (name, flops) in &work.weights {
        let here = seen.get(name.as_str()).copied().unwrap_or(0);
        reached_as_weights = reached_as_weights.saturating_add(here);
        kept_by_host = kept_by_host.saturating_add(flops.saturating_sub(here));
    }
    let reached_as_attention = reached.saturating_sub(reached_as_weights);
    let attention = work.attention.saturating_sub(reached_as_attention);
    let total = reached.saturating_add(kept_by_host).saturating_add(attention);
    Share { npu: report.npu_flops, routed: report.routed_flops, total }
}

/// The result of a run, as `--json` prints it.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The generated text.
    pub text: String,
    /// Generated tokens, an end-of-text token included.
    pub tokens: u64,
    /// Tokens of the prompt, the chat template's included.
    pub prompt_tokens: u64,
    /// The NPU's share of the model's matmul FLOPs.
    pub npu_flops_share: f64,
    /// The share of the plugin's own kernels on the CPU: products of few rows.
    pub routed_flops_share: f64,
    /// FLOPs on the NPU.
    pub npu_flops: u64,
    /// All matmul FLOPs.
    pub total_flops: u64,
    /// Runs by pipeline.
    pub pipelines: BTreeMap<String, u64>,
    /// Runs of the NPU.
    pub npu_runs: u64,
    /// Contexts of the vendor's library.
    pub contexts: u64,
    /// File descriptors of NPU memory.
    pub fds: u64,
    /// Bytes of NPU memory.
    pub npu_bytes: u64,
    /// Nodes that fell back to the CPU.
    pub fallbacks: u64,
    /// The device, absent on the CPU.
    pub device: Option<String>,
    /// The device's description.
    pub description: Option<String>,
    /// The chip.
    pub soc: Option<String>,
    /// The model's file.
    pub model: String,
    /// Prompt tokens a second, by the host's clock.
    pub prompt_tokens_per_second: f64,
    /// Generated tokens a second, by the host's clock.
    pub tokens_per_second: f64,
    /// Wall time of the host, loading included.
    pub seconds: f64,
    /// Something that the reader should know, where there is such a thing.
    pub note: Option<String>,
}

impl Outcome {
    /// The compact table that ends a run.
    pub fn table(&self) -> String {
        let device = match (&self.device, &self.description) {
            (Some(device), Some(description)) => format!("{device} ({description})"),
            _ => "none, the CPU did everything".to_owned(),
        };
        let gflop = self.total_flops as f64 / 1e9;
        let pipelines: Vec<String> =
            self.pipelines.iter().map(|(name, runs)| format!("{name} × {runs}")).collect();
        let mut rows = vec![
            ("device", device),
            ("model", self.model.clone()),
            ("NPU share", format!("{:.1} % of {gflop:.2} GFLOP of matmul", 100.0 * self.npu_flops_share)),
        ];
        if self.routed_flops_share > 0.0 {
            let share = 100.0 * self.routed_flops_share;
            rows.push((
                "few rows",
                format!("{share:.1} % by the plugin's kernels on the CPU, see RKNPU_DECODE"),
            ));
        }
        if self.device.is_some() {
            rows.extend([
                ("pipelines", if pipelines.is_empty() { "none".to_owned() } else { pipelines.join(", ") }),
                (
                    "NPU",
                    format!(
                        "{} runs, {} contexts, {} fds, {:.1} MB",
                        self.npu_runs,
                        self.contexts,
                        self.fds,
                        self.npu_bytes as f64 / 1e6
                    ),
                ),
                ("fallbacks", self.fallbacks.to_string()),
            ]);
        }
        rows.push((
            "host",
            format!(
                "{} prompt tokens at {:.1}/s, {} generated at {:.1}/s, {:.1} s in all",
                self.prompt_tokens,
                self.prompt_tokens_per_second,
                self.tokens,
                self.tokens_per_second,
                self.seconds
            ),
        ));
        rows.extend(self.note.clone().map(|note| ("note", note)));
        rows.iter().map(|(name, value)| format!("{name:<10} {value}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flops::{self, tests::tiny_model, Tokens};

    fn report(json: &str) -> PluginReport {
        serde_json::from_str(json).unwrap()
    }

    fn tiny_work() -> Work {
        // By hand in `flops`: 896 + 1792 + 896 + 768 + 4800 for the weights, 1792 for attention.
        flops::of_run(&tiny_model(), Tokens { prompt: 5, generated: 3 })
    }

    #[test]
    fn without_a_report_the_share_is_nothing_of_everything() {
        assert_eq!(share(None, &tiny_work()), Share { npu: 0, routed: 0, total: 10_944 });
        assert_eq!(share(None, &Work::default()).fraction(), 0.0);
    }

    #[test]
    fn what_never_reached_the_plugin_counts_against_the_npu() {
        // One weight whole, one in part (896 of 1792), one by the host's CPU and by the plugin's kernels.
        let report = report(
            r#"{"npu_flops": 1792, "cpu_flops": 448, "routed_flops": 448, "tensors": [
                {"name": "blk.0.attn_q.weight", "npu_flops": 896},
                {"name": "blk.0.ffn_up.weight", "npu_flops": 896},
                {"name": "blk.1.attn_q.weight", "cpu_flops": 448, "routed_flops": 448}]}"#,
        );
        let share = share(Some(&report), &tiny_work());
        assert_eq!(share, Share { npu: 1792, routed: 448, total: 10_944 });
        assert!((share.fraction() - 0.163743).abs() < 1e-5);
    }

    #[test]
    fn more_than_the_shapes_call_for_is_taken_as_it_is() {
        // 32 FLOPs more with a weight, and 96 of attention.
        let report = report(
            r#"{"npu_flops": 1024.0, "tensors": [{"name": "blk.0.attn_q.weight", "npu_flops": 928}]}"#,
        );
        assert_eq!(share(Some(&report), &tiny_work()), Share { npu: 1024, routed: 0, total: 10_976 });
    }

    #[test]
    fn a_missing_or_empty_report_is_none_and_a_broken_one_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report");
        assert!(PluginReport::read(&path).unwrap().is_none());
        fs::write(&path, "").unwrap();
        assert!(PluginReport::read(&path).unwrap().is_none());
        fs::write(&path, "{").unwrap();
        assert!(PluginReport::read(&path).is_err());
        fs::write(&path, r#"{"device": "RKNPU", "pipelines": {"W8A8": 3}, "later": []}"#).unwrap();
        assert_eq!(PluginReport::read(&path).unwrap().unwrap().pipelines["W8A8"], 3);
    }
}
