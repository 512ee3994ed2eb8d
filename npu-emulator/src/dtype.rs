//! The element types of a product: what A, B and C hold (source: the ABI facts, "Types").

use rknn_sys::sys;

/// The type of one element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
    /// Four bits, signed, two to a byte.
    I4,
    /// A signed byte.
    I8,
    /// Two bytes, signed.
    I16,
    /// Four bytes, signed.
    I32,
}

impl Element {
    /// Its size.
    pub fn bits(self) -> usize {
        match self {
            Self::I4 => 4,
            Self::I8 => 8,
            Self::F16 | Self::I16 => 16,
            Self::F32 | Self::I32 => 32,
        }
    }

    /// Bytes that `count` of them take, or the most there can be; whole because every alignment is even.
    pub fn bytes(self, count: usize) -> usize {
        if self == Self::I4 {
            count / 2
        } else {
            count.saturating_mul(self.bits() / 8)
        }
    }

    /// The vendor's tensor type.
    pub fn tensor_type(self) -> i32 {
        (match self {
            Self::F16 => sys::RKNN_ABI_TENSOR_F16,
            Self::F32 => sys::RKNN_ABI_TENSOR_F32,
            Self::I4 => sys::RKNN_ABI_TENSOR_I4,
            Self::I8 => sys::RKNN_ABI_TENSOR_I8,
            Self::I16 => sys::RKNN_ABI_TENSOR_I16,
            Self::I32 => sys::RKNN_ABI_TENSOR_I32,
        }) as i32
    }
}

/// The element types A × B → C that are emulated.
///
/// Integers are summed exactly and saturate on output. With an f16 A the sums are f32, and an integer B counts
/// as the f16 of the same value, which is exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// f16 × f16 → f32.
    F16,
    /// i8 × i8 → i32.
    I8,
    /// i8 × i8 → i8.
    I8ToI8,
    /// f16 × f16 → f16: the f32 sum, rounded once to the nearest, ties to even.
    F16ToF16,
    /// f16 × i8 → f32.
    F16I8,
    /// f16 × i4 → f32.
    F16I4,
    /// i4 × i4 → i16.
    I4,
}

impl Dtype {
    /// Every one, in the order of the vendor's numbers.
    pub const ALL: [Self; 7] =
        [Self::F16, Self::I8, Self::I8ToI8, Self::F16ToF16, Self::F16I8, Self::F16I4, Self::I4];

    /// The vendor's `rknn_matmul_type`.
    pub fn code(self) -> i32 {
        (match self {
            Self::F16 => sys::RKNN_ABI_F16_F16_TO_F32,
            Self::I8 => sys::RKNN_ABI_I8_I8_TO_I32,
            Self::I8ToI8 => sys::RKNN_ABI_I8_I8_TO_I8,
            Self::F16ToF16 => sys::RKNN_ABI_F16_F16_TO_F16,
            Self::F16I8 => sys::RKNN_ABI_F16_I8_TO_F32,
            Self::F16I4 => sys::RKNN_ABI_F16_I4_TO_F32,
            Self::I4 => sys::RKNN_ABI_I4_I4_TO_I16,
        }) as i32
    }

    /// What A holds.
    pub fn a(self) -> Element {
        match self {
            Self::F16 | Self::F16ToF16 | Self::F16I8 | Self::F16I4 => Element::F16,
            Self::I8 | Self::I8ToI8 => Element::I8,
            Self::I4 => Element::I4,
        }
    }

    /// What B holds.
    pub fn b(self) -> Element {
        match self {
            Self::F16 | Self::F16ToF16 => Element::F16,
            Self::I8 | Self::I8ToI8 | Self::F16I8 => Element::I8,
            Self::F16I4 | Self::I4 => Element::I4,
        }
    }

    /// What C holds.
    pub fn c(self) -> Element {
        match self {
            Self::F16 | Self::F16I8 | Self::F16I4 => Element::F32,
            Self::I8 => Element::I32,
            Self::I8ToI8 => Element::I8,
            Self::F16ToF16 => Element::F16,
            Self::I4 => Element::I16,
        }
    }
}
