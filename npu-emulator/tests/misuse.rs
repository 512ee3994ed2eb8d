//! What a caller can do wrong ends in the vendor's code, never in a crash.

mod common;

use std::ffi::CStr;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, Ordering};

use common::raw::{self, bind, info, named};
use common::{on_chip, product, spec, Random, Rig};
use npu_emulator::exports::*;
use rknn_sys::sys::{self, rknn_matmul_info, rknn_tensor_mem};
use rknn_sys::MatmulType;

/// A create's handle or code.
fn try_create(info: rknn_matmul_info) -> Result<u64, i32> {
    raw::try_create(info).map(|(ctx, _)| ctx)
}

fn create(m: i32, k: i32, n: i32) -> u64 {
    try_create(info(2, m, k, n)).expect("a good shape")
}

#[test]
fn a_create_refuses_what_the_chip_refuses() {
    let refused = |change: fn(&mut rknn_matmul_info)| {
        let mut info = info(2, 4, 64, 64);
        change(&mut info);
        try_create(info).expect_err("refused")
    };
    assert_eq!(refused(|i| i.type_ = 5), -5);
    assert_eq!(refused(|i| i.type_ = -1), -5);
    assert_eq!(refused(|i| (i.M, i.K, i.N) = (0, 64, 64)), -5);
    assert_eq!(refused(|i| i.M = -1), -5);
    assert_eq!(refused(|i| i.K = i32::MIN), -5);
    assert_eq!(refused(|i| i.K = 48), -5);
    assert_eq!(refused(|i| i.K = 10272), -5);
    assert_eq!(refused(|i| i.N = 48), -5);
    assert_eq!(refused(|i| i.iommu_domain_id = 16), -5);
    assert_eq!(refused(|i| i.iommu_domain_id = -1), -5);
    assert_eq!(refused(|i| i.AC_layout = 2), -5);
    assert_eq!(refused(|i| i.B_layout = 3), -5);
    assert_eq!(refused(|i| i.B_quant_type = 2), -5);
    assert_eq!(refused(|i| i.AC_quant_type = 1), -5);
    assert_eq!(refused(|i| i.reserved[33] = 1), -5);
    assert_eq!(refused(|i| (i.M, i.N) = (1 << 20, 1 << 20)), -5);
    assert_eq!(refused(|i| (i.M, i.K, i.N) = (i32::MAX, 10240, i32::MAX - 31)), -5);
}

#[test]
fn null_pointers_are_refused() {
    let ctx = create(1, 32, 32);
    // SAFETY: nulls are what is tested; the rest is valid.
    unsafe {
        let (mut handle, mut io) = (0, std::mem::zeroed());
        assert_eq!(rknn_matmul_create(null_mut(), &mut info(2, 1, 32, 32), &mut io), -5);
        assert_eq!(rknn_matmul_create(&mut handle, null_mut(), &mut io), -5);
        assert_eq!(rknn_matmul_create(&mut handle, &mut info(2, 1, 32, 32), null_mut()), -5);
        let (mut shape, dynamic) =
            (sys::rknn_matmul_shape { M: 1, K: 32, N: 32 }, rknn_matmul_create_dynamic_shape);
        assert_eq!(dynamic(null_mut(), &mut info(2, 1, 32, 32), 1, &mut shape, &mut io), -5);
        assert_eq!(dynamic(&mut handle, null_mut(), 1, &mut shape, &mut io), -5);
        assert_eq!(dynamic(&mut handle, &mut info(2, 1, 32, 32), 1, null_mut(), &mut io), -5);
        assert_eq!(dynamic(&mut handle, &mut info(2, 1, 32, 32), 1, &mut shape, null_mut()), -5);
        for count in [0, -1, i32::MIN] {
            assert_eq!(dynamic(&mut handle, &mut info(2, 1, 32, 32), count, &mut shape, &mut io), -5);
        }
        assert_eq!(handle, 0);
        assert_eq!(rknn_matmul_set_io_mem(ctx, null_mut(), &mut named(b"A")), -5);
        let mem = rknn_create_mem(ctx, 32);
        assert_eq!(rknn_matmul_set_io_mem(ctx, mem, null_mut()), -5);
        assert_eq!(rknn_destroy_mem(ctx, null_mut()), -5);
        assert_eq!(rknn_mem_sync(ctx, null_mut(), 1), -5);
        assert!(rknn_create_mem_from_fd(ctx, (*mem).fd, null_mut(), 32, 0).is_null());
        assert_eq!(rknn_matmul_set_quant_params(ctx, null_mut()), -5);
        assert_eq!(rknn_matmul_get_quant_params(ctx, null_mut(), &mut 0.0), -5);
        assert_eq!(rknn_matmul_set_dynamic_shape(ctx, null_mut()), -5);
        assert_eq!(rknn_query(ctx, 5, null_mut(), 512), -5);
        assert_eq!(rknn_B_normal_layout_to_native_layout(null_mut(), null_mut(), 32, 32, null_mut()), -5);
        assert_eq!(rknn_destroy_mem(ctx, mem), 0);
        assert_eq!(rknn_matmul_destroy(ctx), 0);
    }
}

