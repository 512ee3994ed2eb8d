//! How the NPU is used: the best way that is known to give right numbers on this board and library.

use crate::chip::{Chip, CORES_MAX};
use crate::policy::Pipeline;
use rknn_sys::{Layout, MatmulType};
use serde::{Deserialize, Serialize};

/// What may be relied upon. Each `false` costs speed and nothing else, but for the types, which cost the NPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mode {
    /// Whether products are right, by the place of the type in [`MatmulType::ALL`].
    pub types: [bool; MatmulType::ALL.len()],
    /// f16 × i8 takes no longer than i8 × i8, by what the probe measured.
    pub whole_activations_are_free: bool,
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
        let types =
            MatmulType::ALL.map(|dtype| chip.limits(dtype).is_some() && !chip.disputed.contains(&dtype));
        Self { types, whole_activations_are_free: false, native_b: true, native_ac: true, views: true, cores }
    }

    /// Nothing works.
    pub const NONE: Self = Self {
        types: [false; MatmulType::ALL.len()],
        whole_activations_are_free: false,
        native_b: false,
        native_ac: false,
        views: false,
        cores: [false; CORES_MAX],
    };

    /// Whether products of `dtype` are right.
    pub fn has(&self, dtype: MatmulType) -> bool {
        self.types[place(dtype)]
    }

    /// The same with `dtype` found right or not.
    #[must_use]
    pub fn with(mut self, dtype: MatmulType, right: bool) -> Self {
        self.types[place(dtype)] = right;
        self
    }

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

    /// Whether `pipeline` can be run.
    pub fn runs(&self, pipeline: Pipeline) -> bool {
        self.has(pipeline.dtype())
    }

    /// The pipeline to use where `wanted` is: itself, or the cheapest that is at least as true, or none.
    pub fn pipeline(&self, wanted: Pipeline) -> Option<Pipeline> {
        Pipeline::ALL.into_iter().filter(|other| other.is_as_true_as(wanted)).find(|other| self.runs(*other))
    }

    /// Whether anything can be run.
    pub fn is_usable(&self) -> bool {
        self.types.contains(&true) && self.cores.contains(&true)
    }
}

fn place(dtype: MatmulType) -> usize {
    MatmulType::ALL.into_iter().position(|other| other == dtype).unwrap_or(0)
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
        assert_eq!(all.pipeline(Pipeline::W4A4), Some(Pipeline::W4A4));
        assert_eq!(all.pipeline(Pipeline::W8A16), Some(Pipeline::W16A16), "RK3588 has no mixed types");
        let no_i4 = all.with(MatmulType::I4, false);
        assert_eq!(no_i4.pipeline(Pipeline::W4A8), Some(Pipeline::W8A8));
        let no_i8 = all.with(MatmulType::I8, false);
        assert_eq!(no_i8.pipeline(Pipeline::W8A8), Some(Pipeline::W16A16), "never fewer bits");
        let no_f16 = all.with(MatmulType::F16, false);
        assert_eq!(no_f16.pipeline(Pipeline::W8A8), Some(Pipeline::W8A8));
        assert_eq!(no_f16.pipeline(Pipeline::W16A16), None, "8 bits are less true than the file");
        let only_i4 = no_i8.with(MatmulType::F16, false);
        assert!(only_i4.is_usable() && !only_i4.with(MatmulType::I4, false).is_usable());
        assert!(!Mode { cores: [false; CORES_MAX], ..all }.is_usable());
        let mixed = Mode::believed(Chip::by_name("rk3576").unwrap());
        assert_eq!(mixed.pipeline(Pipeline::W4A8), Some(Pipeline::W4A16));
        assert_eq!(mixed.pipeline(Pipeline::W8A16), Some(Pipeline::W8A16));
        assert!(!mixed.has(MatmulType::I4), "disputed");
    }
}
