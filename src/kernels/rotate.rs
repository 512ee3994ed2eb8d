//! Full-width randomised Hadamard rotation: what spreads outliers over a row before it is rounded.
//!
//! A row x of K elements becomes Q·x with Q = (H_m ⊗ H_p) · D / √K, where K = m·p, p is a power of two, H_p is
//! Sylvester's matrix, H_m a Paley matrix (I or II) of the smallest order that fits, and D random signs. Q is
//! orthogonal, so (Q·w)·(Q·x) = w·x: weights are rotated once, activations on their way to the NPU, and results
//! need nothing. A K with no such factors is rotated in blocks of its largest power of two.
//!
//! Cost of a row: K·(log₂ p + m) additions; it reads and writes 4·K bytes a few times, in cache.
//! Sources: R. E. A. C. Paley, "On Orthogonal Matrices" (1933); QuIP (2307.13304) for the use on weights.

use super::fast::vectorised;

/// The largest Paley factor: a row costs K·m additions, and the matrix m² numbers.
const ORDER_MAX: usize = 256;

/// How far the random signs reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signs {
    /// Over the whole row.
    Full,
    /// Over one power-of-two block; all blocks share them.
    Shared,
}

/// What decides a rotation. The same recipe gives the same rotation in every process, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Recipe {
    /// Elements of a row.
    pub k: usize,
    /// The layer that the weight is of.
    pub layer: Option<u32>,
    /// How far the signs reach.
    pub signs: Signs,
    /// Into the next power of two.
    pub padded: bool,
}

impl Recipe {
    /// The plain recipe of rows of `k` elements: signs over the whole row, of no layer, not padded.
    pub fn of(k: usize) -> Self {
        Self { k, layer: None, signs: Signs::Full, padded: false }
    }
}

/// The rotation of rows of one length.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    k: usize,
    width: usize,
    /// Order of the Paley factor; 1 when K is a power of two, or when blocks are rotated.
    order: usize,
    /// The Paley matrix, `order` × `order`, ±1, transposed; empty for order 1.
    paley: Vec<f32>,
    /// The power of two.
    power: usize,
    /// ±1/√(order·power), one a column.
    signs: Vec<f32>,
}

impl Rotation {
    /// The rotation of a recipe; `None` for an odd `k`, which would stay as it is.
    pub fn new(recipe: &Recipe) -> Option<Self> {
        let k = recipe.k;
        if k < 2 || (k % 2 != 0 && !recipe.padded) {
            return None;
        }
        let width = if recipe.padded { k.next_power_of_two() } else { k };
        let twos = width.trailing_zeros();
        let odd = width >> twos;
        let orders = (2..=twos).map(|power| odd << power).take_while(|order| *order <= ORDER_MAX);
        let factor = if odd > 1 { orders.into_iter().find_map(paley) } else { None };
        let (order, paley) = factor.unwrap_or((1, Vec::new()));
        let power = if order > 1 { width / order } else { 1 << twos };
        let norm = 1.0 / ((order * power) as f32).sqrt();
        // A generator of its own (SplitMix64), so that no dependency can change the signs of files on disk.
        let mut state = k as u64 | recipe.layer.map_or(0, |layer| u64::from(layer) + 1) << 32;
        let mut signs: Vec<f32> = (0..k)
            .map(|_| {
                state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut bits = state;
                bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                if (bits ^ (bits >> 31)) & 1 == 0 {
                    norm
                } else {
                    -norm
                }
            })
            .collect();
        if recipe.signs == Signs::Shared {
            for i in power..k {
                signs[i] = signs[i % power];
            }
        }
        Some(Self { k, width, order, paley, power, signs })
    }

    /// Elements of a row that goes in.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Elements of a row that comes out.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether every element of the result depends on every element of the row.
    pub fn is_full(&self) -> bool {
        self.order * self.power == self.width
    }

    /// Rotates `row` (K elements) into `out` (width elements); `scratch` has room for width elements.
    ///
    /// # Panics
    /// When a length is another.
    pub fn apply(&self, row: &[f32], out: &mut [f32], scratch: &mut [f32]) {
        assert_eq!((row.len(), out.len(), scratch.len()), (self.k, self.width, self.width));
        out[..self.k].copy_from_slice(row);
        out[self.k..].fill(0.0);
        apply(self, out, scratch);
    }

    /// The element (i, j) of Q, by definition; for tests.
    pub fn element(&self, i: usize, j: usize) -> f32 {
        let (block_i, block_j) = (i / self.power, j / self.power);
        let outer = match self.order {
            1 if block_i == block_j => 1.0,
            1 => 0.0,
            order => self.paley[block_j * order + block_i],
        };
        let sylvester = if ((i % self.power) & (j % self.power)).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
        outer * sylvester * self.signs[j]
    }
}