#[test]
fn handles_that_are_none_are_refused() {
    let (live, gone) = (create(1, 32, 32), create(1, 32, 32));
    // SAFETY: bad handles are what is tested.
    unsafe {
        let mem = rknn_create_mem(live, 32);
        assert_eq!(rknn_matmul_destroy(gone), 0);
        for ctx in [gone, 0, 1, u64::MAX] {
            assert_eq!(rknn_matmul_destroy(ctx), -7);
            assert_eq!(rknn_matmul_run(ctx), -7);
            assert_eq!(rknn_matmul_set_core_mask(ctx, 1), -7);
            assert_eq!(rknn_matmul_set_quant_params(ctx, null_mut()), -7);
            assert_eq!(rknn_matmul_get_quant_params(ctx, null_mut(), null_mut()), -7);
            assert_eq!(rknn_matmul_set_dynamic_shape(ctx, null_mut()), -7);
            assert_eq!(bind(ctx, mem, b"A"), -7);
            assert_eq!(rknn_query(ctx, 5, null_mut(), 0), -7);
            assert_eq!(rknn_mem_sync(ctx, mem, 1), -7);
            assert_eq!(rknn_destroy_mem(ctx, mem), -7);
            assert!(rknn_create_mem(ctx, 32).is_null());
            assert!(rknn_create_mem2(ctx, 32, 1).is_null());
            assert!(rknn_create_mem_from_fd(ctx, (*mem).fd, (*mem).virt_addr, 32, 0).is_null());
        }
        let mut forged = *mem;
        let forged: *mut rknn_tensor_mem = &mut forged;
        assert_eq!(rknn_destroy_mem(live, mem), 0);
        for mem in [mem, forged, std::ptr::dangling_mut()] {
            assert_eq!(bind(live, mem, b"A"), -5);
            assert_eq!(rknn_mem_sync(live, mem, 2), -5);
            assert_eq!(rknn_destroy_mem(live, mem), -5);
        }
        assert_eq!(rknn_matmul_destroy(live), 0);
    }
}

#[test]
fn an_operand_that_is_missing_small_or_misnamed_is_refused() {
    let ctx = create(2, 32, 32);
    // SAFETY: live handles.
    unsafe {
        let [a, b, c, small] = [64, 1024, 256, 63].map(|size| rknn_create_mem(ctx, size));
        assert_eq!(rknn_matmul_run(ctx), -8);
        assert_eq!(bind(ctx, a, b"A"), 0);
        assert_eq!(rknn_matmul_run(ctx), -8);
        assert_eq!(bind(ctx, b, b"B"), 0);
        assert_eq!(rknn_matmul_run(ctx), -9);
        for name in [b"A", b"B", b"C"] {
            assert_eq!(bind(ctx, small, name), -5);
        }
        for name in [&b"D"[..], b"", b"AB", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
            assert_eq!(bind(ctx, b, name), -5);
        }
        assert_eq!(bind(ctx, c, b"C"), 0);
        // What was refused has not replaced what was bound.
        assert_eq!(rknn_matmul_run(ctx), 0);
        for mem in [a, b, c, small] {
            assert_eq!(rknn_destroy_mem(ctx, mem), 0);
        }
        assert_eq!(rknn_matmul_destroy(ctx), 0);
    }
}

