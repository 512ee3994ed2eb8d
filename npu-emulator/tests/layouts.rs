//! Layouts of all chips: the formulas against nested loops, conversions as round trips, what a create tells.

mod common;

use common::{blocks, encode, order, order_b, segment, Random};
use npu_emulator::chip::{Chip, Dtype, CHIPS};
use npu_emulator::exports::*;
use npu_emulator::layout::{b_to_native, blocked, BShape, Layout};
use rknn_sys::sys;
use rknn_sys::MatmulType;

/// The facts' table, written a second time: (chip, type, K align, N align).
const ALIGN: [(&str, MatmulType, usize, usize); 11] = [
    ("rk3588", MatmulType::I8, 32, 32),
    ("rk3588", MatmulType::F16, 32, 16),
    ("rk3588", MatmulType::I4, 32, 64),
    ("rk3576", MatmulType::I8, 32, 32),
    ("rk3576", MatmulType::F16, 32, 16),
    ("rk3566", MatmulType::I8, 32, 16),
    ("rk3566", MatmulType::F16, 16, 8),
    ("rk3568", MatmulType::I8, 32, 16),
    ("rk3568", MatmulType::F16, 16, 8),
    ("rk3562", MatmulType::I8, 32, 16),
    ("rk3562", MatmulType::F16, 32, 8),
];

fn dtype(kind: MatmulType) -> Dtype {
    match kind {
        MatmulType::F16 => Dtype::F16,
        MatmulType::I8 => Dtype::I8,
        MatmulType::I4 => Dtype::I4,
        // They have tests of their own, in types.rs.
        MatmulType::F16I8 => Dtype::F16I8,
        MatmulType::F16I4 => Dtype::F16I4,
    }
}

#[test]
fn alignments_limits_and_types_are_the_facts() {
    for (name, kind, k_align, n_align) in ALIGN {
        let chip = Chip::by_name(name).expect("known");
        let code = dtype(kind).code();
        let limit = if name == "rk3576" { 4096 } else { 10240 };
        assert!(chip.check(code, limit, n_align).is_ok());
        assert_eq!(chip.check(code, limit + k_align, n_align).unwrap_err().0, -5, "K past the limit");
        assert!(chip.check(code, k_align, n_align).is_ok());
        for wrong in [k_align / 2, k_align + 1, k_align + k_align / 2] {
            assert_eq!(chip.check(code, wrong, n_align).unwrap_err().0, -5, "{name} {kind:?} K {wrong}");
        }
        for wrong in [n_align / 2, n_align - 1, n_align + n_align / 2] {
            assert_eq!(chip.check(code, k_align, wrong).unwrap_err().0, -5, "{name} {kind:?} N {wrong}");
        }
    }
    for chip in CHIPS {
        assert_eq!(chip.k_segment, segment(chip.name.to_str().expect("ASCII")));
    }
}

#[test]
fn formulas_agree_with_nested_loops() {
    for (name, kind, _, _) in ALIGN {
        let (a_block, b_block, c_block) = blocks(name, kind);
        let row = Chip::by_name(name).expect("known").check(dtype(kind).code(), 64, 64).expect("a row");
        assert_eq!((row.a_block, row.b_block, row.c_block), (a_block, b_block, c_block), "{name} {kind:?}");
        for (block, columns) in [(a_block, 96), (c_block, 64), (128, 128)] {
            for (at, (r, c)) in order(rknn_sys::Layout::Native, 5, columns, block).into_iter().enumerate() {
                assert_eq!(blocked(5, block, r, c), at);
            }
        }
        for k in [96, segment(name) + 64] {
            let shape = BShape::new(row, segment(name), k, 64);
            let expected = order_b(rknn_sys::Layout::Native, name, kind, k, 64);
            for (at, (k, n)) in expected.iter().enumerate() {
                assert_eq!(shape.index(Layout::Native, *k, *n), at);
            }
            let mut walked = Vec::new();
            shape.for_each_native(|k, n| walked.push((k, n)));
            assert_eq!(walked, expected);
        }
    }
}

