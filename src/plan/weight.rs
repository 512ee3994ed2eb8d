//! How a weight matrix is cut: K segments by what a context can hold, N slices by the cores.

use rknn_sys::MatmulType;

use crate::chip::{Chip, TypeLimits};

/// A run of k: `start .. start + len`, zero-padded to `padded`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First k.
    pub start: usize,
    /// Elements of the matrix.
    pub len: usize,
    /// K of the context.
    pub padded: usize,
}

/// A run of columns (output channels) that one core computes: `start .. start + len`, padded to `padded`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// The core.
    pub core: usize,
    /// First column.
    pub start: usize,
    /// Columns of the matrix.
    pub len: usize,
    /// N of the context.
    pub padded: usize,
}

/// The cutting of one K×N weight. It holds for any number of rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightPlan {
    /// Element type on the NPU.
    pub dtype: MatmulType,
    /// Alignments and native blocks.
    pub limits: TypeLimits,
    /// K of the matrix.
    pub k: usize,
    /// N of the matrix.
    pub n: usize,
    /// Ascending, disjoint, all of K.
    pub segments: Vec<Segment>,
    /// Ascending, disjoint, all of N; at most one a core.
    pub slices: Vec<Slice>,
}

impl WeightPlan {
    /// Plans a `k`×`n` weight for `cores` cores, numbered from 0; `None` when the chip does not run `dtype`, or a
    /// dimension or the number of cores is zero.
    pub fn new(chip: &Chip, cores: usize, dtype: MatmulType, k: usize, n: usize) -> Option<Self> {
        let limits = *chip.limits(dtype)?;
        if k == 0 || n == 0 || cores == 0 {
            return None;
        }
        let pieces = k.div_ceil(chip.k_max);
        let step = k.div_ceil(pieces).next_multiple_of(limits.k_align);
        let segments = (0..k)
            .step_by(step)
            .map(|start| {
                let len = step.min(k - start);
                Segment { start, len, padded: len.next_multiple_of(limits.k_align) }
            })
            .collect();

        let units = n.div_ceil(limits.n_align);
        let cores = cores.min(units);
        let mut start = 0;
        let slices = (0..cores)
            .map(|core| {
                // The first `units % cores` cores take one unit more.
                let padded = (units / cores + usize::from(core < units % cores)) * limits.n_align;
                let len = padded.min(n - start);
                let slice = Slice { core, start, len, padded };
                start += len;
                slice
            })
            .collect();
        Some(Self { dtype, limits, k, n, segments, slices })
    }

    /// Bytes of one element on the NPU.
    pub fn element_bytes(&self) -> usize {
        match self.dtype {
            MatmulType::F16 => 2,
            MatmulType::I8 | MatmulType::I4 => 1,
        }
    }

    /// Bytes of the part (`slice`, `segment`).
    pub fn part_bytes(&self, slice: &Slice, segment: &Segment) -> usize {
        slice.padded * segment.padded * self.element_bytes()
    }

    /// The index of the part (`slice`, `segment`) in the order in which parts are stored.
    pub fn part(&self, slice: usize, segment: usize) -> usize {
        slice * self.segments.len() + segment
    }

    /// Columns of the widest slice.
    pub fn widest(&self) -> usize {
        self.slices.iter().map(|slice| slice.padded).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chip::CHIPS;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_weight_is_covered_once_within_the_chips_limits(
            chip in 0..CHIPS.len(), wide: bool, k in 1usize..40_000, n in 1usize..60_000,
        ) {
            let chip = &CHIPS[chip];
            let dtype = if wide { MatmulType::F16 } else { MatmulType::I8 };
            let plan = WeightPlan::new(chip, chip.cores, dtype, k, n).unwrap();
            let mut at = 0;
            for segment in &plan.segments {
                prop_assert_eq!(segment.start, at);
                prop_assert!(segment.len > 0 && segment.padded <= chip.k_max);
                prop_assert_eq!(segment.padded % plan.limits.k_align, 0);
                prop_assert!(segment.padded - segment.len < plan.limits.k_align);
                at += segment.len;
            }
            prop_assert_eq!(at, k);
            at = 0;
            for (core, slice) in plan.slices.iter().enumerate() {
                prop_assert_eq!((slice.core, slice.start), (core, at));
                prop_assert!(slice.len > 0 && slice.padded - slice.len < plan.limits.n_align);
                prop_assert_eq!(slice.padded % plan.limits.n_align, 0);
                at += slice.len;
            }
            prop_assert_eq!(at, n);
            prop_assert!(plan.slices.len() <= chip.cores);
        }
    }

    #[test]
    fn a_vocabulary_is_split_evenly_and_a_long_k_is_cut() {
        let chip = Chip::by_name("rk3588").unwrap();
        let plan = WeightPlan::new(chip, 3, MatmulType::I8, 576, 49152).unwrap();
        assert_eq!(plan.slices.iter().map(|slice| slice.len).collect::<Vec<_>>(), [16384; 3]);
        assert_eq!(plan.segments, [Segment { start: 0, len: 576, padded: 576 }]);
        let plan = WeightPlan::new(chip, 3, MatmulType::I8, 18944, 3584).unwrap();
        assert_eq!(plan.segments.len(), 3);
        assert!(WeightPlan::new(chip, 3, MatmulType::I4, 32, 32).is_none());
        assert!(WeightPlan::new(chip, 3, MatmulType::I8, 0, 32).is_none());
        assert!(WeightPlan::new(chip, 0, MatmulType::I8, 32, 32).is_none());
    }
}
