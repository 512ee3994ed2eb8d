//! What each call costs, as formulas over one row of data a SoC.
//!
//! The formulas were fitted to published measurements (the NPU facts, "A model that fits nine of those points");
//! nobody here has a board. What follows from them is modelled, never measured.

use std::ffi::CStr;

use crate::operand::Product;

const KIB: f64 = 1024.0;

/// Operand widths in bits, as [`Timing::peaks`] orders them.
const WIDTHS: [usize; 3] = [16, 8, 4];

/// One SoC's constants. Times are in ns, rates in bytes a ns, which is GB/s, and operations a ns, which is GOPS.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// The chip's name, as [`crate::chip::Chip::name`].
    pub name: &'static CStr,
    /// Whether published points stand behind the row; if not it is a guess.
    pub published: bool,
    /// Peak of one core for operands of 16, 8 and 4 bits, 2·M·K·N operations a product.
    pub peaks: [f64; 3],
    /// What every run costs besides its work.
    pub run_ns: f64,
    /// What one core alone draws from memory.
    pub core_rate: f64,
    /// What all cores together draw.
    pub shared_rate: f64,
    /// Bytes of A that stay in a core while B streams by, with A and C NATIVE and with them NORM.
    pub a_tile: [f64; 2],
    /// Rate of i4 with NORM A and C, which streams B once a row.
    pub i4_norm_rate: f64,
    /// A context with a longer K collapses.
    pub k_practical: usize,
    /// What is left of the peak then.
    pub collapse: f64,
    /// Making a context.
    pub create_ns: f64,
    /// Binding a memory that is taken as it is.
    pub bind_ns: f64,
    /// Converting one byte of a row-major B.
    pub convert_ns_per_byte: f64,
    /// A sync: the call, and one byte. No measurement is published: a guess on every chip.
    pub sync_ns: (f64, f64),
}

/// RK3588: 1.02 / 2.05 / 4.1 T a core; three cores draw 26.6 to 28 GB/s; binding takes 1.2 to 4.9 µs; a K of 15360
/// gives 0.02 T; a B of 64 KB is converted in 186 µs.
const RK3588: Timing = Timing {
    name: c"rk3588",
    published: true,
    peaks: [1020.0, 2050.0, 4100.0],
    run_ns: 33_000.0,
    core_rate: 11.3,
    shared_rate: 27.3,
    a_tile: [128.0 * KIB, 128.0 * KIB],
    i4_norm_rate: 11.1,
    k_practical: 8192,
    collapse: 20.0 / 2050.0,
    create_ns: 1_500_000.0,
    bind_ns: 3_000.0,
    convert_ns_per_byte: 186_000.0 / (64.0 * KIB),
    sync_ns: (1_000.0, 0.1),
};

/// A guess for the chips with one small core: half of an RK3588 core, and half of its memory.
const SMALL: Timing = Timing {
    name: c"rk3566",
    published: false,
    peaks: [512.0, 1025.0, 2050.0],
    core_rate: 5.6,
    shared_rate: 5.6,
    i4_norm_rate: 5.6,
    k_practical: 10240,
    ..RK3588
};

/// Every chip of [`crate::chip::CHIPS`].
pub const TIMINGS: &[Timing] = &[
    RK3588,
    // A guess: of RKLLM's figures, 14.5 of about 27 GB/s, and 0.8 TOPS where RK3588 reaches 1.15 with three cores.
    Timing {
        name: c"rk3576",
        published: false,
        peaks: [1070.0, 2140.0, 4280.0],
        core_rate: 7.25,
        shared_rate: 14.5,
        i4_norm_rate: 7.25,
        k_practical: 4096,
        ..RK3588
    },
    SMALL,
    Timing { name: c"rk3568", ..SMALL },
    Timing { name: c"rk3562", ..SMALL },
];

/// What a run computes, as far as its time depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shape {
    /// The vendor's matmul type.
    pub code: i32,
    /// Bits of an element of A, and of B.
    pub bits: (usize, usize),
    /// Bytes of an element of C.
    pub c_bytes: usize,
    /// A and C are NATIVE.
    pub native: bool,
    /// M, K and N.
    pub size: (usize, usize, usize),
}

impl Shape {
    /// That of a product.
    pub fn of(product: &Product) -> Self {
        let Product { dtype, rows, b, c_block, .. } = *product;
        Self {
            code: dtype.code(),
            bits: (dtype.a().bits(), dtype.b().bits()),
            c_bytes: dtype.c().bytes(1),
            native: c_block != b.n,
            size: (rows, b.k, b.n),
        }
    }

