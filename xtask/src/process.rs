//! Starting other programs and saying what became of them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use rustix::pipe::PipeFlags;

use crate::error::{Error, Result};

/// Lines of a failed program that are shown.
const TAIL_LINES: usize = 12;

/// The last lines of a program's output.
#[derive(Debug, Default)]
pub struct Tail(VecDeque<String>);

impl Tail {
    /// Takes one more line.
    pub fn push(&mut self, line: &str) {
        if self.0.len() == TAIL_LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.trim_end().to_owned());
    }

    /// The lines, oldest first.
    pub fn into_lines(self) -> Vec<String> {
        self.0.into()
    }
}

/// Whether the path is a file that may be executed.
pub fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|info| info.is_file() && info.permissions().mode() & 0o111 != 0)
}

/// The program's name, for messages.
pub fn name_of(command: &Command) -> String {
    Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy()
        .into_owned()
}

/// "ended with exit code 3" or "was killed by signal 11 (SIGSEGV)".
pub fn outcome(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal} ({})", signal_name(signal)),
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL, perhaps for want of memory",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        _ => "see signal(7)",
    }
}

/// Starts a program.
///
/// # Errors
/// Names the program that could not be started.
pub fn spawn(command: &mut Command) -> Result<std::process::Child> {
    command.spawn().map_err(|source| Error::Io {
        doing: format!("start {}", command.get_program().to_string_lossy()),
        source,
    })
}

/// Runs a program with nothing shown, unless it fails.
///
/// # Errors
/// How it ended, with its last lines.
pub fn run_quietly(command: &mut Command) -> Result<()> {
    run_watched(command, |_| {})
}

/// The same, with each line of its output shown to `watch` as it comes; stdout and stderr alike.
///
/// # Errors
/// How it ended, with its last lines.
pub fn run_watched(command: &mut Command, mut watch: impl FnMut(&str)) -> Result<()> {
    let name = name_of(command);
    let broken = |source| Error::Io { doing: format!("read the output of {name}"), source };
    // One pipe for both streams keeps their lines in order.
    let (reader, writer) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| broken(errno.into()))?;
    let second = writer.try_clone().map_err(broken)?;
    let mut child = spawn(command.stdin(Stdio::null()).stdout(writer).stderr(second))?;
    // The command keeps its copies of the pipe's end, and the read below would never come to an end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut tail = Tail::default();
    let read = for_each_line(File::from(reader), |line| {
        watch(line);
        tail.push(line);
    });
    let status = child.wait().map_err(|source| Error::Io { doing: format!("wait for {name}"), source })?;
    read.map_err(broken)?;
    if !status.success() {
        return Err(Error::Tool {
            program: name,
            outcome: outcome(status),
            tail: tail.into_lines(),
            log: None,
        });
    }
    Ok(())
}

/// Calls `take` for each line, whatever its bytes are.
///
/// # Errors
/// The reader's.
pub fn for_each_line(reader: impl Read, mut take: impl FnMut(&str)) -> std::io::Result<()> {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        take(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']));
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_of_both_streams_come_in_order() {
        let mut seen = Vec::new();
        run_watched(&mut shell("echo a; echo b >&2; printf 'c\\377'"), |line| seen.push(line.to_owned()))
            .unwrap();
        assert_eq!(seen, ["a", "b", "c\u{fffd}"]);
    }

    #[test]
    fn a_failure_shows_the_last_lines_and_how_it_ended() {
        let error = run_quietly(&mut shell("seq 20; exit 3")).unwrap_err();
        assert_eq!(error.to_string(), "sh ended with exit code 3");
        assert_eq!(error.details().len(), TAIL_LINES);
        assert_eq!(error.details().last().unwrap(), "20");
        let killed = run_quietly(&mut shell("kill -SEGV $$")).unwrap_err();
        assert_eq!(killed.to_string(), "sh was killed by signal 11 (SIGSEGV)");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run_quietly(&mut Command::new("/nowhere/at-all")).unwrap_err();
        assert!(error.to_string().starts_with("cannot start /nowhere/at-all: "), "{error}");
    }
}
