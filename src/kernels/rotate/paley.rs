//! Hadamard matrices of orders that are no power of two, by Paley's constructions over a prime field.
//!
//! Source: R. E. A. C. Paley, "On Orthogonal Matrices" (1933).

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The matrix of `order` (at least 4), transposed: element (i, j) at `j · order + i`, ±1. `None` where neither
/// construction applies. Made once a process and shared from then on.
pub fn matrix(order: usize) -> Option<Arc<[f32]>> {
    static MADE: Mutex<BTreeMap<usize, Option<Arc<[f32]>>>> = Mutex::new(BTreeMap::new());
    MADE.lock().entry(order).or_insert_with(|| make(order).map(Arc::from)).clone()
}

fn make(order: usize) -> Option<Vec<f32>> {
    let q = order - 1;
    if q % 4 == 3 && is_prime(q) {
        return Some(paley_one(q));
    }
    let q = order / 2 - 1;
    (order % 4 == 0 && q % 4 == 1 && is_prime(q)).then(|| paley_two(q))
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
            let Some(matrix) = matrix(order) else { continue };
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
    fn a_matrix_is_made_once() {
        assert!(Arc::ptr_eq(&matrix(36).unwrap(), &matrix(36).unwrap()));
        assert!(matrix(172).is_none() && matrix(172).is_none());
    }
}
