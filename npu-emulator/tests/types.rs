//! The element types: which chip takes which, what each computes, and the switch that adds or takes away.

mod common;

use common::raw::{elements, info, operands, run, sums, try_create, Place};
use common::{blocks, in_child, on_chip, soc, CHILD};
use half::f16;
use npu_emulator::chip::{Chip, CHIPS};
use rknn_sys::{Layout, MatmulType};

/// The facts: what each chip takes.
const TAKEN: [(&str, &[i32]); 5] = [
    ("rk3588", &[1, 2, 3, 4, 10]),
    ("rk3576", &[1, 2, 5, 7]),
    ("rk3566", &[1, 2]),
    ("rk3568", &[1, 2]),
    ("rk3562", &[1, 2]),
];

const VARIABLE: &str = "RKNPU_EMU_TYPES";

#[test]
fn every_chip_takes_the_types_of_the_facts_and_no_other() {
    assert_eq!(CHIPS.len(), TAKEN.len());
    for (name, taken) in TAKEN {
        let chip = Chip::by_name(name).expect("known");
        for code in (-1..20).chain([99, i32::MIN, i32::MAX]) {
            let got = chip.check(code, 64, 64).map(|row| row.dtype.code()).map_err(|status| status.0);
            assert_eq!(got, if taken.contains(&code) { Ok(code) } else { Err(-5) }, "{name}");
        }
    }
}

/// Sub-blocks of A and C: A as its element type has it, C in fours but for RK3588's i4.
fn place(soc: &str, code: i32, b_layout: Layout, ac_layout: Layout) -> Place<'_> {
    let a_block = blocks(soc, elements(code).0).0;
    let c_block = if code == 10 { blocks(soc, MatmulType::I4).2 } else { 4 };
    Place { soc, a_block, c_block, b_layout, ac_layout }
}

/// What C must hold, and how far a float may be from it.
fn expected(code: i32, k: usize, sum: f64) -> (f64, f64) {
    match code {
        2 => (sum, 0.0),
        3 => (sum.clamp(-128.0, 127.0), 0.0),
        10 => (sum.clamp(-32768.0, 32767.0), 0.0),
        // f32 sums of products below 2·128: k roundings of at most 2⁻²⁴ of a partial sum; then half a unit of an f16.
        4 => (sum, (k * k) as f64 * 4.0 / f64::from(1 << 24) + sum.abs() / 2048.0 + 1e-7),
        _ => (sum, (k * k) as f64 * 256.0 / f64::from(1 << 24)),
    }
}

/// Also the body of the tests below, in children with another chip or another set of types.
#[test]
fn every_accepted_type_computes_in_every_layout() {
    let soc = soc();
    let switched = std::env::var(VARIABLE).is_ok();
    let taken = TAKEN.iter().find(|(name, _)| *name == soc).expect("known").1;
    let codes: Vec<i32> = (0..16).filter(|code| try_create(info(*code, 1, 64, 64)).is_ok()).collect();
    assert!(switched || codes == taken, "{codes:?}");
    println!("codes {codes:?}");
    for code in codes {
        for (m, k, n) in [(1, 96, 128), (5, 64, 64), (4, 160, 128)] {
            for (b, ac) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let layout = |native| if native == 1 { Layout::Native } else { Layout::Norm };
                let (a_bits, b_bits) = operands(code, (m, k, n), (m * k) as u64);
                let place = place(&soc, code, layout(b), layout(ac));
                let got = run(code, place, (m, k, n), &a_bits, &b_bits);
                for (got, sum) in got.iter().zip(sums(code, (m, k, n), &a_bits, &b_bits)) {
                    let (want, slack) = expected(code, k, sum);
                    assert!((got - want).abs() <= slack, "type {code} {m},{k},{n}: got {got}, want {want}");
                }
            }
        }
    }
}

#[test]
fn every_chip_computes_all_its_types() {
    for (chip, _) in &TAKEN[1..] {
        let (passed, text) = on_chip(chip, "every_accepted_type_computes_in_every_layout");
        assert!(passed && text.contains("1 passed"), "{chip}:\n{text}");
    }
}

