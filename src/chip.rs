//! What each chip can do, as data. A new chip is a row here and no code.
//!
//! Source: the vendor's header and API reference as gathered in `docs/facts.md`. The emulator has a table of its
//! own on purpose: a slip in one of them shows in the tests.

use rknn_sys::MatmulType;

/// Alignments and sub-blocks of one element type on one chip. All figures are elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeLimits {
    /// K of a context is a multiple of this.
    pub k_align: usize,
    /// N of a context is a multiple of this.
    pub n_align: usize,
    /// Innermost run of k in native A: A is (K/`a_block`, M, `a_block`).
    pub a_block: usize,
    /// Columns of a native B block: B is (N/`b_block_n`, K/`b_block_k`, `b_block_n`, `b_block_k`).
    pub b_block_n: usize,
    /// Depth of a native B block.
    pub b_block_k: usize,
    /// Innermost run of columns in native C: C is (N/`c_block`, M, `c_block`).
    pub c_block: usize,
}

/// No chip has more cores.
pub const CORES_MAX: usize = 3;

/// How long runs take, by a formula that was fitted to what others published; see `docs/facts.md`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Operations a ns of one core, 2·M·K·N a product, for operands of 16, 8 and 4 bits.
    pub peaks: [f64; 3],
    /// What every run costs besides its work, ns.
    pub run_ns: f64,
    /// Bytes a ns that one core alone draws from memory.
    pub core_rate: f64,
    /// Bytes a ns that all cores together draw.
    pub shared_rate: f64,
    /// Bytes of A that stay in a core while B streams by.
    pub a_tile: f64,
    /// Bytes a ns that the CPU's big cores read.
    pub cpu_rate: f64,
}

/// One system on a chip.
#[derive(Debug, Clone, PartialEq)]
pub struct Chip {
    /// The name that users type: "rk3588".
    pub name: &'static str,
    /// The name that users read: "RK3588".
    pub title: &'static str,
    /// What `/proc/device-tree/compatible` holds on its boards.
    pub compatible: &'static [&'static str],
    /// NPU cores; each runs its own contexts.
    pub cores: usize,
    /// The longest K of one context that runs at full speed.
    pub k_max: usize,
    /// How fast it is believed to be. Decides how work is cut and where it is done, never what comes out.
    pub timing: Timing,
    /// The element types that it has, or may have: the probe has the last word.
    types: &'static [(MatmulType, TypeLimits)],
    /// Those of its types on which reports disagree: used where the probe finds them right, and not missed.
    pub disputed: &'static [MatmulType],
}

impl Chip {
    /// The limits of an element type; `None` for one that the chip does not run.
    pub fn limits(&self, dtype: MatmulType) -> Option<&TypeLimits> {
        self.types.iter().find(|(named, _)| *named == dtype).map(|(_, limits)| limits)
    }

    /// The chip that users call `name`, in any case.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        CHIPS.iter().find(|chip| chip.name.eq_ignore_ascii_case(name))
    }

    /// The chip of a device tree's `compatible` property: strings that each end with NUL.
    pub fn by_compatible(property: &[u8]) -> Option<&'static Self> {
        let listed = |name: &str| property.split(|byte| *byte == 0).any(|entry| entry == name.as_bytes());
        CHIPS.iter().find(|chip| chip.compatible.iter().any(|name| listed(name)))
    }

    /// "rk3588, rk3576, …", for error messages.
    pub fn names() -> String {
        CHIPS.iter().map(|chip| chip.name).collect::<Vec<_>>().join(", ")
    }
}

const fn limits(
    (k_align, n_align): (usize, usize),
    a_block: usize,
    (b_block_n, b_block_k): (usize, usize),
    c_block: usize,
) -> TypeLimits {
    TypeLimits { k_align, n_align, a_block, b_block_n, b_block_k, c_block }
}

const RK3588: &[(MatmulType, TypeLimits)] = &[
    (MatmulType::F16, limits((32, 16), 8, (16, 32), 4)),
    (MatmulType::I8, limits((32, 32), 16, (32, 32), 4)),
    (MatmulType::I4, limits((32, 64), 32, (64, 32), 8)),
];

