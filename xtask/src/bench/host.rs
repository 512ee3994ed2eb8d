//! One process of the stock llama-bench through the plugin and the paced emulator.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::figures::{Emulator, Plugin};
use crate::accuracy::asked::Asked;
use crate::env::Npu;
use crate::error::{Error, IoContext, Result};
use crate::process::{self, Tail};
use crate::setup::Ready;

/// The host's program.
const PROGRAM: &str = "llama-bench";

/// Tokens of a prompt that goes before: its weights are converted, or read from the disk, by then.
const WARM: u32 = 32;

/// How often the memory of the process is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// Variables by which the caller's environment would change what is measured.
const CLEARED: [&str; 10] = [
    "RKNPU_POLICY",
    "RKNPU_HYBRID",
    "RKNPU_SIGNS",
    "RKNPU_CALIBRATION",
    "RKNPU_DISABLE",
    "RKNPU_CORES",
    "RKNPU_DOMAINS",
    "RKNPU_EMU_FAULTS",
    "RKNPU_EMU_TYPES",
    "RKNPU_EMU_PACE",
];

/// Clears what the caller's environment has of [`CLEARED`].
pub fn clear(host: &mut Command) {
    CLEARED.iter().for_each(|name| {
        host.env_remove(name);
    });
}

/// What one process does: one test, that many times, without a warm-up.
#[derive(Debug, Clone, Copy)]
pub enum Test {
    /// A prompt of so many tokens in one batch.
    Prompt(u32),
    /// So many tokens, one at a time.
    Generate(u32),
    /// A short prompt, for what is done once, then one of so many tokens.
    Warm(u32),
    /// One token on the CPU, the file read instead of mapped: what loading takes without us.
    CpuUnmapped,
    /// A prompt of so many tokens on the CPU, the file mapped and nothing copied of it: what the host holds without us.
    CpuMapped(u32),
}

impl Test {
    fn is_without_us(self) -> bool {
        matches!(self, Self::CpuUnmapped | Self::CpuMapped(_))
    }
}

/// What a process left behind.
#[derive(Debug, Clone, Default)]
pub struct Ran {
    /// ns of each repetition by the wall clock.
    pub samples_ns: Vec<f64>,
    /// The emulator's report.
    pub emulator: Emulator,
    /// The plugin's report.
    pub plugin: Plugin,
    /// The most that the process held.
    pub memory: Memory,
    /// ns of the whole process by the wall clock.
    pub wall_ns: f64,
}

/// Resident memory in bytes, at its highest.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Memory {
    /// In all, as the kernel keeps it (VmHWM).
    pub peak: u64,
    /// Of that, its own pages, when last seen.
    pub anonymous: u64,
    /// Mapped files: the model.
    pub files: u64,
    /// Shared memory: the emulated NPU's. What the device would see is never touched in paced runs.
    pub shared: u64,
}

/// How the host is started.
pub struct Host<'a> {
    /// What was set up.
    pub ready: &'a Ready,
    /// The emulated NPU.
    pub npu: &'a Npu,
    /// CPU threads.
    pub threads: u32,
    /// Where its reports go.
    pub scratch: &'a Path,
    /// Who does attention: cpu, npu or auto.
    pub attention: &'static str,
    /// A policy file, if there is one.
    pub policy: Option<&'a Path>,
}

impl Host<'_> {
    /// Runs `test` `repetitions` times on `model`.
    ///
    /// # Errors
    /// A host that is missing or fails, or that has no NPU.
    pub fn run(&self, model: &Path, asked: &Asked, test: Test, repetitions: u32) -> Result<Ran> {
        let reports = ["emulator.json", "plugin.json"].map(|name| self.scratch.join(name));
        for report in &reports {
            if report.exists() {
                fs::remove_file(report).at("remove", report)?;
            }
        }
        let mut host = Command::new(self.ready.host.program(PROGRAM)?);
        clear(&mut host);
        self.npu.apply(self.ready.plugin.as_ref(), &mut host);
        asked.apply(&mut host);
        host.env("RKNPU_EMU_PACE", "1").env("RKNPU_EMU_REPORT", &reports[0]).env("RKNPU_REPORT", &reports[1]);
        // The NPU is what is measured, with few rows too.
        host.env("RKNPU_DECODE", "npu");
        // Paced runs compute nothing, which a probe would find out. Weights are converted once a row.
        host.env("RKNPU_PROBE", "off").env("RKNPU_CACHE", self.scratch.join("weights"));
        // The host's OpenMP threads would otherwise spin for milliseconds after each of its operations, on the
        // processors that the plugin's threads need: a board has some to spare, this machine may not.
        host.env("OMP_WAIT_POLICY", "passive");
        host.env("GGML_NO_BACKTRACE", "1").arg("-m").arg(model);
        let (prompt, generate) = match test {
            Test::Prompt(tokens) => (tokens, 0),
            Test::Warm(tokens) => (tokens, 0),
            Test::Generate(tokens) => (0, tokens),
            Test::CpuUnmapped => {
                host.args(["-dev", "none", "-lm", "none"]);
                (1, 0)
            }
            Test::CpuMapped(tokens) => {
                host.args(["-dev", "none", "-lm", "mmap", "--repack", "0"]);
                (tokens, 0)
            }
        };
        if matches!(test, Test::Warm(_)) {
            host.args(["-p", &WARM.to_string()]);
        }
        host.args(["-fa", "on"]).env("RKNPU_ATTENTION", self.attention);
        if let Some(policy) = self.policy {
            host.env("RKNPU_POLICY", policy);
        }
        for (option, number) in [("-p", prompt), ("-n", generate), ("-r", repetitions), ("-t", self.threads)]
        {
            host.args([option, &number.to_string()]);
        }
        host.args(["--no-warmup", "-o", "jsonl"]);
        let started = Instant::now();
        let (samples_ns, memory) = watch(&mut host)?;
        let wall_ns = started.elapsed().as_nanos() as f64;
        if test.is_without_us() {
            return Ok(Ran { samples_ns, memory, wall_ns, ..Ran::default() });
        }

        let [emulator, plugin] = reports;
        let Some(plugin) = read(&plugin)? else {
            return Err(Error::Refused(format!(
                "{PROGRAM} ran without the NPU: the plugin left no report; RKNPU_LOG=info shows why"
            )));
        };
        let emulator = match read(&emulator)? {
            Some(report) => serde_json::from_value(report).map_err(|error| {
                Error::Refused(format!("the emulator's report is not understood: {error}"))
            })?,
            None => return Err(Error::Refused("the emulator left no report: nothing ran on it".to_owned())),
        };
        Ok(Ran { samples_ns, emulator, plugin: Plugin(plugin), memory, wall_ns })
    }
}

