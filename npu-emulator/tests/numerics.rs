//! What the products come to, through the shared library, on every chip and in every layout.

mod common;

use common::{compare, has_i4, on_chip, product, soc, spec, Random, Rig};
use half::f16;
use proptest::prelude::*;
use rknn_sys::{Layout, MatmulSpec, MatmulType};

const LAYOUTS: [Layout; 2] = [Layout::Norm, Layout::Native];

fn types() -> Vec<MatmulType> {
    let mut types = vec![MatmulType::F16, MatmulType::I8];
    if has_i4(&soc()) {
        types.push(MatmulType::I4);
    }
    types
}

/// Also the body of the test below, in children with another chip.
#[test]
fn every_type_and_layout_on_the_chosen_chip() {
    let library = common::library();
    for dtype in types() {
        for b_layout in LAYOUTS {
            for ac_layout in LAYOUTS {
                for rows in [1, 2, 3, 4, 5, 9] {
                    let spec = MatmulSpec { b_layout, ac_layout, ..spec(dtype, rows, 96, 128) };
                    compare(&library, spec, rows as u64);
                }
            }
        }
    }
}

#[test]
fn every_chip_computes_in_its_own_layouts() {
    for chip in ["rk3576", "rk3566", "rk3568", "rk3562"] {
        let (passed, text) = on_chip(chip, "every_type_and_layout_on_the_chosen_chip");
        assert!(passed && text.contains("1 passed"), "{chip}:\n{text}");
    }
}

#[test]
fn shapes_of_a_small_model() {
    let library = common::library();
    for (rows, k, n) in [(1, 576, 576), (7, 576, 192), (33, 576, 1536), (5, 1536, 576), (1, 576, 4096)] {
        for dtype in types() {
            compare(&library, spec(dtype, rows, k, n), 3);
        }
    }
}

#[test]
fn a_k_past_the_segment_is_two_bs_one_after_the_other() {
    let library = common::library();
    for dtype in types() {
        compare(&library, spec(dtype, 3, 8192 + 96, 64), 5);
    }
}

#[test]
fn i4_saturates_at_both_ends_and_only_on_output() {
    let library = common::library();
    let (k, n) = (1024, 64);
    // In column 0, 700 products of 49 pass the limit (34300) and 324 of -56 bring the sum back.
    let a = vec![7u16; k];
    let mut b = vec![0u16; k * n];
    for inner in 0..k {
        b[inner * n] = if inner < 700 { 7 } else { 8 };
        b[inner * n + 1] = 7;
        b[inner * n + 2] = 8;
    }
    let mut rig = Rig::new(&library, spec(MatmulType::I4, 1, k, n));
    rig.write(&a, &b);
    let c = rig.run();
    assert_eq!(c[0], f64::from(700 * 49 - 324 * 56), "a sum that passes the limit on the way is not clipped");
    assert_eq!(c[1], 32767.0);
    assert_eq!(c[2], -32768.0);
    assert_eq!(c, product(MatmulType::I4, 1, k, n, &a, &b));
}

#[test]
fn i8_is_exact_at_the_extremes() {
    let library = common::library();
    for (a, b) in [(0x80u16, 0x80u16), (0x80, 0x7f), (0x7f, 0x7f)] {
        let (a, b) = (vec![a; 4 * 8192], vec![b; 8192 * 32]);
        let mut rig = Rig::new(&library, spec(MatmulType::I8, 4, 8192, 32));
        rig.write(&a, &b);
        assert_eq!(rig.run(), product(MatmulType::I8, 4, 8192, 32, &a, &b));
    }
}

#[test]
fn f16_follows_ieee_at_its_edges() {
    let library = common::library();
    let (k, n) = (32, 16);
    let one = f16::ONE.to_bits();
    // Each column multiplies one element of A by 1: what comes out is what went in, widened.
    let specials =
        [0x0001u16, 0x83ff, 0x7bff, f16::INFINITY.to_bits(), f16::NEG_INFINITY.to_bits(), f16::NAN.to_bits()];
    for special in specials {
        let mut a = vec![0u16; k];
        a[5] = special;
        let b = vec![one; k * n];
        let mut rig = Rig::new(&library, spec(MatmulType::F16, 1, k, n));
        rig.write(&a, &b);
        let want = f16::from_bits(special).to_f64();
        for got in rig.run() {
            assert!(got == want || got.is_nan() && want.is_nan(), "{special:#06x}: got {got}, want {want}");
        }
    }
    // Opposite infinities, and an infinity times zero, are NaN; two of the largest halves do not overflow.
    let run = |a0: f16, a1: f16, b: f16| {
        let mut a = vec![0u16; k];
        (a[0], a[1]) = (a0.to_bits(), a1.to_bits());
        let mut rig = Rig::new(&library, spec(MatmulType::F16, 1, k, n));
        rig.write(&a, &vec![b.to_bits(); k * n]);
        rig.run()[0]
    };
    assert!(run(f16::INFINITY, f16::NEG_INFINITY, f16::ONE).is_nan());
    assert!(run(f16::ONE, f16::ONE, f16::INFINITY).is_nan());
    assert_eq!(run(f16::MAX, f16::MAX, f16::MAX), 2.0 * 65504.0 * 65504.0);
}

#[test]
fn f16_accumulates_in_f32() {
    let library = common::library();
    let (k, n) = (4096, 16);
    let tenth = f16::from_f32(0.1).to_bits();
    let mut rig = Rig::new(&library, spec(MatmulType::F16, 1, k, n));
    rig.write(&vec![f16::ONE.to_bits(); k], &vec![tenth; k * n]);
    for got in rig.run() {
        assert!((got - 409.5).abs() < 0.02, "the published 4096 × f16(0.1) is 409.50, got {got}");
    }
}

#[test]
fn one_context_runs_again_with_new_data_and_a_new_b() {
    let library = common::library();
    let shape = MatmulSpec { b_layout: Layout::Norm, ..spec(MatmulType::I8, 2, 64, 32) };
    let mut random = Random(11);
    let mut rig = Rig::new(&library, shape);
    for _ in 0..3 {
        let (a, b) = (random.matrix(MatmulType::I8, 2 * 64), random.matrix(MatmulType::I8, 64 * 32));
        rig.b = rig.keeper.allocate(rig.b.bytes()).expect("memory");
        rig.write(&a, &b);
        assert_eq!(rig.run(), product(MatmulType::I8, 2, 64, 32, &a, &b));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_shape_agrees(
        rows in 1usize..20, k in 1usize..12, n in 1usize..5, kind in 0usize..3,
        b_native: bool, ac_native: bool, seed: u64,
    ) {
        let pick = |native| if native { Layout::Native } else { Layout::Norm };
        let (dtype, align) = [(MatmulType::F16, 16), (MatmulType::I8, 32), (MatmulType::I4, 64)][kind];
        let shape = MatmulSpec {
            b_layout: pick(b_native), ac_layout: pick(ac_native), ..spec(dtype, rows, k * 32, n * align)
        };
        compare(&common::library(), shape, seed);
    }
}