vectorised! {
    /// See [`Rotation::apply`].
    fn apply(rotation: &Rotation, row: &mut [f32], scratch: &mut [f32]) = apply_body
}

#[inline(always)]
fn apply_body(rotation: &Rotation, row: &mut [f32], scratch: &mut [f32]) {
    for (value, sign) in row.iter_mut().zip(&rotation.signs) {
        *value *= sign;
    }
    for block in row.chunks_exact_mut(rotation.power) {
        sylvester(block);
    }
    if rotation.order == 1 {
        return;
    }
    scratch.copy_from_slice(row);
    let (order, power) = (rotation.order, rotation.power);
    row.fill(0.0);
    // Four sources at a time: each pass over the results then does four times the work on them.
    for (index, sources) in scratch.chunks(4 * power).enumerate() {
        for (i, out) in row.chunks_exact_mut(power).enumerate() {
            for (j, source) in sources.chunks_exact(power).enumerate() {
                let sign = rotation.paley[(index * 4 + j) * order + i];
                for (out, value) in out.iter_mut().zip(source) {
                    *out += sign * value;
                }
            }
        }
    }
}

/// The Walsh–Hadamard transform of a power of two, in place, unnormalised.
#[inline(always)]
fn sylvester(block: &mut [f32]) {
    let mut half = block.len() / 2;
    // Widest butterflies first: all but the last three passes work on whole vectors.
    while half >= 8 {
        for pair in block.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (low, high) in low.iter_mut().zip(high) {
                (*low, *high) = (*low + *high, *low - *high);
            }
        }
        half /= 2;
    }
    while half >= 1 {
        for pair in block.chunks_exact_mut(2 * half) {
            for i in 0..half {
                let (low, high) = (pair[i], pair[i + half]);
                (pair[i], pair[i + half]) = (low + high, low - high);
            }
        }
        half /= 2;
    }
}

/// A Hadamard matrix of `order` by one of Paley's constructions over a prime field, transposed; `None` where
/// neither applies.
fn paley(order: usize) -> Option<(usize, Vec<f32>)> {
    let q = order - 1;
    if q % 4 == 3 && is_prime(q) {
        return Some((order, paley_one(q)));
    }
    let q = order / 2 - 1;
    (order % 4 == 0 && q % 4 == 1 && is_prime(q)).then(|| (order, paley_two(q)))
}

fn is_prime(n: usize) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| n % d != 0)
}

/// The quadratic character of a − b modulo q: 0, 1 for squares, −1 otherwise.
fn character(q: usize) -> impl Fn(usize, usize) -> f32 {
    let mut squares = vec![-1.0; q];
    (1..q).for_each(|x| squares[x * x % q] = 1.0);
    squares[0] = 0.0;
    move |a, b| squares[(a + q - b) % q]
}

/// Jacobsthal's matrix with a border: 0 in the corner, `top` along the first row, `left` down the first column.
fn bordered(q: usize, top: f32, left: f32) -> impl Fn(usize, usize) -> f32 {
    let chi = character(q);
    move |i, j| match (i, j) {
        (0, 0) => 0.0,
        (0, _) => top,
        (_, 0) => left,
        _ => chi(i - 1, j - 1),
    }
}

/// Paley I, q ≡ 3 mod 4: I + S with S skew, order q + 1.
fn paley_one(q: usize) -> Vec<f32> {
    let (order, skew) = (q + 1, bordered(q, 1.0, -1.0));
    let at = |i: usize, j: usize| skew(i, j) + f32::from(u8::from(i == j));
    (0..order * order).map(|index| at(index % order, index / order)).collect()
}

