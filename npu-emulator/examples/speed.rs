//! Measures in GOPS (2·M·K·N / time): the kernels of one thread with the best instruction set and the scalar
//! reference in the same run, that they agree, and whole runs of contexts with NATIVE operands, of every type,
//! two threads at once with a context each, both added up.
//!
//! `cargo run --release -p npu-emulator --example speed`

use std::sync::Barrier;
use std::time::Instant;

use half::f16;
use npu_emulator::accepted::TYPES_VARIABLE;
use npu_emulator::dtype::Dtype;
use npu_emulator::kernels::{f16_panel, i8_panel, Isa, Panel, Segment};
use npu_emulator::{context, memory};
use rknn_sys::sys::{rknn_matmul_info, rknn_matmul_io_attr};

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

/// Threads of the whole runs.
const THREADS: usize = 2;

/// Windows of 50 ms in which they are counted.
const WINDOWS: usize = 5;

fn main() {
    // Before any other thread, and before the chip is asked for: RK3588 with the types that it lacks.
    std::env::set_var(TYPES_VARIABLE, "+5,+7");
    println!("best instruction set: {:?}; kernels of one thread", Isa::best());
    println!("{:>4} {:>5} {:>6}  {:>9} {:>9}  {:>9} {:>9}", "M", "K", "N", "i8", "scalar", "f16", "scalar");
    for (m, k, n) in SHAPES {
        let [[i8, i8_scalar], [f16, f16_scalar]] = kernels(m, k, n);
        println!("{m:>4} {k:>5} {n:>6}  {i8:>9.1} {i8_scalar:>9.1}  {f16:>9.1} {f16_scalar:>9.1}");
    }
    println!("whole runs, {THREADS} threads added up");
    print!("{:>4} {:>5} {:>6} ", "M", "K", "N");
    Dtype::ALL.iter().for_each(|dtype| print!(" {:>9}", format!("{dtype:?}")));
    println!();
    for (m, k, n) in SHAPES {
        print!("{m:>4} {k:>5} {n:>6} ");
        Dtype::ALL.iter().for_each(|dtype| print!(" {:>9.1}", whole_runs(*dtype, m, k, n)));
        println!();
    }
}

/// [best, scalar] of i8 and of f16.
fn kernels(m: usize, k: usize, n: usize) -> [[f64; 2]; 2] {
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
    speeds
}

/// GOPS of the runs of a context a thread, with A converted and C stored: what the threads did together in the
/// best of some windows of time, because other work on the machine takes its share.
fn whole_runs(dtype: Dtype, m: usize, k: usize, n: usize) -> f64 {
    let start = Barrier::new(THREADS);
    let work = || {
        let (handle, io) = context_of(dtype, m, k, n);
        let context = context::find(handle).expect("just made");
        for (name, attr) in [("A", io.A), ("B", io.B), ("C", io.C)] {
            let view = memory::view(memory::create(attr.size.into(), 1)).expect("memory");
            // Pages that were never touched are all one page of zeros, faster than memory is.
            memory::sync(&view, 1).expect("a mode");
            context.bind(name, view).expect("it fits");
        }
        context.run().expect("bound");
        let mut speeds = [0.0; WINDOWS];
        for speed in &mut speeds {
            start.wait();
            let (begin, mut runs) = (Instant::now(), 0);
            while begin.elapsed().as_millis() < 50 {
                context.run().expect("bound");
                runs += 1;
            }
            *speed = f64::from(runs) * 2.0 * (m * k * n) as f64 / begin.elapsed().as_secs_f64() / 1e9;
        }
        context::destroy(handle).expect("live");
        speeds
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let speeds: Vec<_> = threads.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        (0..WINDOWS).map(|at| speeds.iter().map(|speeds| speeds[at]).sum()).fold(0.0, f64::max)
    })
}

fn context_of(dtype: Dtype, m: usize, k: usize, n: usize) -> (u64, rknn_matmul_io_attr) {
    // SAFETY: zero is valid for a plain struct.
    let mut info: rknn_matmul_info = unsafe { std::mem::zeroed() };
    (info.M, info.K, info.N, info.type_) = (m as i32, k as i32, n as i32, dtype.code());
    (info.B_layout, info.AC_layout) = (1, 1);
    context::create(&info).expect("a shape that the chip has")
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
