//! A MUL_MAT_ID node as plain numbers: products of a mixture of experts.
//!
//! In ggml's words the experts' weights are src0 (ne = [K, N, experts]), the activations src1 ([K, 1 or used, tokens]),
//! the experts of each token src2 ([used, tokens], i32), and the result is [N, used, tokens].

use ggml_sys::sys::GGML_HOST_TYPE_I32;
use ggml_sys::RowReader;

use super::product::{Operand, Product};

/// A product with experts that the plugin takes.
#[derive(Clone, Copy)]
pub struct ExpertProduct {
    /// All rows of activations times one expert's matrix.
    pub each: Product,
    /// Experts that there are.
    pub experts: usize,
    /// Experts that a token has.
    pub used: usize,
    /// Rows of activations that a token has, 1 or `used` or a part of them.
    pub rows: usize,
    /// Tokens.
    pub tokens: usize,
    /// Bytes from one expert's matrix to the next.
    pub expert_stride: usize,
    /// Bytes from one id of a token to the next, and from one token's to the next one's.
    pub id_strides: [usize; 2],
}

impl ExpertProduct {
    /// Checks a node.
    ///
    /// # Errors
    /// Why the CPU is to do it.
    pub fn new(
        weight: Operand,
        activations: Operand,
        ids: Operand,
        out: Operand,
        reader: Option<RowReader>,
    ) -> Result<Self, &'static str> {
        let [k, n, experts, one] = weight.ne;
        let [used, tokens, ..] = ids.ne;
        let rows = activations.ne[1];
        if ids.ggml_type as u32 != GGML_HOST_TYPE_I32 || ids.nb.iter().any(|nb| nb % 4 != 0) {
            return Err("the experts' ids are no i32");
        }
        if one != 1
            || [activations.ne[3], ids.ne[2], ids.ne[3]] != [1; 3]
            || activations.ne[2] != tokens
            || out.ne != [n, used, tokens, 1]
            || used == 0
            || rows == 0
            || used % rows != 0
        {
            return Err("the shapes do not fit together");
        }
        if experts == 0 {
            return Err("there are no experts");
        }
        if rows > 1 && activations.nb[2] != activations.nb[1].saturating_mul(rows) {
            return Err("the activations' rows are not evenly spaced");
        }
        if used.checked_mul(tokens).is_none_or(|rows| rows > i32::MAX as usize) {
            return Err("there are too many rows");
        }
        let row = n.saturating_mul(4);
        if !out.is_f32() || out.nb[0] != 4 || !out.contiguous(row) {
            return Err("the result is not contiguous f32");
        }
        // All rows in one dimension; the result of an expert is never whole.
        let stride = if rows > 1 { activations.nb[1] } else { activations.nb[2] };
        let all = rows * tokens;
        let flat = |operand: Operand, ne: [usize; 2], stride: usize| Operand {
            ne: [ne[0], ne[1], 1, 1],
            nb: [operand.nb[0], stride, stride.saturating_mul(ne[1]), stride.saturating_mul(ne[1])],
            ..operand
        };
        let each = Product::new(
            flat(weight, [k, n], weight.nb[1]),
            flat(activations, [activations.ne[0], all], stride),
            flat(out, [n, all], row),
            reader,
        )?;
        if experts > 1 && weight.nb[2] < each.weight_bytes() {
            return Err("the experts' weights overlap");
        }
        let (expert_stride, id_strides) = (weight.nb[2], [ids.nb[0], ids.nb[1]]);
        Ok(Self { each, experts, used, rows, tokens, expert_stride, id_strides })
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Elements of the result.
    pub fn out_elements(&self) -> usize {
        self.tokens * self.used * self.each.n
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operand(ggml_type: i32, ne: [usize; 4]) -> Operand {
        Operand { ggml_type, ne, nb: [4, 4 * ne[0], 4 * ne[0] * ne[1], 4 * ne[0] * ne[1] * ne[2]] }
    }

    fn product(rows: usize, edit: impl Fn(&mut [Operand; 4])) -> Result<ExpertProduct, &'static str> {
        let i32_type = GGML_HOST_TYPE_I32 as i32;
        let mut all = [
            operand(0, [8, 4, 6, 1]),
            operand(0, [8, rows, 5, 1]),
            operand(i32_type, [2, 5, 1, 1]),
            operand(0, [4, 2, 5, 1]),
        ];
        edit(&mut all);
        let [weight, activations, ids, out] = all;
        ExpertProduct::new(weight, activations, ids, out, Some(RowReader::f32()))
    }

    #[test]
    fn tokens_have_one_row_or_one_for_each_of_their_experts() {
        let one = product(1, |_| ()).unwrap();
        assert_eq!((one.each.rows, one.each.activation_stride(), one.out_elements()), (5, 8, 40));
        let two = product(2, |_| ()).unwrap();
        assert_eq!((two.each.rows, two.expert_stride, two.id_strides), (10, 128, [4, 8]));
        assert!(product(1, |all| {
            for operand in &mut all[1..] {
                operand.ne[if operand.ggml_type == 0 { 2 } else { 1 }] = 0;
            }
        })
        .is_ok_and(|product| product.is_empty()));
    }

    #[test]
    fn what_cannot_be_done_right_is_declined() {
        let declined = |rows, edit: &dyn Fn(&mut [Operand; 4]), why: &str| {
            let reason = product(rows, edit).err().unwrap_or_default();
            assert!(reason.contains(why), "{reason:?} is not {why:?}");
        };
        declined(1, &|all| all[2].ggml_type = 0, "no i32");
        declined(1, &|all| all[2].ne[1] = 4, "fit together");
        declined(3, &|_| (), "fit together");
        declined(2, &|all| all[1].nb[2] = 96, "evenly spaced");
        declined(1, &|all| all[0].nb[2] = 64, "overlap");
        declined(1, &|all| all[3].nb[1] = 32, "not contiguous");
        declined(1, &|all| all[0].ne[2] = 0, "no experts");
        declined(1, &|all| all[0].nb[1] = 16, "overlap");
    }
}
