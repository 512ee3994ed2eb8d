//! What the tests share: the built library, operands laid out by nested loops (not by the emulator's formulas),
//! and a product computed the plain way.
#![allow(dead_code, missing_docs)]

pub mod raw;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;

use half::f16;
use rknn_sys::{Context, Layout, Library, MatmulSpec, MatmulType, Memory, Operand};

/// The emulator as a shared library: named by the environment, or beside this test.
pub fn library_path() -> PathBuf {
    std::env::var_os("GGML_RKNPU_TEST_EMULATOR").map(PathBuf::from).unwrap_or_else(|| {
        let exe = std::env::current_exe().expect("a test knows its path");
        exe.parent().expect("target/profile/deps").join("libnpu_emulator.so")
    })
}

/// The emulator at [`library_path`].
pub fn library() -> Library {
    Library::open(Some(&library_path())).unwrap_or_else(|error| panic!("{error}"))
}

pub fn soc() -> String {
    library().emulated_soc().expect("the emulator says so").to_owned()
}

pub fn spec(dtype: MatmulType, rows: usize, k: usize, n: usize) -> MatmulSpec {
    MatmulSpec { dtype, rows, k, n, b_layout: Layout::Native, ac_layout: Layout::Native, domain: 0 }
}

/// A small generator: the tests need variety, not quality.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    /// The bits of one element: any i8 or i4; halves within ±2 in steps of 1/64.
    pub fn element(&mut self, dtype: MatmulType) -> u16 {
        match dtype {
            MatmulType::I8 => (self.next() & 255) as u16,
            MatmulType::I4 => (self.next() & 15) as u16,
            // Types whose A and B differ have tests of their own, in types.rs.
            _ => f16::from_f32((self.next() % 257) as f32 / 64.0 - 2.0).to_bits(),
        }
    }

    pub fn matrix(&mut self, dtype: MatmulType, count: usize) -> Vec<u16> {
        (0..count).map(|_| self.element(dtype)).collect()
    }
}

pub fn value(dtype: MatmulType, bits: u16) -> f64 {
    match dtype {
        MatmulType::I8 => f64::from(bits as u8 as i8),
        MatmulType::I4 => f64::from((bits as i16) << 12 >> 12),
        _ => f16::from_bits(bits).to_f64(),
    }
}

/// C by the definition; i4 saturates.
pub fn product(dtype: MatmulType, m: usize, k: usize, n: usize, a: &[u16], b: &[u16]) -> Vec<f64> {
    let a: Vec<f64> = a.iter().map(|bits| value(dtype, *bits)).collect();
    let b: Vec<f64> = b.iter().map(|bits| value(dtype, *bits)).collect();
    let mut c = vec![0.0; m * n];
    for row in 0..m {
        for inner in 0..k {
            for column in 0..n {
                c[row * n + column] += a[row * k + inner] * b[inner * n + column];
            }
        }
    }
    if dtype == MatmulType::I4 {
        c.iter_mut().for_each(|c| *c = c.clamp(-32768.0, 32767.0));
    }
    c
}

/// Sub-blocks by the facts: (a, (bn, bk), c).
pub fn blocks(soc: &str, dtype: MatmulType) -> (usize, (usize, usize), usize) {
    match (soc, dtype) {
        ("rk3588", MatmulType::I4) => (32, (64, 32), 8),
        ("rk3576", MatmulType::I4) => (32, (64, 32), 4),
        ("rk3588" | "rk3576", MatmulType::I8) => (16, (32, 32), 4),
        ("rk3588" | "rk3576", MatmulType::F16) => (8, (16, 32), 4),
        ("rk3562", MatmulType::I8) => (16, (16, 32), 4),
        ("rk3562", MatmulType::F16) => (8, (8, 32), 4),
        ("rk3566" | "rk3568", MatmulType::I8) => (8, (16, 32), 4),
        ("rk3566" | "rk3568", MatmulType::F16) => (4, (8, 16), 4),
        other => panic!("{other:?} does not exist"),
    }
}

