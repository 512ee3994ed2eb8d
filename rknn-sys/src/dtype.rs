//! The element types of a product: what A, B and C hold.

use crate::sys;

/// The type of one element of an operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE half.
    F16,
    /// A signed byte.
    I8,
    /// Four bits, signed, two to a byte, the even one in the low nibble.
    I4,
    /// IEEE single.
    F32,
    /// Two bytes, signed.
    I16,
    /// Four bytes, signed.
    I32,
}

impl Element {
    /// Bytes of `count` of them; an odd number of nibbles takes the byte whole.
    pub fn bytes(self, count: usize) -> usize {
        match self {
            Self::I4 => count.div_ceil(2),
            Self::I8 => count,
            Self::F16 | Self::I16 => count.saturating_mul(2),
            Self::F32 | Self::I32 => count.saturating_mul(4),
        }
    }
}

/// The element types A × B → C that this project uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatmulType {
    /// f16 × f16 → f32, accumulated in f32.
    F16,
    /// i8 × i8 → i32, exact.
    I8,
    /// i4 × i4 → i16, saturating.
    I4,
    /// f16 × i8 → f32: 8-bit weights, whole activations.
    F16I8,
    /// f16 × i4 → f32: 4-bit weights, whole activations.
    F16I4,
}

impl MatmulType {
    /// Every one; the two that each chip has come first.
    pub const ALL: [Self; 5] = [Self::I8, Self::F16, Self::I4, Self::F16I8, Self::F16I4];

    /// The vendor's `rknn_matmul_type`.
    pub fn code(self) -> i32 {
        (match self {
            Self::F16 => sys::RKNN_ABI_F16_F16_TO_F32,
            Self::I8 => sys::RKNN_ABI_I8_I8_TO_I32,
            Self::I4 => sys::RKNN_ABI_I4_I4_TO_I16,
            Self::F16I8 => sys::RKNN_ABI_F16_I8_TO_F32,
            Self::F16I4 => sys::RKNN_ABI_F16_I4_TO_F32,
        }) as i32
    }

    /// What A, the activations, holds.
    pub fn a(self) -> Element {
        match self {
            Self::F16 | Self::F16I8 | Self::F16I4 => Element::F16,
            Self::I8 => Element::I8,
            Self::I4 => Element::I4,
        }
    }

    /// What B, the weights, holds.
    pub fn b(self) -> Element {
        match self {
            Self::F16 => Element::F16,
            Self::I8 | Self::F16I8 => Element::I8,
            Self::I4 | Self::F16I4 => Element::I4,
        }
    }

    /// What C, the sums, holds.
    pub fn c(self) -> Element {
        match self {
            Self::F16 | Self::F16I8 | Self::F16I4 => Element::F32,
            Self::I8 => Element::I32,
            Self::I4 => Element::I16,
        }
    }
}
