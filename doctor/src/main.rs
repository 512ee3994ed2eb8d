//! `rknpu-doctor`: looks at a machine and its NPU, puts every fact that the plugin relies on to the test, and says
//! what to do about what is wrong.
//!
//! * [`machine`]: what the system's files say: chip, driver, nodes, limits, clocks;
//! * [`probe`]: the checks, run in a child process, since a sick library may crash or hang;
//! * [`child`]: that process;
//! * [`report`]: all that was found, as data;
//! * [`show`]: the same for people.
//!
//! Exit codes: 0 all is well, 1 something is wrong or there is no NPU, 2 a wrong command line.

mod child;
mod machine;
mod probe;
mod report;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use ggml_rknpu::chip::Chip;
use ggml_rknpu::probe::full::Kind;

use machine::Root;
use report::Report;

/// Find out what a Rockchip board's NPU, driver and library do, and what to do about it.
#[derive(Debug, Parser)]
#[command(name = "rknpu-doctor", version)]
pub struct Options {
    /// Print the findings as one JSON object
    #[arg(long, conflicts_with = "contract")]
    json: bool,
    /// Write everything to one JSON file, to be attached to a bug report
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// The NPU's library [default: RKNPU_LIBRARY, then librknnrt.so by the loader's path]
    #[arg(long, value_name = "PATH")]
    library: Option<PathBuf>,
    /// The chip whose facts are believed [default: RKNPU_SOC, then the emulator's word, then the device tree]
    #[arg(long, value_name = "NAME", value_parser = chip)]
    soc: Option<&'static Chip>,
    /// Leave the times out
    #[arg(long)]
    no_times: bool,
    /// Only check the library against the contract, a line each, and count
    #[arg(long)]
    contract: bool,
    /// Take /proc, /sys, /dev and /etc from this folder; for tests
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Be the process that runs the checks, from this one on
    #[arg(long, value_name = "CHECK", hide = true)]
    child: Option<usize>,
}

impl Options {
    /// Whether checks of this kind are wanted.
    fn wants(&self, kind: Kind) -> bool {
        kind == Kind::Contract || !(self.contract || self.no_times)
    }
}

fn chip(name: &str) -> Result<&'static Chip, String> {
    Chip::by_name(name).ok_or_else(|| format!("expected one of {}", Chip::names()))
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    options.library = options.library.or_else(|| set("RKNPU_LIBRARY").map(PathBuf::from));
    if let (None, Some(name)) = (options.soc, set("RKNPU_SOC")) {
        match chip(&name.to_string_lossy()) {
            Ok(chip) => options.soc = Some(chip),
            Err(expected) => {
                eprintln!("error: RKNPU_SOC is {name:?}, {expected}");
                return ExitCode::from(2);
            }
        }
    }
    let root = Root::new(&options.root);
    if let Some(first) = options.child {
        child::run(&options, &root, first);
        return ExitCode::SUCCESS;
    }
    let found = probe::run(&options, &root);
    if options.contract {
        return if show::contract(&found) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let report = Report::new(&options, &root, found);
    if options.json {
        println!("{}", report.json());
    } else {
        print!("{}", show::table(&report));
    }
    if let Some(path) = &options.report {
        if let Err(error) = std::fs::write(path, report.json() + "\n") {
            eprintln!("error: cannot write the report to {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
        eprintln!("wrote {}: attach it to your bug report", path.display());
    }
    if report.well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
