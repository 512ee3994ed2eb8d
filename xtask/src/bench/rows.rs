//! The rows of figures and their table.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// By how much paced runs may be longer than modelled before it is said.
const PACING: f64 = 1.2;

/// One model, type and choice of pipelines. Times of the NPU are modelled; `paced` figures have this machine's CPU and the
/// modelled NPU on one clock; a figure that the plugin does not report is null.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Row {
    /// The model.
    pub model: String,
    /// The type of the file's weights.
    pub weights: String,
    /// What was asked of the plugin.
    pub pipelines: String,
    /// The emulated chip.
    pub soc: String,
    /// CPU threads.
    pub threads: u32,
    /// Tokens of the prompt.
    pub prefill_tokens: u32,
    /// Modelled: the time of one prompt in which at least one core ran.
    pub prefill_npu_ns: f64,
    /// The best schedules' time over it.
    pub prefill_roofline_share: Option<f64>,
    /// The same if products of the same rows are run as one where that is shorter.
    #[serde(default)]
    pub prefill_together_share: Option<f64>,
    /// The arithmetic's time at all cores' peak over it.
    pub prefill_peak_share: Option<f64>,
    /// By the wall clock of paced runs.
    pub prefill_paced_tokens_per_second: Option<f64>,
    /// Modelled: the time of one token in which at least one core ran.
    pub decode_npu_ns: f64,
    /// Modelled: the time of one token with binding and syncing.
    pub decode_total_ns: f64,
    /// The time to stream the weights at 26.6 GB/s over `decode_npu_ns`.
    pub decode_bandwidth_share: Option<f64>,
    /// The same over `decode_total_ns`.
    pub decode_bandwidth_share_with_calls: Option<f64>,
    /// By the wall clock of paced runs.
    pub decode_paced_tokens_per_second: Option<f64>,
    /// Modelled: the NPU's time of a batch of so many rows over that of one token. A batch has one row of logits.
    pub rows_ratio: BTreeMap<u32, f64>,
    /// Wall ns of the stages of one prompt: comparing rows with those before.
    pub compare_ns: Option<f64>,
    /// Rotating, scaling and packing rows.
    pub pack_ns: Option<f64>,
    /// Syncing memory.
    pub sync_ns: Option<f64>,
    /// Scaling results.
    pub scale_ns: Option<f64>,
    /// What the host's graph has between products: sums and norms.
    #[serde(default)]
    pub link_ns: Option<f64>,
    /// All of the stages' time, with that, over `prefill_npu_ns`: what the NPU is to hide.
    #[serde(default)]
    pub cpu_over_npu: Option<f64>,
    /// Within products, no core running.
    pub wait_ns: Option<f64>,
    /// Within products, a core running.
    pub busy_ns: Option<f64>,
    /// Bytes of A as f32, once a product.
    pub activation_bytes: Option<f64>,
    /// Bytes of C as f32, once a product.
    pub result_bytes: Option<f64>,
    /// Bytes of A and C as the NPU has them: all segments, planes and padding.
    #[serde(default)]
    pub matrix_bytes: Option<f64>,
    /// What this machine copies with as many threads.
    pub memcpy_gb_per_second: f64,
    /// The stages' time over that of copying A and C once.
    pub host_memcpy_passes: Option<f64>,
    /// The same, of A and C as the NPU has them.
    #[serde(default)]
    pub host_memcpy_passes_of_matrices: Option<f64>,
    /// `wait / (wait + busy)`.
    pub npu_wait_share: Option<f64>,
    /// Allocations a generated token.
    pub allocs_per_token: Option<f64>,
    /// Threads started a generated token.
    pub threads_per_token: Option<f64>,
    /// Contexts made a generated token.
    pub contexts_per_token: Option<f64>,
    /// Contexts alive at most.
    pub contexts: Option<u64>,
    /// File descriptors of NPU memory at most.
    pub fds: Option<u64>,
    /// Bytes of NPU memory at most.
    pub npu_bytes: Option<u64>,
    /// Bytes of the weights' copies that a token streams.
    pub weight_bytes: u64,
    /// Resident memory of the host at most: the mapped file and what was touched of the NPU's memory are in it.
    pub rss_peak_bytes: u64,
    /// Of that, pages of its own.
    pub rss_anonymous_bytes: u64,
    /// Of that, mapped files.
    pub rss_file_bytes: u64,
    /// Of that, shared memory: the emulated NPU's.
    pub rss_shared_bytes: u64,
    /// Of the same prompt on the CPU alone, pages of the host's own.
    #[serde(default)]
    pub rss_anonymous_bytes_without: u64,
    /// What we hold, `npu_bytes` and the pages of its own that the host has more with us than without, over
    /// `weight_bytes`, less one.
    #[serde(default)]
    pub resident_over_weights: Option<f64>,
    /// Wall ns of a process that loads the model, its converted weights from the disk, and does one token.
    pub load_ns: Option<f64>,
    /// That over the same on the CPU alone, with the file read and not mapped.
    pub load_ratio: Option<f64>,
    /// Real time of paced runs over modelled time; what is above one is this machine's fault.
    pub pacing: Option<f64>,
}