fn read(path: &Path) -> Result<Option<serde_json::Value>> {
    match fs::read(path) {
        Ok(content) => {
            serde_json::from_slice(&content).map(Some).map_err(std::io::Error::from).at("read", path)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).at("read", path),
    }
}

/// Runs the host to its end: the times of its repetitions, and its memory.
fn watch(host: &mut Command) -> Result<(Vec<f64>, Memory)> {
    let broken = |source| Error::Io { doing: format!("read the output of {PROGRAM}"), source };
    host.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process::spawn(host)?;
    let status_file = format!("/proc/{}/status", child.id());
    let (stdout, stderr, ended) = (child.stdout.take(), child.stderr.take(), AtomicBool::new(false));
    let (text, tail, memory) = thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut memory = Memory::default();
            while !ended.load(Ordering::Relaxed) {
                memory.look(&fs::read_to_string(&status_file).unwrap_or_default());
                thread::sleep(LOOK);
            }
            memory
        });
        let complaining = scope.spawn(|| {
            let mut tail = Tail::default();
            let read = stderr.map_or(Ok(()), |stderr| process::for_each_line(stderr, |line| tail.push(line)));
            read.map(|()| tail)
        });
        let mut text = String::new();
        let read = stdout.map_or(Ok(0), |mut stdout| stdout.read_to_string(&mut text));
        let tail = complaining.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ended.store(true, Ordering::Relaxed);
        let memory = looking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (read.map(|_| text), tail, memory)
    });
    let status = child.wait().map_err(|source| Error::Io { doing: format!("wait for {PROGRAM}"), source })?;
    let (text, tail) = (text.map_err(broken)?, tail.map_err(broken)?.into_lines());
    if !status.success() {
        let outcome = process::outcome(status);
        return Err(Error::Tool { program: PROGRAM.to_owned(), outcome, tail, log: None });
    }
    samples(&text).map(|samples| (samples, memory)).ok_or_else(|| Error::Tool {
        program: PROGRAM.to_owned(),
        outcome: "printed no times".to_owned(),
        tail,
        log: None,
    })
}

/// The times among the host's lines, of which the one with the result is JSON.
fn samples(text: &str) -> Option<Vec<f64>> {
    #[derive(Deserialize)]
    struct Line {
        samples_ns: Vec<f64>,
    }
    // The last test is the one that is asked for.
    text.lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .map(|line| line.samples_ns)
        .find(|samples| !samples.is_empty())
}

impl Memory {
    /// Takes the figures of `/proc/<pid>/status`. The kernel keeps the peak, which only grows; the parts are those of the
    /// last look at which the process still had any.
    fn look(&mut self, status: &str) {
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(1024 * line.split_whitespace().next()?.parse::<u64>().ok()?)
        };
        let Some(peak) = field("VmHWM:") else { return };
        self.peak = self.peak.max(peak);
        let now = ["RssAnon:", "RssFile:", "RssShmem:"].map(|name| field(name).unwrap_or(0));
        let before = self.anonymous + self.files + self.shared;
        if now.iter().sum::<u64>() >= before {
            [self.anonymous, self.files, self.shared] = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_among_other_lines() {
        let text = "noise\n{\"n_prompt\": 512, \"samples_ns\": [ 5, 3.5 ]}\n";
        assert_eq!(samples(text), Some(vec![5.0, 3.5]));
        assert_eq!(samples("{\"samples_ns\": []}\nerror"), None);
    }

    #[test]
    fn memory_is_that_of_the_highest_look() {
        let mut memory = Memory::default();
        for status in [
            "VmHWM:\t   100 kB\nVmRSS:\t 100 kB\nRssAnon:\t 60 kB\nRssFile:\t 30 kB\nRssShmem:\t 10 kB\n",
            "VmHWM:\t   100 kB\nRssAnon:\t 1 kB\nRssFile:\t 3 kB\nRssShmem:\t 0 kB\n",
            "State: Z (zombie)\n",
            "",
        ] {
            memory.look(status);
        }
        let expected = [100, 60, 30, 10].map(|kib| kib * 1024);
        assert_eq!([memory.peak, memory.anonymous, memory.files, memory.shared], expected);
    }
}
