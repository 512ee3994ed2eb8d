//! Hadamard matrices of orders that are no power of two, by Paley's constructions over a prime field.
//!
//! Source: R. E. A. C. Paley, "On Orthogonal Matrices" (1933).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// Patterns of the signs of four sources: bit 3 − j of a pattern is set when source j is subtracted.
pub const PATTERNS: usize = 16;

/// A Hadamard matrix.
#[derive(Debug, PartialEq)]
pub struct Paley {
    order: usize,
    /// Its elements, ±1, transposed: (i, j) at `j · order + i`.
    transposed: Vec<i8>,
    /// See [`Self::patterns`].
    patterns: Vec<u8>,
}

impl Paley {
    /// The matrix of `order` (at least 4); `None` where neither construction applies. Made once a process and
    /// shared from then on.
    pub fn new(order: usize) -> Option<Arc<Self>> {
        static MADE: Mutex<BTreeMap<usize, Option<Arc<Paley>>>> = Mutex::new(BTreeMap::new());
        MADE.lock().entry(order).or_insert_with(|| Self::make(order).map(Arc::new)).clone()
    }

    fn make(order: usize) -> Option<Self> {
        let (q, half) = (order - 1, (order / 2).saturating_sub(1));
        let transposed = if q % 4 == 3 && is_prime(q) {
            paley_one(q)
        } else if order % 4 == 0 && half % 4 == 1 && is_prime(half) {
            paley_two(half)
        } else {
            return None;
        };
        let transposed: Vec<i8> = transposed.into_iter().map(|value| value as i8).collect();
        let pattern = |i: usize, j: usize| {
            (0..4)
                .filter(|source| transposed[(j + source) * order + i] < 0)
                .map(|source| 8 >> source)
                .sum::<usize>()
        };
        let mut patterns = Vec::with_capacity(order * order / 4);
        for block in (0..order).step_by(4) {
            for j in (0..order).step_by(4) {
                patterns.extend((block..block + 4).map(|i| pattern(i, j) as u8));
            }
        }
        Some(Self { order, transposed, patterns })
    }

    /// Rows, and columns: a multiple of 4.
    pub fn order(&self) -> usize {
        self.order
    }

    /// The element (i, j), ±1.
    pub fn element(&self, i: usize, j: usize) -> f32 {
        f32::from(self.transposed[j * self.order + i])
    }

    /// The matrix as the patterns of signs that each output (row) meets each four sources (columns) with: for
    /// each four outputs, for each four sources, for each of the outputs, its pattern, below [`PATTERNS`].
    pub fn patterns(&self) -> &[u8] {
        &self.patterns
    }
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

    #[test]
    fn paleys_matrices_are_hadamard() {
        for order in (4..=204).step_by(4) {
            let Some(matrix) = Paley::new(order) else { continue };
            for a in 0..order {
                for b in 0..order {
                    let dot: f32 = (0..order).map(|i| matrix.element(i, a) * matrix.element(i, b)).sum();
                    let want = if a == b { order as f32 } else { 0.0 };
                    assert_eq!(dot, want, "order {order}, columns {a} and {b}");
                }
            }
            assert!(matrix.transposed.iter().all(|value| value.abs() == 1), "order {order}");
        }
    }

    #[test]
    fn patterns_are_the_matrix() {
        for order in [4, 12, 36, 60, 68, 140, 200] {
            let matrix = Paley::new(order).unwrap();
            let mut seen = vec![0.0; order * order];
            for (at, pattern) in matrix.patterns().iter().enumerate() {
                let (i, j) = (at / order * 4 + at % 4, at % order / 4 * 4);
                for source in 0..4 {
                    seen[i * order + j + source] = if pattern & (8 >> source) == 0 { 1.0 } else { -1.0 };
                }
            }
            let want: Vec<f32> =
                (0..order * order).map(|at| matrix.element(at / order, at % order)).collect();
            assert_eq!(seen, want, "order {order}");
        }
    }

    #[test]
    fn a_matrix_is_made_once() {
        assert!(Arc::ptr_eq(&Paley::new(36).unwrap(), &Paley::new(36).unwrap()));
        assert!(Paley::new(172).is_none() && Paley::new(172).is_none());
    }
}
