//! Random matrices, how their elements are written to and read from memory, and the exact product.
//!
//! An element is an integer. f16 holds it in 64ths and sums it in 4096ths, both exactly, so that for each type the
//! right result is one bit pattern, whatever the order in which the NPU adds.

use half::f16;
use rknn_sys::{Element, MatmulType};

use super::layout::Place;

/// How many an f16 element counts one as.
const F16_UNITS: f32 = 64.0;

/// A row-major matrix of small integers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// `rows` × `columns` elements.
    pub values: Vec<i32>,
}

/// A generator of numbers that need variety, not quality.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed ^ 0x9e37_79b9_7f4a_7c15)
    }

    /// A number in `low..=high`.
    pub fn within(&mut self, low: i32, high: i32) -> i32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let span = (i64::from(high) - i64::from(low) + 1) as u64;
        (i64::from(low) + ((self.0 >> 16) % span) as i64) as i32
    }

    /// A matrix of any values that an A or B of `element` holds (f16: −2 to 2).
    pub fn matrix(&mut self, element: Element, rows: usize, columns: usize) -> Matrix {
        let (low, high) = match element {
            Element::I4 => (-8, 7),
            Element::I8 => (-128, 127),
            _ => (-128, 128),
        };
        Matrix::of(rows, columns, |_, _| self.within(low, high))
    }

    /// Any A (`m`×`k`) and B (`k`×`n`) of `dtype`.
    pub fn operands(&mut self, dtype: MatmulType, m: usize, k: usize, n: usize) -> (Matrix, Matrix) {
        (self.matrix(dtype.a(), m, k), self.matrix(dtype.b(), k, n))
    }
}

impl Matrix {
    /// The matrix of `value(row, column)`.
    pub fn of(rows: usize, columns: usize, mut value: impl FnMut(usize, usize) -> i32) -> Self {
        let mut values = Vec::with_capacity(rows * columns);
        for row in 0..rows {
            for column in 0..columns {
                values.push(value(row, column));
            }
        }
        Self { rows, columns, values }
    }

    /// Writes the matrix to `bytes` by `place`, as an A or B of `element`; what does not fit is left out.
    pub fn store(&self, element: Element, place: Place, bytes: &mut [u8]) {
        bytes.fill(0);
        for row in 0..self.rows {
            for column in 0..self.columns {
                let index = place.index(self.rows, self.columns, row, column);
                let value = self.values[row * self.columns + column];
                match element {
                    Element::I8 => {
                        if let Some(to) = bytes.get_mut(index) {
                            *to = value as u8;
                        }
                    }
                    // Two to a byte, the even one in the low nibble.
                    Element::I4 => {
                        if let Some(to) = bytes.get_mut(index / 2) {
                            *to |= (value as u8 & 15) << (index % 2 * 4);
                        }
                    }
                    // No operand is wider than f16.
                    _ => {
                        let half = f16::from_f32(value as f32 / F16_UNITS).to_le_bytes();
                        if let Some(to) = bytes.get_mut(2 * index..2 * index + 2) {
                            to.copy_from_slice(&half);
                        }
                    }
                }
            }
        }
    }

    /// The sums of `self` · `b`, row-major, before any rounding or saturation.
    pub fn times(&self, b: &Self) -> Vec<i64> {
        let mut sums = vec![0i64; self.rows * b.columns];
        for row in 0..self.rows {
            for inner in 0..self.columns {
                let factor = i64::from(self.values[row * self.columns + inner]);
                for column in 0..b.columns {
                    sums[row * b.columns + column] +=
                        factor * i64::from(b.values[inner * b.columns + column]);
                }
            }
        }
        sums
    }
}

/// The number that C must hold for an exact sum: f32 of f16's units, i32, or saturated i16.
pub fn expected(dtype: MatmulType, sum: i64) -> f64 {
    let units = |element| if element == Element::F16 { f64::from(F16_UNITS) } else { 1.0 };
    match dtype.c() {
        Element::I16 => sum.clamp(i64::from(i16::MIN), i64::from(i16::MAX)) as f64,
        _ => sum as f64 / (units(dtype.a()) * units(dtype.b())),
    }
}