pub fn has_i4(soc: &str) -> bool {
    soc == "rk3588"
}

pub fn segment(soc: &str) -> usize {
    match soc {
        "rk3588" => 8192,
        "rk3576" => 4096,
        _ => 10240,
    }
}

/// (row, column) of each element in memory order, for A and C.
pub fn order(layout: Layout, rows: usize, columns: usize, block: usize) -> Vec<(usize, usize)> {
    let block = if layout == Layout::Norm { columns } else { block };
    let mut order = Vec::new();
    for first in (0..columns).step_by(block) {
        for row in 0..rows {
            for column in first..first + block {
                order.push((row, column));
            }
        }
    }
    order
}

/// (k, n) of each element in memory order, for B.
pub fn order_b(layout: Layout, soc: &str, dtype: MatmulType, k: usize, n: usize) -> Vec<(usize, usize)> {
    if layout == Layout::Norm {
        return order(layout, k, n, 0);
    }
    let (_, (bn, bk), _) = blocks(soc, dtype);
    let mut order = Vec::new();
    let mut start = 0;
    while start < k {
        let end = k.min(start + segment(soc));
        for n_block in 0..n / bn {
            for k_block in 0..(end - start) / bk {
                for n_in in 0..bn {
                    for k_in in 0..bk {
                        order.push((start + k_block * bk + k_in, n_block * bn + n_in));
                    }
                }
            }
        }
        start = end;
    }
    order
}

/// Puts elements (row-major bits, `columns` wide) to bytes in memory order.
pub fn encode(dtype: MatmulType, order: &[(usize, usize)], columns: usize, bits: &[u16]) -> Vec<u8> {
    let ordered: Vec<u16> = order.iter().map(|(row, column)| bits[row * columns + column]).collect();
    match dtype {
        MatmulType::I8 => ordered.iter().map(|bits| *bits as u8).collect(),
        MatmulType::I4 => ordered.chunks(2).map(|pair| (pair[0] & 15 | pair[1] << 4) as u8).collect(),
        _ => ordered.iter().flat_map(|bits| bits.to_le_bytes()).collect(),
    }
}

/// Reads C back to row-major numbers.
pub fn decode(dtype: MatmulType, order: &[(usize, usize)], columns: usize, bytes: &[u8]) -> Vec<f64> {
    let mut out = vec![f64::NAN; order.len()];
    let width = if dtype == MatmulType::I4 { 2 } else { 4 };
    for (at, (row, column)) in order.iter().enumerate() {
        let b = &bytes[at * width..(at + 1) * width];
        out[row * columns + column] = match dtype {
            MatmulType::I8 => f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            MatmulType::I4 => f64::from(i16::from_le_bytes([b[0], b[1]])),
            _ => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        };
    }
    out
}

/// A context with its three memories.
pub struct Rig {
    pub context: Context,
    pub keeper: Arc<Context>,
    pub a: Memory,
    pub b: Memory,
    pub c: Memory,
    pub spec: MatmulSpec,
    soc: String,
}

impl Rig {
    pub fn new(library: &Library, spec: MatmulSpec) -> Self {
        let mut context = Context::create(library, spec).unwrap_or_else(|error| panic!("{error}"));
        let keeper = Arc::new(Context::create(library, spec).expect("a second one as well"));
        let [a, b, c] = [Operand::A, Operand::B, Operand::C]
            .map(|operand| keeper.allocate(context.operand_bytes(operand)).expect("memory"));
        context.bind(Operand::A, &a.binding()).expect("A fits");
        context.bind(Operand::C, &c.binding()).expect("C fits");
        let soc = library.emulated_soc().expect("emulated").to_owned();
        Self { context, keeper, a, b, c, spec, soc }
    }

