//! The process that opens the library and runs the checks. It says what it does, a line each, before and after, so
//! that its parent knows where it died.

use std::io::Write;

use ggml_rknpu::chip::Chip;
use ggml_rknpu::mode::Mode;
use ggml_rknpu::probe::full::{checks, Bench, Outcome};
use ggml_rknpu::probe::quick;
use rknn_sys::Library;
use serde::{Deserialize, Serialize};

use crate::machine::{soc, Root};
use crate::Options;

/// Begins each line of ours: the library may write to stdout as well.
pub const MARK: &str = "rknpu-doctor> ";

/// What a line says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// The library is open.
    Opened {
        /// The chip that the emulator plays; `None` for the vendor's library.
        emulated: Option<String>,
        /// The chip whose facts are believed.
        chip: Option<String>,
        /// Whether the library tells a modelled time.
        modelled: bool,
    },
    /// The library cannot be opened.
    Closed(String),
    /// A context was made, and told the versions of library and driver.
    Versions {
        /// Of the library.
        library: String,
        /// Of the driver.
        driver: String,
    },
    /// No context can be made.
    Dead(String),
    /// What the plugin would find.
    Quick(Mode),
    /// The check of this index begins.
    Begin(usize),
    /// It has ended.
    End(usize, Outcome),
    /// All checks were run.
    Done,
}

fn say(line: &Line) {
    let text = serde_json::to_string(line).unwrap_or_default();
    let mut out = std::io::stdout().lock();
    // A parent that went away is no reason to go on, nor to panic.
    let _ = out.write_all(format!("\n{MARK}{text}\n").as_bytes()).and_then(|()| out.flush());
}

/// Runs the checks from index `first` on.
pub fn run(options: &Options, root: &Root, first: usize) {
    let library = match Library::open(options.library.as_deref()) {
        Ok(library) => library,
        Err(error) => return say(&Line::Closed(error.to_string())),
    };
    let emulated = library.emulated_soc().map(str::to_owned);
    let chip = match (&emulated, options.soc) {
        (_, Some(chip)) => Some(chip),
        (Some(name), None) => Chip::by_name(name),
        (None, None) => soc::chip(root),
    };
    let modelled = library.modelled_ns(None).is_some();
    say(&Line::Opened { emulated, chip: chip.map(|chip| chip.name.to_owned()), modelled });
    let Some(chip) = chip else { return say(&Line::Done) };
    let bench = Bench::new(&library, chip);
    match bench.versions() {
        Ok(version) => say(&Line::Versions { library: version.api, driver: version.driver }),
        Err(error) => {
            say(&Line::Dead(error.to_string()));
            // Nothing that follows could tell more than that.
            return say(&Line::Done);
        }
    }
    if first == 0 && !options.contract {
        say(&Line::Quick(quick(&library, chip)));
    }
    for (index, check) in checks(chip).iter().enumerate().skip(first) {
        if !options.wants(check.kind) {
            continue;
        }
        say(&Line::Begin(index));
        say(&Line::End(index, check.run(&bench)));
    }
    say(&Line::Done);
}
