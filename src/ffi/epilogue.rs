//! What becomes of a product's results: a bias, a norm, a factor, a sum with what was there before, a rotation by positions. The
//! host's CPU backend does that; but the device takes it, so that products which the host has after it come in the same graph:
//! those of the same rows (K and V, after Q was rotated), which go to the NPU with the one before, and those that follow
//! from it ([`super::chain`]).

use ggml_sys::{sys, Ops};

/// The most nodes between a product and what is asked about: views, bias, norm, its factors, a scale, a rotation.
const NODES: usize = 12;

/// The node of the product that `op` is an epilogue of, if it is one: on the way to its first source there are only others,
/// and views.
///
/// # Safety
/// `op` and all that it is computed of are live tensors.
pub unsafe fn product<'a>(ops: &Ops, op: &'a sys::ggml_tensor) -> Option<&'a sys::ggml_tensor> {
    // SAFETY: by the contract.
    if !unsafe { is_epilogue(ops, op) } {
        return None;
    }
    let mut at = op;
    for _ in 0..NODES {
        // SAFETY: a source is null or live.
        at = unsafe { at.src[0].as_ref() }?;
        if at.op == ops.mul_mat {
            return Some(at);
        }
        // SAFETY: by the contract.
        if !ops.views.contains(&at.op) && !unsafe { is_epilogue(ops, at) } {
            return None;
        }
    }
    None
}

/// Whether the node changes the numbers of its first source by itself, by one number for each column or by as many others, and all
/// are f32.
///
/// # Safety
/// As [`product`].
unsafe fn is_epilogue(ops: &Ops, node: &sys::ggml_tensor) -> bool {
    let is_f32 = |tensor: &sys::ggml_tensor| tensor.type_ as u32 == sys::GGML_HOST_TYPE_F32;
    // SAFETY: sources are null or live.
    let [first, second] = [0, 1].map(|index| unsafe { node.src[index].as_ref() });
    let is_column =
        |tensor: &sys::ggml_tensor| tensor.op == ops.none && tensor.ne[1..] == [1; 3] && is_f32(tensor);
    let is_alike = |tensor: &sys::ggml_tensor| tensor.ne == node.ne && is_f32(tensor);
    is_f32(node)
        && first.is_some_and(is_f32)
        && (ops.by_row.contains(&node.op)
            || ops.by_column.contains(&node.op)
                && second.is_some_and(|second| is_column(second) || is_alike(second)))
}

#[cfg(test)]
mod tests {
    use super::super::test_nodes::{graph, ops, Node};
    use super::*;

    #[test]
    fn bias_norm_and_views_of_a_product_are_its_epilogue() {
        let (bias, added) = (Node::leaf(), Node::sum(2, 3));
        // A bias is added to heads, which are normed; the bias has more rows than one; a sum of two results; another op between.
        let all = [Node::other(&[]), Node::product(0), Node::view(1), bias, added, Node::norm(4)];
        let of = |nodes: &[Node], ne: [i64; 4]| {
            let mut tensors = graph(nodes);
            if let Some(bias) = tensors.get_mut(3) {
                bias.ne = ne;
            }
            // SAFETY: all are live.
            let found = unsafe { product(&ops(), tensors.last().unwrap()) };
            found.map(|found| std::ptr::eq(found, &raw const tensors[1]))
        };
        assert_eq!(of(&all, [8, 1, 1, 1]), Some(true));
        assert_eq!(of(&all[..5], [8, 1, 1, 1]), Some(true));
        assert_eq!(of(&all, [8, 2, 1, 1]), None, "no number for each column, and not as many rows");
        assert_eq!(of(&all[..3], [8; 4]), None, "a view is none");
        let mut residual = all.clone();
        residual[3] = Node::other(&[0]);
        assert_eq!(of(&residual, [8, 4, 1, 1]), Some(true), "a sum of results");
        assert_eq!(of(&residual, [8, 2, 1, 1]), None, "rows that are repeated");
        let mut far = all.clone();
        far[4] = Node::other(&[2]);
        assert_eq!(of(&far, [8, 1, 1, 1]), None, "another op comes before");
        let mut nothing = all.clone();
        nothing[1] = Node::other(&[0]);
        assert_eq!(of(&nothing, [8, 1, 1, 1]), None, "no product");
    }
}
