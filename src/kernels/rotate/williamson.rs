//! Hadamard matrices of the orders 12, 20, 28 and 36, which most models' rows have as a factor, and their fast transform.
//!
//! Williamson's matrices are made of four circulant n×n matrices of ±1, laid out as the product of quaternions is. So n rows of
//! four elements are n quaternions x, which are convolved with others q: yₚ = Σᵢ qᵢ·xₚ₋ᵢ, q₀ = 1 + i + j + k, qᵢ = qₙ₋ᵢ, each of
//! ±1 ± i ± j ± k. Where the number of minus signs of all but q₀ is odd (Williamson shows that it is, up to signs of the
//! circulants), qᵢ = g·uᵢ with g = −1 + i + j + k and uᵢ one of ±1, ±i, ±j, ±k, here of the first four, and q₀ = g + 2:
//!
//! yₚ = g·(xₚ + Σᵢ uᵢ·xₚ₋ᵢ) + 2·xₚ
//!
//! Products with u only exchange elements and change signs. That leaves n + 2 additions an element, of 4·n by the definition,
//! and no table.
//! Sources: J. Williamson, "Hadamard's determinant theorem and the sum of four squares" (1944). The units uᵢ of each n were
//! found by trying all.

use std::mem::MaybeUninit;

use super::transform::{load, store};
use crate::kernels::lanes::Lanes;

/// A quaternion of four elements.
type Quaternion<V> = [V; 4];

/// What quaternions are multiplied by; of the eight units these four are enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    One,
    I,
    MinusOne,
    MinusI,
}
use Unit::{MinusI, MinusOne, One, I};

/// A Hadamard matrix of one of a few orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Williamson {
    /// Quaternions of a column: a quarter of the order.
    n: usize,
    /// u₁ to the middle one.
    units: &'static [Unit],
}

/// For each n its matrix, and a function for the product with it, of which all signs are known when it is compiled.
macro_rules! matrices {
    ($($function:ident: $n:literal, [$($i:literal: $unit:ident),+];)+) => {
        const ALL: [Williamson; [$($n),+].len()] = [$(Williamson { n: $n, units: &[$($unit),+] }),+];

        impl Williamson {
            /// The matrix times `source` (order × power) into `out`.
            ///
            /// # Safety
            /// The machine has the instructions of `V`, of which the power is whole vectors; both slices are order × power.
            #[inline(always)]
            pub unsafe fn times<V: Lanes>(self, power: usize, source: &[f32], out: &mut [f32]) {
                let len = self.order() * power;
                assert!(source.len() == len && out.len() == len && power % V::N == 0);
                // SAFETY: passed on; the lengths were checked just now.
                unsafe {
                    match self.n {
                        $($n => $function::<V>(power, source.as_ptr(), out.as_mut_ptr()),)+
                        _ => unreachable!("a matrix that is not among all"),
                    }
                }
            }
        }

        $(
            /// # Safety
            /// The machine has the instructions of `V`; both pointers are good for 4·n·power floats, the power whole vectors.
            #[inline(always)]
            unsafe fn $function<V: Lanes>(power: usize, source: *const f32, out: *mut f32) {
                const HALF: usize = $n / 2;
                // The n quaternions, and after them and before as many of them as are needed to go around: all that one of them is
                // added to is in the same places beside it.
                let mut around = [const { MaybeUninit::uninit() }; 2 * $n - 1];
                for start in (0..power).step_by(V::N) {
                    // SAFETY: a vector of each of four rows of a quaternion, of n. All quaternions around are written before any
                    // is read. No closures: they would be built without the instructions, and called.
                    unsafe {
                        for p in 0..$n {
                            let x = load::<V, 4>(source.add(p * 4 * power + start), power);
                            around[HALF + p].write(x);
                            if p < HALF {
                                around[HALF + $n + p].write(x);
                            }
                            if p > HALF {
                                around[p - HALF - 1].write(x);
                            }
                        }
                        for p in 0..$n {
                            let at: *const Quaternion<V> = around.as_ptr().add(HALF + p).cast();
                            let x = *at;
                            let sum = x;
                            $(let sum = add_times(sum, $unit, add_times(*at.sub($i), One, *at.add($i)));)+
                            let to = out.add(p * 4 * power + start);
                            store(&last(x, sum), to, power);
                        }
                    }
                }
            }
        )+
    };
}

