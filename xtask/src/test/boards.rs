//! The tests of what only a board's processor runs, in qemu on a machine of another one: the NEON kernels, on processors
//! with and without the dot product, and how structs lie that host and vendor share with us.

use std::env::consts::ARCH;
use std::io::{BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use wait_timeout::ChildExt;

use super::{pass_on, Counts};
use crate::error::{Error, Result};
use crate::package;
use crate::process;
use crate::progress::{note, warn};
use crate::setup::cargo;
use crate::setup::cross::{Cross, LINKER, TARGET};
use crate::setup::plugin::workspace;

/// Processors of qemu's, whether they have the dot product, and the parts of the plugin that are tested on them. The last
/// one has whatever qemu knows, i8mm among it, which no board has: there also runs what is built on the kernels and quick.
const PROCESSORS: [(&str, &str, &[&str]); 3] = [
    ("cortex-a53", "0", &["kernels::"]),
    ("cortex-a76", "1", &["kernels::"]),
    ("max", "1", &["kernels::", "weights::", "plan::"]),
];
/// They take some ten seconds; whoever takes this long hangs.
const LIMIT: Duration = Duration::from_secs(300);
/// The dependencies are optimised for the sake of tests that run models. Here most of them run never or little, and
/// are built in a third of the time; those that the tests do run much stay as they are.
const PROFILE: [&str; 3] = [
    r#"profile.dev.package."*".opt-level=0"#,
    "profile.dev.package.half.opt-level=2",
    "profile.dev.package.proptest.opt-level=2",
];

/// The tools, and those of the packages; installed and fetched where they are missing. `None` on a board's own processor.
/// Before all tests: some of the native ones need them too, and are counted as skipped where they cannot be had.
///
/// # Errors
/// Why they cannot be had.
pub fn tools() -> Result<Option<Cross>, String> {
    if ARCH == "aarch64" {
        return Ok(None);
    }
    let cross = Cross::ensure()?;
    if let Err(error) = package::prepare() {
        warn(&format!("the tests of the packages are skipped: {error}"));
    }
    Ok(Some(cross))
}

/// Builds the tests and runs them; `hosts` has the variables that name the hosts. Gives the reason when there are no tools.
///
/// # Errors
/// A failed build, a failed test, or tests that do not come to an end.
pub fn run(
    tools: Result<Option<Cross>, String>,
    hosts: &[(String, PathBuf)],
    counts: &mut Counts,
) -> Result<Option<String>> {
    let cross = match tools {
        Ok(Some(cross)) => cross,
        Err(why) => return Ok(Some(format!("the kernels' tests for aarch64: {why}"))),
        Ok(None) => {
            note("this machine is aarch64 itself: the kernels' tests for boards ran above, natively");
            return Ok(None);
        }
    };
    note("building the tests for aarch64");
    let built = |arguments: &[&str], target: &str| {
        let mut build = cargo::cargo();
        build.args(["test", "--no-run"]).args(arguments);
        build.args(PROFILE.iter().flat_map(|setting| ["--config", setting]));
        cross.build_with(&mut build);
        cargo::made_by(build, &format!("cargo test --no-run for {TARGET}"))?.tests_of(target)
    };
    let kernels = built(&["-p", "ggml-rknpu", "--lib"], "ggml_rknpu")?;
    let layout = built(&["-p", "ggml-sys", "--test", "layout"], "layout")?;

    for (processor, dotprod, parts) in PROCESSORS {
        note(&format!("running the tests of {} on qemu's {processor}", parts.join(" ")));
        let mut command = cross.run_on(processor, &kernels);
        // One after the other, so that the one at work is named while it runs: a hang then has a name.
        command.args(parts).arg("--test-threads=1").current_dir(workspace());
        command.env("GGML_RKNPU_TEST_DOTPROD", dotprod);
        run_within(command, LIMIT, &mut std::io::stdout(), counts)?;
    }
    note("running the tests of the host's structs for aarch64");
    let mut command = cross.run_on("max", &layout);
    command.env("CC", LINKER).envs(hosts.iter().cloned()).current_dir(workspace());
    run_within(command, LIMIT, &mut std::io::stdout(), counts).map(|()| None)
}

/// Runs a test program, shows its output on `out` and counts; ends it when it takes longer than `limit`.
fn run_within(
    mut command: Command,
    limit: Duration,
    out: &mut (impl Write + Send),
    counts: &mut Counts,
) -> Result<()> {
    let broken = |source| Error::Io { doing: "run the tests for aarch64".to_owned(), source };
    let mut child = process::spawn(command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let stdout = child.stdout.take();
    let mut own = Counts::default();
    let (status, read) = thread::scope(|scope| {
        let reader =
            scope.spawn(|| stdout.map_or(Ok(()), |stdout| pass_on(BufReader::new(stdout), out, &mut own)));
        let status = child.wait_timeout(limit);
        if !matches!(status, Ok(Some(_))) {
            // It may have ended by itself just now.
            let _ = child.kill();
            let _ = child.wait();
        }
        (status, reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    read.map_err(broken)?;
    counts.merge(&own);
    let Some(status) = status.map_err(broken)? else {
        // What hangs has not ended its line.
        let _ = out.write_all(b"\n");
        return Err(Error::Refused(format!(
            "the tests for aarch64 were not over after {} s and were ended; \
             the test named last, above, is the one at work",
            limit.as_secs()
        )));
    };
    if !status.success() {
        let outcome = process::outcome(status);
        let program = "the test program for aarch64".to_owned();
        return Err(Error::Tool { program, outcome, tail: Vec::new(), log: None });
    }
    if own.passed == 0 {
        return Err(Error::Refused(format!("no test for aarch64 ran of {command:?}; expected some")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Shows nothing: whoever counts the results of these very tests would count what is shown.
    fn shell(script: &str, limit: Duration) -> (Result<()>, Counts, String) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut counts = Counts { passed: 10, ..Counts::default() };
        let mut out = Vec::new();
        let result = run_within(command, limit, &mut out, &mut counts);
        (result, counts, String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_counts_are_added_and_a_failure_is_one() {
        let line = "echo 'test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured'";
        let (result, counts, _) = shell(line, LIMIT);
        assert!(result.is_ok());
        assert_eq!(counts, Counts { passed: 15, failed: 0, ignored: 1 });
        let (result, counts, _) = shell("echo 'test result: FAILED. 4 passed; 1 failed'; exit 101", LIMIT);
        assert_eq!(result.unwrap_err().to_string(), "the test program for aarch64 ended with exit code 101");
        assert_eq!(counts, Counts { passed: 14, failed: 1, ignored: 0 });
    }

    #[test]
    fn tests_that_hang_are_ended() {
        let started = Instant::now();
        let (result, _, out) = shell("printf 'test a ... '; exec sleep 60", Duration::from_millis(200));
        assert!(result.unwrap_err().to_string().contains("not over after 0 s"));
        assert_eq!(out, "test a ... \n", "the test at work is shown");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn no_test_at_all_is_an_error() {
        let (result, _, _) = shell("echo 'test result: ok. 0 passed; 0 failed; 0 ignored'", LIMIT);
        assert!(result.unwrap_err().to_string().contains("no test for aarch64 ran of "));
    }
}