/// Paley II, q ≡ 1 mod 4: each element of the symmetric conference matrix becomes a 2×2 block, order 2(q + 1).
fn paley_two(q: usize) -> Vec<f32> {
    let (order, symmetric) = (2 * (q + 1), bordered(q, 1.0, 1.0));
    let at = |i: usize, j: usize| {
        let block = match symmetric(i / 2, j / 2) {
            0.0 => [1.0, -1.0, -1.0, -1.0],
            sign => [sign, sign, sign, -sign],
        };
        block[(i % 2) * 2 + j % 2]
    };
    (0..order * order).map(|index| at(index % order, index / order)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_widths_of_real_models_are_mixed_whole() {
        for (k, order) in [
            (576, 36),
            (1536, 12),
            (896, 28),
            (4864, 76),
            (1152, 36),
            (8960, 140),
            (2048, 1),
            (3584, 28),
            (5120, 20),
            (18944, 148),
            (14336, 28),
            (5632, 44),
            (25600, 200),
            (2560, 20),
            (9728, 76),
            (960, 60),
        ] {
            let rotation = Rotation::new(&Recipe::of(k)).unwrap();
            assert_eq!((rotation.order, rotation.is_full()), (order, true), "K = {k}");
        }
        // 43·4 = 172 is beyond both constructions, so blocks of 256 it is.
        assert_eq!(
            (
                Rotation::new(&Recipe::of(11008)).unwrap().power,
                Rotation::new(&Recipe::of(11008)).unwrap().is_full()
            ),
            (256, false)
        );
        assert!(
            Rotation::new(&Recipe::of(577)).is_none()
                && Rotation::new(&Recipe::of(1)).is_none()
                && Rotation::new(&Recipe::of(0)).is_none()
        );
    }

    #[test]
    fn paleys_matrices_are_hadamard() {
        for order in (4..=204).step_by(4) {
            let Some((_, matrix)) = paley(order) else { continue };
            assert!(matrix.iter().all(|value| value.abs() == 1.0), "order {order}");
            for a in 0..order {
                for b in 0..order {
                    let dot: f32 = (0..order).map(|i| matrix[a * order + i] * matrix[b * order + i]).sum();
                    assert_eq!(
                        dot,
                        if a == b { order as f32 } else { 0.0 },
                        "order {order}, rows {a} and {b}"
                    );
                }
            }
        }
    }

    #[test]
    fn signs_are_balanced_and_fixed_for_ever() {
        let rotation = Rotation::new(&Recipe::of(1536)).unwrap();
        let positive = rotation.signs.iter().filter(|sign| **sign > 0.0).count();
        assert!((700..=836).contains(&positive), "{positive} of 1536");
        let bits: String =
            rotation.signs[..16].iter().map(|sign| if *sign > 0.0 { '+' } else { '-' }).collect();
        assert_eq!(bits, "--+--+-+-+--+--+");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        /// The fast transform is the matrix of the definition, and keeps products.
        #[test]
        fn rotated_rows_are_the_matrix_times_the_row(
            half in 2usize..300, odd: bool, padded: bool, shared: bool, layer in proptest::option::of(0u32..3), seed: u32,
        ) {
            let recipe = Recipe {
                k: half * 2 - usize::from(padded && odd),
                layer,
                signs: if shared { Signs::Shared } else { Signs::Full },
                padded,
            };
            let k = recipe.k;
            let rotation = Rotation::new(&recipe).unwrap();
            let width = rotation.width();
            prop_assert_eq!(width, if padded { k.next_power_of_two() } else { k });
            let mut state = seed;
            let mut numbers = || -> Vec<f32> {
                (0..k).map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / 8388608.0 - 1.0
                }).collect()
            };
            let (x, w) = (numbers(), numbers());
            let mut scratch = vec![0.0; width];
            let (mut rotated, mut other) = (vec![f32::NAN; width], vec![f32::NAN; width]);
            rotation.apply(&x, &mut rotated, &mut scratch);
            rotation.apply(&w, &mut other, &mut scratch);
            for (i, got) in rotated.iter().enumerate() {
                let want: f64 = (0..k).map(|j| f64::from(rotation.element(i, j)) * f64::from(x[j])).sum();
                prop_assert!((f64::from(*got) - want).abs() < 1e-4, "element {i}: {got}, not {want}");
            }
            let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum() };
            prop_assert!((dot(&rotated, &other) - dot(&x, &w)).abs() < 1e-3);
        }
    }

    #[test]
    fn layers_have_signs_of_their_own_and_blocks_may_share_theirs() {
        let of = |layer, signs| Rotation::new(&Recipe { layer, signs, ..Recipe::of(576) }).unwrap();
        assert_ne!(of(Some(0), Signs::Full), of(Some(1), Signs::Full));
        assert_ne!(of(None, Signs::Full), of(Some(0), Signs::Full));
        assert_eq!(of(Some(1), Signs::Full), of(Some(1), Signs::Full));
        let shared = of(Some(1), Signs::Shared);
        assert!(shared.signs.chunks(16).all(|block| block == &shared.signs[..16]));
        assert_ne!(shared.signs, of(Some(1), Signs::Full).signs);
    }

    #[test]
    fn an_outlier_is_spread_over_the_row() {
        for k in [576, 1536, 2048] {
            let mut row = vec![0.0; k];
            row[17] = 1.0;
            let mut out = vec![0.0; k];
            Rotation::new(&Recipe::of(k)).unwrap().apply(&row, &mut out, &mut vec![0.0; k]);
            let want = 1.0 / (k as f32).sqrt();
            assert!(out.iter().all(|value| (value.abs() - want).abs() < 1e-6), "K = {k}");
        }
    }
}
