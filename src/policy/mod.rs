//! Which tensor takes which pipeline, and why. Knows types and names, never bytes or devices.
//!
//! * [`Pipeline`]: how weights and activations are represented on the NPU;
//! * [`scheme`]: the names that users give: a pipeline, how its rows are rotated, or the CPU;
//! * [`goal`]: what to choose by where no name is given;
//! * [`rules`]: a file that gives names by [`pattern`]s of tensor names; [`hybrid`]: names in turn;
//! * [`choice`]: a pipeline by the error of its products;
//! * [`decide`]: all of these together: what is asked for a tensor.

pub mod choice;
pub mod decide;
pub mod goal;
pub mod hybrid;
pub mod pattern;
pub mod rules;
pub mod scheme;

use crate::kernels::rotate::Signs;
use rknn_sys::MatmulType;

/// How a weight and its activations are represented on the NPU.
///
/// Weights have a scale an output channel and K segment, activations a scale a row and K segment; results are sums
/// of products of what is stored, times both scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pipeline {
    /// i4 weights and activations, i16 sums that never saturate.
    W4A4,
    /// i4 weights, i8 activations as a high and a low nibble, each a row of an i4 product: 16·high + low.
    W4A8,
    /// i4 weights, f16 activations, f32 sums.
    W4A16,
    /// i8 weights and activations, exact i32 sums.
    W8A8,
    /// i8 weights, f16 activations, f32 sums.
    W8A16,
    /// f16 weights and activations, f32 sums.
    W16A16,
}

impl Pipeline {
    /// All of them, the cheapest first: by bytes of a weight, then by bits of an activation.
    pub const ALL: [Self; 6] = [Self::W4A4, Self::W4A8, Self::W4A16, Self::W8A8, Self::W8A16, Self::W16A16];

    /// The pipeline of that name, in any case.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pipeline| pipeline.name().eq_ignore_ascii_case(name))
    }

    /// The pipeline of a weight type: floats keep 16 bits, everything quantised has at most 8 bits of its own.
    pub fn of(quantized: bool) -> Self {
        if quantized {
            Self::W8A8
        } else {
            Self::W16A16
        }
    }

    /// The name that users read.
    pub fn name(self) -> &'static str {
        match self {
            Self::W4A4 => "W4A4",
            Self::W4A8 => "W4A8",
            Self::W4A16 => "W4A16",
            Self::W8A8 => "W8A8",
            Self::W8A16 => "W8A16",
            Self::W16A16 => "W16A16",
        }
    }

    /// The NPU's element types.
    pub fn dtype(self) -> MatmulType {
        match self {
            Self::W4A4 | Self::W4A8 => MatmulType::I4,
            Self::W4A16 => MatmulType::F16I4,
            Self::W8A8 => MatmulType::I8,
            Self::W8A16 => MatmulType::F16I8,
            Self::W16A16 => MatmulType::F16,
        }
    }

    /// Bits of a stored weight and of a stored activation.
    pub fn bits(self) -> (usize, usize) {
        match self {
            Self::W4A4 => (4, 4),
            Self::W4A8 => (4, 8),
            Self::W4A16 => (4, 16),
            Self::W8A8 => (8, 8),
            Self::W8A16 => (8, 16),
            Self::W16A16 => (16, 16),
        }
    }

    /// Rows of A for each row of activations: two where a row is split into planes of nibbles.
    pub fn planes(self) -> usize {
        if self == Self::W4A8 {
            2
        } else {
            1
        }
    }

    /// Whether nothing is lost by it that `wanted` keeps. The bits of a weight count before those of an activation,
    /// because four bits of weights cost more than eight of activations.
    pub fn is_as_true_as(self, wanted: Self) -> bool {
        let ((weight, activation), (weight_wanted, activation_wanted)) = (self.bits(), wanted.bits());
        weight > weight_wanted && activation >= 8.min(activation_wanted)
            || weight == weight_wanted && activation >= activation_wanted
    }

    /// Whether rows are rotated before they are rounded, if they gain from it. 8 bits gain a tenfold smaller error
    /// by it and 4 bits more; 16 bits have digits enough.
    pub fn rotates(self) -> bool {
        self != Self::W16A16
    }

    /// How far the random signs of its rotation reach, unless the user says otherwise.
    pub fn signs(self) -> Signs {
        Signs::Full
    }

    /// The longest K segment, where it is not the chip's. Four-bit sums have 16 bits, and a scale for each so many
    /// elements holds their values better; each segment is a run, and reads and adds a C of its own.
    pub fn segment_max(self) -> usize {
        match self {
            Self::W4A4 | Self::W4A8 => 512,
            _ => usize::MAX,
        }
    }

    /// Its place in [`Self::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_found_by_name_and_place() {
        for (place, pipeline) in Pipeline::ALL.into_iter().enumerate() {
            assert_eq!(pipeline.index(), place);
            assert_eq!(Pipeline::by_name(&pipeline.name().to_lowercase()), Some(pipeline));
            let (weight, activation) = pipeline.bits();
            assert_eq!(pipeline.name(), format!("W{weight}A{activation}"));
        }
        assert_eq!(Pipeline::by_name("W2A2"), None);
    }

    #[test]
    fn more_bits_are_as_true_and_fewer_are_not() {
        let as_true = |wanted| -> Vec<_> {
            Pipeline::ALL.into_iter().filter(|other| other.is_as_true_as(wanted)).collect()
        };
        use Pipeline::{W16A16, W4A16, W4A4, W4A8, W8A16, W8A8};
        assert_eq!(as_true(W4A4), [W4A4, W4A8, W4A16, W8A8, W8A16, W16A16]);
        assert_eq!(as_true(W4A8), [W4A8, W4A16, W8A8, W8A16, W16A16]);
        assert_eq!(as_true(W4A16), [W4A16, W8A8, W8A16, W16A16]);
        assert_eq!(as_true(W8A8), [W8A8, W8A16, W16A16]);
        assert_eq!(as_true(W8A16), [W8A16, W16A16]);
        assert_eq!(as_true(W16A16), [W16A16]);
    }
}
