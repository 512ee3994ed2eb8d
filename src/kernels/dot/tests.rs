//! Each machine's kernels against the plain loops of `scalar`, and those against sums that do not go by blocks.

use half::f16;
use proptest::prelude::*;

use super::scalar::saturate;
use super::*;
use crate::kernels::int4::scalar::{nibble, set_nibble};
use crate::kernels::scalar::b_index;

/// A product: its operands in plain order, (M, K) and (N, K), and how they are to lie.
#[derive(Debug)]
struct Case<T> {
    dot: Dot,
    columns: usize,
    a: Vec<T>,
    b: Vec<T>,
}

/// (block of A, block of B, block of C) of the chips, and one that no chip has.
type Blocks = (usize, (usize, usize), usize);
const I8: [Blocks; 5] =
    [(16, (32, 32), 4), (16, (16, 32), 4), (8, (16, 32), 4), (8, (32, 32), 4), (4, (6, 8), 3)];
const I4: [Blocks; 3] = [(32, (64, 32), 8), (32, (64, 32), 4), (16, (8, 8), 4)];
const F16: [Blocks; 5] =
    [(8, (16, 32), 4), (4, (8, 16), 4), (8, (8, 32), 4), (8, (8, 16), 2), (16, (4, 16), 4)];

/// Cases whose elements are `value(random bits)`.
fn cases<T: std::fmt::Debug>(
    blocks: &'static [Blocks],
    value: fn(u32) -> T,
) -> impl Strategy<Value = Case<T>> {
    // Up to 43 blocks of K: a chunk and some, of each type.
    let shape = (0usize..4, 1usize..=16, 0usize..4, 1usize..=3, prop_oneof![1usize..4, 1usize..44]);
    (proptest::sample::select(blocks), shape, any::<u32>()).prop_map(
        move |((a_block, (block_n, block_k), c_block), shape, seed)| {
            let (row_start, rows, after, groups, k_blocks) = shape;
            let k = (k_blocks * block_k).next_multiple_of(a_block);
            let dot =
                Dot { m: row_start + rows + after, row_start, rows, k, a_block, block_n, block_k, c_block };
            let columns = groups * block_n;
            let mut state = seed;
            let mut vector = |len| -> Vec<T> {
                let next = |_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    value(state >> 8)
                };
                (0..len).map(next).collect()
            };
            Case { dot, columns, a: vector(dot.m * k), b: vector(columns * k) }
        },
    )
}

/// Any byte, and often the extremes.
fn byte(random: u32) -> i8 {
    match random % 5 {
        0 => -128,
        1 => 127,
        _ => (random >> 8) as i8,
    }
}

/// Any nibble.
fn a_nibble(random: u32) -> i8 {
    (random >> 8) as i8 >> 4
}

/// Nearly always −8: the sums of long rows saturate.
fn low_nibble(random: u32) -> i8 {
    match random % 10 {
        0 => a_nibble(random),
        _ => -8,
    }
}

/// Bits of a half: mostly ones near 1, and every other that is a number.
fn half(random: u32) -> u16 {
    let any = random >> 4;
    match random % 6 {
        // Zeros and denormals.
        0 => (any % 0x400) as u16,
        1 => f16::from_f32(any as f32 % 6e4 - 3e4).to_bits(),
        _ => f16::from_f32(any as f32 / (1 << 18) as f32 - 2.0).to_bits(),
    }
}

impl<T: Copy> Case<T> {
    /// Hands (index, value) to `put_a` and `put_b`, for each element of A and B.
    fn lay_out(&self, mut put_a: impl FnMut(usize, T), mut put_b: impl FnMut(usize, T)) {
        let Dot { m, k, a_block, block_n, block_k, .. } = self.dot;
        for (index, value) in self.a.iter().enumerate() {
            let (row, i) = (index / k, index % k);
            put_a((i / a_block) * m * a_block + row * a_block + i % a_block, *value);
        }
        for (index, value) in self.b.iter().enumerate() {
            put_b(b_index(index % k, index / k, k, block_n, block_k), *value);
        }
    }

    /// Native A and B, one element a place.
    fn native(&self) -> (Vec<T>, Vec<T>) {
        let (mut a, mut b) = (self.a.clone(), self.b.clone());
        self.lay_out(|at, value| a[at] = value, |at, value| b[at] = value);
        (a, b)
    }

