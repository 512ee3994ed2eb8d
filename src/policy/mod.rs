//! Which tensor takes which pipeline, and why. Knows types and names, never bytes or devices.
//!
//! * [`Pipeline`]: how weights and activations are represented on the NPU;
//! * [`scheme`]: the names that users give: a pipeline, how its rows are rotated, or the CPU;
//! * [`goal`]: what to choose by where no name is given;
//! * [`rules`]: a file that gives names by [`pattern`]s of tensor names; [`hybrid`]: names in turn;
//! * [`decide`]: all of these together: what is asked for a tensor.

pub mod decide;
pub mod goal;
pub mod hybrid;
pub mod pattern;
pub mod rules;
pub mod scheme;

use rknn_sys::MatmulType;

/// How a weight and its activations are represented on the NPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pipeline {
    /// f16 weights and activations, f32 sums.
    W16A16,
    /// i8 weights with a scale an output channel, i8 activations with a scale a row, exact i32 sums.
    W8A8,
}

impl Pipeline {
    /// All of them, in the order of their index.
    pub const ALL: [Self; 2] = [Self::W16A16, Self::W8A8];

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
            Self::W16A16 => "W16A16",
            Self::W8A8 => "W8A8",
        }
    }

    /// The NPU's element type.
    pub fn dtype(self) -> MatmulType {
        match self {
            Self::W16A16 => MatmulType::F16,
            Self::W8A8 => MatmulType::I8,
        }
    }

    /// Whether rows are rotated before they are rounded, if they gain from it. 8 bits gain a tenfold smaller error by it; 16 bits have
    /// digits enough.
    pub fn rotates(self) -> bool {
        self == Self::W8A8
    }

    /// Its place in [`Self::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}
