//! What attention needs of the CPU: scores become weights (mask, soft-cap, exponentials, sums), and keys and values
//! become B.
//!
//! Softmax is taken online, piece by piece: a row keeps the largest score so far and the sum of exp(score − largest);
//! what was summed before a larger score came is made smaller by exp(old largest − new one). Source: 2112.05682.
//!
//! Bytes of a score: 4 read and written by [`scores`], 4 again by [`exponentials`], in the level-2 cache; 2 more of the
//! mask. `cargo bench --bench kernels` measures both.

pub use super::halves::from_halves;

use super::exp::{exp, tanh};
use super::fast::vectorised;

/// [`scores`] adds a mask.
pub const MASKED: usize = 1;
/// [`scores`] caps.
pub const CAPPED: usize = 2;

/// How products of queries and keys become scores.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bias {
    /// The mask's factor (ALiBi).
    pub slope: f32,
    /// The largest score before the mask is added: `cap · tanh(score)`.
    pub cap: f32,
}

vectorised! {
    /// Caps `row`, where `FORM` has [`CAPPED`], adds `bias.slope · mask`, where it has [`MASKED`], and tells the largest;
    /// −∞ where all are masked. `mask` is as long as the row, or not looked at.
    pub fn scores<const FORM: usize>(row: &mut [f32], mask: &[f32], bias: Bias) -> f32 = scores_body::<FORM>
}

#[inline(always)]
fn scores_body<const FORM: usize>(row: &mut [f32], mask: &[f32], bias: Bias) -> f32 {
    let Bias { slope, cap } = bias;
    let masked = FORM & MASKED != 0;
    let score = |value: f32, mask: f32| {
        let value = if FORM & CAPPED != 0 { cap * tanh(value) } else { value };
        if masked {
            value + slope * mask
        } else {
            value
        }
    };
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let mut lanes = [f32::NEG_INFINITY; 16];
    let whole = row.len() / 16 * 16;
    let mask = if masked { &mask[..row.len()] } else { &mask[..0] };
    for start in (0..whole).step_by(16) {
        let block: &mut [f32; 16] = (&mut row[start..start + 16]).try_into().expect("16 scores");
        let of_mask: [f32; 16] =
            if masked { mask[start..start + 16].try_into().expect("16 of the mask") } else { [0.0; 16] };
        for i in 0..16 {
            block[i] = score(block[i], of_mask[i]);
            lanes[i] = larger(block[i], lanes[i]);
        }
    }
    let mut largest = lanes.into_iter().fold(f32::NEG_INFINITY, larger);
    for i in whole..row.len() {
        row[i] = score(row[i], if masked { mask[i] } else { 0.0 });
        largest = larger(row[i], largest);
    }
    largest
}

vectorised! {
    /// Each score of `row` becomes exp(score − `largest`); their sum. `largest` is a number.
    pub fn exponentials(row: &mut [f32], largest: f32) -> f32 = exponentials_body
}

#[inline(always)]
fn exponentials_body(row: &mut [f32], largest: f32) -> f32 {
    let mut sums = [0.0f32; 16];
    let mut blocks = row.chunks_exact_mut(16);
    for block in &mut blocks {
        for i in 0..16 {
            block[i] = exp(block[i] - largest);
            sums[i] += block[i];
        }
    }
    let mut sum: f32 = sums.into_iter().sum();
    for value in blocks.into_remainder() {
        *value = exp(*value - largest);
        sum += *value;
    }
    sum
}

/// The largest magnitude of an f16 that is no infinity and no NaN, as bits.
const HALF_MAX: u16 = 0x7bff;

/// Whether all of `halves`, f16 bits, are numbers.
pub fn are_finite(halves: &[u16]) -> bool {
    halves.iter().fold(0, |most, half| (half & 0x7fff).max(most)) <= HALF_MAX
}