impl Row {
    /// "granite-350m Q8_0", and what was asked if that is not the default.
    pub fn label(&self) -> String {
        let asked = if self.pipelines == "default" { String::new() } else { format!(" {}", self.pipelines) };
        format!("{} {}{asked}", self.model, self.weights)
    }
}

/// The row in one line.
pub fn summary(row: &Row) -> String {
    format!(
        "{}: prefill {:.1} ms modelled, {} of the best; decode {:.2} ms modelled, {} of bandwidth",
        row.label(),
        row.prefill_npu_ns / 1e6,
        percent(row.prefill_roofline_share),
        row.decode_npu_ns / 1e6,
        percent(row.decode_bandwidth_share)
    )
}

/// Why the paced figures of a row are not to be trusted, if they are not.
pub fn unsteady(row: &Row) -> Option<String> {
    let pacing = row.pacing.filter(|pacing| *pacing > PACING)?;
    Some(format!(
        "{}: paced runs took {pacing:.2} times their modelled time; this machine was busy, its tokens a second are too low",
        row.label()
    ))
}

/// A column: its heading, and what it says of a row.
type Column = (&'static str, fn(&Row) -> String);

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "–".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

fn count(value: Option<u64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| value.to_string())
}

fn ratio(row: &Row, rows: u32) -> String {
    number(row.rows_ratio.get(&rows).copied(), 2)
}

/// A group of columns under a title of its own.
pub struct Group {
    /// The title.
    pub title: &'static str,
    /// What its figures are.
    pub text: &'static str,
    columns: &'static [Column],
}

/// All groups.
pub const GROUPS: [Group; 3] = [
    Group {
        title: "Prefill",
        text: "A prompt of 512 tokens. *Modelled ms*: the time in which at least one core ran. *Of the best*: the time \
               of the best schedule of each product (exhaustive search: K segments, tiles of rows, splits over cores by N, rows or K) \
               over it, which products that are run together may be faster than; *as one*: over it the best with products of the \
               same rows run as one, where that is shorter. *Of the peak*: the arithmetic at all cores' peak over it. *Passes*: comparing, rotating, packing, syncing \
               and scaling, in units of copying all activations and results once, as f32, as fast as *memcpy* copied before and \
               after; *of A and C*: in units of copying A and C once, as the NPU has them: fewer bits, but the results of \
               each segment of K. *CPU*: the time of all that, and of sums and norms between products, over *modelled ms*: the NPU \
               waits for what is above one, however well they overlap. *Idle*: the part of the time within products in which no core ran. *Paced*: the wall clock, CPU of this machine + modelled NPU.",
        columns: &[
            ("modelled ms", |row| number(Some(row.prefill_npu_ns / 1e6), 1)),
            ("of the best", |row| percent(row.prefill_roofline_share)),
            ("as one", |row| percent(row.prefill_together_share)),
            ("of the peak", |row| percent(row.prefill_peak_share)),
            ("passes", |row| number(row.host_memcpy_passes, 2)),
            ("of A and C", |row| number(row.host_memcpy_passes_of_matrices, 2)),
            ("memcpy GB/s", |row| number(Some(row.memcpy_gb_per_second), 1)),
            ("CPU", |row| number(row.cpu_over_npu, 2)),
            ("idle", |row| percent(row.npu_wait_share)),
            ("paced tok/s", |row| number(row.prefill_paced_tokens_per_second, 1)),
        ],
    },
    Group {
        title: "Decode",
        text: "One token at a time. *Of bandwidth*: the weights' bytes at 26.6 GB/s over the modelled time in which at \
               least one core ran; *with calls*: over the modelled time that includes binding and syncing. *×2* to *×16*: \
               the NPU's modelled time of a batch of so many rows over that of one token; such a batch has one row of \
               logits. *Paced*: the wall clock, CPU of this machine + modelled NPU.",
        columns: &[
            ("modelled ms", |row| number(Some(row.decode_npu_ns / 1e6), 2)),
            ("of bandwidth", |row| percent(row.decode_bandwidth_share)),
            ("with calls", |row| percent(row.decode_bandwidth_share_with_calls)),
            ("×2", |row| ratio(row, 2)),
            ("×4", |row| ratio(row, 4)),
            ("×8", |row| ratio(row, 8)),
            ("×16", |row| ratio(row, 16)),
            ("paced tok/s", |row| number(row.decode_paced_tokens_per_second, 1)),
        ],
    },
    Group {
        title: "What it takes",
        text: "*Allocations*, *threads* and *contexts a token*: made while generating, allocations for the later half of \
               all tokens. *Contexts*, *descriptors* and *NPU MB*: the most at once. *Over weights*: how much more we hold than the weights' copies, NPU memory \
               and the pages of its own that the host has more with us than on the CPU alone. *Load*: a \
               process that loads the model, its converted weights from the disk's cache, and does one token, over the \
               same on the CPU alone without a mapping of the file (the median of three, real time). *Pacing*: real over modelled time of paced runs.",
        columns: &[
            ("allocations a token", |row| number(row.allocs_per_token, 1)),
            ("threads a token", |row| number(row.threads_per_token, 1)),
            ("contexts a token", |row| number(row.contexts_per_token, 1)),
            ("contexts", |row| count(row.contexts)),
            ("descriptors", |row| count(row.fds)),
            ("NPU MB", |row| number(row.npu_bytes.map(|bytes| bytes as f64 / 1e6), 1)),
            ("over weights", |row| percent(row.resident_over_weights)),
            ("load", |row| number(row.load_ratio, 2)),
            ("pacing", |row| number(row.pacing, 2)),
        ],
    },
];

