//! What the user sees while something takes long: bars and spinners on a terminal, plain lines elsewhere.
//!
//! Everything goes to stderr, so that stdout stays the text of the model or of the test suite.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

/// One step of the set-up. Dropping it without [`Step::done`] just clears the bar.
pub struct Step {
    what: String,
    started: Instant,
    bar: Option<ProgressBar>,
    /// The last tenth that was printed where no bar can be drawn.
    printed_tenth: Cell<u64>,
}

impl Step {
    /// A step of unknown length.
    pub fn spinner(what: impl Into<String>) -> Self {
        Self::new(what.into(), || {
            let bar = ProgressBar::new_spinner();
            bar.set_style(style("{spinner} {msg} ({elapsed})"));
            bar
        })
    }

    /// A step of `total` units; call [`Step::at`] as it goes.
    pub fn bar(what: impl Into<String>, total: u64) -> Self {
        Self::new(what.into(), || {
            let bar = ProgressBar::new(total);
            bar.set_style(style("{spinner} {msg} [{bar:30}] {percent} % ({elapsed}, {eta} left)"));
            bar
        })
    }

    fn new(what: String, draw: impl FnOnce() -> ProgressBar) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = draw();
            bar.set_message(what.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            note(&format!("{what} ..."));
        }
        Self { what, started: Instant::now(), bar, printed_tenth: Cell::new(0) }
    }

    /// `done` of `total` units are over.
    pub fn at(&self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        } else if let Some(tenth) = done.saturating_mul(10).checked_div(total) {
            if tenth > self.printed_tenth.get() {
                self.printed_tenth.set(tenth);
                note(&format!("{}: {} %", self.what, tenth * 10));
            }
        }
    }

    /// The step succeeded: one line stays on the screen.
    pub fn done(self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        note(&format!("{}: done in {}", self.what, HumanDuration(self.started.elapsed())));
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// One line for the user.
pub fn note(line: &str) {
    eprintln!("xtask: {line}");
}

/// One line about something that was wrong and is being put right.
pub fn warn(line: &str) {
    eprintln!("xtask: warning: {line}");
}