/// Element `index` of C as it lies in memory; NaN past its end.
pub fn read(dtype: MatmulType, bytes: &[u8], index: usize) -> f64 {
    let word = |at: usize| bytes.get(at..at + 4).and_then(|word| <[u8; 4]>::try_from(word).ok());
    let short = |at: usize| bytes.get(at..at + 2).and_then(|short| <[u8; 2]>::try_from(short).ok());
    match dtype.c() {
        Element::I32 => word(4 * index).map(|word| f64::from(i32::from_le_bytes(word))),
        Element::I16 => short(2 * index).map(|short| f64::from(i16::from_le_bytes(short))),
        _ => word(4 * index).map(|word| f64::from(f32::from_le_bytes(word))),
    }
    .unwrap_or(f64::NAN)
}

/// How C differs from what it must be.
#[derive(Debug, Clone, PartialEq)]
pub struct Mismatch {
    /// Elements that are wrong.
    pub wrong: usize,
    /// Elements in all.
    pub total: usize,
    /// Row and column of the first.
    pub at: (usize, usize),
    /// What lies there.
    pub got: f64,
    /// What must lie there.
    pub want: f64,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { wrong, total, at: (row, column), got, want } = self;
        write!(f, "{wrong} of {total} wrong, first at row {row}, column {column}: {got}, not {want}")
    }
}

/// Compares C, which lies in `bytes` by `place`, with the exact `sums` of `rows` rows.
///
/// # Errors
/// Where and how much it differs.
pub fn compare(
    dtype: MatmulType,
    sums: &[i64],
    rows: usize,
    place: Place,
    bytes: &[u8],
) -> Result<(), Mismatch> {
    let columns = sums.len() / rows.max(1);
    let mut found: Option<Mismatch> = None;
    for row in 0..rows {
        for column in 0..columns {
            let want = expected(dtype, sums[row * columns + column]);
            let got = read(dtype, bytes, place.index(rows, columns, row, column));
            if got != want {
                let first = Mismatch { wrong: 0, total: sums.len(), at: (row, column), got, want };
                found.get_or_insert(first).wrong += 1;
            }
        }
    }
    found.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_what_memory_holds() {
        let matrix = Matrix { rows: 1, columns: 4, values: vec![-8, 7, 1, -1] };
        let mut bytes = [0u8; 8];
        matrix.store(Element::I4, Place::RowMajor, &mut bytes[..2]);
        assert_eq!(bytes[..2], [0x78, 0xf1]);
        matrix.store(Element::I8, Place::RowMajor, &mut bytes[..4]);
        assert_eq!(bytes[..4], [0xf8, 7, 1, 0xff]);
        matrix.store(Element::F16, Place::RowMajor, &mut bytes);
        assert_eq!(f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(), -0.125);
        // A memory that is too small is no reason to panic.
        matrix.store(Element::F16, Place::RowMajor, &mut bytes[..3]);
        assert!(read(MatmulType::I8, &bytes[..3], 0).is_nan());
    }

    #[test]
    fn a_wrong_element_is_found_where_it_is() {
        let a = Matrix { rows: 2, columns: 2, values: vec![1, 2, 3, 4] };
        let sums = a.times(&Matrix { rows: 2, columns: 2, values: vec![5, 6, 7, 8] });
        assert_eq!(sums, [19, 22, 43, 50]);
        let mut c: Vec<u8> = [19i32, 22, 44, 50].iter().flat_map(|value| value.to_le_bytes()).collect();
        let error = compare(MatmulType::I8, &sums, 2, Place::RowMajor, &c).unwrap_err();
        assert_eq!((error.wrong, error.at, error.got, error.want), (1, (1, 0), 44.0, 43.0));
        c[8] = 43;
        assert_eq!(compare(MatmulType::I8, &sums, 2, Place::RowMajor, &c), Ok(()));
        assert_eq!(expected(MatmulType::I4, 40_000), 32767.0);
    }
}
