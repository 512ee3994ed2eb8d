//! The environment variables that the plugin reads, once, when it is loaded.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::attention::Who;
use super::host_copy::Keep;
use super::numbers::Numbers;
use super::trust::Probe;
use crate::chip::Chip;
use crate::engine::Decode;
use crate::kernels::int4::Calibration;
use crate::kernels::rotate::Signs;
use crate::observe::log::Level;
use crate::observe::quoted;
use crate::policy::decide::{Policy, Wishes};
use crate::policy::goal::Goal;
use crate::policy::hybrid::Hybrid;
use crate::policy::rules::{self, Rules};
use crate::policy::scheme::Placement;
use crate::weights::store::CacheChoice;

/// The highest number that is read as a core. Whether the chip has it is known later, when the chip is.
const CORE_MAX: usize = 31;
/// The highest number of a processor.
const CPU_MAX: usize = 1023;
/// The highest I/O domain.
const DOMAIN_MAX: usize = 15;

/// What the user asked for.
#[derive(Debug, Default, PartialEq)]
pub struct Config {
    /// `RKNPU_LIBRARY`: the NPU's library, instead of `librknnrt.so` by the loader's path.
    pub library: Option<PathBuf>,
    /// `RKNPU_DISABLE`: anything but empty or `0` registers no device.
    pub disabled: bool,
    /// `RKNPU_SOC`, or `RKNPU_DEVICE`: the chip, instead of the device tree's.
    pub chip: Option<&'static str>,
    /// `RKNPU_CORES`: the only cores that may work.
    pub cores: Option<Numbers>,
    /// `RKNPU_DOMAINS`: the I/O domains that weights fill, in this order.
    pub domains: Option<Numbers>,
    /// `RKNPU_LOG`: which lines are shown.
    pub log: Option<Level>,
    /// `RKNPU_MODE`, `RKNPU_PIPELINE`, `RKNPU_POLICY` and `RKNPU_HYBRID`: which pipeline a weight takes.
    pub policy: Arc<Policy>,
    /// `RKNPU_SIGNS`: how a rotation's signs are laid over a row, instead of each pipeline's own way.
    pub signs: Option<Signs>,
    /// `RKNPU_CALIBRATION`: how four-bit scales are found.
    pub calibration: Calibration,
    /// `RKNPU_PROBE`: how far the device is trusted.
    pub probe: Probe,
    /// `RKNPU_CACHE`: where converted weights are kept from one process to the next.
    pub cache: CacheChoice,
    /// `RKNPU_DECODE`: who does products of few rows.
    pub decode: Decode,
    /// `RKNPU_KEEP`: whether weights of few bits have a second copy for the host's own kernels.
    pub keep: Keep,
    /// `RKNPU_ATTENTION`: who does attention.
    pub attention: Who,
    /// `RKNPU_CPUS`: the processors that the CPU's share of the work runs on, instead of the big cores.
    pub cpus: Option<Numbers>,
    /// `RKNPU_REPORT`: where the report goes at exit.
    pub report: Option<PathBuf>,
    /// `RKNPU_TRACE`: where the trace goes at exit.
    pub trace: Option<PathBuf>,
    /// `RKNPU_STATS`: anything but empty or `0` shows a table at exit.
    pub stats: bool,
}

impl Config {
    /// Reads the variables of this process, and the file that one of them may name.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn of_environment() -> Result<Self, String> {
        Self::read(|name| std::env::var_os(name), rules::read)
    }

    /// Reads the variables through `get` and the bytes of a file, as far as [`rules::BYTES_MAX`] and one more,
    /// through `file`.
    ///
    /// # Errors
    /// A sentence that names the variable, its value and what it may be.
    pub fn read(
        get: impl Fn(&str) -> Option<OsString>,
        file: impl Fn(&Path) -> std::io::Result<Vec<u8>>,
    ) -> Result<Self, String> {
        let set = Variables(get);
        Ok(Self {
            library: set.path("RKNPU_LIBRARY"),
            disabled: set.text("RKNPU_DISABLE").is_some_and(|value| value != "0"),
            chip: chip(&set)?,
            cores: set.named("RKNPU_CORES", numbers(CORE_MAX), || {
                "core numbers such as \"0\", \"0,2\" or \"0-1\"".to_owned()
            })?,
            domains: set.named("RKNPU_DOMAINS", numbers(DOMAIN_MAX), || {
                format!("numbers from 0 to {DOMAIN_MAX} such as \"0\", \"0,2\" or \"0-3\"")
            })?,
            log: set.named("RKNPU_LOG", Level::by_name, || Level::ALLOWED.to_owned())?,
            policy: Arc::new(policy(&set, file)?),
            signs: set.named("RKNPU_SIGNS", Signs::by_name, || Signs::ALLOWED.to_owned())?,
            calibration: set
                .named("RKNPU_CALIBRATION", Calibration::by_name, || Calibration::ALLOWED.to_owned())?
                .unwrap_or_default(),
            probe: set
                .named("RKNPU_PROBE", Probe::by_name, || Probe::ALLOWED.to_owned())?
                .unwrap_or_default(),
            cache: CacheChoice::parse(set.value("RKNPU_CACHE").as_deref()),
            decode: set
                .named("RKNPU_DECODE", Decode::by_name, || Decode::ALLOWED.to_owned())?
                .unwrap_or_default(),
            keep: set.named("RKNPU_KEEP", Keep::by_name, || Keep::ALLOWED.to_owned())?.unwrap_or_default(),
            attention: set
                .named("RKNPU_ATTENTION", Who::by_name, || Who::ALLOWED.to_owned())?
                .unwrap_or_default(),
            cpus: set.named("RKNPU_CPUS", numbers(CPU_MAX), || {
                "numbers of processors such as \"4-7\" or \"0,2\"".to_owned()
            })?,
            report: set.path("RKNPU_REPORT"),
            trace: set.path("RKNPU_TRACE"),
            stats: set.text("RKNPU_STATS").is_some_and(|value| value != "0"),
        })
    }
}

