//! What each SoC can do, as rows of data (source: the ABI facts, "Shape limits" and "Native layouts").

use std::ffi::CStr;
use std::sync::OnceLock;

use rknn_sys::sys;

use crate::status::{refuse, Result, Status};

/// The environment variable that picks the chip, read once.
pub const SOC_VARIABLE: &str = "RKNPU_EMU_SOC";

/// The element types A × B → C that are emulated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// f16 × f16 → f32, accumulated in f32.
    F16,
    /// i8 × i8 → i32, exact.
    I8,
    /// i4 × i4 → i16, accumulated wider, saturated on output.
    I4,
}

impl Dtype {
    /// The vendor's `rknn_matmul_type`.
    pub fn code(self) -> i32 {
        (match self {
            Self::F16 => sys::RKNN_ABI_F16_F16_TO_F32,
            Self::I8 => sys::RKNN_ABI_I8_I8_TO_I32,
            Self::I4 => sys::RKNN_ABI_I4_I4_TO_I16,
        }) as i32
    }

    /// Bits of one element of A and of B.
    pub fn input_bits(self) -> usize {
        match self {
            Self::F16 => 16,
            Self::I8 => 8,
            Self::I4 => 4,
        }
    }

    /// Bytes that `count` elements of A or B take; whole because every alignment is even.
    pub fn input_bytes(self, count: usize) -> usize {
        count * self.input_bits() / 8
    }

    /// Bytes of one element of C.
    pub fn output_bytes(self) -> usize {
        match self {
            Self::F16 | Self::I8 => 4,
            Self::I4 => 2,
        }
    }

    /// The vendor's tensor types of A and B, and of C.
    pub fn tensor_types(self) -> (i32, i32) {
        let (input, output) = match self {
            Self::F16 => (sys::RKNN_ABI_TENSOR_F16, sys::RKNN_ABI_TENSOR_F32),
            Self::I8 => (sys::RKNN_ABI_TENSOR_I8, sys::RKNN_ABI_TENSOR_I32),
            Self::I4 => (sys::RKNN_ABI_TENSOR_I4, sys::RKNN_ABI_TENSOR_I16),
        };
        (input as i32, output as i32)
    }
}

/// One element type on one chip: alignments and NATIVE sub-blocks, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeRow {
    /// The element types.
    pub dtype: Dtype,
    /// K must be a multiple of this.
    pub k_align: usize,
    /// N must be a multiple of this.
    pub n_align: usize,
    /// `a` of A's native layout (K/a, M, a).
    pub a_block: usize,
    /// `(n, k)` of B's native layout (N/n, K/k, n, k).
    pub b_block: (usize, usize),
    /// `c` of C's native layout (N/c, M, c).
    pub c_block: usize,
}

/// One SoC.
#[derive(Debug, PartialEq, Eq)]
pub struct Chip {
    /// Its name as in the device tree, after the comma.
    pub name: &'static CStr,
    /// NPU cores.
    pub cores: usize,
    /// The largest K of a context.
    pub k_limit: usize,
    /// The longest K run of a native B: a longer B is several such B, one after the other.
    pub k_segment: usize,
    /// The element types it has.
    pub types: &'static [TypeRow],
}

const fn row(
    dtype: Dtype,
    (k_align, n_align): (usize, usize),
    a_block: usize,
    b_block: (usize, usize),
    c_block: usize,
) -> TypeRow {
    TypeRow { dtype, k_align, n_align, a_block, b_block, c_block }
}

/// Every chip. C of i4 is blocked by 8 on RK3588 only, as the facts have it.
pub const CHIPS: &[Chip] = &[
    Chip {
        name: c"rk3588",
        cores: 3,
        k_limit: 10240,
        k_segment: 8192,
        types: &[
            row(Dtype::I8, (32, 32), 16, (32, 32), 4),
            row(Dtype::F16, (32, 16), 8, (16, 32), 4),
            row(Dtype::I4, (32, 64), 32, (64, 32), 8),
        ],
    },
    Chip {
        name: c"rk3576",
        cores: 2,
        k_limit: 4096,
        k_segment: 4096,
        types: &[
            row(Dtype::I8, (32, 32), 16, (32, 32), 4),
            row(Dtype::F16, (32, 16), 8, (16, 32), 4),
            row(Dtype::I4, (32, 64), 32, (64, 32), 4),
        ],
    },
    Chip { name: c"rk3566", cores: 1, k_limit: 10240, k_segment: 10240, types: RK356X },
    Chip { name: c"rk3568", cores: 1, k_limit: 10240, k_segment: 10240, types: RK356X },
    Chip {
        name: c"rk3562",
        cores: 1,
        k_limit: 10240,
        k_segment: 10240,
        types: &[row(Dtype::I8, (32, 16), 16, (16, 32), 4), row(Dtype::F16, (32, 8), 8, (8, 32), 4)],
    },
];

const RK356X: &[TypeRow] =
    &[row(Dtype::I8, (32, 16), 8, (16, 32), 4), row(Dtype::F16, (16, 8), 4, (8, 16), 4)];

impl Chip {
    /// The chip of that name, for example "rk3588".
    pub fn by_name(name: &str) -> Option<&'static Self> {
        CHIPS.iter().find(|chip| chip.name.to_bytes() == name.as_bytes())
    }

    /// The chip that [`SOC_VARIABLE`] names, rk3588 when it is unset; `None`, said once, for an unknown name.
    pub fn chosen() -> Option<&'static Self> {
        static CHOSEN: OnceLock<Option<&'static Chip>> = OnceLock::new();
        *CHOSEN.get_or_init(|| {
            let name = std::env::var_os(SOC_VARIABLE).unwrap_or_else(|| "rk3588".into());
            let chip = name.to_str().and_then(Self::by_name);
            if chip.is_none() {
                let known: Vec<_> = CHIPS.iter().map(|chip| chip.name.to_string_lossy()).collect();
                let known = known.join(", ");
                crate::log::line(format_args!(
                    "{SOC_VARIABLE}={} is no chip that I know: set it to one of {known}",
                    name.to_string_lossy()
                ));
            }
            chip
        })
    }

    /// The row of the vendor's matmul type `code` after the checks of shape that a create makes.
    ///
    /// # Errors
    /// -5 with the vendor's words, for a type that the chip lacks, K past the limit, K or N not aligned.
    pub fn check(&self, code: i32, k: usize, n: usize) -> Result<&'static TypeRow> {
        let Some(row) = self.types.iter().find(|row| row.dtype.code() == code) else {
            let name = self.name.to_string_lossy();
            return refuse(
                Status::PARAM,
                format_args!("unsupported matmul dtype {code} in this platform ({name})"),
            );
        };
        if k > self.k_limit {
            return refuse(Status::PARAM, format_args!("K({k}) > limit({})", self.k_limit));
        }
        for (what, value, align) in [("K", k, row.k_align), ("N", n, row.n_align)] {
            if value == 0 || value % align != 0 {
                return refuse(Status::PARAM, format_args!("{what}({value}) must be align with {align}"));
            }
        }
        Ok(row)
    }
}