matrices! {
    three: 3, [1: MinusOne];
    five: 5, [1: I, 2: MinusOne];
    seven: 7, [1: One, 2: MinusOne, 3: MinusI];
    nine: 9, [1: One, 2: I, 3: One, 4: MinusOne];
}

/// `sum` + `unit`·`x`.
#[inline(always)]
fn add_times<V: Lanes>(sum: Quaternion<V>, unit: Unit, x: Quaternion<V>) -> Quaternion<V> {
    let ([a, b, c, d], [e, f, g, h]) = (sum, x);
    match unit {
        One => [a.add(e), b.add(f), c.add(g), d.add(h)],
        MinusOne => [a.sub(e), b.sub(f), c.sub(g), d.sub(h)],
        I => [a.sub(f), b.add(e), c.sub(h), d.add(g)],
        MinusI => [a.add(f), b.sub(e), c.add(h), d.sub(g)],
    }
}

/// (−1 + i + j + k)·`sum` + 2·`x`.
#[inline(always)]
fn last<V: Lanes>([e, f, g, h]: Quaternion<V>, [a, b, c, d]: Quaternion<V>) -> Quaternion<V> {
    let (ab, a_b, cd, c_d) = (a.add(b), a.sub(b), c.add(d), c.sub(d));
    let all = ab.add(cd).neg();
    [all.add_twice(e), a_b.sub(c_d).add_twice(f), ab.sub(cd).add_twice(g), a_b.add(c_d).add_twice(h)]
}

impl Williamson {
    /// The matrix of `order`, if it is one of these.
    pub fn new(order: usize) -> Option<Self> {
        ALL.into_iter().find(|matrix| matrix.order() == order)
    }

    /// Rows, and columns.
    pub fn order(self) -> usize {
        4 * self.n
    }

    /// The element (i, j), ±1, by the quaternions of the module's first formula.
    pub fn element(self, i: usize, j: usize) -> f32 {
        let apart = (self.n + i / 4 - j / 4) % self.n;
        let [a, b, c, d] = match apart.min(self.n - apart) {
            0 => [1.0; 4],
            // g times the unit.
            at => match self.units[at - 1] {
                One => [-1.0, 1.0, 1.0, 1.0],
                MinusOne => [1.0, -1.0, -1.0, -1.0],
                I => [-1.0, -1.0, 1.0, -1.0],
                MinusI => [1.0, 1.0, -1.0, 1.0],
            },
        };
        [[a, -b, -c, -d], [b, a, -d, c], [c, d, a, -b], [d, -c, b, a]][i % 4][j % 4]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn williamsons_matrices_are_hadamard() {
        let orders: Vec<usize> = (0..100).filter(|order| Williamson::new(*order).is_some()).collect();
        assert_eq!(orders, [12, 20, 28, 36]);
        for order in orders {
            let matrix = Williamson::new(order).unwrap();
            for a in 0..order {
                for b in 0..order {
                    assert_eq!(matrix.element(a, b).abs(), 1.0);
                    let dot: f32 = (0..order).map(|i| matrix.element(i, a) * matrix.element(i, b)).sum();
                    assert_eq!(
                        dot,
                        if a == b { order as f32 } else { 0.0 },
                        "order {order}, columns {a} and {b}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_fast_product_is_that_of_the_elements() {
        for matrix in ALL {
            for power in [1, 2, 5] {
                let len = matrix.order() * power;
                let source: Vec<f32> = (0..len).map(|at| ((at * 37 + 11) % 101) as f32 - 50.0).collect();
                let mut out = vec![f32::NAN; len];
                // SAFETY: plain floats need no instructions, and any power is whole ones.
                unsafe { matrix.times::<f32>(power, &source, &mut out) };
                let want = (0..len).map(|at| {
                    let of = |j: usize| matrix.element(at / power, j) * source[j * power + at % power];
                    (0..matrix.order()).map(of).sum::<f32>()
                });
                // Integers, so that nothing is rounded.
                assert_eq!(out, want.collect::<Vec<f32>>(), "order {}", matrix.order());
            }
        }
    }
}