#[test]
fn memories_of_impossible_sizes_ranges_and_modes_are_refused() {
    let ctx = create(1, 32, 32);
    // SAFETY: live handles.
    unsafe {
        assert!(rknn_create_mem(ctx, 0).is_null());
        for (size, flags) in [(0, 1), (1 << 32, 1), (u64::MAX, 1), (64, 3), (64, 8), (64, u64::MAX)] {
            assert!(rknn_create_mem2(ctx, size, flags).is_null(), "{size} bytes, flags {flags:#x}");
        }
        let mem = rknn_create_mem(ctx, 4096);
        let (fd, base) = ((*mem).fd, (*mem).virt_addr);
        for (size, offset) in [(4097, 0), (1, 4096), (1, -1), (0, 0), (u32::MAX, i32::MAX), (4096, i32::MIN)]
        {
            assert!(rknn_create_mem_from_fd(ctx, fd, base, size, offset).is_null(), "{size} at {offset}");
        }
        for fd in [-1, 0, i32::MAX] {
            assert!(rknn_create_mem_from_fd(ctx, fd, base, 1, 0).is_null());
        }
        for mode in [0, 4, -1, i32::MIN] {
            assert_eq!(rknn_mem_sync(ctx, mem, mode), -5);
        }
        assert_eq!(rknn_mem_sync(ctx, mem, 3), 0);
        assert_eq!(rknn_destroy_mem(ctx, mem), 0);
        assert_eq!(rknn_matmul_destroy(ctx), 0);
    }
}

#[test]
fn core_masks_name_one_core_or_none() {
    let ctx = create(1, 32, 32);
    // SAFETY: a live handle.
    unsafe {
        for mask in [0, 1, 2, 4] {
            assert_eq!(rknn_matmul_set_core_mask(ctx, mask), 0);
        }
        for mask in [3, 5, 6, 7, 8, 0xffff, -1, i32::MIN] {
            assert_eq!(rknn_matmul_set_core_mask(ctx, mask), -5, "{mask:#x}");
        }
        assert_eq!(rknn_matmul_destroy(ctx), 0);
    }
}

#[test]
fn only_the_own_shape_is_taken() {
    let ctx = create(4, 64, 32);
    // SAFETY: live handles, valid pointers, zeroed plain structs.
    unsafe {
        let mut shape = sys::rknn_matmul_shape { M: 4, K: 64, N: 32 };
        assert_eq!(rknn_matmul_set_dynamic_shape(ctx, &mut shape), 0);
        shape.M = -4;
        assert_eq!(rknn_matmul_set_dynamic_shape(ctx, &mut shape), -5);
        assert_eq!(rknn_matmul_destroy(ctx), 0);
    }
}

#[test]
fn the_version_says_emulated_and_other_queries_are_refused() {
    let ctx = create(1, 32, 32);
    // SAFETY: a live handle, a struct of the size told, zero-terminated by the emulator.
    unsafe {
        let mut version: sys::rknn_sdk_version = std::mem::zeroed();
        let to = (&raw mut version).cast();
        assert_eq!(rknn_query(ctx, 5, to, 512), 0);
        assert_eq!(CStr::from_ptr(version.api_version.as_ptr()), c"2.3.2 (emulated)");
        assert_eq!(CStr::from_ptr(version.drv_version.as_ptr()), c"0.9.8 (emulated)");
        assert_eq!(rknn_query(ctx, 5, to, 511), -5);
        assert_eq!(rknn_query(ctx, 0, to, 512), -5);
        assert_eq!(rknn_matmul_destroy(ctx), 0);
    }
}

