//! Which NPU a host gets, as environment variables of the host's process.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, ValueEnum};

use crate::error::{Error, Result};
use crate::setup::plugin::Plugin;

/// The chips that the plugin and the emulator know.
pub const SOCS: [&str; 5] = ["rk3588", "rk3576", "rk3566", "rk3568", "rk3562"];

/// The vendor's library, as boards have it.
const VENDOR_LIBRARY: &str = "librknnrt.so";

/// Variables that bring the plugin and the NPU into a host; `--cpu` takes them all away.
const PLUGIN_VARIABLES: [&str; 4] = ["GGML_BACKEND_PATH", "RKNPU_LIBRARY", "RKNPU_SOC", "RKNPU_EMU_SOC"];

/// Where the NPU library comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum NpuChoice {
    /// A library named by RKNPU_LIBRARY, or the vendor's on a Rockchip board that has it, else the emulator
    Auto,
    /// The vendor's librknnrt.so, from RKNPU_LIBRARY or where boards have it
    Vendor,
    /// The workspace's emulator
    Emulated,
}

/// The options that choose an NPU, the same for every command that runs the host.
#[derive(Debug, Args)]
pub struct NpuOptions {
    /// The chip: emulated, or forced on a vendor's library that does not tell
    #[arg(long)]
    soc: Option<String>,
    /// Which NPU to use
    #[arg(long, value_enum, default_value_t = NpuChoice::Auto)]
    npu: NpuChoice,
}

impl NpuOptions {
    /// As [`Npu::choose`].
    ///
    /// # Errors
    /// As there.
    pub fn choose(&self, cpu: bool) -> Result<Npu> {
        Npu::choose(cpu, self.npu, self.soc.as_deref())
    }
}

/// A chosen NPU: checked as far as it can be before anything is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Npu {
    /// None: the host on its CPU.
    Cpu,
    /// This library.
    Library {
        /// Its path.
        path: PathBuf,
        /// The chip to take it for.
        soc: Option<&'static str>,
    },
    /// The emulator.
    Emulator {
        /// The chip to emulate.
        soc: Option<&'static str>,
    },
}

impl Npu {
    /// Checks the options of a command against this machine.
    ///
    /// # Errors
    /// An unknown chip, or no vendor's library where one is asked for.
    pub fn choose(cpu: bool, choice: NpuChoice, soc: Option<&str>) -> Result<Self> {
        let soc = soc.map(|name| known_soc("--soc", name)).transpose()?;
        if cpu {
            return Ok(Self::Cpu);
        }
        if let Ok(name) = env::var("RKNPU_EMU_SOC") {
            known_soc("RKNPU_EMU_SOC", &name)?;
        }
        let named = env::var_os("RKNPU_LIBRARY").filter(|value| !value.is_empty()).map(PathBuf::from);
        let library = choose_library(choice, named, &library_folders(), is_rockchip_board())?;
        Ok(match library {
            Some(path) => Self::Library { path, soc },
            None => Self::Emulator { soc },
        })
    }

    /// Gives the command the environment for this NPU.
    pub fn apply(&self, plugin: Option<&Plugin>, command: &mut Command) {
        let Some(plugin) = plugin.filter(|_| *self != Self::Cpu) else {
            PLUGIN_VARIABLES.iter().for_each(|name| {
                command.env_remove(name);
            });
            return;
        };
        command.env("GGML_BACKEND_PATH", &plugin.library);
        let (library, soc) = match self {
            Self::Library { path, soc } => (path, soc),
            Self::Cpu | Self::Emulator { soc: None } => (&plugin.emulator, &None),
            Self::Emulator { soc } => (&plugin.emulator, soc),
        };
        command.env("RKNPU_LIBRARY", library);
        if let Some(soc) = soc {
            command.env("RKNPU_EMU_SOC", soc);
            // A chip is forced on a real library only: the emulator says itself what it is.
            match self {
                Self::Library { .. } => command.env("RKNPU_SOC", soc),
                _ => command.env_remove("RKNPU_SOC"),
            };
        }
    }

    /// The emulated or forced chip, where it was named.
    pub fn soc(&self) -> Option<&'static str> {
        match self {
            Self::Cpu => None,
            Self::Library { soc, .. } | Self::Emulator { soc } => *soc,
        }
    }
}

fn known_soc(origin: &str, name: &str) -> Result<&'static str> {
    SOCS.into_iter().find(|known| known.eq_ignore_ascii_case(name)).ok_or_else(|| {
        Error::Refused(format!(
            "{origin} {name:?} is not a chip this project knows; give one of {}",
            SOCS.join(", ")
        ))
    })
}

/// The library to take, or `None` for the emulator.
fn choose_library(
    choice: NpuChoice,
    named: Option<PathBuf>,
    folders: &[PathBuf],
    is_board: bool,
) -> Result<Option<PathBuf>> {
    if choice == NpuChoice::Emulated {
        return Ok(None);
    }
    if let Some(path) = named {
        return match why_not_loadable(&path) {
            None => Ok(Some(path)),
            Some(why) => Err(Error::Refused(format!(
                "RKNPU_LIBRARY={}: {why}; expected {VENDOR_LIBRARY}: correct it, or unset it to go without",
                path.display()
            ))),
        };
    }
    let found =
        folders.iter().map(|dir| dir.join(VENDOR_LIBRARY)).find(|path| why_not_loadable(path).is_none());
    match (choice, found) {
        (NpuChoice::Auto, found) => Ok(found.filter(|_| is_board)),
        (_, Some(path)) => Ok(Some(path)),
        (_, None) => Err(Error::Refused(format!(
            "--npu vendor: no {VENDOR_LIBRARY} for {} in LD_LIBRARY_PATH or the system's library folders; \
             set RKNPU_LIBRARY to its path, or use --npu emulated",
            env::consts::ARCH
        ))),
    }
}

