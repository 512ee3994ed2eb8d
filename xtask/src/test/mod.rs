//! `cargo xtask test`: the whole suite with everything it needs, and one last line that sums it up.

mod boards;
mod skips;

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use clap::Args;

use crate::cache::Cache;
use crate::error::{Error, IoContext, Result};
use crate::process;
use crate::setup::packages::{self, Need};
use crate::setup::{self, plugin, Wants};

/// The options of `test`.
#[derive(Debug, Args)]
pub struct Options {
    /// Only the tests for the boards' processor, in qemu
    #[arg(long, conflicts_with = "cargo_args")]
    boards: bool,
    /// Arguments for `cargo test`, after `--`
    #[arg(last = true, value_name = "CARGO TEST ARGS")]
    cargo_args: Vec<String>,
}

/// What the test binaries said in sum.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Counts {
    fn merge(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Adds a line like `test result: ok. 5 passed; 0 failed; 1 ignored; …`; other lines count nothing.
    fn add(&mut self, line: &str) {
        let Some((_, parts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for part in parts.split(';') {
            let (Some(number), Some(what)) = ({
                let mut words = part.split_whitespace();
                (words.next().and_then(|word| word.parse::<u64>().ok()), words.next())
            }) else {
                continue;
            };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "ignored" => self.ignored += number,
                _ => {}
            }
        }
    }
}

/// Runs the suite.
///
/// # Errors
/// A failed set-up, or a failed test.
pub fn command(options: &Options) -> Result<()> {
    // Asked before cargo rebuilds this very file.
    let own =
        env::current_exe().map_err(|source| Error::Io { doing: "find this program".to_owned(), source })?;
    let ready = setup::prepare(Wants { models: true, plugin: true })?;
    packages::ensure(&[Need::Jq, Need::Curl])?;
    // Whoever chooses among the tests takes what is there.
    let tools = match options.cargo_args[..] {
        [] => boards::tools(),
        _ => Err("arguments for cargo test choose among the tests".to_owned()),
    };
    let scratch = tempfile::tempdir().at("create a folder in", &env::temp_dir())?;
    let skipped = scratch.path().join("skips");
    fs::write(&skipped, "").at("write", &skipped)?;

    let mut cargo = setup::cargo::cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]).args(&options.cargo_args);
    cargo.env(setup::TEST_HOST, &ready.host.bin).env(setup::TEST_MODELS, &ready.models);
    let mut hosts = setup::other_hosts()?;
    hosts.extend(ready.host.source.map(|source| (setup::TEST_HOST_SOURCE.to_owned(), source)));
    cargo.envs(hosts.iter().cloned());
    if let Some(plugin) = &ready.plugin {
        cargo.env(setup::TEST_PLUGIN, &plugin.library).env(setup::TEST_EMULATOR, &plugin.emulator);
    }
    cargo.env("CCACHE_DIR", Cache::from_env()?.ccache());
    cargo.env("GGML_RKNPU_XTASK", own).env(skips::VARIABLE, &skipped);
    let text = plugin::workspace().join(plugin::TEXT);
    if let Ok(text) = text.canonicalize() {
        cargo.env("GGML_RKNPU_TEST_TEXT", text);
    }

    let mut counts = Counts::default();
    let native = if options.boards { Ok(()) } else { run(&mut cargo, &mut counts) };
    let boards = boards::run(tools, &hosts, &mut counts);
    let not_run = boards.as_ref().ok().cloned().flatten();
    println!("{}", summary(&counts, &skips::read(&skipped)?, not_run.as_deref()));
    native.and(boards.map(|_| ()))
}

/// Runs cargo's tests, shows their output and counts.
fn run(cargo: &mut Command, counts: &mut Counts) -> Result<()> {
    let mut child = process::spawn(cargo.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    if let Some(stdout) = child.stdout.take() {
        let read = pass_on(BufReader::new(stdout), &mut std::io::stdout(), counts);
        read.map_err(|source| Error::Io { doing: "read the output of cargo test".to_owned(), source })?;
    }
    let status =
        child.wait().map_err(|source| Error::Io { doing: "wait for cargo test".to_owned(), source })?;
    if status.success() {
        return Ok(());
    }
    let outcome = process::outcome(status);
    Err(Error::Tool { program: "cargo test".to_owned(), outcome, tail: Vec::new(), log: None })
}

/// Shows the output on `out` as it comes, bytes as they are, and counts.
fn pass_on(mut from: impl BufRead, out: &mut impl Write, counts: &mut Counts) -> std::io::Result<()> {
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line)? > 0 {
        // The count goes on for a reader who went away: the exit code is still of use.
        let _ = out.write_all(&line).and_then(|()| out.flush());
        counts.add(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    Ok(())
}

/// The last lines. A test that skipped itself, which is what `reasons` tell of, has returned as if it passed, so it is
/// taken off the passed ones; what was not run at all has not.
fn summary(counts: &Counts, reasons: &[String], not_run: Option<&str>) -> String {
    let mut out = String::new();
    for reason in reasons.iter().map(String::as_str).chain(not_run) {
        out += &format!("skipped: {reason}\n");
    }
    let skipped = reasons.len() + usize::from(not_run.is_some());
    let passed = counts.passed.saturating_sub(reasons.len() as u64);
    out + &format!("{passed} passed; {} failed; {} ignored; {skipped} skipped", counts.failed, counts.ignored)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_binaries_add_up() {
        let output = "running 2 tests\ntest a ... ok\n\
            test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s\n\
            test result: FAILED. 7 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n";
        let mut counts = Counts::default();
        output.lines().for_each(|line| counts.add(line));
        assert_eq!(counts, Counts { passed: 12, failed: 2, ignored: 1 });
    }

    #[test]
    fn a_skipped_test_did_not_pass_and_what_was_not_run_was_not_counted_as_passed() {
        let counts = Counts { passed: 9, failed: 1, ignored: 2 };
        assert_eq!(summary(&counts, &[], None), "9 passed; 1 failed; 2 ignored; 0 skipped");
        assert_eq!(
            summary(&counts, &["a: no host".to_owned()], Some("b: no qemu")),
            "skipped: a: no host\nskipped: b: no qemu\n8 passed; 1 failed; 2 ignored; 2 skipped"
        );
    }
}
