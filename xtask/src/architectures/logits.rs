//! Logits that two runs of the same models left behind, and how far they are apart.

use std::io::BufRead;

use serde::Serialize;

use crate::error::{Error, Result};

/// One architecture, held against the CPU.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// As llama.cpp calls it.
    pub architecture: String,
    /// Whether it is a mixture of experts.
    pub experts: bool,
    /// Rows of logits that were compared.
    pub rows: u64,
    /// Mean divergence of the row's distribution to the CPU's, in nats.
    pub kl: f64,
    /// Mean squared error over mean square of the CPU's logits.
    pub nmse: f64,
    /// Share of the rows with the same largest logit.
    pub same_top: f64,
}

/// A row as it was written.
#[derive(Debug, PartialEq)]
struct Row {
    architecture: String,
    experts: bool,
    logits: Vec<f32>,
}

/// Sums over the rows of an architecture.
#[derive(Default)]
struct Sums {
    rows: u64,
    kl: f64,
    error: f64,
    square: f64,
    same: u64,
}

/// Compares two runs row by row, in the order in which the architectures came.
///
/// # Errors
/// What is no such record, and runs that did not look at the same rows.
pub fn compare(mut reference: impl BufRead, mut other: impl BufRead) -> Result<Vec<Compared>> {
    let mut found: Vec<(String, bool, Sums)> = Vec::new();
    while let Some(want) = next(&mut reference)? {
        let got = next(&mut other)?;
        let got = got.filter(|got| {
            (&got.architecture, got.experts, got.logits.len())
                == (&want.architecture, want.experts, want.logits.len())
        });
        let Some(got) = got else {
            return Err(Error::Refused(format!(
                "the two runs did not compute the same rows from {} on",
                want.architecture
            )));
        };
        let known = found
            .iter()
            .position(|(name, experts, _)| (name, *experts) == (&want.architecture, want.experts));
        let index = known.unwrap_or_else(|| {
            found.push((want.architecture.clone(), want.experts, Sums::default()));
            found.len() - 1
        });
        found[index].2.add(&want.logits, &got.logits);
    }
    if next(&mut other)?.is_some() {
        return Err(Error::Refused("the second run computed more rows than the first".to_owned()));
    }
    let compared = found.into_iter().map(|(architecture, experts, sums)| sums.mean(architecture, experts));
    Ok(compared.collect())
}

impl Sums {
    fn add(&mut self, want: &[f32], got: &[f32]) {
        if want.is_empty() {
            return;
        }
        let (p, q) = (log_softmax(want), log_softmax(got));
        self.rows += 1;
        self.kl += p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
        for (want, got) in want.iter().zip(got) {
            self.error += f64::from(want - got).powi(2);
            self.square += f64::from(*want).powi(2);
        }
        self.same += u64::from(largest(&p) == largest(&q));
    }

    fn mean(&self, architecture: String, experts: bool) -> Compared {
        let rows = self.rows.max(1) as f64;
        Compared {
            architecture,
            experts,
            rows: self.rows,
            kl: self.kl / rows,
            nmse: self.error / self.square,
            same_top: self.same as f64 / rows,
        }
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = || logits.iter().map(|logit| f64::from(logit - most));
    let sum = shifted().map(f64::exp).sum::<f64>().ln();
    shifted().map(|logit| logit - sum).collect()
}

fn largest(values: &[f64]) -> Option<usize> {
    (0..values.len()).max_by(|a, b| values[*a].total_cmp(&values[*b]))
}

/// The next record; nothing at the end.
fn next(from: &mut impl BufRead) -> Result<Option<Row>> {
    let broken = |source| Error::Io { doing: "read the logits".to_owned(), source };
    let mut line = String::new();
    if from.read_line(&mut line).map_err(broken)? == 0 {
        return Ok(None);
    }
    let mut words = line.trim_end_matches('\n').split(' ');
    let record = (|| Some((words.next()?, words.next()?, words.next()?.parse::<usize>().ok()?)))();
    let Some((architecture, experts, count)) = record else {
        return Err(Error::Refused(format!("{line:?} is no record of logits")));
    };
    let mut bytes = vec![0; count * 4];
    from.read_exact(&mut bytes).map_err(broken)?;
    let logits = bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
    Ok(Some(Row {
        architecture: architecture.to_owned(),
        experts: !matches!(experts, "" | "0"),
        logits: logits.collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(head: &str, logits: &[f32]) -> Vec<u8> {
        let mut out = format!("{head} {}\n", logits.len()).into_bytes();
        out.extend(logits.iter().flat_map(|logit| logit.to_le_bytes()));
        out
    }

    #[test]
    fn the_divergence_is_that_of_the_definition() {
        // Probabilities 1/2, 1/4, 1/4 against 1/4, 1/2, 1/4: ln 2 / 2 − ln 2 / 4.
        let want =
            [record("a ", &[2f32.ln(), 0.0, 0.0]), record("b 8", &[1.0, 2.0]), record("a 0", &[])].concat();
        let got =
            [record("a ", &[0.0, 2f32.ln(), 0.0]), record("b 8", &[1.0, 2.0]), record("a 0", &[])].concat();
        let found = compare(&want[..], &got[..]).unwrap();
        assert_eq!((found.len(), found[0].rows, found[1].rows), (2, 1, 1));
        assert!((found[0].kl - 2f64.ln() / 4.0).abs() < 1e-7, "{found:?}");
        assert!((found[0].nmse - 2.0).abs() < 1e-6 && found[0].same_top == 0.0, "{found:?}");
        assert_eq!((found[1].experts, found[1].kl, found[1].nmse, found[1].same_top), (true, 0.0, 0.0, 1.0));
    }

    #[test]
    fn runs_that_are_not_of_the_same_rows_are_refused() {
        let one = record("a ", &[1.0, 2.0]);
        for other in [vec![], record("b ", &[1.0, 2.0]), record("a 4", &[1.0, 2.0]), record("a ", &[1.0])] {
            assert!(compare(&one[..], &other[..]).is_err());
            assert!(compare(&other[..], &one[..]).is_err());
        }
        assert!(compare(&b"no record\n"[..], &b"no record\n"[..]).is_err());
        assert!(compare(&one[..one.len() - 1], &one[..]).is_err());
    }
}