#[test]
fn two_threads_in_one_context_get_a_code_or_the_right_result() {
    let ctx = create(64, 2048, 1024);
    let done = AtomicBool::new(false);
    // SAFETY: live handles; the memories' bytes are only touched through the emulator.
    unsafe {
        for (name, size) in [(b"A", 64 * 2048), (b"B", 2048 * 1024), (b"C", 64 * 1024 * 4)] {
            let mem = rknn_create_mem(ctx, size);
            assert_eq!(bind(ctx, mem, name), 0);
        }
        let hammer = || {
            let mut refused = 0;
            for _ in 0..20_000 {
                match rknn_matmul_run(ctx) {
                    0 => (),
                    code => {
                        assert_eq!(code, -1);
                        refused += 1;
                        done.store(true, Ordering::Relaxed);
                    }
                }
                if done.load(Ordering::Relaxed) {
                    break;
                }
            }
            refused
        };
        let refused: u32 = std::thread::scope(|scope| {
            [scope.spawn(hammer), scope.spawn(hammer)].map(|t| t.join().expect("no panic")).iter().sum()
        });
        assert!(refused > 0, "two runs at once are noticed");
        assert_eq!(rknn_matmul_run(ctx), 0, "and the context works on");
        assert_eq!(rknn_matmul_destroy(ctx), 0);
    }
}

#[test]
fn contexts_of_several_threads_do_not_disturb_each_other() {
    let library = common::library();
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let library = &library;
            scope.spawn(move || {
                let mut random = Random(thread);
                let mut rig = Rig::new(library, spec(MatmulType::I8, 8, 256, 64));
                // Three pinned, three left to the library; pairs share a core.
                if thread < 3 {
                    rig.context.set_core(thread as usize).expect("rk3588 has three");
                }
                for _ in 0..20 {
                    let (a, b) =
                        (random.matrix(MatmulType::I8, 8 * 256), random.matrix(MatmulType::I8, 256 * 64));
                    rig.write(&a, &b);
                    assert_eq!(rig.run(), product(MatmulType::I8, 8, 256, 64, &a, &b));
                }
            });
        }
    });
}

/// Only in the child that the next test starts, which emulates no chip.
#[test]
fn child_has_an_unknown_chip() {
    if std::env::var("RKNPU_EMU_SOC").as_deref() != Ok("rk9999") {
        return;
    }
    assert_eq!(rknpu_emulator_soc(), null());
    assert_eq!(try_create(info(2, 1, 32, 32)), Err(-3));
    assert_eq!(try_create(info(2, 1, 32, 32)), Err(-3));
}

#[test]
fn an_unknown_chip_is_said_once_and_no_context_is_made() {
    let (passed, text) = on_chip("rk9999", "child_has_an_unknown_chip");
    assert!(passed, "{text}");
    let said = text.matches("npu-emulator: RKNPU_EMU_SOC=rk9999 is no chip that I know").count();
    assert_eq!(said, 1, "{text}");
}

#[test]
fn the_log_uses_the_vendors_words() {
    let (passed, text) = on_chip("rk3566", "child_is_refused_by_a_small_chip");
    assert!(passed, "{text}");
    for line in [
        "npu-emulator: rknn_matmul_create: unsupported matmul dtype 10 in this platform",
        "npu-emulator: rknn_matmul_create: K(10272) > limit(10240)",
        "npu-emulator: rknn_matmul_create: K(48) must be align with 32",
        "npu-emulator: rknn_matmul_create: N(24) must be align with 16",
        "npu-emulator: rknn_matmul_set_core_mask: core mask 0x2 is not one of 1 cores",
    ] {
        assert!(text.contains(line), "{line:?} is missing:\n{text}");
    }
}

/// Only in the child that the test above starts.
#[test]
fn child_is_refused_by_a_small_chip() {
    if std::env::var("RKNPU_EMU_SOC").as_deref() != Ok("rk3566") {
        return;
    }
    for (kind, k, n) in [(10, 64, 64), (2, 10272, 32), (2, 48, 32), (2, 32, 24)] {
        assert_eq!(try_create(info(kind, 1, k, n)), Err(-5));
    }
    let ctx = create(1, 32, 16);
    // SAFETY: takes no pointer.
    assert_eq!(unsafe { rknn_matmul_set_core_mask(ctx, 2) }, -5);
    // SAFETY: takes no pointer.
    assert_eq!(unsafe { CStr::from_ptr(rknpu_emulator_soc()) }, c"rk3566");
}
