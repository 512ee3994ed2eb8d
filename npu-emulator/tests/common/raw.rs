//! The C calls as the tests make them, and a product of any element types by the definition.

use std::ptr::null_mut;

use half::f16;
use npu_emulator::exports::*;
use rknn_sys::sys::{self, rknn_matmul_info, rknn_matmul_io_attr, rknn_matmul_tensor_attr, rknn_tensor_mem};
use rknn_sys::{Layout, MatmulType};

use super::{encode, order, order_b, value, Random};

/// Element types of A and B, the bits of C's and whether those are of a float.
pub fn elements(code: i32) -> (MatmulType, MatmulType, usize, bool) {
    use MatmulType::{F16, I4, I8};
    match code {
        1 => (F16, F16, 32, true),
        2 => (I8, I8, 32, false),
        3 => (I8, I8, 8, false),
        4 => (F16, F16, 16, true),
        5 => (F16, I8, 32, true),
        7 => (F16, I4, 32, true),
        10 => (I4, I4, 16, false),
        _ => panic!("type {code} is not emulated"),
    }
}

pub fn info(kind: i32, m: i32, k: i32, n: i32) -> rknn_matmul_info {
    // SAFETY: zero is valid for a plain struct.
    let mut info: rknn_matmul_info = unsafe { std::mem::zeroed() };
    (info.M, info.K, info.N, info.type_) = (m, k, n, kind);
    (info.B_layout, info.AC_layout) = (1, 1);
    info
}

pub fn try_create(mut info: rknn_matmul_info) -> Result<(u64, rknn_matmul_io_attr), i32> {
    // SAFETY: zero is valid for a plain struct; three valid pointers.
    unsafe {
        let (mut ctx, mut io) = (0, std::mem::zeroed());
        match rknn_matmul_create(&mut ctx, &mut info, &mut io) {
            0 => Ok((ctx, io)),
            code => Err(code),
        }
    }
}

/// A create for shapes of these M; the handle and what each is to bind.
pub fn try_create_dynamic(
    mut info: rknn_matmul_info,
    shapes: &[(i32, i32, i32)],
) -> Result<(u64, Vec<rknn_matmul_io_attr>), i32> {
    let mut shapes: Vec<_> =
        shapes.iter().map(|&(m, k, n)| sys::rknn_matmul_shape { M: m, K: k, N: n }).collect();
    // SAFETY: zero is valid for plain structs; as many shapes and attributes as told.
    unsafe {
        let (mut ctx, mut io) = (0, vec![std::mem::zeroed(); shapes.len()]);
        let count = shapes.len() as i32;
        match rknn_matmul_create_dynamic_shape(
            &mut ctx,
            &mut info,
            count,
            shapes.as_mut_ptr(),
            io.as_mut_ptr(),
        ) {
            0 => Ok((ctx, io)),
            code => Err(code),
        }
    }
}

pub fn set_shape(ctx: u64, m: i32, k: i32, n: i32) -> i32 {
    // SAFETY: a valid struct.
    unsafe { rknn_matmul_set_dynamic_shape(ctx, &mut sys::rknn_matmul_shape { M: m, K: k, N: n }) }
}

/// Parameters of a name that point to these.
pub fn quant_params(name: &[u8], scales: &mut [f32], zeros: &mut [i32]) -> sys::rknn_quant_params {
    let mut out = sys::rknn_quant_params {
        name: [0; 256],
        scale: scales.as_mut_ptr(),
        scale_len: scales.len() as i32,
        zp: zeros.as_mut_ptr(),
        zp_len: zeros.len() as i32,
    };
    out.name.iter_mut().zip(name).for_each(|(to, byte)| *to = *byte as _);
    out
}

/// Sets them.
pub fn set_scales(ctx: u64, name: &[u8], scales: &mut [f32], zeros: &mut [i32]) -> i32 {
    // SAFETY: pointers to as many as told.
    unsafe { rknn_matmul_set_quant_params(ctx, &mut quant_params(name, scales, zeros)) }
}

pub fn named(name: &[u8]) -> rknn_matmul_tensor_attr {
    // SAFETY: zero is valid for a plain struct.
    let mut attr: rknn_matmul_tensor_attr = unsafe { std::mem::zeroed() };
    attr.name.iter_mut().zip(name).for_each(|(to, byte)| *to = *byte as _);
    attr
}

pub fn bind(ctx: u64, mem: *mut rknn_tensor_mem, name: &[u8]) -> i32 {
    // SAFETY: the memory is live or meant to be refused; the attribute is ours.
    unsafe { rknn_matmul_set_io_mem(ctx, mem, &mut named(name)) }
}

/// A synced memory that begins with these bytes.
pub fn filled(ctx: u64, bytes: &[u8]) -> *mut rknn_tensor_mem {
    // SAFETY: a live context; the copy stays within the memory, which is checked not to be null.
    unsafe {
        let mem = rknn_create_mem(ctx, bytes.len() as u32);
        assert_ne!(mem, null_mut());
        (*mem).virt_addr.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        assert_eq!(rknn_mem_sync(ctx, mem, 1), 0);
        mem
    }
}

