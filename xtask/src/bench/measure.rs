//! All processes of one row.

use std::path::Path;

use super::derive;
use super::host::{Host, Ran, Test};
use super::memcpy;
use super::rows::Row;
use crate::accuracy::asked::Asked;
use crate::cache::Cache;
use crate::env::Npu;
use crate::error::Result;
use crate::progress::Step;
use crate::setup::Ready;

/// Tokens of the prompt.
pub const PROMPT: u32 = 512;
/// Tokens that are generated in one go.
pub const TOKENS: u32 = 16;
/// Repetitions in the longer of two processes; the shorter has one. The difference has no first uses in it.
pub const REPETITIONS: u32 = 4;
/// Rows of small batches, and how often each is repeated.
pub const SMALL: [u32; 4] = [2, 4, 8, 16];
/// How often a small batch is repeated.
pub const SMALLS: u32 = 8;

/// How often a model is loaded each way.
const LOADS: usize = 3;

/// What was measured of one model.
#[derive(Debug, Default)]
pub struct Measured {
    /// One prompt, and [`REPETITIONS`] of it.
    pub prompts: [Ran; 2],
    /// [`TOKENS`] generated once, and as often.
    pub tokens: [Ran; 2],
    /// [`SMALLS`] batches of [`SMALL`] rows.
    pub small: [Ran; 4],
    /// Loads: the plugin with its weights on disk and one token, and the CPU alone.
    pub loads: [Vec<Ran>; 2],
    /// The prompt on the CPU alone, for what the host itself holds.
    pub without: Ran,
}

/// What all rows share.
pub struct Bench<'a> {
    ready: &'a Ready,
    npu: &'a Npu,
    cache: &'a Cache,
    threads: u32,
    begun: usize,
    total: usize,
}

impl<'a> Bench<'a> {
    /// A bench that will measure `total` rows, with `threads` CPU threads.
    pub fn new(ready: &'a Ready, npu: &'a Npu, cache: &'a Cache, threads: u32, total: usize) -> Self {
        Self { ready, npu, cache, threads, begun: 0, total }
    }

    /// Measures one row.
    ///
    /// # Errors
    /// Of the host, or reports without what a row must have.
    pub fn row(&mut self, model: &str, weights: &str, path: &Path, asked: &Asked) -> Result<Row> {
        self.begun += 1;
        let step = Step::spinner(format!("{model} {weights} {asked} ({} of {})", self.begun, self.total));
        // The converted weights are as large as the model: on the cache's disk, and gone with the row.
        let scratch = self.cache.partial()?;
        // The rows are of products with weights.
        let host = Host {
            ready: self.ready,
            npu: self.npu,
            threads: self.threads,
            scratch: scratch.path(),
            attention: "cpu",
            policy: None,
        };
        let run = |test, repetitions| host.run(path, asked, test, repetitions);
        // Beside the prompts, since what else the machine does changes.
        let copy = || memcpy::bytes_per_ns(self.threads as usize);
        let (before, once) = (copy(), run(Test::Prompt(PROMPT), 1)?);
        let (between, often) = (copy(), run(Test::Prompt(PROMPT), REPETITIONS)?);
        let bytes_per_ns = (before + between + copy()) / 3.0;
        let mut measured = Measured {
            prompts: [once, often],
            tokens: [run(Test::Generate(TOKENS), 1)?, run(Test::Generate(TOKENS), REPETITIONS)?],
            ..Measured::default()
        };
        for (rows, ran) in SMALL.into_iter().zip(&mut measured.small) {
            *ran = run(Test::Prompt(rows), SMALLS)?;
        }
        for _ in 0..LOADS {
            for (ran, test) in measured.loads.iter_mut().zip([Test::Prompt(1), Test::CpuUnmapped]) {
                ran.push(run(test, 1)?);
            }
        }
        measured.without = run(Test::CpuMapped(PROMPT), 1)?;
        step.done();
        let mut row = derive::row(&measured, bytes_per_ns)?;
        row.model = model.to_owned();
        row.weights = weights.to_owned();
        row.pipelines = asked.to_string();
        row.threads = self.threads;
        Ok(row)
    }
}