/// Layouts of the mixed types are assumed: A as f16, B as i8 or i4. On i4 × i4 reports disagree.
const RK3576: &[(MatmulType, TypeLimits)] = &[
    (MatmulType::F16, limits((32, 16), 8, (16, 32), 4)),
    (MatmulType::I8, limits((32, 32), 16, (32, 32), 4)),
    (MatmulType::I4, limits((32, 64), 32, (64, 32), 4)),
    (MatmulType::F16I8, limits((32, 32), 8, (32, 32), 4)),
    (MatmulType::F16I4, limits((32, 64), 8, (64, 32), 4)),
];

const RK356X: &[(MatmulType, TypeLimits)] =
    &[(MatmulType::F16, limits((16, 8), 4, (8, 16), 4)), (MatmulType::I8, limits((32, 16), 8, (16, 32), 4))];

const RK3562: &[(MatmulType, TypeLimits)] =
    &[(MatmulType::F16, limits((32, 8), 8, (8, 32), 4)), (MatmulType::I8, limits((32, 16), 16, (16, 32), 4))];

const RK3588_TIMING: Timing = Timing {
    peaks: [1020.0, 2050.0, 4100.0],
    run_ns: 33_000.0,
    core_rate: 11.3,
    shared_rate: 27.3,
    a_tile: 128.0 * 1024.0,
    cpu_rate: 25.0,
};

/// Guessed from RKLLM's figures.
const RK3576_TIMING: Timing = Timing {
    peaks: [1070.0, 2140.0, 4280.0],
    core_rate: 7.25,
    shared_rate: 14.5,
    cpu_rate: 14.0,
    ..RK3588_TIMING
};

/// A guess for the chips with one small core.
const SMALL_TIMING: Timing = Timing {
    peaks: [512.0, 1025.0, 2050.0],
    core_rate: 5.6,
    shared_rate: 5.6,
    cpu_rate: 5.0,
    ..RK3588_TIMING
};

/// All chips that are known.
pub static CHIPS: [Chip; 5] = [
    Chip {
        name: "rk3588",
        title: "RK3588",
        compatible: &["rockchip,rk3588", "rockchip,rk3588s"],
        cores: 3,
        k_max: 8192,
        timing: RK3588_TIMING,
        types: RK3588,
        disputed: &[],
    },
    Chip {
        name: "rk3576",
        title: "RK3576",
        compatible: &["rockchip,rk3576"],
        cores: 2,
        k_max: 4096,
        timing: RK3576_TIMING,
        types: RK3576,
        disputed: &[MatmulType::I4],
    },
    Chip {
        name: "rk3566",
        title: "RK3566",
        compatible: &["rockchip,rk3566"],
        cores: 1,
        k_max: 10240,
        timing: SMALL_TIMING,
        types: RK356X,
        disputed: &[],
    },
    Chip {
        name: "rk3568",
        title: "RK3568",
        compatible: &["rockchip,rk3568"],
        cores: 1,
        k_max: 10240,
        timing: SMALL_TIMING,
        types: RK356X,
        disputed: &[],
    },
    Chip {
        name: "rk3562",
        title: "RK3562",
        compatible: &["rockchip,rk3562"],
        cores: 1,
        k_max: 10240,
        timing: SMALL_TIMING,
        types: RK3562,
        disputed: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chips_are_found_by_name_and_by_device_tree() {
        assert_eq!(Chip::by_name("RK3588").unwrap().cores, 3);
        assert!(Chip::by_name("rk9999").is_none());
        let property = b"xunlong,orangepi-5\0rockchip,rk3588s\0rockchip,rk3588\0";
        assert_eq!(Chip::by_compatible(property).unwrap().name, "rk3588");
        assert!(Chip::by_compatible(b"raspberrypi,5\0").is_none());
    }

    #[test]
    fn blocks_divide_alignments() {
        // Padded shapes are whole blocks, which the kernels rely on.
        for chip in &CHIPS {
            assert!((1..=CORES_MAX).contains(&chip.cores), "{}", chip.name);
            assert!(chip.limits(MatmulType::F16).is_some() && chip.limits(MatmulType::I8).is_some());
            for dtype in MatmulType::ALL {
                let Some(limits) = chip.limits(dtype) else { continue };
                assert_eq!(limits.k_align % limits.a_block, 0, "{}", chip.name);
                assert_eq!(limits.k_align % limits.b_block_k, 0, "{}", chip.name);
                assert_eq!(limits.n_align % limits.b_block_n, 0, "{}", chip.name);
                assert_eq!(limits.n_align % limits.c_block, 0, "{}", chip.name);
            }
        }
    }
}