    /// C of `sum(row of A, column of B)`, where rows not taken are `rest`.
    fn expected<U: Copy>(&self, rest: U, sum: impl Fn(&[T], &[T]) -> U) -> Vec<U> {
        let Dot { m, row_start, rows, k, c_block, .. } = self.dot;
        let mut c = vec![rest; m * self.columns];
        for row in row_start..row_start + rows {
            for column in 0..self.columns {
                let at = (column / c_block) * m * c_block + row * c_block + column % c_block;
                c[at] = sum(&self.a[row * k..][..k], &self.b[column * k..][..k]);
            }
        }
        c
    }

    /// Each row by itself gives what `together` says.
    fn row_by_row<U: PartialEq + Clone + std::fmt::Debug>(
        &self,
        together: &[U],
        rest: U,
        product: impl Fn(&Dot, &mut [U]),
    ) -> Result<(), TestCaseError> {
        let mut alone = vec![rest; together.len()];
        for row in self.dot.row_start..self.dot.row_start + self.dot.rows {
            product(&Dot { row_start: row, rows: 1, ..self.dot }, &mut alone);
        }
        prop_assert_eq!(alone, together);
        Ok(())
    }
}

fn exact(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn sums_of_bytes_are_exact(case in cases(&I8, byte)) {
        let (a, b) = case.native();
        let want = case.expected(77, exact);
        for machine in Machine::all() {
            let mut c = vec![77; want.len()];
            machine.dot_i8(&a, &b, &case.dot, &mut c);
            prop_assert_eq!(&c, &want, "{:?}", machine);
            case.row_by_row(&want, 77, |dot, c| machine.dot_i8(&a, &b, dot, c))?;
        }
    }

    #[test]
    fn sums_of_nibbles_are_exact_or_saturate(case in prop_oneof![cases(&I4, a_nibble), cases(&I4, low_nibble)]) {
        let (mut a, mut b) = (vec![0; case.a.len() / 2], vec![0; case.b.len() / 2]);
        case.lay_out(|at, value| set_nibble(&mut a, at, value), |at, value| set_nibble(&mut b, at, value));
        prop_assert_eq!(nibble(&a, 0), case.a[0]);
        let want = case.expected(77, |a, b| saturate(exact(a, b)));
        for machine in Machine::all() {
            let mut c = vec![77; want.len()];
            machine.dot_i4(&a, &b, &case.dot, &mut c);
            prop_assert_eq!(&c, &want, "{:?}", machine);
            case.row_by_row(&want, 77, |dot, c| machine.dot_i4(&a, &b, dot, c))?;
        }
    }

    /// The same bits on every machine, and within n·2⁻²³ of the sum of magnitudes, where n is the most sums that an
    /// element goes through: 32 in a chunk, 3 of its eight, and a chunk each.
    #[test]
    fn sums_of_halves_have_one_order(case in cases(&F16, half)) {
        let (a, b) = case.native();
        let start = vec![77.0; case.columns * case.dot.m];
        let mut want = start.clone();
        scalar::dot_f16(&a, &b, &case.dot, &mut want);
        let value = |bits: &u16| f64::from(f16::from_bits(*bits));
        let products = |a: &[u16], b: &[u16]| -> Vec<f64> {
            a.iter().zip(b).map(|(a, b)| value(a) * value(b)).collect()
        };
        let sums = case.expected(77.0, |a, b| products(a, b).into_iter().sum());
        let magnitudes = case.expected(0.0, |a, b| products(a, b).into_iter().map(f64::abs).sum());
        let bound = (32 + 3 + case.dot.k.div_ceil(256)) as f64 * f64::from(f32::EPSILON);
        for ((got, sum), magnitude) in want.iter().zip(sums).zip(magnitudes) {
            prop_assert!((f64::from(*got) - sum).abs() <= bound * magnitude, "{got}, not {sum}");
        }
        for machine in Machine::all() {
            let mut c = start.clone();
            machine.dot_f16(&a, &b, &case.dot, &mut c);
            prop_assert_eq!(bits(&c), bits(&want), "{:?}", machine);
            case.row_by_row(&want, 77.0, |dot, c| machine.dot_f16(&a, &b, dot, c))?;
        }
    }
}