#[test]
fn conversions_from_both_row_major_layouts_give_the_same_native_b() {
    let (k, n) = (96, 128);
    for (name, kind, _, _) in ALIGN {
        let row = Chip::by_name(name).expect("known").check(dtype(kind).code(), k, n).expect("a row");
        let shape = BShape::new(row, segment(name), k, n);
        let bits = Random(9).matrix(kind, k * n);
        let want = encode(kind, &order_b(rknn_sys::Layout::Native, name, kind, k, n), n, &bits);
        let norm = encode(kind, &order(rknn_sys::Layout::Norm, k, n, 0), n, &bits);
        let transposed: Vec<(usize, usize)> = (0..n).flat_map(|n| (0..k).map(move |k| (k, n))).collect();
        let tp_norm = encode(kind, &transposed, n, &bits);
        let again = want.clone();
        for (from, source) in [(Layout::Norm, norm), (Layout::TpNorm, tp_norm), (Layout::Native, again)] {
            let mut out = vec![0xaa; want.len()];
            // SAFETY: the source holds all of B.
            unsafe { b_to_native(row.dtype.b(), &shape, from, true, source.as_ptr(), &mut out) };
            assert_eq!(out, want, "{name} {kind:?} from {from:?}");
        }
    }
}

#[test]
fn the_vendors_conversion_takes_unpacked_i4() {
    let (k, n) = (64, 64);
    let bits = Random(4).matrix(MatmulType::I4, k * n);
    let unpacked: Vec<u8> = bits.iter().map(|bits| ((*bits as i8) << 4 >> 4) as u8).collect();
    let order = order_b(rknn_sys::Layout::Native, "rk3588", MatmulType::I4, k, n);
    let want = encode(MatmulType::I4, &order, n, &bits);
    let mut out = vec![0u8; want.len()];
    // SAFETY: a zeroed plain struct; both buffers hold B.
    unsafe {
        let mut info: sys::rknn_matmul_info = std::mem::zeroed();
        info.type_ = 10;
        let (from, to) = (unpacked.as_ptr().cast_mut().cast(), out.as_mut_ptr().cast());
        assert_eq!(rknn_B_normal_layout_to_native_layout(from, to, 64, 64, &mut info), 0);
        assert_eq!(rknn_B_normal_layout_to_native_layout(from, to, 64, 63, &mut info), -5);
        assert_eq!(rknn_B_normal_layout_to_native_layout(std::ptr::null_mut(), to, 64, 64, &mut info), -5);
    }
    assert_eq!(out, want);
}

/// What a create tells: name, dims, bytes, type.
fn told(attr: &sys::rknn_matmul_tensor_attr) -> (u8, Vec<u32>, u32, i32) {
    (attr.name[0] as u8, attr.dims[..attr.n_dims as usize].to_vec(), attr.size, attr.type_)
}

#[test]
fn a_create_tells_native_and_row_major_dims() {
    // SAFETY: zeroed plain structs, valid pointers.
    let create = |kind: i32, b_layout: i16, ac_layout: i16| unsafe {
        let mut info: sys::rknn_matmul_info = std::mem::zeroed();
        (info.M, info.K, info.N, info.type_) = (5, 128, 192, kind);
        (info.B_layout, info.AC_layout) = (b_layout, ac_layout);
        let (mut ctx, mut io): (u64, sys::rknn_matmul_io_attr) = (0, std::mem::zeroed());
        assert_eq!(rknn_matmul_create(&mut ctx, &mut info, &mut io), 0);
        assert_eq!(rknn_matmul_destroy(ctx), 0);
        [told(&io.A), told(&io.B), told(&io.C)]
    };
    assert_eq!(
        create(2, 1, 1),
        [
            (b'A', vec![8, 5, 16], 640, 2),
            (b'B', vec![6, 4, 32, 32], 24576, 2),
            (b'C', vec![48, 5, 4], 3840, 6)
        ]
    );
    assert_eq!(
        create(1, 0, 0),
        [(b'A', vec![5, 128], 1280, 1), (b'B', vec![128, 192], 49152, 1), (b'C', vec![5, 192], 3840, 0)]
    );
    assert_eq!(
        create(10, 2, 1),
        [(b'A', vec![4, 5, 32], 320, 10), (b'B', vec![192, 128], 12288, 10), (b'C', vec![24, 5, 8], 1920, 4)]
    );
}
