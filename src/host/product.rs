//! A MUL_MAT node as plain numbers: whether it is taken, and where each of its matrices lies.
//!
//! In ggml's words the weight is src0 (ne = [K, N, …]), the activations are src1 ([K, rows, …]) and the result is
//! [N, rows, …]; dimensions 2 and 3 are batches, over which a weight may be broadcast.

use ggml_sys::sys::GGML_HOST_TYPE_F32;
use ggml_sys::RowReader;

/// The most bytes of a converted weight: offsets into an allocation are 32-bit signed in the vendor's ABI.
const CONVERTED_BYTES_MAX: usize = i32::MAX as usize;
/// No padding reaches this factor except that of tiny matrices.
const PADDING_SLACK: usize = 1 << 20;

/// Type, extents (elements) and strides (bytes) of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    /// The type's number.
    pub ggml_type: i32,
    /// Extents, the innermost first.
    pub ne: [usize; 4],
    /// Strides in bytes.
    pub nb: [usize; 4],
}

impl Operand {
    pub(super) fn is_f32(&self) -> bool {
        self.ggml_type as u32 == GGML_HOST_TYPE_F32
    }

    /// Rows of `row_bytes` one after the other, in all dimensions.
    pub(super) fn contiguous(&self, row_bytes: usize) -> bool {
        let mut expected = row_bytes;
        (1..4).all(|i| {
            let fits = self.ne[i] == 1 || self.nb[i] == expected;
            expected = expected.saturating_mul(self.ne[i]);
            fits
        })
    }

    fn offset(&self, i2: usize, i3: usize) -> usize {
        i2 * self.nb[2] + i3 * self.nb[3]
    }
}

/// A product that the plugin takes.
#[derive(Clone, Copy)]
pub struct Product {
    /// How rows of the weight are read.
    pub reader: RowReader,
    /// Elements summed.
    pub k: usize,
    /// Output channels.
    pub n: usize,
    /// Rows of activations of one batch; may be zero.
    pub rows: usize,
    weight: Operand,
    activations: Operand,
}

/// Byte ranges of one batch's matrices, from the tensors' first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Where the weight's matrix begins.
    pub weight: usize,
    /// Where the activations' matrix begins.
    pub activations: usize,
    /// Where the result's matrix begins.
    pub out: usize,
}