/// What stands against the dynamic loader taking this file; a missing file, most often.
fn why_not_loadable(path: &Path) -> Option<String> {
    let mut head = [0u8; 20];
    match File::open(path).and_then(|mut file| file.read_exact(&mut head)) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Some("not a shared library".to_owned())
        }
        Err(error) => Some(error.to_string()),
        Ok(()) if !head.starts_with(b"\x7fELF") => Some("not a shared library".to_owned()),
        Ok(()) => {
            // e_machine of the ELF header.
            let machine = u16::from_le_bytes([head[18], head[19]]);
            let own = match env::consts::ARCH {
                "x86_64" => 62,
                "aarch64" => 183,
                _ => machine,
            };
            (machine != own).then(|| format!("a library for another machine than this {}", env::consts::ARCH))
        }
    }
}

fn library_folders() -> Vec<PathBuf> {
    let own: OsString = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let system = [
        "/usr/lib",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/lib",
        "/lib64",
        "/lib/aarch64-linux-gnu",
        "/usr/local/lib",
        "/vendor/lib64",
        "/system/lib64",
    ];
    env::split_paths(&own)
        .filter(|dir| !dir.as_os_str().is_empty())
        .chain(system.into_iter().map(PathBuf::from))
        .collect()
}

fn is_rockchip_board() -> bool {
    let compatible = fs::read("/proc/device-tree/compatible").unwrap_or_default();
    env::consts::ARCH == "aarch64" && String::from_utf8_lossy(&compatible).contains("rockchip,")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with_library(machine: u16) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let mut head = b"\x7fELF".to_vec();
        head.resize(18, 0);
        head.extend(machine.to_le_bytes());
        let path = dir.path().join(VENDOR_LIBRARY);
        fs::write(&path, head).unwrap();
        (dir, path)
    }

    fn own_machine() -> u16 {
        if env::consts::ARCH == "aarch64" {
            183
        } else {
            62
        }
    }

    #[test]
    fn auto_takes_the_vendors_library_on_a_board_only() {
        let (dir, path) = folder_with_library(own_machine());
        let folders = [PathBuf::from("/nowhere"), dir.path().to_owned()];
        let choose = |choice, is_board| choose_library(choice, None, &folders, is_board).unwrap();
        assert_eq!(choose(NpuChoice::Auto, true), Some(path.clone()));
        assert_eq!(choose(NpuChoice::Auto, false), None);
        assert_eq!(choose(NpuChoice::Vendor, false), Some(path));
        assert_eq!(choose(NpuChoice::Emulated, true), None);
        assert_eq!(choose_library(NpuChoice::Auto, None, &[], true).unwrap(), None);
    }

    #[test]
    fn a_named_library_is_taken_or_refused_but_never_passed_over() {
        let (_dir, path) = folder_with_library(own_machine());
        assert_eq!(choose_library(NpuChoice::Auto, Some(path.clone()), &[], false).unwrap(), Some(path));
        let text = choose_library(NpuChoice::Auto, Some("/nowhere/x.so".into()), &[], false)
            .unwrap_err()
            .to_string();
        assert!(text.starts_with("RKNPU_LIBRARY=/nowhere/x.so: No such file"), "{text}");
        let (_dir, foreign) = folder_with_library(8);
        let text = choose_library(NpuChoice::Vendor, Some(foreign), &[], false).unwrap_err().to_string();
        assert!(text.contains("for another machine"), "{text}");
    }

    #[test]
    fn a_missing_vendors_library_is_one_clear_line() {
        let text = choose_library(NpuChoice::Vendor, None, &[], false).unwrap_err().to_string();
        assert!(text.starts_with("--npu vendor: no librknnrt.so"), "{text}");
        assert!(text.contains("RKNPU_LIBRARY"), "{text}");
    }

    #[test]
    fn an_unknown_chip_is_refused_with_the_list() {
        let text = Npu::choose(true, NpuChoice::Auto, Some("rk3399")).unwrap_err().to_string();
        assert!(
            text.contains("\"rk3399\"") && text.contains("rk3588, rk3576, rk3566, rk3568, rk3562"),
            "{text}"
        );
    }

    fn variables(npu: &Npu) -> Vec<(String, Option<String>)> {
        let plugin = Plugin { library: "/p.so".into(), emulator: "/e.so".into() };
        let mut command = Command::new("x");
        npu.apply(Some(&plugin), &mut command);
        let text = |value: &std::ffi::OsStr| value.to_string_lossy().into_owned();
        command.get_envs().map(|(name, value)| (text(name), value.map(text))).collect()
    }

    #[test]
    fn the_environment_follows_the_choice() {
        let pair = |name: &str, value: Option<&str>| (name.to_owned(), value.map(str::to_owned));
        assert_eq!(
            variables(&Npu::Emulator { soc: Some("rk3576") }),
            [
                pair("GGML_BACKEND_PATH", Some("/p.so")),
                pair("RKNPU_EMU_SOC", Some("rk3576")),
                pair("RKNPU_LIBRARY", Some("/e.so")),
                pair("RKNPU_SOC", None),
            ]
        );
        assert_eq!(
            variables(&Npu::Library { path: "/v.so".into(), soc: None }),
            [pair("GGML_BACKEND_PATH", Some("/p.so")), pair("RKNPU_LIBRARY", Some("/v.so"))]
        );
        assert!(variables(&Npu::Cpu).iter().all(|(_, value)| value.is_none()));
    }
}