    pub fn write(&mut self, a: &[u16], b: &[u16]) {
        let MatmulSpec { dtype, rows, k, n, b_layout, ac_layout, .. } = self.spec;
        let block = blocks(&self.soc, dtype).0;
        let bytes = encode(dtype, &order(ac_layout, rows, k, block), k, a);
        self.a.as_mut_slice().copy_from_slice(&bytes);
        let bytes = encode(dtype, &order_b(b_layout, &self.soc, dtype, k, n), n, b);
        self.b.as_mut_slice().copy_from_slice(&bytes);
    }

    /// Syncs the inputs, binds B (which converts it when it is row-major), runs, reads C.
    pub fn run(&mut self) -> Vec<f64> {
        self.a.sync_to_device().expect("sync A");
        self.b.sync_to_device().expect("sync B");
        self.context.bind(Operand::B, &self.b.binding()).expect("B fits");
        self.context.run().expect("run");
        self.c.sync_from_device().expect("sync C");
        self.read()
    }

    pub fn read(&self) -> Vec<f64> {
        let MatmulSpec { dtype, rows, n, ac_layout, .. } = self.spec;
        let block = blocks(&self.soc, dtype).2;
        decode(dtype, &order(ac_layout, rows, n, block), n, self.c.as_slice())
    }
}

/// Runs a random product through the library and compares it with the plain one.
pub fn compare(library: &Library, spec: MatmulSpec, seed: u64) {
    let MatmulSpec { dtype, rows, k, n, .. } = spec;
    let mut random = Random(seed);
    let (a, b) = (random.matrix(dtype, rows * k), random.matrix(dtype, k * n));
    let mut rig = Rig::new(library, spec);
    rig.write(&a, &b);
    let got = rig.run();
    let want = product(dtype, rows, k, n, &a, &b);
    for (at, (got, want)) in got.iter().zip(&want).enumerate() {
        // f32 sums of values within ±4: each of k roundings is at most 2⁻²⁴ of a partial sum below 4·k.
        let slack = if dtype == MatmulType::F16 { (k * k) as f64 * 4.0 / f64::from(1 << 24) } else { 0.0 };
        assert!((got - want).abs() <= slack, "{spec} element {at}: got {got}, want {want}");
    }
}

/// What starts this binary, with its arguments, when it cannot be started directly.
pub const RUNNER: &str = "NPU_EMULATOR_TEST_RUNNER";

/// Set in the children that [`in_child`] starts.
pub const CHILD: &str = "NPU_EMULATOR_TEST_CHILD";

/// Runs one test of this same binary in a child with the chip set; its output and whether it passed.
pub fn on_chip(soc: &str, test: &str) -> (bool, String) {
    let (status, text) = in_child(test, &[("RKNPU_EMU_SOC", soc)]);
    (status.success(), text)
}

/// Runs one test of this same binary in a child with these variables; how it ended and what it wrote.
pub fn in_child(test: &str, variables: &[(&str, &str)]) -> (ExitStatus, String) {
    let exe = std::env::current_exe().expect("a test knows its path");
    // Where this machine cannot start its own binary, a runner (an instruction set emulator) is named.
    let runner = std::env::var(RUNNER).unwrap_or_default();
    let mut words = runner.split_whitespace().map(OsStr::new).chain([exe.as_os_str()]);
    let out = std::process::Command::new(words.next().expect("one at least"))
        .args(words)
        .args(["--exact", test, "--nocapture"])
        .envs(variables.iter().copied())
        .env(CHILD, "1")
        .output()
        .expect("a test starts");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status, text)
}

/// Whether this process was started by [`on_chip`] or [`in_child_on_rk3588`].
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs one test of this same binary in a child on rk3588 with more variables; whether it passed, and its output.
pub fn in_child_on_rk3588(test: &str, variables: &[(&str, &str)]) -> (bool, String) {
    let exe = std::env::current_exe().expect("a test knows its path");
    let out = std::process::Command::new(exe)
        .args(["--exact", test, "--nocapture"])
        .env("RKNPU_EMU_SOC", "rk3588")
        .env(CHILD, "1")
        .envs(variables.iter().copied())
        .output()
        .expect("a test starts");
    let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), text)
}