/// Puts rows of B (`rows` of them, `width` elements each, one after the other) where native blocks want them: block `n` of
/// `block_n` columns is written at `place(n)`, `block_n` × `block_k` elements, of which row i is element i of each
/// column. Rows up to `block_k`, and columns up to whole blocks, are filled with zeros.
///
/// # Panics
/// When there are more than `block_k` rows, or a place has another length.
pub fn place_rows<'a>(
    rows: &[u16],
    width: usize,
    (block_n, block_k): (usize, usize),
    mut place: impl FnMut(usize) -> &'a mut [u16],
) {
    let count = rows.len() / width;
    assert!(count <= block_k, "{count} rows in a block of {block_k}");
    for index in 0..width.div_ceil(block_n) {
        let block = place(index);
        assert_eq!(block.len(), block_n * block_k, "elements of a block");
        let columns = index * block_n..width.min((index + 1) * block_n);
        let (used, beyond) = block.split_at_mut(columns.len() * block_k);
        for (column, of) in columns.zip(used.chunks_exact_mut(block_k)) {
            for (row, place) in of[..count].iter_mut().enumerate() {
                *place = rows[row * width + column];
            }
            of[count..].fill(0);
        }
        beyond.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By the definition, in f64.
    fn score(value: f32, mask: Option<f32>, bias: Bias, capped: bool) -> f64 {
        let value = if capped { f64::from(bias.cap) * f64::from(value).tanh() } else { value.into() };
        value + mask.map_or(0.0, |mask| f64::from(bias.slope) * f64::from(mask))
    }

    proptest! {
        #[test]
        fn scores_are_capped_and_masked(
            values in proptest::collection::vec(-30f32..30.0, 1..100),
            hidden in proptest::collection::vec(any::<bool>(), 100),
            slope in 0.01f32..1.0,
            cap in 1f32..50.0,
        ) {
            let bias = Bias { slope, cap };
            let mask: Vec<f32> =
                (0..values.len()).map(|i| if hidden[i] { f32::NEG_INFINITY } else { -(i as f32) }).collect();
            for form in 0..4 {
                let mut row = values.clone();
                let largest = match form {
                    0 => scores::<0>(&mut row, &[], bias),
                    1 => scores::<1>(&mut row, &mask, bias),
                    2 => scores::<2>(&mut row, &[], bias),
                    _ => scores::<3>(&mut row, &mask, bias),
                };
                let mut most = f64::NEG_INFINITY;
                for (i, got) in row.iter().enumerate() {
                    let of_mask = (form & MASKED != 0).then(|| mask[i]);
                    let want = score(values[i], of_mask, bias, form & CAPPED != 0);
                    prop_assert!(want == f64::from(*got) || (want - f64::from(*got)).abs() < 1e-4, "{want} {got}");
                    most = most.max(f64::from(*got));
                }
                prop_assert_eq!(f64::from(largest), most);
                if largest > f32::NEG_INFINITY {
                    let before = row.clone();
                    let sum = exponentials(&mut row, largest);
                    let mut want_sum = 0.0;
                    for (got, score) in row.iter().zip(before) {
                        let want = (f64::from(score) - f64::from(largest)).exp();
                        want_sum += want;
                        prop_assert!((want - f64::from(*got)).abs() < 1e-6);
                    }
                    prop_assert!((want_sum - f64::from(sum)).abs() < 1e-5 * want_sum);
                }
            }
        }

        #[test]
        fn rows_of_b_are_where_the_index_formula_says(
            count in 0usize..=32,
            width in 1usize..70,
            small in any::<bool>(),
        ) {
            let (block_n, block_k) = if small { (8, 32) } else { (16, 32) };
            let rows: Vec<u16> = (0..count * width).map(|i| i as u16 + 1).collect();
            let blocks = width.div_ceil(block_n);
            let mut b = vec![0x7777u16; blocks * block_n * block_k];
            let mut parts: Vec<Option<&mut [u16]>> = b.chunks_mut(block_n * block_k).map(Some).collect();
            place_rows(&rows, width, (block_n, block_k), |n| parts[n].take().unwrap());
            for k in 0..block_k {
                for n in 0..blocks * block_n {
                    let want = if k < count && n < width { rows[k * width + n] } else { 0 };
                    prop_assert_eq!(b[n / block_n * block_n * block_k + n % block_n * block_k + k], want);
                }
            }
        }
    }

    #[test]
    fn what_is_masked_weighs_nothing() {
        let bias = Bias { slope: 1.0, cap: 0.0 };
        let mask = [f32::NEG_INFINITY; 20];
        assert_eq!(scores::<MASKED>(&mut [3.0; 20], &mask, bias), f32::NEG_INFINITY);
    }

    #[test]
    fn infinities_and_nans_are_no_numbers() {
        assert!(are_finite(&[0, 0x7bff, 0xfbff, 0x8000]) && are_finite(&[]));
        for half in [0x7c00, 0xfc00, 0x7e00, 0xffff] {
            assert!(!are_finite(&[0, half]));
        }
    }
}