#[test]
fn the_extremes_of_all_elements_at_once_are_exact() {
    // The largest sums of every lane, over more than a chunk.
    let dot = Dot { m: 5, row_start: 0, rows: 5, k: 4096, a_block: 16, block_n: 32, block_k: 32, c_block: 4 };
    for machine in Machine::all() {
        for (x, y) in [(-128, -128), (-128, 127), (127, 127)] {
            let mut c = vec![0; 5 * 32];
            machine.dot_i8(&[x; 5 * 4096], &[y; 32 * 4096], &dot, &mut c);
            assert!(c.iter().all(|sum| *sum == 4096 * i32::from(x) * i32::from(y)), "{machine:?}: {x}·{y}");
        }
        let dot = Dot { a_block: 32, block_n: 64, c_block: 8, ..dot };
        for (x, y) in [(0x88, 0x88), (0x88, 0x77), (0x77, 0x77), (0x87, 0x78)] {
            let mut c = vec![0; 5 * 64];
            machine.dot_i4(&[x; 5 * 2048], &[y; 64 * 2048], &dot, &mut c);
            let want = saturate(
                (0..2).map(|i| i32::from(nibble(&[x], i)) * i32::from(nibble(&[y], i)) * 2048).sum(),
            );
            assert!(c.iter().all(|sum| *sum == want), "{machine:?}: {x:#x}·{y:#x}");
        }
    }
}

#[test]
fn no_number_comes_of_what_is_none() {
    let dot = Dot { m: 2, row_start: 0, rows: 2, k: 32, a_block: 8, block_n: 16, block_k: 32, c_block: 4 };
    let mut a = vec![f16::ONE.to_bits(); 64];
    // Row 1, element 2.
    a[10] = f16::NAN.to_bits();
    for machine in Machine::all() {
        let mut c = vec![0.0; 32];
        machine.dot_f16(&a, &[f16::ONE.to_bits(); 512], &dot, &mut c);
        for (index, sum) in c.iter().enumerate() {
            let of_row_1 = index / 4 % 2 == 1;
            assert!(if of_row_1 { sum.is_nan() } else { *sum == 32.0 }, "{machine:?}: {sum}");
        }
    }
}

#[test]
fn operands_of_other_lengths_are_refused() {
    let dot = Dot { m: 2, row_start: 1, rows: 1, k: 32, a_block: 16, block_n: 32, block_k: 32, c_block: 4 };
    let refused = |dot: Dot, a: usize, b: usize, c: usize| {
        let product = move || dot_i8(&vec![0; a], &vec![0; b], &dot, &mut vec![0; c]);
        std::panic::catch_unwind(product).is_err()
    };
    assert!(!refused(dot, 64, 1024, 64));
    assert!(!refused(dot, 64, 0, 0), "no columns are none");
    assert!(!refused(Dot { rows: 0, ..dot }, 64, 1024, 64), "no rows are none");
    for (a, b, c) in
        [(63, 1024, 64), (64, 1023, 64), (64, 1024, 63), (64, 512, 32), (65, 1024, 64), (64, 1024, 65)]
    {
        assert!(refused(dot, a, b, c), "{a}, {b}, {c}");
    }
    assert!(refused(Dot { row_start: 2, ..dot }, 64, 1024, 64));
    assert!(refused(Dot { row_start: usize::MAX, ..dot }, 64, 1024, 64));
    assert!(refused(Dot { k: 0, ..dot }, 0, 0, 0));
    for block in [0, 24] {
        assert!(refused(Dot { a_block: block, ..dot }, 64, 1024, 64));
        assert!(refused(Dot { block_k: block, ..dot }, 64, 1024, 64));
        assert!(refused(Dot { block_n: block, ..dot }, 64, 1024, 64));
        assert!(refused(Dot { c_block: block, ..dot }, 64, 1024, 64));
    }
    let odd = Dot { a_block: 1, ..dot };
    assert!(std::panic::catch_unwind(|| dot_i4(&[0; 32], &[0; 512], &odd, &mut [0; 64])).is_err());
}

/// What is found out about the machine is true: by what qemu was asked for, or by the kernel's list of features.
#[cfg(target_arch = "aarch64")]
#[test]
fn the_dot_product_is_taken_where_the_processor_has_it() {
    let has = match std::env::var("GGML_RKNPU_TEST_DOTPROD") {
        Ok(asked) => asked == "1",
        Err(_) => std::fs::read_to_string("/proc/cpuinfo").unwrap().contains("asimddp"),
    };
    assert_eq!(matches!(Machine::best(), Machine::NeonDotprod), has);
}
