//! What was chosen for a model's weights, as a table of their classes.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// What was chosen for one weight.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// The weight's name.
    pub name: &'a str,
    /// Its type in the file.
    pub ggml_type: &'static str,
    /// The pipeline's name, and whether rows are rotated.
    pub pipeline: (&'static str, bool),
    /// The estimated squared error of its products, relative to their power.
    pub error: f64,
    /// Elements of the weight.
    pub elements: usize,
    /// Bytes of its converted copy.
    pub bytes: usize,
}

/// Weights of one kind in all layers, with the same type and pipeline.
#[derive(Debug, Default)]
struct Class {
    weights: usize,
    elements: usize,
    bytes: usize,
    /// Of the weight that is worst.
    error: f64,
}

/// Choices that nobody was told yet.
#[derive(Debug, Default)]
pub struct Choices(BTreeMap<(String, &'static str, &'static str, bool), Class>);

impl Choices {
    /// Adds one.
    pub fn add(&mut self, choice: &Choice) {
        let (pipeline, rotated) = choice.pipeline;
        let class = self.0.entry((class_of(choice.name), choice.ggml_type, pipeline, rotated)).or_default();
        class.weights += 1;
        class.elements += choice.elements;
        class.bytes += choice.bytes;
        class.error = class.error.max(choice.error);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The table, a line a class under a line of headings. The error is the amplitude, in percent.
    pub fn table(&self) -> String {
        let width = self.0.keys().map(|(class, ..)| class.len()).max().unwrap_or(0).max("weights".len());
        let mut out = format!(
            "{:width$}  {:8}  {:16}  {:>6}  {:>12}  {:>7}",
            "weights", "type", "pipeline", "number", "bytes/weight", "error"
        );
        for ((class, ggml_type, pipeline, rotated), of) in &self.0 {
            let pipeline = format!("{pipeline}{}", if *rotated { ", rotated" } else { "" });
            let bytes = of.bytes as f64 / of.elements.max(1) as f64;
            let error = of.error.sqrt() * 100.0;
            // Writing to a string cannot fail.
            let _ = write!(
                out,
                "\n{class:width$}  {ggml_type:8}  {pipeline:16}  {:>6}  {bytes:>12.3}  {error:>5.2} %",
                of.weights
            );
        }
        out
    }
}

/// The name with its numbers as stars: "blk.*.attn_q.weight".
pub fn class_of(name: &str) -> String {
    let star = |part| if str::parse::<u32>(part).is_ok() { "*" } else { part };
    name.split('.').map(star).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_one_line_and_the_worst_of_them_counts() {
        let mut choices = Choices::default();
        assert!(choices.is_empty());
        for (name, error) in [("blk.0.ffn_up.weight", 1e-4), ("blk.11.ffn_up.weight", 4e-4)] {
            choices.add(&Choice {
                name,
                ggml_type: "q8_0",
                pipeline: ("W8A8", true),
                error,
                elements: 100,
                bytes: 110,
            });
        }
        let table = choices.table();
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines.len(), 2, "{table}");
        let words: Vec<_> = lines[1].split_whitespace().collect();
        assert_eq!(words, ["blk.*.ffn_up.weight", "q8_0", "W8A8,", "rotated", "2", "1.100", "2.00", "%"]);
        assert_eq!(lines[0].chars().count(), lines[1].chars().count());
    }
}
