//! How far a device is trusted: what the quick probe verified, once a boot and library version.
//!
//! `RKNPU_PROBE` says how: `off` takes the facts on trust, `quick` (the default) uses what an earlier process of
//! this boot found, if it did, `full` probes anew. An emulated device is always probed: it costs nothing there,
//! and its quirks change between two runs of one boot.

use std::path::{Path, PathBuf};

use rknn_sys::{MatmulType, Version};
use serde::{Deserialize, Serialize};

use crate::chip::Chip;
use crate::log;
use crate::mode::Mode;
use crate::names::value_of;

/// What `RKNPU_PROBE` says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Probe {
    /// Believe the facts.
    Off,
    /// Probe once a boot and library version.
    #[default]
    Quick,
    /// Probe now.
    Full,
}

impl Probe {
    /// What may be said, for error messages.
    pub const ALLOWED: &'static str = "off, quick or full";

    /// The value of that name, in any case.
    pub fn by_name(name: &str) -> Option<Self> {
        value_of(&[("off", Self::Off), ("quick", Self::Quick), ("full", Self::Full)], name)
    }
}

/// What a verdict holds for: the same chip, software and boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Subject {
    chip: String,
    library: String,
    driver: String,
    boot: String,
    plugin: String,
}

/// What is kept on disk.
#[derive(Debug, Serialize, Deserialize)]
struct Verdict {
    subject: Subject,
    mode: Mode,
}

/// A device about to be trusted.
pub struct Candidate<'a> {
    /// Its chip.
    pub chip: &'a Chip,
    /// What its library says of itself, if it does.
    pub version: Option<&'a Version>,
    /// Whether it is the emulator.
    pub emulated: bool,
}

impl Candidate<'_> {
    /// The mode to use it in: believed, remembered, or found by `probe`, which is then remembered in `cache`.
    pub fn mode(&self, wanted: Probe, cache: Option<&Path>, probe: impl FnOnce() -> Mode) -> Mode {
        let subject = self.subject();
        // Without a version or a boot there is nothing to remember a verdict by.
        let cache = cache.filter(|_| !self.emulated && subject.is_some());
        match (wanted, cache.and_then(|path| recall(path, subject.as_ref()?))) {
            (Probe::Off, _) => return Mode::believed(self.chip),
            (Probe::Quick, Some(mode)) => return mode,
            _ => {}
        }
        let mode = probe();
        self.tell(&mode);
        if let (Some(path), Some(subject)) = (cache, subject) {
            if let Err(error) = remember(path, &Verdict { subject, mode }) {
                log!(Debug, "the probe's verdict is not kept in {}: {error}", path.display());
            }
        }
        mode
    }

    fn subject(&self) -> Option<Subject> {
        let version = self.version?;
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Subject {
            chip: self.chip.name.to_owned(),
            library: version.api.clone(),
            driver: version.driver.clone(),
            boot: boot.trim().to_owned(),
            plugin: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    /// Says where the device is not what is believed of it.
    fn tell(&self, mode: &Mode) {
        let believed = Mode::believed(self.chip);
        let differs = |believed: bool, found: bool, what: &str| {
            if believed && !found {
                log!(Warn, "this NPU {what}; rknpu-doctor tells more");
            }
        };
        for (dtype, what) in [
            (MatmulType::I8, "8-bit products: 16 bits are used instead"),
            (MatmulType::F16, "16-bit products: float weights stay with the CPU"),
            (MatmulType::I4, "4-bit products: more bits are used instead"),
            (MatmulType::F16I8, "products of 8-bit weights and 16-bit activations: others are used instead"),
            (MatmulType::F16I4, "products of 4-bit weights and 16-bit activations: others are used instead"),
        ] {
            differs(believed.has(dtype), mode.has(dtype), &format!("gives no or wrong {what}"));
        }
        differs(
            believed.native_b,
            mode.native_b,
            "has another layout of weights: row-major ones are used, which is slower",
        );
        differs(
            believed.native_ac,
            mode.native_ac,
            "has another layout of activations: row-major ones are used, which is slower",
        );
        differs(
            believed.views,
            mode.views,
            "gives no or wrong views of an allocation: each part gets its own",
        );
        for core in 0..believed.cores.len() {
            differs(
                believed.cores[core],
                mode.cores[core],
                &format!("computes wrong on core {core}: it is not used"),
            );
        }
    }
}

fn recall(path: &Path, subject: &Subject) -> Option<Mode> {
    let verdict: Verdict = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    (verdict.subject == *subject).then_some(verdict.mode)
}

fn remember(path: &Path, verdict: &Verdict) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Two processes may write at once: each its own file, the last rename wins.
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    std::fs::write(&partial, serde_json::to_vec(verdict)?)?;
    std::fs::rename(&partial, path)
}

/// Where verdicts are kept: `$XDG_CACHE_HOME/ggml-rknpu/probe.json`, or under `~/.cache`.
pub fn cache_path() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))?;
    Some(root.join("ggml-rknpu").join("probe.json"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::CHIPS;
    use std::cell::Cell;

    fn version(api: &str) -> Version {
        Version { api: api.to_owned(), driver: "0.9.8".to_owned() }
    }

    #[test]
    fn a_verdict_holds_for_its_boot_and_version_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep").join("probe.json");
        let probes = Cell::new(0);
        let sick = Mode { views: false, ..Mode::believed(&CHIPS[0]) };
        let ask = |version: &Version, emulated: bool, wanted: Probe| {
            let candidate = Candidate { chip: &CHIPS[0], version: Some(version), emulated };
            candidate.mode(wanted, Some(&path), || {
                probes.set(probes.get() + 1);
                sick
            })
        };
        assert_eq!((ask(&version("2.3.2"), false, Probe::Quick), probes.get()), (sick, 1));
        assert_eq!((ask(&version("2.3.2"), false, Probe::Quick), probes.get()), (sick, 1), "remembered");
        assert_eq!((ask(&version("2.4.0"), false, Probe::Quick), probes.get()), (sick, 2), "another library");
        assert_eq!((ask(&version("2.4.0"), false, Probe::Full), probes.get()), (sick, 3), "asked for");
        assert_eq!((ask(&version("2.4.0"), true, Probe::Quick), probes.get()), (sick, 4), "the emulator");
        assert_eq!(ask(&version("2.4.0"), false, Probe::Off), Mode::believed(&CHIPS[0]));
        assert_eq!(probes.get(), 4);
        // A verdict of another boot, or a broken file, is no verdict.
        let text = std::fs::read_to_string(&path).unwrap();
        for broken in [text.replace("\"boot\":\"", "\"boot\":\"0"), text[..20].to_owned(), String::new()] {
            std::fs::write(&path, broken).unwrap();
            let before = probes.get();
            ask(&version("2.4.0"), false, Probe::Quick);
            assert_eq!(probes.get(), before + 1);
        }
    }

    #[test]
    fn without_a_place_or_a_version_it_is_probed_each_time() {
        let sick = Mode::believed(&CHIPS[0]).with(MatmulType::I8, false);
        let candidate = Candidate { chip: &CHIPS[0], version: None, emulated: false };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("probe.json");
        assert_eq!(candidate.mode(Probe::Quick, Some(&path), || sick), sick);
        assert!(!path.exists());
        let version = version("2.3.2");
        let candidate = Candidate { version: Some(&version), ..candidate };
        assert_eq!(candidate.mode(Probe::Quick, None, || sick), sick);
    }
}
