//! The names that users give to what is done with a weight: `W8A8`, `W8A8_HADAMARD`, `CPU`.

use std::fmt;

use super::Pipeline;

/// Whether and how rows are rotated before they are rounded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rotate {
    /// As is best for the pipeline and the weight.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// By a matrix of the row's own length.
    Full,
    /// By a matrix of the next power of two, into which the row is padded.
    Padded,
}

impl Rotate {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Off, Self::Full, Self::Padded];

    /// What follows the pipeline's name.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Auto => "",
            Self::Off => "_STANDARD",
            Self::Full => "_HADAMARD",
            Self::Padded => "_PADDED",
        }
    }
}

/// A pipeline and the rotation that goes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scheme {
    /// How the weight and its activations are represented.
    pub pipeline: Pipeline,
    /// How their rows are rotated.
    pub rotate: Rotate,
}

impl Scheme {
    /// The scheme of that name, in any case: a pipeline's name, alone or with a rotation's suffix.
    pub fn by_name(name: &str) -> Option<Self> {
        let (pipeline, suffix) = match name.split_once('_') {
            None => (name, None),
            Some((pipeline, suffix)) => (pipeline, Some(suffix)),
        };
        let rotate = match suffix {
            None => Rotate::Auto,
            Some(suffix) => Rotate::ALL.into_iter().find(|rotate| {
                rotate.suffix().strip_prefix('_').is_some_and(|known| known.eq_ignore_ascii_case(suffix))
            })?,
        };
        Some(Self { pipeline: Pipeline::by_name(pipeline)?, rotate })
    }
}

impl From<Pipeline> for Scheme {
    fn from(pipeline: Pipeline) -> Self {
        Self { pipeline, rotate: Rotate::Auto }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.pipeline.name(), self.rotate.suffix())
    }
}

/// Who multiplies by a weight, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Placement {
    /// The host's CPU backend.
    Cpu,
    /// The NPU.
    Npu(Scheme),
}

impl Placement {
    const CPU: &'static str = "CPU";

    /// The placement of that name, in any case: a scheme's, or `CPU`.
    pub fn by_name(name: &str) -> Option<Self> {
        if name.eq_ignore_ascii_case(Self::CPU) {
            return Some(Self::Cpu);
        }
        Scheme::by_name(name).map(Self::Npu)
    }

    /// What may be said, for error messages.
    pub fn allowed() -> String {
        let pipelines = Pipeline::ALL.map(Pipeline::name).join(", ");
        let suffixes = Rotate::ALL
            .map(Rotate::suffix)
            .into_iter()
            .filter(|suffix| !suffix.is_empty())
            .collect::<Vec<_>>();
        format!("one of {pipelines}, {} (each as it is or with {})", Self::CPU, suffixes.join(", "))
    }
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str(Self::CPU),
            Self::Npu(scheme) => scheme.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::rotate::Signs;

    #[test]
    fn every_name_is_given_back() {
        let mut names = vec!["CPU".to_owned()];
        for pipeline in Pipeline::ALL {
            for rotate in Rotate::ALL {
                let scheme = Scheme { pipeline, rotate };
                assert_eq!(Scheme::by_name(&scheme.to_string().to_lowercase()), Some(scheme));
                names.push(scheme.to_string());
            }
        }
        for name in &names {
            assert_eq!(Placement::by_name(name).unwrap().to_string(), *name);
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 1 + Pipeline::ALL.len() * Rotate::ALL.len(), "no two are called the same");
    }

    #[test]
    fn suffixes_say_the_rotation() {
        let rotate = |name: &str| Scheme::by_name(name).unwrap().rotate;
        assert_eq!(rotate("W8A8"), Rotate::Auto);
        assert_eq!(rotate("W8A8_STANDARD"), Rotate::Off);
        assert_eq!(rotate("w8a8_hadamard"), Rotate::Full);
        assert_eq!(rotate("W8A8_Padded"), Rotate::Padded);
        assert_eq!(Scheme::from(Pipeline::W8A8), Scheme::by_name("W8A8").unwrap());
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in
            ["", "_", "W8A8_", "W8A8__PADDED", "W8A8_HADAMARD_", "_HADAMARD", "W9A9", "W8A8 ", "CPU_PADDED"]
        {
            assert_eq!(Placement::by_name(name), None, "{name:?}");
        }
        let allowed = Placement::allowed();
        for word in ["W16A16", "W8A8", "CPU", "_STANDARD", "_HADAMARD", "_PADDED"] {
            assert!(allowed.contains(word), "{allowed}");
        }
    }

    #[test]
    fn signs_have_names() {
        assert_eq!(Signs::by_name("FULL"), Some(Signs::Full));
        assert_eq!(Signs::by_name("shared"), Some(Signs::Shared));
        assert_eq!(Signs::by_name("half"), None);
    }
}