impl Group {
    /// Its cells, headings first.
    fn cells(&self, rows: &[Row]) -> Vec<Vec<String>> {
        let head =
            ["model", "weights", "asked"].into_iter().chain(self.columns.iter().map(|(name, _)| *name));
        let mut cells = vec![head.map(str::to_owned).collect()];
        cells.extend(rows.iter().map(|row| {
            let names = [&row.model, &row.weights, &row.pipelines].map(String::clone);
            names.into_iter().chain(self.columns.iter().map(|(_, of)| of(row))).collect()
        }));
        cells
    }

    /// As Markdown.
    pub fn markdown(&self, rows: &[Row]) -> String {
        let mut out = String::new();
        for (at, line) in self.cells(rows).iter().enumerate() {
            out += &format!("| {} |\n", line.join(" | "));
            if at == 0 {
                out += &format!("|---|---|---{}|\n", "|---:".repeat(self.columns.len()));
            }
        }
        out
    }
}

/// All groups as text.
pub fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    for group in &GROUPS {
        let cells = group.cells(rows);
        let width = |column: usize| cells.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..cells[0].len()).map(width).collect();
        out += &format!("{}\n", group.title);
        for line in &cells {
            let padded = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if column < 3 {
                    format!("{cell:width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
            out += &format!("  {}\n", padded.collect::<Vec<_>>().join("  "));
        }
    }
    out
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn row(model: &str, share: Option<f64>) -> Row {
        Row {
            model: model.into(),
            weights: "Q8_0".into(),
            pipelines: "default".into(),
            soc: "rk3588".into(),
            threads: 2,
            prefill_npu_ns: 12_340_000.0,
            prefill_roofline_share: share,
            prefill_together_share: share,
            prefill_peak_share: share.map(|share| share / 2.0),
            decode_npu_ns: 1e6,
            rows_ratio: [(2, 1.0), (16, 1.5)].into(),
            fds: Some(7),
            ..Row::default()
        }
    }

    #[test]
    fn tables_line_up_and_missing_figures_are_dashes() {
        let rows = [row("a", Some(0.456)), row("a-longer-name", None)];
        let text = table(&rows);
        for block in text.split("\n").collect::<Vec<_>>().chunks(4).take(3) {
            let lengths: Vec<usize> = block[1..].iter().map(|line| line.chars().count()).collect();
            assert_eq!(lengths, [lengths[0]; 3], "{text}");
        }
        assert!(text.contains("12.3       45.6 %  45.6 %       22.8 %"), "{text}");
        assert!(text.contains("1.00   –   –  1.50"), "{text}");
        let markdown = GROUPS[0].markdown(&rows);
        let bars: Vec<usize> = markdown.lines().map(|line| line.matches('|').count()).collect();
        assert_eq!(bars, [14; 4], "{markdown}");
        assert!(markdown.contains("| a-longer-name | Q8_0 | default | 12.3 | – | – | – |"), "{markdown}");
    }

    #[test]
    fn the_json_has_null_for_what_is_not_known_and_a_busy_machine_is_said() {
        let mut row = row("m", None);
        let json = serde_json::to_value(&row).unwrap();
        assert!(json["prefill_roofline_share"].is_null() && json["npu_wait_share"].is_null());
        assert_eq!(json["rows_ratio"]["16"], 1.5);
        let summary = summary(&row);
        assert!(summary.starts_with("m Q8_0: prefill 12.3 ms modelled, – of the best"), "{summary}");
        assert_eq!(unsteady(&row), None);
        row.pacing = Some(2.0);
        assert!(unsteady(&row).unwrap().starts_with("m Q8_0: paced runs took 2.00 times"));
    }
}
