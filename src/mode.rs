//! How the NPU is used: the best way that is known to give right numbers on this board and library.

use crate::chip::{Chip, CORES_MAX};
use crate::policy::Pipeline;
use rknn_sys::Layout;
use serde::{Deserialize, Serialize};

/// What may be relied upon. Each `false` costs speed and nothing else, but for the types, which cost the NPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mode {
    /// 8-bit products are right.
    pub i8: bool,
    /// 16-bit products are right.
    pub f16: bool,
    /// Weights may be handed over in the NPU's own layout; otherwise row-major, which the library converts when
    /// it binds them (186 µs for 64 KB).
    pub native_b: bool,
    /// Activations and results may be in the NPU's own layout; otherwise row-major.
    pub native_ac: bool,
    /// The parts of a weight may be views of one allocation; otherwise each has its own.
    pub views: bool,
    /// The cores that work.
    pub cores: [bool; CORES_MAX],
}

impl Mode {
    /// What is believed of a sound board with `chip`.
    pub fn believed(chip: &Chip) -> Self {
        let mut cores = [false; CORES_MAX];
        cores[..chip.cores.min(CORES_MAX)].fill(true);
        Self { cores, ..Self::BELIEVED }
    }

    /// What is believed of a sound board with all cores that there may be.
    pub const BELIEVED: Self =
        Self { i8: true, f16: true, native_b: true, native_ac: true, views: true, cores: [true; CORES_MAX] };

    /// Nothing works.
    pub const NONE: Self = Self {
        i8: false,
        f16: false,
        native_b: false,
        native_ac: false,
        views: false,
        cores: [false; CORES_MAX],
    };

    /// The layout of weights.
    pub fn b_layout(&self) -> Layout {
        layout(self.native_b)
    }

    /// The layout of activations and results.
    pub fn ac_layout(&self) -> Layout {
        layout(self.native_ac)
    }

    /// The numbers of the cores that work.
    pub fn core_ids(&self) -> Vec<usize> {
        (0..CORES_MAX).filter(|core| self.cores[*core]).collect()
    }

    /// The pipeline to use where `wanted` is: itself, or one that is at least as true, or none.
    pub fn pipeline(&self, wanted: Pipeline) -> Option<Pipeline> {
        match wanted {
            Pipeline::W8A8 if self.i8 => Some(Pipeline::W8A8),
            _ => self.f16.then_some(Pipeline::W16A16),
        }
    }

    /// Whether anything can be run.
    pub fn is_usable(&self) -> bool {
        (self.i8 || self.f16) && self.cores.contains(&true)
    }
}

fn layout(native: bool) -> Layout {
    if native {
        Layout::Native
    } else {
        Layout::Norm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::CHIPS;

    #[test]
    fn a_type_that_fails_is_replaced_by_a_truer_one_or_by_the_cpu() {
        let all = Mode::believed(&CHIPS[0]);
        assert_eq!((all.core_ids(), all.is_usable()), (vec![0, 1, 2], true));
        let no_i8 = Mode { i8: false, ..all };
        assert_eq!(no_i8.pipeline(Pipeline::W8A8), Some(Pipeline::W16A16));
        let no_f16 = Mode { f16: false, ..all };
        assert_eq!(no_f16.pipeline(Pipeline::W8A8), Some(Pipeline::W8A8));
        assert_eq!(no_f16.pipeline(Pipeline::W16A16), None, "8 bits are less true than the file");
        assert!(!Mode { f16: false, ..no_i8 }.is_usable());
        assert!(!Mode { cores: [false; CORES_MAX], ..all }.is_usable());
    }
}
