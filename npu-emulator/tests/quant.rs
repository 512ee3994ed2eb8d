//! Per-layer quantisation parameters: what is taken and shown, and what depends on them.

mod common;

use std::ptr::null_mut;

use common::raw::{info, operands, quant_params, run, run_scaled, set_scales, sums, try_create, Place};
use common::{blocks, in_child, soc};
use npu_emulator::exports::*;
use rknn_sys::sys;
use rknn_sys::{Layout, MatmulType};

fn create() -> u64 {
    try_create(info(3, 1, 32, 32)).expect("a good shape").0
}

/// What is shown of an operand.
fn get(ctx: u64, name: &[u8]) -> (sys::rknn_quant_params, f32) {
    let (mut params, mut scale) = (quant_params(name, &mut [], &mut []), f32::NAN);
    // SAFETY: valid pointers.
    assert_eq!(unsafe { rknn_matmul_get_quant_params(ctx, &mut params, &mut scale) }, 0);
    assert_eq!((params.scale_len, params.zp_len), (1, 1));
    (params, scale)
}

#[test]
fn what_is_set_is_shown_until_the_next_set() {
    let ctx = create();
    let seen = |name: &[u8]| {
        let (params, scale) = get(ctx, name);
        // SAFETY: the context owns what the call points at.
        unsafe {
            assert_eq!((*params.scale, *params.zp), (scale, 0));
        }
        scale
    };
    assert_eq!([b"A", b"B", b"C"].map(|name| seen(name)), [1.0; 3]);
    assert_eq!(set_scales(ctx, b"A", &mut [0.25], &mut [0]), 0);
    assert_eq!(set_scales(ctx, b"C", &mut [f32::MAX], &mut [0]), 0);
    let (first, _) = get(ctx, b"A");
    assert_eq!(set_scales(ctx, b"B", &mut [3.5], &mut [0]), 0);
    // SAFETY: a set of B left A's storage alone; what the caller writes there does not reach the context.
    unsafe {
        assert_eq!(*first.scale, 0.25);
        *first.scale = 9.0;
        assert_eq!(get(ctx, b"A").1, 0.25);
        let mut params = quant_params(b"A", &mut [], &mut []);
        assert_eq!(rknn_matmul_get_quant_params(ctx, &mut params, null_mut()), 0, "the scale may be null");
    }
    assert_eq!(set_scales(ctx, b"A", &mut [0.5], &mut [0]), 0);
    assert_eq!([b"A", b"B", b"C"].map(|name| seen(name)), [0.5, 3.5, f32::MAX]);
    // SAFETY: takes no pointer.
    assert_eq!(unsafe { rknn_matmul_destroy(ctx) }, 0);
}

#[test]
fn only_per_layer_and_symmetric_parameters_are_taken() {
    let ctx = create();
    assert_eq!(set_scales(ctx, b"A", &mut [0.5], &mut [0]), 0);
    for scale in [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(set_scales(ctx, b"A", &mut [scale], &mut [0]), -5, "{scale}");
    }
    for zero in [1, -1, i32::MAX, i32::MIN] {
        assert_eq!(set_scales(ctx, b"A", &mut [1.0], &mut [zero]), -5, "{zero}");
    }
    for (scales, zeros) in [(0, 1), (1, 0), (0, 0), (2, 1), (1, 2), (32, 32)] {
        assert_eq!(set_scales(ctx, b"A", &mut vec![1.0; scales], &mut vec![0; zeros]), -5);
    }
    for name in [&b"D"[..], b"", b"AB", b"a", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
        assert_eq!(set_scales(ctx, name, &mut [1.0], &mut [0]), -5);
        let mut params = quant_params(name, &mut [], &mut []);
        // SAFETY: valid pointers.
        assert_eq!(unsafe { rknn_matmul_get_quant_params(ctx, &mut params, null_mut()) }, -5);
    }
    for change in [
        |params: &mut sys::rknn_quant_params| params.scale = null_mut(),
        |params: &mut sys::rknn_quant_params| params.zp = null_mut(),
        |params: &mut sys::rknn_quant_params| params.scale_len = -1,
        |params: &mut sys::rknn_quant_params| params.zp_len = i32::MIN,
    ] {
        let (mut scale, mut zero) = ([1.0], [0]);
        let mut params = quant_params(b"A", &mut scale, &mut zero);
        change(&mut params);
        // SAFETY: what it points to is valid, or is refused before it is read.
        assert_eq!(unsafe { rknn_matmul_set_quant_params(ctx, &mut params) }, -5);
    }
    assert_eq!(get(ctx, b"A").1, 0.5, "what is refused changes nothing");
    // SAFETY: takes no pointer.
    assert_eq!(unsafe { rknn_matmul_destroy(ctx) }, 0);
}

