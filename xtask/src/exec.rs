//! `cargo xtask exec`: any program of the host, in the environment that brings it the plugin and the NPU.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use crate::env::{Npu, NpuOptions};
use crate::error::{Error, Result};
use crate::process;
use crate::setup::{self, host::Host, packages, Wants};

/// The options of `exec`.
#[derive(Debug, Args)]
pub struct Options {
    #[command(flatten)]
    npu: NpuOptions,
    /// The same host without the plugin
    #[arg(long, conflicts_with = "npu")]
    cpu: bool,
    /// The program, looked for among the host's and then on PATH, with its arguments; none lists the host's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Becomes the program; returns only to list the host's programs or with an error.
///
/// # Errors
/// Bad input, a failed set-up, or a program that is nowhere.
pub fn command(options: &Options) -> Result<()> {
    let npu = options.npu.choose(options.cpu)?;
    let wants_models =
        std::env::var_os("RKNPU_MODEL").is_none() && std::env::var_os("LLAMA_CPP_DIR").is_none();
    let is_listing = options.command.is_empty();
    let ready = setup::prepare(Wants {
        models: wants_models && !is_listing,
        plugin: npu != Npu::Cpu && !is_listing,
    })?;
    let Some((program, arguments)) = options.command.split_first() else {
        println!("programs of the host in {}:", ready.host.bin.display());
        ready.host.programs().iter().for_each(|name| println!("  {name}"));
        return Ok(());
    };
    let path = find(&ready.host, Path::new(program))?;
    let mut command = Command::new(&path);
    command.args(arguments);
    npu.apply(ready.plugin.as_ref(), &mut command);
    // Taking the program's place hands its signals and its exit code through with nothing in between.
    let source = command.exec();
    Err(Error::Io { doing: format!("start {}", path.display()), source })
}

fn find(host: &Host, program: &Path) -> Result<PathBuf> {
    if program.components().count() != 1 {
        return Ok(program.to_owned());
    }
    let of_host = host.bin.join(program);
    if process::is_program(&of_host) {
        return Ok(of_host);
    }
    packages::on_path(&program.to_string_lossy()).ok_or_else(|| {
        Error::Refused(format!(
            "{}: neither a program of the host nor on PATH; the host has: {}",
            program.display(),
            host.programs().join(", ")
        ))
    })
}
