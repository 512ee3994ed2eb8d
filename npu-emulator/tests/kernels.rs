//! Every instruction set against the scalar kernels, on the sub-block shapes of all chips.

use half::f16;
use npu_emulator::kernels::{self, Isa, Panel, Segment};
use proptest::prelude::*;

/// Two segments of B bytes with room at no end, so that a kernel reading past would be seen by a sanitizer.
fn with_panel<R>(
    b: &[u8],
    columns: usize,
    block_k: usize,
    size: usize,
    run: impl FnOnce(&Panel<'_>) -> R,
) -> R {
    let block = columns * block_k * size;
    let blocks = b.len() / block;
    let first = blocks / 2;
    let segments = [
        Segment { base: b.as_ptr(), k_blocks: first },
        Segment { base: b[first * block..].as_ptr(), k_blocks: blocks - first },
    ];
    run(&Panel { segments: &segments, columns, block_k })
}

fn i8_both(columns: usize, rows: usize, a: &[i16], b: &[u8]) -> [Vec<i32>; 2] {
    [Isa::Scalar, Isa::best()].map(|isa| {
        let mut out = vec![-1; rows * columns];
        // SAFETY: the segments are the slice's.
        with_panel(b, columns, 32, 1, |panel| unsafe { kernels::i8_panel(isa, a, rows, panel, &mut out) });
        out
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn i8_kernels_agree_exactly(rows in 1usize..11, blocks in 1usize..9, wide in 0usize..3, seed: u64) {
        let columns = [16, 32, 64][wide];
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        let a: Vec<i16> = (0..rows * blocks * 32).map(|_| i16::from(next() as i8)).collect();
        let b: Vec<u8> = (0..blocks * 32 * columns).map(|_| next()).collect();
        let [scalar, best] = i8_both(columns, rows, &a, &b);
        prop_assert_eq!(scalar, best);
    }

    #[test]
    fn f16_kernels_agree_within_rounding(rows in 1usize..11, blocks in 1usize..9, shape in 0usize..3, seed: u64) {
        let (columns, block_k) = [(16, 32), (8, 32), (8, 16)][shape];
        let k = blocks * block_k;
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / 8388608.0 - 1.0
        };
        let a: Vec<f32> = (0..rows * k).map(|_| f16::from_f32(next()).to_f32()).collect();
        let b: Vec<u8> = (0..k * columns).flat_map(|_| f16::from_f32(next()).to_le_bytes()).collect();
        let [scalar, best] = [Isa::Scalar, Isa::best()].map(|isa| {
            let mut out = vec![-1.0; rows * columns];
            // SAFETY: the segments are the slice's.
            with_panel(&b, columns, block_k, 2, |p| unsafe { kernels::f16_panel(isa, &a, rows, p, &mut out) });
            out
        });
        for (scalar, best) in scalar.iter().zip(&best) {
            prop_assert!((scalar - best).abs() <= k as f32 * k as f32 / 16777216.0, "{scalar} and {best}");
        }
    }

    #[test]
    fn unpacking_agrees(bytes in proptest::collection::vec(any::<u8>(), 1..100)) {
        let [scalar, best] = [Isa::Scalar, Isa::best()].map(|isa| {
            let mut out = vec![99i8; bytes.len() * 2];
            // SAFETY: a byte for each two elements.
            unsafe { kernels::unpack_i4(isa, bytes.as_ptr(), &mut out) };
            out
        });
        prop_assert_eq!(&scalar, &best);
        for (byte, pair) in bytes.iter().zip(scalar.chunks(2)) {
            let signed = |nibble: u8| if nibble > 7 { nibble as i8 - 16 } else { nibble as i8 };
            prop_assert_eq!(pair, [signed(byte & 15), signed(byte >> 4)]);
        }
    }
}

#[test]
fn every_half_widens_exactly() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    for isa in [Isa::Scalar, Isa::best()] {
        let mut out = vec![0f32; 65536];
        // SAFETY: two bytes for each float.
        unsafe { kernels::widen_f16(isa, bytes.as_ptr(), &mut out) };
        for (bits, got) in (0..=u16::MAX).zip(out) {
            let want = f16::from_bits(bits).to_f32();
            assert!(got == want || got.is_nan() && want.is_nan(), "{bits:#06x}");
        }
    }
}

#[test]
fn every_byte_halves_exactly() {
    // 256 values twice and five more, so that a rest follows the vectors.
    let bytes: Vec<i8> = (0..517).map(|at| at as u8 as i8).collect();
    for isa in [Isa::Scalar, Isa::best()] {
        let mut out = vec![0xffffu16; bytes.len()];
        // SAFETY: a byte for each half.
        unsafe { kernels::halve_i8(isa, bytes.as_ptr(), &mut out) };
        for (byte, got) in bytes.iter().zip(out) {
            assert_eq!(f16::from_bits(got).to_f64(), f64::from(*byte));
        }
    }
}

#[test]
#[should_panic(expected = "too short")]
fn a_short_a_is_refused() {
    i8_both(16, 2, &[0; 32], &[0; 512]);
}
