//! Measures one thread in GOPS (2·M·K·N / time): the kernels with the best instruction set and the scalar
//! reference in the same run, that they agree, and whole runs of an i8 context with NATIVE operands.
//!
//! `cargo run --release -p npu-emulator --example speed`

use std::time::Instant;

use half::f16;
use npu_emulator::kernels::{f16_panel, i8_panel, Isa, Panel, Segment};
use npu_emulator::{context, memory};
use rknn_sys::sys::rknn_matmul_info;

const SHAPES: [(usize, usize, usize); 8] = [
    (1, 576, 576),
    (1, 576, 49152),
    (1, 4096, 4096),
    (4, 576, 1536),
    (32, 1536, 576),
    (128, 1024, 1024),
    (512, 576, 1536),
    (512, 1536, 576),
];

fn main() {
    println!("best instruction set: {:?}", Isa::best());
    println!(
        "{:>4} {:>5} {:>6}  {:>9} {:>9}  {:>9} {:>9}  {:>9}",
        "M", "K", "N", "i8", "scalar", "f16", "scalar", "i8 run"
    );
    for (m, k, n) in SHAPES {
        let operations = 2.0 * (m * k * n) as f64;
        let b8: Vec<u8> = (0..k * n).map(|at| (at * 37 + at / 251) as u8).collect();
        let a8: Vec<i16> = (0..m * k).map(|at| (at * 91 % 255) as i16 - 127).collect();
        let b16: Vec<u8> =
            b8.iter().flat_map(|b| f16::from_f32(f32::from(*b as i8) / 64.0).to_le_bytes()).collect();
        let a16: Vec<f32> = a8.iter().map(|a| f32::from(*a) / 64.0).collect();
        let mut speeds = [[0.0; 2]; 2];
        let mut sums = [0i64; 2];
        for (which, isa) in [Isa::best(), Isa::Scalar].into_iter().enumerate() {
            let mut out = vec![0i32; m * 32];
            speeds[0][which] = measure(operations, || {
                sums[which] = 0;
                for panel in b8.chunks_exact(k * 32) {
                    let segments = [Segment { base: panel.as_ptr(), k_blocks: k / 32 }];
                    let panel = Panel { segments: &segments, columns: 32, block_k: 32 };
                    // SAFETY: the segment is the slice.
                    unsafe { i8_panel(isa, &a8, m, &panel, &mut out) };
                    sums[which] += out.iter().map(|value| i64::from(*value)).sum::<i64>();
                }
            });
            let mut out = vec![0f32; m * 16];
            speeds[1][which] = measure(operations, || {
                for panel in b16.chunks_exact(k * 32) {
                    let segments = [Segment { base: panel.as_ptr(), k_blocks: k / 32 }];
                    let panel = Panel { segments: &segments, columns: 16, block_k: 32 };
                    // SAFETY: the segment is the slice.
                    unsafe { f16_panel(isa, &a16, m, &panel, &mut out) };
                }
            });
        }
        assert_eq!(sums[0], sums[1], "the kernels disagree");
        let [i8s, f16s] = speeds;
        let ([i8, i8_scalar], [f16, f16_scalar]) = (i8s, f16s);
        let run = whole_run(m, k, n);
        print!("{m:>4} {k:>5} {n:>6}  {i8:>9.1} {i8_scalar:>9.1}  ");
        println!("{f16:>9.1} {f16_scalar:>9.1}  {run:>9.1}");
    }
}

/// GOPS of a context's run, with A converted and C stored.
fn whole_run(m: usize, k: usize, n: usize) -> f64 {
    // SAFETY: zero is valid for a plain struct.
    let mut info: rknn_matmul_info = unsafe { std::mem::zeroed() };
    (info.M, info.K, info.N, info.type_) = (m as i32, k as i32, n as i32, 2);
    (info.B_layout, info.AC_layout) = (1, 1);
    let (handle, _) = context::create(&info).expect("a shape that the chip has");
    let context = context::find(handle).expect("just made");
    for (name, bytes) in [("A", m * k), ("B", k * n), ("C", m * n * 4)] {
        let view = memory::view(memory::create(bytes as u64, 1)).expect("memory");
        // Pages that were never touched are all one page of zeros, faster than memory is.
        memory::sync(&view, 1).expect("a mode");
        context.bind(name, view).expect("it fits");
    }
    let speed = measure(2.0 * (m * k * n) as f64, || context.run().expect("bound"));
    context::destroy(handle).expect("live");
    speed
}

/// The best of up to a hundred runs within a quarter of a second, in GOPS.
fn measure(operations: f64, mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::INFINITY;
    for _ in 0..100 {
        let once = Instant::now();
        run();
        best = best.min(once.elapsed().as_secs_f64());
        if start.elapsed().as_millis() > 250 {
            break;
        }
    }
    operations / best / 1e9
}
