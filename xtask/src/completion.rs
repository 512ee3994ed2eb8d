//! One run of the host's program that continues a prompt: its text as it comes, and what it says of itself.

use std::io::{self, Read, Write};
use std::process::{ChildStdout, Command, Stdio};
use std::thread;
use std::time::Instant;

use crate::error::{Error, Result};
use crate::host_output::{HostLog, TextFilter};
use crate::process;

/// The program that is run.
pub const PROGRAM: &str = "llama-completion";
/// What it continues, unless somebody says otherwise.
pub const PROMPT: &str = "The three largest cities of Italy, with one sentence on each, are";

/// A host that ran to its end.
pub struct Ran {
    /// Its text, without the mark of its end.
    pub text: String,
    /// What it said besides.
    pub log: HostLog,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Runs the host to its end, showing its text as it comes where that is wanted.
///
/// # Errors
/// A host that cannot be started, or that fails.
pub fn watch(mut host: Command, is_shown: bool) -> Result<Ran> {
    let started = Instant::now();
    host.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = process::spawn(&mut host)?;
    let broken = |source| Error::Io { doing: format!("read the output of {PROGRAM}"), source };
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (text, log) = thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut log = HostLog::default();
            let read = stderr.map_or(Ok(()), |stderr| {
                process::for_each_line(stderr, |line| {
                    if log.push(line) {
                        eprintln!("{line}");
                    }
                })
            });
            read.map(|()| log)
        });
        let text = stdout.map_or(Ok(String::new()), |stdout| stream(stdout, is_shown));
        (text, reader.join())
    });
    let status = child.wait().map_err(|source| Error::Io { doing: format!("wait for {PROGRAM}"), source })?;
    let log = log.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(broken)?;
    if !status.success() {
        let outcome = process::outcome(status);
        return Err(Error::Tool { program: PROGRAM.to_owned(), outcome, tail: log.into_tail(), log: None });
    }
    Ok(Ran { text: text.map_err(broken)?, log, seconds: started.elapsed().as_secs_f64() })
}

/// Reads the text to its end. A reader of ours who went away does not stop the host.
fn stream(mut from: ChildStdout, is_shown: bool) -> io::Result<String> {
    let mut filter = TextFilter::default();
    let mut out = io::stdout();
    let mut buffer = [0; 4096];
    let mut is_shown = is_shown;
    loop {
        let (bytes, is_end) = match from.read(&mut buffer)? {
            0 => ([filter.finish(), b"\n".to_vec()].concat(), true),
            n => (filter.push(&buffer[..n]), false),
        };
        is_shown = is_shown && out.write_all(&bytes).and_then(|()| out.flush()).is_ok();
        if is_end {
            return Ok(filter.text());
        }
    }
}