/// The variables by a function that gives them; an empty one is not set.
struct Variables<G>(G);

impl<G: Fn(&str) -> Option<OsString>> Variables<G> {
    fn value(&self, name: &str) -> Option<OsString> {
        (self.0)(name).filter(|value| !value.is_empty())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.value(name).map(PathBuf::from)
    }

    fn text(&self, name: &str) -> Option<String> {
        self.value(name).map(|value| value.to_string_lossy().into_owned())
    }

    /// What `known` makes of the variable's value.
    fn named<T>(
        &self,
        name: &str,
        known: impl Fn(&str) -> Option<T>,
        allowed: impl Fn() -> String,
    ) -> Result<Option<T>, String> {
        match self.text(name) {
            None => Ok(None),
            Some(value) => match known(&value) {
                Some(known) => Ok(Some(known)),
                None => Err(format!("{name} is {}, expected {}", quoted(&value), allowed())),
            },
        }
    }
}

fn numbers(max: usize) -> impl Fn(&str) -> Option<Numbers> {
    move |text| Numbers::parse(text, max)
}

/// The chip by either of its two names; the second is the one of the fork of llama.cpp that came before.
fn chip<G: Fn(&str) -> Option<OsString>>(set: &Variables<G>) -> Result<Option<&'static str>, String> {
    let named = |variable| {
        let chip = set.named(variable, Chip::by_name, || format!("one of {}", Chip::names()))?;
        Ok::<_, String>(chip.map(|chip| chip.name))
    };
    match (named("RKNPU_SOC")?, named("RKNPU_DEVICE")?) {
        (Some(soc), Some(device)) if soc != device => Err(format!(
            "RKNPU_SOC is \"{soc}\" and RKNPU_DEVICE is \"{device}\", which both name the chip: name only one of them"
        )),
        (soc, device) => Ok(soc.or(device)),
    }
}