    /// Bytes of A, B and C: M·K, K·N and M·N elements.
    pub fn operand_bytes(&self) -> [f64; 3] {
        let (m, k, n) = self.size;
        let input = |count: usize, bits: usize| count as f64 * bits as f64 / 8.0;
        [input(m * k, self.bits.0), input(k * n, self.bits.1), (m * n * self.c_bytes) as f64]
    }

    /// 2·M·K·N.
    pub fn operations(&self) -> f64 {
        let (m, k, n) = self.size;
        2.0 * m as f64 * k as f64 * n as f64
    }
}

/// A remainder of less than this many ns is rounding.
const ROUNDING: f64 = 1e-3;

/// What a run takes of a core, with no other core at work; or what is left of that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Before the work begins.
    pub fixed_ns: f64,
    /// Arithmetic, which overlaps with the traffic.
    pub compute_ns: f64,
    /// Traffic, at the rate of one core.
    pub memory_ns: f64,
    /// Bytes of that traffic.
    pub bytes: f64,
}

impl Cost {
    /// The time of a run alone.
    pub fn alone_ns(&self) -> f64 {
        self.fixed_ns + self.compute_ns.max(self.memory_ns)
    }

    /// Whether a run of which this is left moves data now.
    pub fn moves_data(&self) -> bool {
        self.fixed_ns <= 0.0 && self.memory_ns > 0.0
    }

    /// ns to the next change of what it needs, with traffic slowed by `slowdown`.
    pub fn next(&self, slowdown: f64) -> f64 {
        if self.fixed_ns > 0.0 {
            return self.fixed_ns;
        }
        let memory_ns = self.memory_ns * slowdown;
        match (self.compute_ns > 0.0, memory_ns > 0.0) {
            (true, true) => self.compute_ns.min(memory_ns),
            _ => self.compute_ns.max(memory_ns),
        }
    }

    /// Takes off what is done within `ns`, of which there are no more than [`next`](Self::next).
    pub fn advance(&mut self, ns: f64, slowdown: f64) {
        let less = |left: &mut f64, by: f64| *left = if *left - by < ROUNDING { 0.0 } else { *left - by };
        if self.fixed_ns > 0.0 {
            return less(&mut self.fixed_ns, ns);
        }
        less(&mut self.compute_ns, ns);
        less(&mut self.memory_ns, ns / slowdown);
    }

    /// Whether nothing is left.
    pub fn is_done(&self) -> bool {
        self.fixed_ns <= 0.0 && self.compute_ns <= 0.0 && self.memory_ns <= 0.0
    }
}

impl Timing {
    /// The row of a chip of that name, RK3588's for a name without one.
    pub fn of(name: &CStr) -> &'static Self {
        TIMINGS.iter().find(|timing| timing.name == name).unwrap_or(&TIMINGS[0])
    }

    /// Operations a ns of one core. Operands of two widths are assumed to go as if both had the wider one.
    pub fn peak(&self, shape: &Shape) -> f64 {
        let bits = shape.bits.0.max(shape.bits.1);
        let row = WIDTHS.iter().rposition(|width| bits <= *width).unwrap_or(0);
        self.peaks[row]
    }

    /// `fixed + max(2·M·K·N / peak, (⌈A / tile⌉·B + A + C) / rate)`, with the peak's collapse past the practical K;
    /// for i4 with NORM A and C the traffic is M·B at a rate of its own.
    pub fn run(&self, shape: &Shape) -> Cost {
        let [a, b, c] = shape.operand_bytes();
        let collapse = if shape.size.1 > self.k_practical { self.collapse } else { 1.0 };
        let compute_ns = shape.operations() / (self.peak(shape) * collapse);
        let (bytes, rate) = if shape.bits == (4, 4) && !shape.native {
            (shape.size.0 as f64 * b, self.i4_norm_rate)
        } else {
            let tile = self.a_tile[usize::from(!shape.native)];
            ((a / tile).ceil() * b + a + c, self.core_rate)
        };
        Cost { fixed_ns: self.run_ns, compute_ns, memory_ns: bytes / rate, bytes }
    }

    /// The least that the arithmetic and one pass over the operands allow one core: the roofline.
    pub fn roofline_ns(&self, shape: &Shape) -> f64 {
        let bytes: f64 = shape.operand_bytes().iter().sum();
        (shape.operations() / self.peak(shape)).max(bytes / self.core_rate)
    }

    /// By how much the traffic of each of `cores` cores at once is slower than that of one alone.
    pub fn slowdown(&self, cores: usize) -> f64 {
        (cores as f64 * self.core_rate / self.shared_rate).max(1.0)
    }
}
