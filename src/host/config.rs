//! The environment variables that the plugin reads, once, when it is loaded.

use std::ffi::OsString;
use std::path::PathBuf;

use super::trust::Probe;
use crate::chip::Chip;
use crate::observe::log::Level;
use crate::policy::Pipeline;

/// What the user asked for.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `RKNPU_LIBRARY`: the NPU's library, instead of `librknnrt.so` by the loader's path.
    pub library: Option<PathBuf>,
    /// `RKNPU_DISABLE`: anything but empty or `0` registers no device.
    pub disabled: bool,
    /// `RKNPU_SOC`: the chip, instead of the device tree's.
    pub chip: Option<&'static str>,
    /// `RKNPU_LOG`: which lines are shown.
    pub log: Option<Level>,
    /// `RKNPU_PIPELINE`: the pipeline of all weights, whatever their type.
    pub pipeline: Option<Pipeline>,
    /// `RKNPU_PROBE`: how far the device is trusted.
    pub probe: Probe,
    /// `RKNPU_REPORT`: where the report goes at exit.
    pub report: Option<PathBuf>,
}

impl Config {
    /// Reads the variables through `get`.
    ///
    /// # Errors
    /// A sentence that names the variable, its value and what it may be.
    pub fn read(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        let set = |name: &str| get(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).map(|value| value.to_string_lossy().into_owned());
        let chip = match text("RKNPU_SOC") {
            None => None,
            Some(name) => match Chip::by_name(&name) {
                Some(chip) => Some(chip.name),
                None => return Err(format!("RKNPU_SOC is \"{name}\", expected one of {}", Chip::names())),
            },
        };
        let log = match text("RKNPU_LOG") {
            None => None,
            Some(name) => match Level::by_name(&name) {
                Some(level) => Some(level),
                None => return Err(format!("RKNPU_LOG is \"{name}\", expected error, warn, info or debug")),
            },
        };
        let pipeline = match text("RKNPU_PIPELINE") {
            None => None,
            Some(name) => match Pipeline::by_name(&name) {
                Some(pipeline) => Some(pipeline),
                None => {
                    let names = Pipeline::ALL.map(Pipeline::name).join(", ");
                    return Err(format!("RKNPU_PIPELINE is \"{name}\", expected one of {names}"));
                }
            },
        };
        let probe = match text("RKNPU_PROBE") {
            None => Probe::default(),
            Some(name) => match Probe::by_name(&name) {
                Some(probe) => probe,
                None => return Err(format!("RKNPU_PROBE is \"{name}\", expected off, quick or full")),
            },
        };
        Ok(Self {
            library: set("RKNPU_LIBRARY").map(PathBuf::from),
            disabled: text("RKNPU_DISABLE").is_some_and(|value| value != "0"),
            chip,
            log,
            pipeline,
            probe,
            report: set("RKNPU_REPORT").map(PathBuf::from),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, String> {
        Config::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    #[test]
    fn nothing_set_is_the_default() {
        assert_eq!(read(&[]).unwrap(), Config::default());
        assert_eq!(read(&[("RKNPU_DISABLE", "0"), ("RKNPU_LIBRARY", "")]).unwrap(), Config::default());
    }

    #[test]
    fn values_are_taken_and_wrong_ones_named() {
        let config =
            read(&[("RKNPU_DISABLE", "1"), ("RKNPU_SOC", "RK3576"), ("RKNPU_LOG", "debug")]).unwrap();
        assert_eq!((config.disabled, config.chip, config.log), (true, Some("rk3576"), Some(Level::Debug)));
        let error = read(&[("RKNPU_SOC", "rk9999")]).unwrap_err();
        assert!(error.contains("rk9999") && error.contains("rk3588"), "{error}");
        assert!(read(&[("RKNPU_LOG", "loud")]).unwrap_err().contains("loud"));
        assert_eq!(read(&[("RKNPU_PIPELINE", "w8a8")]).unwrap().pipeline, Some(Pipeline::W8A8));
        assert!(read(&[("RKNPU_PIPELINE", "W2A2")]).unwrap_err().contains("W4A4, W4A8, W4A16, W8A8"));
        assert_eq!(read(&[("RKNPU_PROBE", "off")]).unwrap().probe, Probe::Off);
        assert!(read(&[("RKNPU_PROBE", "maybe")]).unwrap_err().contains("off, quick or full"));
    }
}
