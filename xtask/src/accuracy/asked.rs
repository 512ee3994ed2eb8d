//! What can be asked of the NPU by name: the plugin's choice, a mode, a pipeline.

use std::fmt;
use std::process::Command;
use std::str::FromStr;

/// The name of the plugin's own choice.
pub const DEFAULT: &str = "default";
/// The names that are values of [`MODE`], not of [`PIPELINE`].
const MODES: [&str; 3] = ["accurate", "lean", "fast"];
const MODE: &str = "RKNPU_MODE";
const PIPELINE: &str = "RKNPU_PIPELINE";

/// One of the names of `--pipelines`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The plugin's own choice.
    Default,
    /// The plugin's choice in a mode.
    Mode(&'static str),
    /// One pipeline for all weights. Which there are is the plugin's to say.
    Pipeline(String),
}

impl FromStr for Asked {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let name = name.trim();
        if name.is_empty() {
            return Err(format!("expected {DEFAULT}, {} or a pipeline's name", MODES.join(", ")));
        }
        if name.eq_ignore_ascii_case(DEFAULT) {
            return Ok(Self::Default);
        }
        let mode = MODES.into_iter().find(|mode| mode.eq_ignore_ascii_case(name));
        Ok(mode.map_or_else(|| Self::Pipeline(name.to_uppercase()), Self::Mode))
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => DEFAULT,
            Self::Mode(name) => name,
            Self::Pipeline(name) => name,
        })
    }
}

impl Asked {
    /// Asks it of the plugin in a host. What the caller's environment asks is taken away: a row must be what it is
    /// called.
    pub fn apply(&self, host: &mut Command) {
        host.env_remove(MODE).env_remove(PIPELINE);
        match self {
            Self::Default => {}
            Self::Mode(name) => {
                host.env(MODE, name);
            }
            Self::Pipeline(name) => {
                host.env(PIPELINE, name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_go_to_their_own_variable_and_all_other_names_are_pipelines() {
        let variables = |name: &str| {
            let asked: Asked = name.parse().unwrap();
            let mut host = Command::new("host");
            asked.apply(&mut host);
            let text = |value: &std::ffi::OsStr| value.to_str().unwrap().to_owned();
            let set: Vec<_> =
                host.get_envs().filter_map(|(name, value)| Some((text(name), text(value?)))).collect();
            (asked.to_string(), set)
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(variables("Default"), ("default".to_owned(), vec![]));
        assert_eq!(variables("Lean"), ("lean".to_owned(), vec![pair("RKNPU_MODE", "lean")]));
        for name in ["W8A8", "W4A16_HADAMARD", "W4A4_STANDARD", "W2A2"] {
            assert_eq!(variables(name), (name.to_owned(), vec![pair("RKNPU_PIPELINE", name)]));
        }
        assert_eq!(variables("w8a8_padded").0, "W8A8_PADDED");
    }

    #[test]
    fn no_name_is_refused() {
        assert!(" ".parse::<Asked>().unwrap_err().contains("default, accurate, lean, fast"));
    }
}