/// Sub-blocks of A, C in fours but for RK3588's i4.
fn place(soc: &str, code: i32, layout: Layout) -> Place<'_> {
    let kind = match code {
        2 | 3 => MatmulType::I8,
        10 => MatmulType::I4,
        _ => MatmulType::F16,
    };
    let (a_block, _, native_c) = blocks(soc, kind);
    let c_block = if code == 10 { native_c } else { 4 };
    Place { soc, a_block, c_block, b_layout: layout, ac_layout: layout }
}

/// The nearest integer by its definition; the even one of two.
fn nearest(value: f64) -> f64 {
    let below = value.floor();
    match value - below {
        rest if rest < 0.5 => below,
        rest if rest > 0.5 => below + 1.0,
        _ if below % 2.0 == 0.0 => below,
        _ => below + 1.0,
    }
}

#[test]
fn an_i8_output_is_scaled_rounded_to_even_and_saturated() {
    let (soc, shape) = (soc(), (5, 96, 64));
    let (mut a, mut b) = operands(3, shape, 7);
    // Multiples of 16: the sums are multiples of 256.
    a.iter_mut().chain(&mut b).for_each(|bits| *bits &= 0xf0);
    let sums = sums(3, shape, &a, &b);
    // Powers of two: many sums end in exactly a half, and every step is exact. Then ratios that are none.
    let scales: [[f32; 3]; 6] = [
        [1.0, 1.0, 1024.0],
        [0.5, 0.25, 64.0],
        [1.0, 1.0, 1.0],
        [0.013, 0.021, 0.37],
        [1e-30, 1e-30, 1e-38],
        [f32::MAX, f32::MAX, 1e-40],
    ];
    for [a_scale, b_scale, c_scale] in scales {
        let ratio = f64::from(a_scale) * f64::from(b_scale) / f64::from(c_scale);
        let want: Vec<f64> = sums.iter().map(|sum| nearest(sum * ratio).clamp(-128.0, 127.0)).collect();
        for layout in [Layout::Norm, Layout::Native] {
            let set: [(&[u8], f32); 3] = [(b"A", a_scale), (b"B", b_scale), (b"C", c_scale)];
            let got = run_scaled(3, place(&soc, 3, layout), shape, &a, &b, &set);
            assert_eq!(got, want, "scales {a_scale}, {b_scale}, {c_scale}, {layout:?}");
        }
    }
    let halves = |step: f64| sums.iter().filter(|sum| (*sum / step).rem_euclid(1.0) == 0.5).count();
    assert!(halves(512.0) > 0, "the second scales meet halves");
    let inside = sums.iter().filter(|sum| (**sum / 1024.0).abs() < 127.0).count();
    assert!(inside > sums.len() / 2, "{inside} are not saturated");
}

/// Also in a child with every type of the chip.
#[test]
fn every_other_output_holds_the_bare_sums() {
    let (soc, shape) = (soc(), (4, 64, 64));
    let mut codes = Vec::new();
    for code in [1, 2, 4, 5, 7, 10] {
        let Ok((ctx, _)) = try_create(info(code, 1, 64, 64)) else { continue };
        // SAFETY: takes no pointer.
        assert_eq!(unsafe { rknn_matmul_destroy(ctx) }, 0);
        let (a, b) = operands(code, shape, 11);
        let place = place(&soc, code, Layout::Native);
        let set: [(&[u8], f32); 3] = [(b"A", 0.125), (b"B", 3.0), (b"C", 0.7)];
        let scaled = run_scaled(code, place, shape, &a, &b, &set);
        assert_eq!(scaled, run(code, place, shape, &a, &b), "type {code}");
        codes.push(code);
    }
    println!("codes {codes:?}");
}

#[test]
fn so_it_is_for_the_mixed_types() {
    let (status, text) = in_child("every_other_output_holds_the_bare_sums", &[("RKNPU_EMU_TYPES", "+5,+7")]);
    assert!(status.success() && text.contains("codes [1, 2, 4, 5, 7, 10]"), "{text}");
}
