//! `cargo xtask conformance`: the doctor's contract checks against a librknnrt.so, with one last line that sums up.

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args;

use crate::env::{Npu, NpuChoice, SOCS};
use crate::error::{Error, Result};
use crate::process;
use crate::setup::packages::{self, Need};
use crate::setup::{cargo, TEST_EMULATOR};

/// The doctor, for tests: cargo must not be started from within the cargo that runs them.
const TEST_DOCTOR: &str = "GGML_RKNPU_TEST_DOCTOR";

/// The options of `conformance`.
#[derive(Debug, Args)]
pub struct Options {
    /// The library; without it RKNPU_LIBRARY, the vendor's on a board that has it, else the emulator
    #[arg(long, value_name = "PATH")]
    library: Option<PathBuf>,
    /// The chip; without it the emulator plays each, and a vendor's library goes by the device tree
    #[arg(long)]
    soc: Option<String>,
    /// Build for this target and run by cargo's CARGO_TARGET_<TARGET>_RUNNER (an emulator of its processor)
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
}

/// What starts programs of another processor; the doctor starts its own children by it.
const DOCTOR_RUNNER: &str = "RKNPU_DOCTOR_RUNNER";

/// What the suite runs with.
struct Built {
    doctor: PathBuf,
    emulator: PathBuf,
}

/// How many checks ended how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    unknown: u64,
}

impl Counts {
    /// The counts of a line like `5 passed; 0 failed; 1 unknown`.
    fn read(line: &str) -> Option<Self> {
        let mut parts = line.split("; ");
        let mut number = |what: &str| parts.next()?.strip_suffix(what)?.trim_end().parse().ok();
        let counts =
            Self { passed: number("passed")?, failed: number("failed")?, unknown: number("unknown")? };
        parts.next().is_none().then_some(counts)
    }
}

/// Builds the doctor and the emulator, and runs the suite.
///
/// # Errors
/// Bad input, a failed build, or a check that failed.
pub fn command(options: &Options) -> Result<()> {
    // Checks the chip's name too.
    let chosen = Npu::choose(false, NpuChoice::Auto, options.soc.as_deref())?;
    let library = match (&options.library, &chosen) {
        (Some(path), _) | (None, Npu::Library { path, .. }) => Some(path.clone()),
        (None, _) => None,
    };
    let built = build(options.target.as_deref())?;
    let runner = options.target.as_deref().map(runner).unwrap_or_default();
    let named = chosen.soc().or(known(env::var("RKNPU_EMU_SOC").ok()));
    let mut total = Counts::default();
    let mut run = |soc: Option<&str>, heading: &str| -> Result<()> {
        println!("{heading}");
        let mut doctor = match runner.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&built.doctor).env(DOCTOR_RUNNER, runner.join(" "));
                command
            }
            None => Command::new(&built.doctor),
        };
        doctor.arg("--contract").arg("--library").arg(library.as_deref().unwrap_or(&built.emulator));
        if let Some(soc) = soc {
            doctor.args(["--soc", soc]).env("RKNPU_EMU_SOC", soc);
        }
        let counts = checked(&mut doctor)?;
        total.passed += counts.passed;
        total.failed += counts.failed;
        total.unknown += counts.unknown;
        Ok(())
    };
    match (&library, named) {
        (Some(path), _) => run(chosen.soc(), &path.display().to_string())?,
        (None, Some(soc)) => run(Some(soc), &format!("emulated {soc}"))?,
        (None, None) => {
            for soc in SOCS {
                run(Some(soc), &format!("emulated {soc}"))?;
            }
        }
    }
    println!("{} passed; {} failed; {} unknown", total.passed, total.failed, total.unknown);
    match total.failed {
        0 => Ok(()),
        failed => Err(Error::Refused(format!("{failed} checks failed, marked ✗ above"))),
    }
}

/// The words of cargo's runner for `target`; none where programs of the target run by themselves.
fn runner(target: &str) -> Vec<String> {
    let name = format!("CARGO_TARGET_{}_RUNNER", target.to_uppercase().replace('-', "_"));
    env::var(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

fn known(name: Option<String>) -> Option<&'static str> {
    let name = name?;
    SOCS.into_iter().find(|soc| soc.eq_ignore_ascii_case(&name))
}

/// Runs the doctor, shows its lines, and gives what its last one counts.
fn checked(doctor: &mut Command) -> Result<Counts> {
    let broken = |source| Error::Io { doing: "read the doctor's output".to_owned(), source };
    let mut child = process::spawn(doctor.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let mut counts = None;
    if let Some(stdout) = child.stdout.take() {
        let mut out = std::io::stdout();
        for line in BufReader::new(stdout).lines() {
            let line = line.map_err(broken)?;
            counts = Counts::read(&line);
            if counts.is_none() {
                // The count goes on for a reader who went away: the exit code is still of use.
                let _ = writeln!(out, "  {line}");
            }
        }
    }
    let status = child.wait().map_err(broken)?;
    counts.ok_or_else(|| Error::Tool {
        program: "rknpu-doctor".to_owned(),
        outcome: process::outcome(status),
        tail: Vec::new(),
        log: None,
    })
}

fn build(target: Option<&str>) -> Result<Built> {
    let path = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let (Some(doctor), Some(emulator)) = (path(TEST_DOCTOR), path(TEST_EMULATOR)) {
        return Ok(Built { doctor, emulator });
    }
    packages::ensure(&[Need::Cxx])?;
    let made = cargo::build(&["rknpu-doctor", "npu-emulator"], target)?;
    Ok(Built { doctor: made.program("rknpu-doctor")?, emulator: made.shared_library("npu_emulator")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_read_and_no_other() {
        let counts = Counts { passed: 5, failed: 0, unknown: 12 };
        assert_eq!(Counts::read("5 passed; 0 failed; 12 unknown"), Some(counts));
        assert_eq!(Counts::read("✓ type.1  f16 is taken · taken"), None);
        assert_eq!(Counts::read("5 passed; 0 failed; 12 unknown; more"), None);
    }

    #[test]
    fn a_doctor_that_says_nothing_is_an_error() {
        let mut shell = Command::new("sh");
        let error = checked(shell.args(["-c", "echo hello; exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "rknpu-doctor ended with exit code 3");
    }
}