impl Product {
    /// Checks a node.
    ///
    /// # Errors
    /// Why the CPU is to do it.
    pub fn new(
        weight: Operand,
        activations: Operand,
        out: Operand,
        reader: Option<RowReader>,
    ) -> Result<Self, &'static str> {
        let reader = reader.ok_or("the weight's type cannot be read as floats")?;
        let (k, n, rows) = (weight.ne[0], weight.ne[1], activations.ne[1]);
        if k == 0 || n == 0 || weight.ne[2] == 0 || weight.ne[3] == 0 {
            return Err("the weight is empty");
        }
        if n == 1 {
            // The NPU would compute a whole block of columns for it, and rounded operands may cost a lone sum that
            // cancels most of its digits: test-backend-ops' single dot product fails by that in one draw of 130.
            return Err("one output channel is a dot product, which the CPU does as fast and in more digits");
        }
        let row_bytes = reader.row_bytes(k).ok_or("K is no multiple of the type's block")?;
        if weight.nb[0] != reader.block_bytes() {
            return Err("the weight's rows are not contiguous");
        }
        if !activations.is_f32() || activations.nb[0] != 4 || activations.nb[1..].iter().any(|nb| nb % 4 != 0)
        {
            return Err("the activations are not rows of f32");
        }
        if !out.is_f32() || out.nb[0] != 4 || !out.contiguous(n.saturating_mul(4)) {
            return Err("the result is not contiguous f32");
        }
        let batches = [activations.ne[2], activations.ne[3]];
        if activations.ne[0] != k
            || out.ne != [n, rows, batches[0], batches[1]]
            || batches[0] % weight.ne[2] != 0
            || batches[1] % weight.ne[3] != 0
        {
            return Err("the shapes do not fit together");
        }
        let converted = (k + 64).checked_mul(n + 128).and_then(|elements| elements.checked_mul(2));
        if converted.is_none_or(|bytes| bytes > CONVERTED_BYTES_MAX - PADDING_SLACK) {
            return Err("the converted weight would be larger than 2 GiB");
        }
        if weight.nb[1] < row_bytes {
            return Err("the weight's rows overlap");
        }
        Ok(Self { reader, k, n, rows, weight, activations })
    }

    /// Each batch, in the order of the result.
    pub fn batches(&self) -> impl Iterator<Item = Batch> + '_ {
        let [r2, r3] = [2, 3].map(|i| self.activations.ne[i] / self.weight.ne[i]);
        (0..self.activations.ne[3]).flat_map(move |i3| {
            (0..self.activations.ne[2]).map(move |i2| Batch {
                weight: self.weight.offset(i2 / r2, i3 / r3),
                activations: self.activations.offset(i2, i3),
                out: (i3 * self.activations.ne[2] + i2) * self.rows * self.n * 4,
            })
        })
    }

    /// How many batches there are.
    pub fn batch_count(&self) -> usize {
        self.activations.ne[2] * self.activations.ne[3]
    }

    /// Matrices of the weight, each of which serves as many batches.
    pub fn matrices(&self) -> usize {
        self.weight.ne[2] * self.weight.ne[3]
    }

    /// Bytes from one row of the weight to the next.
    pub fn weight_stride(&self) -> usize {
        self.weight.nb[1]
    }

    /// Bytes of one of the weight's matrices, its first row's start to its last row's end.
    pub fn weight_bytes(&self) -> usize {
        let row = self.reader.row_bytes(self.k).unwrap_or(0);
        (self.n - 1) * self.weight.nb[1] + row
    }

    /// Elements from one row of the activations to the next.
    pub fn activation_stride(&self) -> usize {
        self.activations.nb[1] / 4
    }

    /// Elements of one of the activations' matrices, its first row's start to its last row's end.
    pub fn activation_elements(&self) -> usize {
        self.rows.saturating_sub(1) * self.activation_stride() + self.k
    }

    /// Elements of one of the result's matrices.
    pub fn out_elements(&self) -> usize {
        self.rows * self.n
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.rows == 0 || self.activations.ne[2] == 0 || self.activations.ne[3] == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32_operand(ne: [usize; 4]) -> Operand {
        let nb = [4, 4 * ne[0], 4 * ne[0] * ne[1], 4 * ne[0] * ne[1] * ne[2]];
        Operand { ggml_type: 0, ne, nb }
    }

    fn product(weight: Operand, activations: Operand) -> Result<Product, &'static str> {
        let ne = [weight.ne[1], activations.ne[1], activations.ne[2], activations.ne[3]];
        Product::new(weight, activations, f32_operand(ne), Some(RowReader::f32()))
    }

    #[test]
    fn weights_are_broadcast_over_batches() {
        let product = product(f32_operand([8, 4, 2, 1]), f32_operand([8, 3, 4, 3])).unwrap();
        let batches: Vec<_> = product.batches().collect();
        assert_eq!(batches.len(), 12);
        // Batch (i2 = 3, i3 = 1) uses the weight's second matrix.
        assert_eq!(batches[7], Batch { weight: 128, activations: 7 * 96, out: 7 * 48 });
        assert_eq!(
            (product.weight_bytes(), product.activation_elements(), product.out_elements()),
            (128, 24, 12)
        );
    }

    #[test]
    fn permuted_batches_and_strided_rows_are_taken() {
        // A view [8, 3, 4] of a [8, 4, 3] tensor with the last two dimensions swapped.
        let activations = Operand { ggml_type: 0, ne: [8, 3, 4, 1], nb: [4, 128, 32, 384] };
        let product = product(f32_operand([8, 4, 1, 1]), activations).unwrap();
        assert_eq!(product.activation_stride(), 32);
        assert_eq!(product.batches().nth(1).unwrap().activations, 32);
    }

    #[test]
    fn what_cannot_be_done_right_is_declined() {
        let weight = f32_operand([8, 4, 1, 1]);
        let rows = f32_operand([8, 3, 1, 1]);
        let declined = |weight, rows, why: &str| {
            let reason = product(weight, rows).err().unwrap_or_default();
            assert!(reason.contains(why), "{reason:?} is not {why:?}");
        };
        declined(Operand { nb: [32, 4, 128, 128], ..weight }, rows, "not contiguous");
        declined(weight, Operand { ggml_type: 1, ..rows }, "f32");
        declined(weight, Operand { nb: [12, 4, 96, 96], ..rows }, "f32");
        declined(weight, f32_operand([9, 3, 1, 1]), "fit together");
        declined(f32_operand([8, 0, 1, 1]), rows, "empty");
        declined(f32_operand([8, 1, 1, 1]), rows, "dot product");
        declined(f32_operand([1 << 20, 1 << 12, 1, 1]), f32_operand([1 << 20, 1, 1, 1]), "2 GiB");
        assert!(Product::new(weight, rows, f32_operand([4, 3, 1, 1]), None).is_err());
        assert!(Product::new(weight, rows, f32_operand([4, 2, 1, 1]), Some(RowReader::f32())).is_err());
    }

    #[test]
    fn zero_rows_are_taken_and_are_empty() {
        let product = product(f32_operand([8, 4, 1, 1]), f32_operand([8, 0, 1, 1])).unwrap();
        assert!(product.is_empty());
    }
}