#[test]
fn types_can_be_added_and_taken_away() {
    for (soc, change, codes) in [
        ("rk3576", "+10,-7", "codes [1, 2, 5, 10]"),
        ("rk3588", " -4, +5,+7 ", "codes [1, 2, 3, 5, 7, 10]"),
        ("rk3588", "-10,+10,-11", "codes [1, 2, 3, 4, 10]"),
        ("rk3566", "", "codes [1, 2]"),
    ] {
        let variables = [("RKNPU_EMU_SOC", soc), (VARIABLE, change)];
        let (status, text) = in_child("every_accepted_type_computes_in_every_layout", &variables);
        assert!(status.success() && text.contains(codes), "{change}:\n{text}");
    }
}

/// Only in the children of the next test.
#[test]
fn child_has_no_chip() {
    if std::env::var_os(CHILD).is_some() {
        assert_eq!(try_create(info(2, 1, 32, 32)).err(), Some(-3));
        assert_eq!(try_create(info(2, 1, 32, 32)).err(), Some(-3));
    }
}

#[test]
fn a_change_that_cannot_be_is_said_once() {
    for (change, said) in [
        ("10", "\"10\" begins with neither + nor -"),
        ("+1,+x", "\"+x\" is no number of a type"),
        ("-", "\"-\" is no number of a type"),
        ("+9", "type 9 is unknown of rk3566"),
    ] {
        let (status, text) =
            in_child("child_has_no_chip", &[("RKNPU_EMU_SOC", "rk3566"), (VARIABLE, change)]);
        assert!(status.success(), "{text}");
        assert_eq!(text.matches(&format!("npu-emulator: {VARIABLE}: {said}")).count(), 1, "{text}");
    }
}

/// One row of A, all of it `a`, times a B whose column c holds `b(k, c)`: C of type `code` on RK3588.
fn one_row(code: i32, k: usize, n: usize, a: u16, b: impl Fn(usize, usize) -> u16) -> Vec<f64> {
    let b: Vec<u16> = (0..k * n).map(|at| b(at / n, at % n)).collect();
    run(code, place("rk3588", code, Layout::Native, Layout::Native), (1, k, n), &vec![a; k], &b)
}

#[test]
fn i8_to_i8_saturates_at_both_ends_and_only_on_output() {
    let c = one_row(3, 64, 32, 1, |k, column| match column {
        0 => 2,              // 64 · 2 = 128
        1 => 0xfe,           // 64 · -2 = -128
        2 => 0xfd,           // 64 · -3
        3 if k < 32 => 0x7f, // 32 · 127 - 32 · 125: past the limit on the way
        3 => 0x83,
        4 => u16::from(k < 63) * 2, // 126
        _ => 0,
    });
    assert_eq!(c[..6], [127.0, -128.0, -128.0, 64.0, 126.0, 0.0]);
}

#[test]
fn f16_to_f16_rounds_the_f32_sum_once_to_even() {
    let bits = |value: f32| f16::from_f32(value).to_bits();
    // Each column is a sum of a large part and small ones that halves would lose one by one.
    let parts: [(f32, f32, usize, f64); 8] = [
        (2048.0, 1.0, 1, 2048.0),   // 2049 lies between 2048 and 2050: to even
        (2048.0, 1.0, 3, 2052.0),   // 2051: to even, upwards
        (2048.0, 0.5, 3, 2050.0),   // 2049.5
        (2048.0, 0.25, 31, 2056.0), // 2055.75, of parts that each vanish in halves
        (65504.0, 15.0, 1, 65504.0),
        (65504.0, 16.0, 1, f64::INFINITY),
        (-65504.0, -16.0, 1, f64::NEG_INFINITY),
        (2.0f32.powi(-24), 2.0f32.powi(-24), 2, 3.0 * 2.0f64.powi(-24)), // denormals stay
    ];
    let c = one_row(4, 32, 16, bits(1.0), |k, column| match parts.get(column) {
        Some((large, ..)) if k == 0 => bits(*large),
        Some((_, small, count, _)) if k <= *count => bits(*small),
        _ => 0,
    });
    for ((.., want), got) in parts.iter().zip(&c) {
        assert_eq!(got, want);
    }
}

#[test]
fn log_of_a_refused_type() {
    let (status, text) = in_child("child_asks_for_type_3", &[("RKNPU_EMU_SOC", "rk3576")]);
    assert!(status.success(), "{text}");
    assert!(text.contains("unsupported matmul dtype 3 in this platform (rk3576)"), "{text}");
}

/// Only in the child that the test above starts.
#[test]
fn child_asks_for_type_3() {
    if std::env::var_os(CHILD).is_some() {
        assert_eq!(try_create(info(3, 1, 32, 32)).err(), Some(-5));
    }
}
