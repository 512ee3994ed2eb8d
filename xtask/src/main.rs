//! `cargo xtask`: set-up, runs and tests of ggml-rknpu, the whole way from a bare machine to generated text.
//!
//! | command | what it does |
//! |---|---|
//! | `setup` | fetches and builds what is missing: system packages, the host, the models, the plugin |
//! | `run` | a stock llama.cpp answers a prompt through the plugin; shows what ran where |
//! | `exec` | any program of the host with the plugin and the NPU |
//! | `cluster` | a model split over several NPUs by llama.cpp's RPC |
//! | `accuracy` | KL divergence of files and pipelines to the reference, CPU and NPU side by side |
//! | `architectures` | every architecture that the host knows, with the plugin and without |
//! | `bench` | what schedules and host-side work cost, by the modelled clock and by paced runs |
//! | `synth` | writes models of random weights with the widths of real ones |
//! | `test` | the whole test suite |
//! | `patch` | lets a checkout of llama.cpp build the plugin in |
//! | `package` | plugin, doctor and emulator for the boards, as a `.tar.gz` and a `.deb` |
//! | `conformance` | what we rely on, checked against a librknnrt.so: ours, or the vendor's on a board |
//!
//! `LLAMA_CPP_DIR` names a llama.cpp of your own, `RKNPU_MODEL` a model, `RKNPU_LIBRARY` an NPU library.
//! Results go to stdout, progress and complaints to stderr; an error is one line that begins `error: `,
//! with exit code 1 (2 for a wrong command line).

mod accuracy;
mod architectures;
mod bench;
mod cache;
mod cluster;
mod completion;
mod conformance;
mod env;
mod error;
mod exec;
mod flops;
mod gguf;
mod host_output;
mod model;
mod package;
mod patch;
mod process;
mod progress;
mod report;
mod run;
mod setup;
mod synth;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Set-up, runs and tests of ggml-rknpu.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch and build what is missing, outside the checkout; the other commands do it too
    Setup,
    /// Let a stock llama.cpp answer a prompt through the plugin, and show what ran where
    Run(Box<run::Options>),
    /// Run any program of the host with the plugin and the NPU
    Exec(exec::Options),
    /// Split a model over several servers by llama.cpp's RPC, each with an NPU, and compare with one process
    Cluster(Box<cluster::Options>),
    /// Measure how far files and pipelines are from the reference's logits, on CPU and NPU
    Accuracy(Box<accuracy::Options>),
    /// Compare the logits of every architecture that the host knows with the CPU's
    Architectures(architectures::Options),
    /// Measure schedules against the best there are, and host-side work, by the emulator's modelled clock
    Bench(Box<bench::Options>),
    /// Write models of random weights with the widths of real ones, into the cache, and print where they are
    Synth(synth::Options),
    /// Run the whole test suite
    Test(test::Options),
    /// Let a checkout of llama.cpp build the plugin in with -DLLAMA_RKNPU2=ON, by the patch of its version
    Patch(patch::Options),
    /// Pack plugin, doctor and emulator for the boards, as a .tar.gz and a .deb
    Package(package::Options),
    /// Check a librknnrt.so against everything that we rely on: the emulator, or the vendor's on a board
    Conformance(conformance::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup => setup::command(),
        Command::Run(options) => run::command(&options),
        Command::Exec(options) => exec::command(&options),
        Command::Cluster(options) => cluster::command(&options),
        Command::Accuracy(options) => accuracy::command(&options),
        Command::Architectures(options) => architectures::command(&options),
        Command::Bench(options) => bench::command(&options),
        Command::Synth(options) => synth::command(&options),
        Command::Test(options) => test::command(&options),
        Command::Patch(options) => patch::command(&options),
        Command::Package(options) => package::command(&options),
        Command::Conformance(options) => conformance::command(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.details().iter().for_each(|line| eprintln!("  {line}"));
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
