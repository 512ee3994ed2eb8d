//! Contexts of several M.

mod common;

use common::raw::{
    bind, filled, info, numbers, operands, set_shape, sums, synced, try_create, try_create_dynamic,
};
use common::{blocks, encode, order, order_b};
use npu_emulator::exports::*;
use rknn_sys::{Layout, MatmulType};

const SHAPES: [(i32, i32, i32); 4] = [(4, 64, 32), (1, 64, 32), (9, 64, 32), (5, 64, 32)];

#[test]
fn each_shape_gets_what_a_context_of_its_own_would() {
    for (b_layout, ac_layout) in [(0, 0), (1, 1), (2, 1)] {
        let mut all = info(2, 0, 0, 0);
        (all.B_layout, all.AC_layout) = (b_layout, ac_layout);
        let (ctx, io) = try_create_dynamic(all, &SHAPES).expect("good shapes");
        for ((m, k, n), io) in SHAPES.into_iter().zip(io) {
            let (alone, want) =
                try_create(sys_info(all, m, k, n)).expect("the same shape in a context of its own");
            for (got, want) in [(io.A, want.A), (io.B, want.B), (io.C, want.C)] {
                assert_eq!((got.name[0], got.size, got.type_), (want.name[0], want.size, want.type_));
                assert_eq!((got.n_dims, got.dims), (want.n_dims, want.dims));
            }
            assert_eq!(io.A.size, (m * k) as u32);
            assert_eq!(io.C.size, (m * n * 4) as u32);
            // SAFETY: takes no pointer.
            assert_eq!(unsafe { rknn_matmul_destroy(alone) }, 0);
        }
        // SAFETY: takes no pointer.
        assert_eq!(unsafe { rknn_matmul_destroy(ctx) }, 0);
    }
}

fn sys_info(
    mut info: rknn_sys::sys::rknn_matmul_info,
    m: i32,
    k: i32,
    n: i32,
) -> rknn_sys::sys::rknn_matmul_info {
    (info.M, info.K, info.N) = (m, k, n);
    info
}

#[test]
fn a_run_computes_the_current_shape_and_writes_no_more() {
    let (kind, soc, (k, n)) = (MatmulType::I8, "rk3588", (64, 32));
    let (a_block, _, c_block) = blocks(soc, kind);
    let (ctx, _) = try_create_dynamic(info(2, 0, 0, 0), &SHAPES).expect("good shapes");
    let (_, b) = operands(2, (1, k, n), 1);
    let mem_b = filled(ctx, &encode(kind, &order_b(Layout::Native, soc, kind, k, n), n, &b));
    let (mem_a, mem_c) = (filled(ctx, &[0; 9 * 64]), filled(ctx, &[0; 9 * 32 * 4]));
    for (mem, name) in [(mem_a, b"A"), (mem_b, b"B"), (mem_c, b"C")] {
        assert_eq!(bind(ctx, mem, name), 0);
    }
    // Without a set the first shape is current.
    for m in [None, Some(9), Some(1), Some(5), Some(4)] {
        if let Some(m) = m {
            assert_eq!(set_shape(ctx, m, 64, 32), 0);
        }
        let m = m.unwrap_or(4) as usize;
        let (a, _) = operands(2, (m, k, n), m as u64);
        let bytes = encode(kind, &order(Layout::Native, m, k, a_block), k, &a);
        // SAFETY: live handles and memories of the largest shape.
        unsafe {
            (*mem_a).virt_addr.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            (*mem_c).virt_addr.cast::<u8>().write_bytes(0x5a, 9 * n * 4);
            assert_eq!(rknn_mem_sync(ctx, mem_a, 1), 0);
            assert_eq!(rknn_mem_sync(ctx, mem_c, 1), 0);
            assert_eq!(rknn_matmul_run(ctx), 0);
        }
        let c = synced(ctx, mem_c, 9 * n * 4);
        let order = order(Layout::Native, m, n, c_block);
        assert_eq!(numbers(2, &order, n, &c), sums(2, (m, k, n), &a, &b), "M {m}");
        assert!(c[m * n * 4..].iter().all(|byte| *byte == 0x5a), "M {m}: past the end");
    }
    // SAFETY: live handles.
    unsafe {
        for mem in [mem_a, mem_b, mem_c] {
            assert_eq!(rknn_destroy_mem(ctx, mem), 0);
        }
        assert_eq!(rknn_matmul_destroy(ctx), 0);
    }
}

#[test]
fn shapes_that_were_not_created_are_refused_and_change_nothing() {
    let (ctx, io) = try_create_dynamic(info(2, 77, 0, -1), &SHAPES).expect("M, K, N of info do not count");
    for (m, k, n) in [(2, 64, 32), (0, 64, 32), (-4, 64, 32), (4, 32, 32), (4, 64, 64), (i32::MAX, 64, 32)] {
        assert_eq!(set_shape(ctx, m, k, n), -5, "{m}, {k}, {n}");
    }
    // Memories must hold the largest shape, whichever is current.
    assert_eq!(set_shape(ctx, 1, 64, 32), 0);
    let mems = [io[1].A, io[1].C, io[2].A, io[2].C].map(|attr| filled(ctx, &vec![0; attr.size as usize]));
    assert_eq!(bind(ctx, mems[0], b"A"), -5);
    assert_eq!(bind(ctx, mems[1], b"C"), -5);
    assert_eq!(bind(ctx, mems[2], b"A"), 0);
    assert_eq!(bind(ctx, mems[3], b"C"), 0);
    // SAFETY: live handles.
    unsafe {
        for mem in mems {
            assert_eq!(rknn_destroy_mem(ctx, mem), 0);
        }
        assert_eq!(rknn_matmul_destroy(ctx), 0);
    }
}

#[test]
fn only_m_may_vary_and_every_shape_must_be_good() {
    for shapes in [
        &[(1, 64, 32), (1, 32, 32)][..],
        &[(1, 64, 32), (1, 64, 64)],
        &[(1, 64, 32), (0, 64, 32)],
        &[(1, 64, 32), (-1, 64, 32)],
        &[(1, 63, 32)],
        &[(1, 64, 33)],
        &[(1, 10272, 32)],
        &[(1, 64, 32), (i32::MAX, 64, 32)],
    ] {
        assert_eq!(try_create_dynamic(info(2, 1, 64, 32), shapes).err(), Some(-5), "{shapes:?}");
    }
    let (ctx, _) = try_create(info(2, 4, 64, 32)).expect("a plain create");
    assert_eq!(set_shape(ctx, 4, 64, 32), 0, "is one of one shape");
    assert_eq!(set_shape(ctx, 5, 64, 32), -5);
    // SAFETY: takes no pointer.
    assert_eq!(unsafe { rknn_matmul_destroy(ctx) }, 0);
}
