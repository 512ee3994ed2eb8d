//! Runs the checks in a child process and outlives whatever the library does to it.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use ggml_rknpu::chip::Chip;
use ggml_rknpu::mode::Mode;
use ggml_rknpu::probe::full::{checks, Check, Outcome};

use crate::child::{Line, MARK};
use crate::machine::Root;
use crate::Options;

/// What starts a program of this processor where another one runs: "qemu-aarch64-static -L /", say.
const RUNNER: &str = "RKNPU_DOCTOR_RUNNER";

/// How long a check may take: the driver's own time-outs are shorter.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long its last words on stderr may take once stdout is closed; somebody else may hold stderr open.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often a child that died is started again.
const RESTARTS: usize = 16;
/// Lines of the library's own words that are kept.
const LOG_MAX: usize = 2000;

/// What the child found.
#[derive(Default)]
pub struct Probe {
    /// The chip that the emulator plays, when the library is the emulator.
    pub emulated: Option<String>,
    /// Whether times are modelled.
    pub modelled: bool,
    /// The chip whose facts are believed.
    pub chip: Option<&'static Chip>,
    /// Why the library cannot be opened, or no context made.
    pub refused: Option<String>,
    /// Whether the library could be opened.
    pub opened: bool,
    /// Versions of library and driver.
    pub versions: Option<(String, String)>,
    /// What the plugin would find.
    pub quick: Option<Mode>,
    /// Each check with its outcome.
    pub results: Vec<(Check, Outcome)>,
    /// What the library wrote to stdout and stderr.
    pub log: Vec<String>,
}

enum Event {
    Said(Line),
    Other(String),
    /// stdout was closed.
    End,
}

/// Opens the library and runs all checks for the chip.
pub fn run(options: &Options, root: &Root) -> Probe {
    let mut probe = Probe::default();
    let mut outcomes: Vec<Option<Outcome>> = Vec::new();
    let mut all: Vec<Check> = Vec::new();
    let mut next = 0;
    for _ in 0..=RESTARTS {
        let (running, ended) = match session(options, root, next, &mut probe, &mut all, &mut outcomes) {
            Ok(pair) => pair,
            Err(error) => {
                probe.refused = Some(format!("cannot start the process that runs the checks: {error}"));
                break;
            }
        };
        let Some(how) = ended else { break };
        match running {
            Some(index) => {
                outcomes[index] = Some(Outcome::Fail(format!("the library took the process down: {how}")));
                next = index + 1;
            }
            None if all.is_empty() || outcomes.iter().all(Option::is_none) => {
                probe.refused = Some(format!("the library took the process down: {how}"));
                break;
            }
            None => break,
        }
    }
    let not_asked = || Outcome::Unknown("not asked: the library did not get that far".to_owned());
    if probe.versions.is_some() {
        let pairs = all.into_iter().zip(outcomes).filter(|(check, _)| options.wants(check.kind));
        probe.results = pairs.map(|(check, outcome)| (check, outcome.unwrap_or_else(not_asked))).collect();
    }
    probe
}

/// One child from check `first` on: the check that it died in, and how it died unless it came to its end.
fn session(
    options: &Options,
    root: &Root,
    first: usize,
    probe: &mut Probe,
    all: &mut Vec<Check>,
    outcomes: &mut Vec<Option<Outcome>>,
) -> std::io::Result<(Option<usize>, Option<String>)> {
    let (mut child, events) = start(options, root, first)?;
    let (mut running, mut is_done, mut is_late) = (None, false, false);
    let mut patience = PATIENCE;
    loop {
        match events.recv_timeout(patience) {
            Ok(Event::Said(line)) => match line {
                Line::Opened { emulated, chip, modelled } => {
                    probe.modelled = modelled;
                    probe.opened = true;
                    probe.emulated = emulated;
                    probe.chip = chip.as_deref().and_then(Chip::by_name);
                    if let (Some(chip), true) = (probe.chip, all.is_empty()) {
                        *all = checks(chip);
                        outcomes.resize(all.len(), None);
                    }
                }
                Line::Closed(why) | Line::Dead(why) => {
                    probe.refused.get_or_insert(why);
                    is_done = true;
                }
                Line::Versions { library, driver } => probe.versions = Some((library, driver)),
                Line::Quick(findings) => probe.quick = Some(findings),
                Line::Begin(index) => running = Some(index).filter(|index| *index < outcomes.len()),
                Line::End(index, outcome) => {
                    running = None;
                    if let Some(slot) = outcomes.get_mut(index) {
                        *slot = Some(outcome);
                    }
                }
                Line::Done => is_done = true,
            },
            Ok(Event::Other(line)) => {
                if probe.log.len() < LOG_MAX && !line.trim().is_empty() {
                    probe.log.push(line);
                }
            }
            // The library's words on stderr come from a thread of their own, and may come later.
            Ok(Event::End) => patience = LAST_WORDS,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if patience == LAST_WORDS => break,
            Err(RecvTimeoutError::Timeout) => {
                is_late = true;
                child.kill()?;
                break;
            }
        }
    }
    let status = child.wait()?;
    let how = match () {
        () if is_late => Some(format!("no answer within {} s", PATIENCE.as_secs())),
        () if is_done => None,
        () => Some(outcome(status)),
    };
    Ok((running, how))
}

fn outcome(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (_, Some(signal)) => format!("signal {signal}"),
        (Some(code), None) => format!("exit code {code}"),
        (None, None) => "it ended in an unknown way".to_owned(),
    }
}

/// A command that starts this program again; under an emulated processor by way of [`RUNNER`].
fn this_program() -> std::io::Result<Command> {
    let program = std::env::current_exe()?;
    let runner = std::env::var(RUNNER).unwrap_or_default();
    let mut words = runner.split_whitespace();
    Ok(match words.next() {
        None => Command::new(program),
        Some(first) => {
            let mut command = Command::new(first);
            command.args(words).arg(program);
            command
        }
    })
}

fn start(options: &Options, root: &Root, first: usize) -> std::io::Result<(Child, Receiver<Event>)> {
    let mut command = this_program()?;
    command.arg("--child").arg(first.to_string()).arg("--root").arg(root.path());
    if let Some(library) = &options.library {
        command.arg("--library").arg(library);
    }
    if let Some(chip) = options.soc {
        command.args(["--soc", chip.name]);
    }
    for (is_set, name) in [(options.contract, "--contract"), (options.no_times, "--no-times")] {
        if is_set {
            command.arg(name);
        }
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (sender, events) = channel();
    if let Some(stderr) = child.stderr.take() {
        read_on(stderr, sender.clone(), false);
    }
    if let Some(stdout) = child.stdout.take() {
        read_on(stdout, sender, true);
    }
    Ok((child, events))
}

/// Passes on the lines of a stream as they come, from a thread of its own.
fn read_on(stream: impl Read + Send + 'static, events: Sender<Event>, is_stdout: bool) {
    thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n') {
            let Ok(line) = line else { break };
            let line = String::from_utf8_lossy(&line).into_owned();
            let ours = line.strip_prefix(MARK).filter(|_| is_stdout);
            let event = match ours.and_then(|text| serde_json::from_str(text).ok()) {
                Some(said) => Event::Said(said),
                None => Event::Other(line),
            };
            if events.send(event).is_err() {
                return;
            }
        }
        if is_stdout {
            let _ = events.send(Event::End);
        }
    });
}