fn policy<G: Fn(&str) -> Option<OsString>>(
    set: &Variables<G>,
    file: impl Fn(&Path) -> std::io::Result<Vec<u8>>,
) -> Result<Policy, String> {
    let rules = match set.path("RKNPU_POLICY") {
        None => None,
        Some(path) => {
            let said = |what: String| format!("RKNPU_POLICY is {}: {what}", quoted(&path.to_string_lossy()));
            let bytes = file(&path).map_err(|error| {
                said(format!("cannot read it ({error}), expected a TOML file of [[weights]] entries"))
            })?;
            Some(Rules::parse(&bytes).map_err(said)?)
        }
    };
    let hybrid = match set.text("RKNPU_HYBRID") {
        None => None,
        Some(text) => match Hybrid::new(&text) {
            Ok(hybrid) => Some(hybrid),
            Err(entry) => {
                return Err(format!(
                    "RKNPU_HYBRID is {}: its entry {} is unknown, expected {}, separated by commas",
                    quoted(&text),
                    quoted(entry),
                    Placement::allowed()
                ));
            }
        },
    };
    Policy::new(Wishes {
        mode: set.named("RKNPU_MODE", Goal::by_name, || Goal::ALLOWED.to_owned())?,
        pipeline: set.named("RKNPU_PIPELINE", Placement::by_name, Placement::allowed)?,
        policy: rules,
        hybrid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::decide::Decision;

    /// Reads variables, with one file in the world.
    fn read(pairs: &[(&str, &str)]) -> Result<Config, String> {
        Config::read(
            |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()),
            |path| match path.to_str() {
                Some("policy.toml") => Ok(b"[[weights]]\nname = 'blk.*'\npipeline = 'W8A8'".to_vec()),
                Some("wrong.toml") => Ok(b"\nmode = 'quick'".to_vec()),
                _ => Err(std::io::ErrorKind::NotFound.into()),
            },
        )
    }

    fn fixed(name: &str) -> Decision {
        Decision::Fixed(Placement::by_name(name).unwrap())
    }

    #[test]
    fn nothing_set_is_the_default() {
        assert_eq!(read(&[]).unwrap(), Config::default());
        let empty = [
            "LIBRARY", "SOC", "DEVICE", "CORES", "DOMAINS", "LOG", "MODE", "PIPELINE", "POLICY", "HYBRID",
            "SIGNS", "PROBE", "REPORT", "KEEP",
        ]
        .map(|name| format!("RKNPU_{name}"));
        let mut pairs: Vec<_> = empty.iter().map(|name| (name.as_str(), "")).collect();
        pairs.push(("RKNPU_DISABLE", "0"));
        assert_eq!(read(&pairs).unwrap(), Config::default());
    }

    #[test]
    fn values_are_taken_in_any_case() {
        let config = read(&[
            ("RKNPU_DISABLE", "1"),
            ("RKNPU_SOC", "RK3576"),
            ("RKNPU_LOG", "Debug"),
            ("RKNPU_PROBE", "OFF"),
            ("RKNPU_SIGNS", "Shared"),
            ("RKNPU_KEEP", "Both"),
            ("RKNPU_CORES", "0,2"),
            ("RKNPU_DOMAINS", "3,0-1"),
        ])
        .unwrap();
        assert_eq!((config.disabled, config.chip, config.log), (true, Some("rk3576"), Some(Level::Debug)));
        assert_eq!((config.probe, config.signs), (Probe::Off, Some(Signs::Shared)));
        assert_eq!(config.keep, Keep::Both);
        assert_eq!((config.cores.unwrap().list, config.domains.unwrap().list), (vec![0, 2], vec![3, 0, 1]));
    }

    #[test]
    fn the_chip_has_two_names() {
        assert_eq!(read(&[("RKNPU_DEVICE", "RK3588")]).unwrap().chip, Some("rk3588"));
        assert_eq!(
            read(&[("RKNPU_DEVICE", "RK3588"), ("RKNPU_SOC", "rk3588")]).unwrap().chip,
            Some("rk3588")
        );
        let error = read(&[("RKNPU_DEVICE", "RK3576"), ("RKNPU_SOC", "rk3588")]).unwrap_err();
        assert!(error.contains("\"rk3588\"") && error.contains("RKNPU_DEVICE is \"rk3576\""), "{error}");
    }

    #[test]
    fn all_ways_to_say_a_pipeline_reach_the_policy() {
        let of = |name, value| read(&[(name, value)]).unwrap().policy.of("blk.0.attn_q.weight");
        assert_eq!(of("RKNPU_PIPELINE", "w8a8_hadamard"), fixed("W8A8_HADAMARD"));
        assert_eq!(of("RKNPU_PIPELINE", "cpu"), fixed("CPU"));
        assert_eq!(of("RKNPU_HYBRID", "W16A16,W8A8"), fixed("W16A16"));
        assert_eq!(of("RKNPU_POLICY", "policy.toml"), fixed("W8A8"));
        assert_eq!(of("RKNPU_MODE", "LEAN"), Decision::Choose(Goal::Lean));
    }

    #[test]
    fn what_is_wrong_is_one_line_with_variable_value_and_what_is_allowed() {
        for (name, value, said) in [
            ("RKNPU_SOC", "rk9999", "expected one of rk3588"),
            ("RKNPU_DEVICE", "RK9999", "expected one of rk3588"),
            ("RKNPU_LOG", "loud", "expected error, warn, info or debug"),
            ("RKNPU_PROBE", "maybe", "expected off, quick or full"),
            ("RKNPU_PIPELINE", "W2A2", "expected one of W4A4, W4A8"),
            ("RKNPU_PIPELINE", "W8A8_ROTATED", "_STANDARD, _HADAMARD, _PADDED"),
            ("RKNPU_MODE", "quick", "expected accurate, lean or fast"),
            ("RKNPU_KEEP", "cpu", "expected auto, both or npu"),
            ("RKNPU_SIGNS", "half", "expected full or shared"),
            ("RKNPU_CORES", "a", "expected core numbers such as \"0\", \"0,2\" or \"0-1\""),
            ("RKNPU_CORES", "99", "expected core numbers"),
            ("RKNPU_CORES", "2-0", "expected core numbers"),
            ("RKNPU_DOMAINS", "0-16", "expected numbers from 0 to 15"),
            ("RKNPU_HYBRID", "W8A8,W2A2", "its entry \"W2A2\" is unknown, expected one of W4A4, W4A8"),
            ("RKNPU_HYBRID", "W8A8,", "its entry \"\" is unknown"),
            ("RKNPU_POLICY", "missing.toml", "cannot read it"),
            ("RKNPU_POLICY", "wrong.toml", "line 2: mode is \"quick\", expected accurate, lean or fast"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.starts_with(&format!("{name} is \"{value}\"")) && error.contains(said), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        let error = read(&[("RKNPU_PIPELINE", "W8A8"), ("RKNPU_MODE", "fast")]).unwrap_err();
        assert!(error.starts_with("RKNPU_PIPELINE and RKNPU_MODE are both set"), "{error}");
    }
}
