//! What becomes of a product's results before anything else reads them: a bias, a norm, a factor, a rotation by positions. The
//! host's CPU backend does that; but the device takes it, so that products of the same rows which the host has after it
//! (K and V, after Q was rotated) come in the same graph and go to the NPU with the one before.

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

/// Whether the node changes the numbers of its first source by itself, or by one number for each column, and all are f32.
///
/// # Safety
/// As [`product`].
unsafe fn is_epilogue(ops: &Ops, node: &sys::ggml_tensor) -> bool {
    let is_f32 = |tensor: &sys::ggml_tensor| tensor.type_ as u32 == sys::GGML_HOST_TYPE_F32;
    // SAFETY: sources are null or live.
    let [first, second] = [0, 1].map(|index| unsafe { node.src[index].as_ref() });
    let is_column =
        |tensor: &sys::ggml_tensor| tensor.op == ops.none && tensor.ne[1..] == [1; 3] && is_f32(tensor);
    is_f32(node)
        && first.is_some_and(is_f32)
        && (ops.by_row.contains(&node.op)
            || ops.by_column.contains(&node.op) && second.is_some_and(is_column))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::host_copy::empty;
    use super::*;

    const NONE: i32 = 0;
    const MUL_MAT: i32 = 1;
    const VIEW: i32 = 2;
    const ADD: i32 = 3;
    const NORM: i32 = 4;
    const OTHER: i32 = 5;

    pub fn ops() -> Ops {
        Ops {
            none: NONE,
            mul_mat: MUL_MAT,
            mul_mat_id: 10,
            flash_attn_ext: 11,
            glu: None,
            views: [VIEW, 12, 13, 14],
            by_column: [ADD, 15],
            by_row: [NORM, 16, 17],
        }
    }

    /// A node of a graph: its op, the nodes that it reads, and the one whose data it has.
    #[derive(Debug, Clone)]
    pub struct Node {
        op: i32,
        sources: Vec<usize>,
        of: Option<usize>,
    }

    impl Node {
        pub fn product(rows: usize) -> Self {
            Self { op: MUL_MAT, sources: vec![rows], of: None }
        }

        pub fn view(of: usize) -> Self {
            Self { op: VIEW, sources: vec![of], of: Some(of) }
        }

        pub fn other(sources: &[usize]) -> Self {
            Self { op: OTHER, sources: sources.to_vec(), of: None }
        }

        /// It writes over what it reads.
        pub fn in_place(of: usize) -> Self {
            Self { of: Some(of), ..Self::other(&[of]) }
        }

        fn with(op: i32, of: usize) -> Self {
            Self { op, ..Self::other(&[of]) }
        }

        pub fn sources(&self) -> &[usize] {
            &self.sources
        }

        pub fn is_view(&self) -> bool {
            self.op == VIEW
        }

        pub fn is_product(&self) -> bool {
            self.op == MUL_MAT
        }
    }

    /// The nodes as tensors of f32, which name each other by their places. A product's rows are its second source.
    pub fn graph(nodes: &[Node]) -> Vec<sys::ggml_tensor> {
        let mut tensors: Vec<_> = nodes.iter().map(|_| empty()).collect();
        let places: Vec<*mut sys::ggml_tensor> = tensors.iter_mut().map(|tensor| &raw mut *tensor).collect();
        for (at, Node { op, sources, of }) in nodes.iter().enumerate() {
            let root =
                of.map(|of| if tensors[of].view_src.is_null() { places[of] } else { tensors[of].view_src });
            let tensor = &mut tensors[at];
            (tensor.op, tensor.ne, tensor.view_src) =
                (*op, [8, 4, 1, 1], root.unwrap_or(std::ptr::null_mut()));
            let first = usize::from(*op == MUL_MAT);
            for (place, source) in tensor.src[first..].iter_mut().zip(sources) {
                *place = places[*source];
            }
        }
        tensors
    }

    #[test]
    fn bias_norm_and_views_of_a_product_are_its_epilogue() {
        let added = Node { sources: vec![2, 3], ..Node::with(ADD, 2) };
        let bias = Node { op: NONE, ..Node::other(&[]) };
        // A bias is added to heads, which are normed; the bias has more rows than one; a sum of two results; another op between.
        let all = [Node::other(&[]), Node::product(0), Node::view(1), bias, added, Node::with(NORM, 4)];
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
        assert_eq!(of(&all, [8, 4, 1, 1]), None, "no number for each column");
        assert_eq!(of(&all[..3], [8; 4]), None, "a view is none");
        let mut residual = all.clone();
        residual[3] = Node::other(&[0]);
        assert_eq!(of(&residual, [8, 1, 1, 1]), None, "a sum of results");
        let mut far = all.clone();
        far[4] = Node::other(&[2]);
        assert_eq!(of(&far, [8, 1, 1, 1]), None, "another op comes before");
        let mut nothing = all.clone();
        nothing[1] = Node::other(&[0]);
        assert_eq!(of(&nothing, [8, 1, 1, 1]), None, "no product");
    }
}
