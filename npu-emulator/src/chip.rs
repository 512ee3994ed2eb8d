//! What each SoC can do, as rows of data (source: the ABI facts, "Shape limits" and "Native layouts").

use std::ffi::CStr;
use std::sync::OnceLock;

use crate::accepted::{changed, TYPES_VARIABLE};
pub use crate::dtype::Dtype;
use crate::status::{fail, refuse, Result, Status};

/// The environment variable that picks the chip, read once.
pub const SOC_VARIABLE: &str = "RKNPU_EMU_SOC";

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
    /// Whether a create takes it, unless the environment says otherwise.
    pub accepted: bool,
}

/// One SoC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chip {
    /// Its name as in the device tree, after the comma.
    pub name: &'static CStr,
    /// NPU cores.
    pub cores: usize,
    /// The largest K of a context.
    pub k_limit: usize,
    /// The longest K run of a native B: a longer B is several such B, one after the other.
    pub k_segment: usize,
    /// I/O address space of a domain in bytes.
    pub io_space: u64,
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
    TypeRow { dtype, k_align, n_align, a_block, b_block, c_block, accepted: true }
}

/// A row that is only taken when the environment adds its type.
const fn off(row: TypeRow) -> TypeRow {
    TypeRow { accepted: false, ..row }
}

/// A domain of any chip, as far as the reports go ("A domain serves about 3.9 GB").
const DOMAIN: u64 = 3_900_000_000;

/// Every chip.
///
/// The facts have no native layouts of the mixed types: it is assumed that A lies as the chip's f16, B as its i8
/// or i4 (whose alignments of N hold), and C in fours. So does C of i8 × i8 → i8 and of f16 × f16 → f16. C of i4
/// is blocked by 8 on RK3588 only, as the facts have it.
pub const CHIPS: &[Chip] = &[
    Chip {
        name: c"rk3588",
        cores: 3,
        k_limit: 10240,
        k_segment: 8192,
        io_space: DOMAIN,
        types: &[
            row(Dtype::F16, (32, 16), 8, (16, 32), 4),
            row(Dtype::I8, (32, 32), 16, (32, 32), 4),
            row(Dtype::I8ToI8, (32, 32), 16, (32, 32), 4),
            row(Dtype::F16ToF16, (32, 16), 8, (16, 32), 4),
            off(row(Dtype::F16I8, (32, 32), 8, (32, 32), 4)),
            off(row(Dtype::F16I4, (32, 64), 8, (64, 32), 4)),
            row(Dtype::I4, (32, 64), 32, (64, 32), 8),
        ],
    },
    Chip {
        name: c"rk3576",
        cores: 2,
        k_limit: 4096,
        k_segment: 4096,
        io_space: DOMAIN,
        types: &[
            row(Dtype::F16, (32, 16), 8, (16, 32), 4),
            row(Dtype::I8, (32, 32), 16, (32, 32), 4),
            off(row(Dtype::I8ToI8, (32, 32), 16, (32, 32), 4)),
            off(row(Dtype::F16ToF16, (32, 16), 8, (16, 32), 4)),
            row(Dtype::F16I8, (32, 32), 8, (32, 32), 4),
            row(Dtype::F16I4, (32, 64), 8, (64, 32), 4),
            off(row(Dtype::I4, (32, 64), 32, (64, 32), 4)),
        ],
    },
    Chip { name: c"rk3566", cores: 1, k_limit: 10240, k_segment: 10240, io_space: DOMAIN, types: RK356X },
    Chip { name: c"rk3568", cores: 1, k_limit: 10240, k_segment: 10240, io_space: DOMAIN, types: RK356X },
    Chip {
        name: c"rk3562",
        cores: 1,
        k_limit: 10240,
        k_segment: 10240,
        io_space: DOMAIN,
        types: &[row(Dtype::F16, (32, 8), 8, (8, 32), 4), row(Dtype::I8, (32, 16), 16, (16, 32), 4)],
    },
];

const RK356X: &[TypeRow] =
    &[row(Dtype::F16, (16, 8), 4, (8, 16), 4), row(Dtype::I8, (32, 16), 8, (16, 32), 4)];

/// The cores of the chip that has most.
pub const MOST_CORES: usize = {
    let (mut most, mut at) = (0, 0);
    while at < CHIPS.len() {
        if CHIPS[at].cores > most {
            most = CHIPS[at].cores;
        }
        at += 1;
    }
    most
};

impl Chip {
    /// The chip of that name, for example "rk3588".
    pub fn by_name(name: &str) -> Option<&'static Self> {
        CHIPS.iter().find(|chip| chip.name.to_bytes() == name.as_bytes())
    }

    /// The chip that [`SOC_VARIABLE`] names, rk3588 when it is unset, with the types that [`TYPES_VARIABLE`]
    /// adds and takes away; `None`, said once, when either says what cannot be.
    pub fn chosen() -> Option<&'static Self> {
        static CHOSEN: OnceLock<Option<Chip>> = OnceLock::new();
        CHOSEN.get_or_init(Self::from_environment).as_ref()
    }

    fn from_environment() -> Option<Self> {
        let name = std::env::var_os(SOC_VARIABLE).unwrap_or_else(|| "rk3588".into());
        let Some(chip) = name.to_str().and_then(Self::by_name) else {
            let known: Vec<_> = CHIPS.iter().map(|chip| chip.name.to_string_lossy()).collect();
            let known = known.join(", ");
            crate::log::line(format_args!(
                "{SOC_VARIABLE}={} is no chip that I know: set it to one of {known}",
                name.to_string_lossy()
            ));
            return None;
        };
        let Some(types) = std::env::var_os(TYPES_VARIABLE) else { return Some(chip.clone()) };
        match changed(chip, &types.to_string_lossy()) {
            // Made once a process and kept to its end.
            Ok(rows) => Some(Self { types: rows.leak(), ..chip.clone() }),
            Err(why) => {
                crate::log::line(format_args!("{TYPES_VARIABLE}: {why}; write for example +10 or -7"));
                None
            }
        }
    }

    /// The row of the vendor's matmul type `code` after the checks of shape that a create makes.
    ///
    /// # Errors
    /// -5 with the vendor's words, for a type that the chip lacks, K past the limit, K or N not aligned.
    pub fn check(&self, code: i32, k: usize, n: usize) -> Result<&'static TypeRow> {
        let name = self.name.to_string_lossy();
        let unsupported = format_args!("unsupported matmul dtype {code} in this platform ({name})");
        let row = match self.types.iter().find(|row| row.dtype.code() == code) {
            Some(row) if row.accepted => row,
            // Reports disagree on such types: to ask is the only way to know, and no misuse.
            Some(_) => return fail(Status::PARAM, unsupported),
            None => return refuse(Status::PARAM, unsupported),
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
