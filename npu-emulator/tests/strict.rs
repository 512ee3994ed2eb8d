//! Each misuse in a process of its own: in strict mode one line, a backtrace and the end; else the vendor's code.

mod common;

use std::os::unix::process::ExitStatusExt;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

use common::in_child;
use common::raw::{bind, filled, info, set_scales, set_shape, try_create, try_create_dynamic};
use npu_emulator::exports::*;
use rknn_sys::sys::{rknn_matmul_info, rknn_tensor_mem};

const CASE: &str = "NPU_EMULATOR_TEST_CASE";

/// What is misused, the code that it gets (0: a null memory), the call and the words of its line.
type Case = (&'static str, i32, &'static str, &'static str, fn() -> i32);

fn code(change: fn(&mut rknn_matmul_info)) -> i32 {
    let mut info = info(2, 4, 64, 64);
    change(&mut info);
    try_create(info).map(|(ctx, _)| ctx).expect_err("refused")
}

fn context() -> u64 {
    try_create(info(2, 1, 32, 32)).expect("a good shape").0
}

/// A context with everything bound, and the memories.
fn ready() -> (u64, [*mut rknn_tensor_mem; 3]) {
    let ctx = context();
    let mems = [(b"A", 32), (b"B", 1024), (b"C", 128)].map(|(name, size)| {
        let mem = filled(ctx, &vec![0; size]);
        assert_eq!(bind(ctx, mem, name), 0);
        mem
    });
    (ctx, mems)
}

fn destroyed(which: usize) -> u64 {
    let (ctx, mems) = ready();
    // SAFETY: live handles.
    assert_eq!(unsafe { rknn_destroy_mem(ctx, mems[which]) }, 0);
    ctx
}

/// Runs a large product in two threads at once until one of them is refused.
fn two_threads() -> i32 {
    let (ctx, _) = try_create(info(2, 64, 2048, 1024)).expect("a good shape");
    for (name, size) in [(b"A", 64 * 2048), (b"B", 2048 * 1024), (b"C", 64 * 1024 * 4)] {
        assert_eq!(bind(ctx, filled(ctx, &vec![0; size]), name), 0);
    }
    let done = AtomicBool::new(false);
    let hammer = || loop {
        // SAFETY: takes no pointer.
        let code = unsafe { rknn_matmul_run(ctx) };
        if code != 0 || done.load(Ordering::Relaxed) {
            done.store(true, Ordering::Relaxed);
            return code;
        }
    };
    std::thread::scope(|scope| {
        [scope.spawn(hammer), scope.spawn(hammer)].map(|thread| thread.join().expect("no panic")).iter().sum()
    })
}

/// Everything that the calls check.
const CASES: &[Case] = &[
    ("type", -5, "rknn_matmul_create", "unsupported matmul dtype 11 in this platform", || {
        code(|i| i.type_ = 11)
    }),
    ("alignment of K", -5, "rknn_matmul_create", "K(48) must be align with 32", || code(|i| i.K = 48)),
    ("alignment of N", -5, "rknn_matmul_create", "N(48) must be align with 32", || code(|i| i.N = 48)),
    ("K limit", -5, "rknn_matmul_create", "K(10272) > limit(10240)", || code(|i| i.K = 10272)),
    ("size", -5, "rknn_matmul_create", "M(-3) must be positive", || code(|i| i.M = -3)),
    ("layout", -5, "rknn_matmul_create", "layout 2 is none of A and C's", || code(|i| i.AC_layout = 2)),
    ("domain", -5, "rknn_matmul_create", "iommu domain 16 is not within 0..16", || {
        code(|i| i.iommu_domain_id = 16)
    }),
    ("reserved", -5, "rknn_matmul_create", "reserved bytes are not zero", || code(|i| i.reserved[3] = 1)),
    ("core mask", -5, "rknn_matmul_set_core_mask", "core mask 0x7 is not one of 3 cores", || {
        // SAFETY: takes no pointer.
        unsafe { rknn_matmul_set_core_mask(context(), 7) }
    }),
    ("two K", -5, "rknn_matmul_create_dynamic_shape", "K=32, N=32 after K=64, N=32", || {
        try_create_dynamic(info(2, 0, 0, 0), &[(1, 64, 32), (1, 32, 32)]).map(|_| ()).expect_err("refused")
    }),
    (
        "scales",
        -5,
        "rknn_matmul_set_quant_params",
        "2 scales and 1 zero points for B: give one of each",
        || set_scales(context(), b"B", &mut [1.0, 1.0], &mut [0]),
    ),
    ("zero point", -5, "rknn_matmul_set_quant_params", "scale 0.5 and zero point 3 of A", || {
        set_scales(context(), b"A", &mut [0.5], &mut [3])
    }),
    ("quantised name", -5, "rknn_matmul_set_quant_params", "no operand is called \"D\"", || {
        set_scales(context(), b"D", &mut [0.5], &mut [0])
    }),
    ("no such shape", -5, "rknn_matmul_set_dynamic_shape", "M=2, K=32, N=32 is none of", || {
        set_shape(context(), 2, 32, 32)
    }),
    ("buffer", -5, "rknn_matmul_set_io_mem", "B takes 1024 bytes, the memory has 1023", || {
        let ctx = context();
        bind(ctx, filled(ctx, &[0; 1023]), b"B")
    }),
    ("name", -5, "rknn_matmul_set_io_mem", "no operand is called \"D\"", || {
        let ctx = context();
        bind(ctx, filled(ctx, &[0; 1024]), b"D")
    }),
    (
        "other domain",
        -5,
        "rknn_matmul_set_io_mem",
        "A is a memory of domain 0, the context is of domain 3",
        || {
            let mut info = info(2, 1, 32, 32);
            info.iommu_domain_id = 3;
            let (ctx, _) = try_create(info).expect("a good domain");
            bind(ctx, filled(context(), &[0; 32]), b"A")
        },
    ),
    ("use after free", -5, "rknn_mem_sync", "is no live memory: it was destroyed", || {
        let (ctx, mems) = ready();
        // SAFETY: the second handle is bad, as the test wants it.
        unsafe {
            assert_eq!(rknn_destroy_mem(ctx, mems[0]), 0);
            rknn_mem_sync(ctx, mems[0], 1)
        }
    }),
    ("double free", -5, "rknn_destroy_mem", "is no live memory: it was destroyed", || {
        let (ctx, mems) = ready();
        // SAFETY: the second handle is bad, as the test wants it.
        unsafe {
            assert_eq!(rknn_destroy_mem(ctx, mems[0]), 0);
            rknn_destroy_mem(ctx, mems[0])
        }
    }),
    ("never a memory", -5, "rknn_destroy_mem", "0x10 is no live memory\n", || {
        // SAFETY: looked up, never read.
        unsafe { rknn_destroy_mem(context(), 16 as *mut _) }
    }),
    ("freed A", -8, "rknn_matmul_run", "the memory bound as A was destroyed since", || {
        // SAFETY: takes no pointer.
        unsafe { rknn_matmul_run(destroyed(0)) }
    }),
    ("freed C", -9, "rknn_matmul_run", "the memory bound as C was destroyed since", || {
        // SAFETY: takes no pointer.
        unsafe { rknn_matmul_run(destroyed(2)) }
    }),
    ("context after free", -7, "rknn_matmul_run", "is no live context: it was destroyed", || {
        let (ctx, _) = ready();
        // SAFETY: takes no pointer.
        unsafe {
            assert_eq!(rknn_matmul_destroy(ctx), 0);
            rknn_matmul_run(ctx)
        }
    }),
    ("context double free", -7, "rknn_matmul_destroy", "is no live context: it was destroyed", || {
        let ctx = context();
        // SAFETY: takes no pointer.
        unsafe {
            assert_eq!(rknn_matmul_destroy(ctx), 0);
            rknn_matmul_destroy(ctx)
        }
    }),
    ("nothing bound", -8, "rknn_matmul_run", "A or B is not bound", || {
        // SAFETY: takes no pointer.
        unsafe { rknn_matmul_run(context()) }
    }),
    ("two threads", -1, "rknn_matmul_run", "the context is in use by another thread", two_threads),
    ("null", -5, "rknn_matmul_set_io_mem", "a pointer is null", || {
        let (ctx, mems) = ready();
        // SAFETY: null is what is tested.
        unsafe { rknn_matmul_set_io_mem(ctx, mems[0], null_mut()) }
    }),
    ("sync mode", -5, "rknn_mem_sync", "sync mode 4 is none of 1, 2, 3", || {
        let (ctx, mems) = ready();
        // SAFETY: live handles.
        unsafe { rknn_mem_sync(ctx, mems[0], 4) }
    }),
    ("empty memory", 0, "rknn_create_mem", "a memory cannot have 0 bytes", || {
        // SAFETY: takes no pointer.
        i32::from(!unsafe { rknn_create_mem(context(), 0) }.is_null())
    }),
    ("flags", 0, "rknn_create_mem2", "memory flags 0x3 are unknown or contradict", || {
        // SAFETY: takes no pointer.
        i32::from(!unsafe { rknn_create_mem2(context(), 64, 3) }.is_null())
    }),
    ("view", 0, "rknn_create_mem_from_fd", "a view of 33 bytes at 0 does not fit 32 bytes", || {
        let (ctx, [mem, ..]) = ready();
        // SAFETY: live handles; the range is what is tested.
        unsafe { i32::from(!rknn_create_mem_from_fd(ctx, (*mem).fd, (*mem).virt_addr, 33, 0).is_null()) }
    }),
    ("foreign fd", 0, "rknn_create_mem_from_fd", "fd -1 is not of an allocation of mine", || {
        let (ctx, [mem, ..]) = ready();
        // SAFETY: live handles; the descriptor is what is tested.
        unsafe { i32::from(!rknn_create_mem_from_fd(ctx, -1, (*mem).virt_addr, 32, 0).is_null()) }
    }),
];

/// Only in the children of the tests below: one misuse, whose code must come back.
#[test]
fn child_misuses() {
    let Ok(name) = std::env::var(CASE) else { return };
    let (_, want, .., misuse) = CASES.iter().find(|case| case.0 == name).expect("a case");
    assert_eq!(misuse(), *want);
}

#[test]
fn strict_mode_ends_in_one_line_a_backtrace_and_an_abort() {
    for (name, _, call, words, _) in CASES {
        let (status, text) = in_child("child_misuses", &[(CASE, name), ("RKNPU_EMU_STRICT", "1")]);
        assert_eq!(status.signal(), Some(libc::SIGABRT), "{name}:\n{text}");
        // Two threads may both be refused before one of them ends the process.
        let lines = text.lines().filter(|line| line.contains("npu-emulator: ")).count();
        assert!(lines == 1 || *name == "two threads", "{name}:\n{text}");
        let line = text.split_once(&format!("npu-emulator: {call}: ")).unwrap_or_else(|| panic!("{text}")).1;
        assert!(line.contains(words), "{name}:\n{text}");
        let trace = line.split_once('\n').expect("a line").1;
        assert!(trace.contains(&format!(": {call}\n")), "{name}: the backtrace names the call\n{text}");
    }
}

#[test]
fn without_it_the_same_misuse_gets_the_code_and_the_line() {
    for (name, _, call, words, _) in CASES {
        let (status, text) = in_child("child_misuses", &[(CASE, name), ("RKNPU_EMU_STRICT", "0")]);
        assert!(status.success(), "{name}:\n{text}");
        let line = text.split_once(&format!("npu-emulator: {call}: ")).unwrap_or_else(|| panic!("{text}")).1;
        assert!(line.contains(words), "{name}:\n{text}");
    }
}

/// Only in the child of the next test: correct use, and running out.
#[test]
fn child_uses_correctly() {
    if std::env::var(CASE).as_deref() != Ok("correct") {
        return;
    }
    let (ctx, [a, ..]) = ready();
    // SAFETY: live handles. The pages are never touched.
    unsafe {
        assert_eq!(rknn_matmul_run(ctx), 0);
        let half = [(); 2].map(|()| rknn_create_mem2(ctx, 3 << 30, 1));
        assert_eq!(bind(ctx, half[0], b"A"), 0);
        assert_eq!(bind(ctx, half[1], b"B"), -4, "the domain is used up");
        assert_eq!(bind(ctx, a, b"A"), 0);
        half.iter().for_each(|mem| assert_eq!(rknn_destroy_mem(ctx, *mem), 0));
        assert_eq!(rknn_matmul_run(ctx), 0);
        assert_eq!(rknn_matmul_destroy(ctx), 0);
    }
}

#[test]
fn running_out_is_no_misuse() {
    let (status, text) = in_child("child_uses_correctly", &[(CASE, "correct"), ("RKNPU_EMU_STRICT", "1")]);
    assert!(status.success() && text.contains("no I/O address space for"), "{text}");
}
