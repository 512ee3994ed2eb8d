//! What a width has beside its power of two: one or two Hadamard matrices of other orders.

use std::sync::Arc;

use super::paley::Paley;
use super::transform::STRIP;
use super::williamson::Williamson;

/// The largest factor: a row costs K·m/4 additions by Paley's, and the table of sums 256·m bytes.
pub const ORDER_MAX: usize = 256;

/// What the sums of four cost an element beside the m/4 additions, in additions: what is stored costs the most.
const WORK_OF_A_TABLE: usize = 6;
/// What Williamson's cost beside the m/4 additions.
const WORK_OF_A_LAST_PRODUCT: usize = 3;

/// A Hadamard matrix of an order that is no power of two.
#[derive(Debug, Clone, PartialEq)]
pub enum Factor {
    /// One of few, with a fast product.
    Williamson(Williamson),
    /// Any other, by sums of four.
    Paley(Arc<Paley>),
}

impl Factor {
    /// The matrix of `order`, 4 at least; `None` where no construction applies.
    pub fn new(order: usize) -> Option<Self> {
        match Williamson::new(order) {
            Some(matrix) => Some(Self::Williamson(matrix)),
            None => Paley::new(order).map(Self::Paley),
        }
    }

    /// Rows, and columns: a multiple of 4.
    pub fn order(&self) -> usize {
        match self {
            Self::Williamson(matrix) => matrix.order(),
            Self::Paley(matrix) => matrix.order(),
        }
    }

    /// The element (i, j), ±1.
    pub fn element(&self, i: usize, j: usize) -> f32 {
        match self {
            Self::Williamson(matrix) => matrix.element(i, j),
            Self::Paley(matrix) => matrix.element(i, j),
        }
    }

    /// What stands for it in descriptions of rotations, for ever: `w36`, or `60`.
    pub fn name(&self) -> String {
        match self {
            Self::Williamson(matrix) => format!("w{}", matrix.order()),
            Self::Paley(matrix) => matrix.order().to_string(),
        }
    }

    /// About how many additions an element of its product costs.
    fn work(&self) -> usize {
        match self {
            Self::Williamson(matrix) => matrix.order() / 4 + WORK_OF_A_LAST_PRODUCT,
            Self::Paley(matrix) => matrix.order() / 4 + WORK_OF_A_TABLE,
        }
    }
}

/// The order of all factors together, or 1.
pub fn order_of(factors: &[Factor]) -> usize {
    factors.iter().map(Factor::order).product()
}

/// The factors of rows of `width` elements, the outermost first: one of the smallest order, or two where that is less work and
/// leaves whole strips; none for a power of two, and where none fit.
pub fn factors(width: usize) -> Vec<Factor> {
    let twos = width.trailing_zeros();
    let odd = width >> twos;
    if odd == 1 {
        return Vec::new();
    }
    let smallest = |odd: usize, twos: u32| {
        let mut orders = (2..=twos).map(|power| odd << power).take_while(|order| *order <= ORDER_MAX);
        orders.find_map(Factor::new)
    };
    let work = |factors: &[Factor]| factors.iter().map(Factor::work).sum::<usize>();
    let one: Vec<_> = smallest(odd, twos).into_iter().collect();
    let divisors =
        (3..).step_by(2).take_while(|divisor| divisor * divisor <= odd).filter(|divisor| odd % divisor == 0);
    let pairs = divisors.filter_map(|divisor| {
        let inner = smallest(odd / divisor, twos)?;
        let outer = smallest(divisor, twos)?;
        (width % (outer.order() * inner.order() * STRIP) == 0).then(|| vec![outer, inner])
    });
    let pair = pairs.min_by_key(|pair| work(pair));
    match pair {
        Some(pair) if one.is_empty() || work(&pair) < work(&one) => pair,
        _ => one,
    }
}