/// The first bytes of a memory, from the device.
pub fn synced(ctx: u64, mem: *mut rknn_tensor_mem, bytes: usize) -> Vec<u8> {
    // SAFETY: a live memory of at least so many bytes.
    unsafe {
        assert_eq!(rknn_mem_sync(ctx, mem, 2), 0);
        std::slice::from_raw_parts((*mem).virt_addr.cast::<u8>(), bytes).to_vec()
    }
}

/// The sums that C is made of, by the definition.
pub fn sums(code: i32, (m, k, n): (usize, usize, usize), a: &[u16], b: &[u16]) -> Vec<f64> {
    let (kind_a, kind_b, ..) = elements(code);
    let mut c = vec![0.0; m * n];
    for (at, c) in c.iter_mut().enumerate() {
        let (row, column) = (at / n, at % n);
        *c = (0..k).map(|k_at| value(kind_a, a[row * k + k_at]) * value(kind_b, b[k_at * n + column])).sum();
    }
    c
}

/// C as numbers, row-major, from its bytes in the order told.
pub fn numbers(code: i32, order: &[(usize, usize)], n: usize, bytes: &[u8]) -> Vec<f64> {
    let (.., bits, float) = elements(code);
    let mut out = vec![f64::NAN; order.len()];
    for ((row, column), b) in order.iter().zip(bytes.chunks_exact(bits / 8)) {
        out[row * n + column] = match (bits, float) {
            (32, true) => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            (32, false) => f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            (16, true) => f16::from_le_bytes([b[0], b[1]]).to_f64(),
            (16, false) => f64::from(i16::from_le_bytes([b[0], b[1]])),
            _ => f64::from(b[0] as i8),
        };
    }
    out
}

/// How a product is laid out: the chip, the sub-blocks of A, (n, k) of B, C, and which are used.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub soc: &'a str,
    pub a_block: usize,
    pub c_block: usize,
    pub b_layout: Layout,
    pub ac_layout: Layout,
}

/// C of a context of its own, through memories of exactly the sizes that it asks for.
pub fn run(code: i32, place: Place<'_>, shape: (usize, usize, usize), a: &[u16], b: &[u16]) -> Vec<f64> {
    run_scaled(code, place, shape, a, b, &[])
}

/// As [`run`], after these scales were set.
pub fn run_scaled(
    code: i32,
    place: Place<'_>,
    (m, k, n): (usize, usize, usize),
    a: &[u16],
    b: &[u16],
    scales: &[(&[u8], f32)],
) -> Vec<f64> {
    let (kind_a, kind_b, ..) = elements(code);
    let mut info = info(code, m as i32, k as i32, n as i32);
    let number = |layout| i16::from(layout == Layout::Native);
    (info.B_layout, info.AC_layout) = (number(place.b_layout), number(place.ac_layout));
    let (ctx, io) = try_create(info).expect("a good shape");
    let a = encode(kind_a, &order(place.ac_layout, m, k, place.a_block), k, a);
    let b = encode(kind_b, &order_b(place.b_layout, place.soc, kind_b, k, n), n, b);
    let order_c = order(place.ac_layout, m, n, place.c_block);
    assert_eq!((io.A.size as usize, io.B.size as usize), (a.len(), b.len()), "type {code}");
    assert_eq!(io.C.size as usize, m * n * elements(code).2 / 8, "type {code}");
    let mems = [filled(ctx, &a), filled(ctx, &b), filled(ctx, &vec![0x55; io.C.size as usize])];
    for (mem, attr) in mems.iter().zip([io.A, io.B, io.C]) {
        // SAFETY: live handles; the attribute is a copy.
        assert_eq!(unsafe { rknn_matmul_set_io_mem(ctx, *mem, &mut { attr }) }, 0);
    }
    for (name, scale) in scales {
        assert_eq!(set_scales(ctx, name, &mut [*scale], &mut [0]), 0);
    }
    // SAFETY: a live context, whose memories outlive the run.
    unsafe {
        assert_eq!(rknn_matmul_run(ctx), 0);
        let c = numbers(code, &order_c, n, &synced(ctx, mems[2], io.C.size as usize));
        mems.iter().for_each(|mem| assert_eq!(rknn_destroy_mem(ctx, *mem), 0));
        assert_eq!(rknn_matmul_destroy(ctx), 0);
        c
    }
}

/// Random A and B of a type.
pub fn operands(code: i32, (m, k, n): (usize, usize, usize), seed: u64) -> (Vec<u16>, Vec<u16>) {
    let (kind_a, kind_b, ..) = elements(code);
    let mut random = Random(seed);
    (random.matrix(kind_a, m * k), random.matrix(kind_b, k * n))
}
