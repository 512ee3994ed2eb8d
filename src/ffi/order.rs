//! The order of a graph's nodes, before the host gives them memory: products of the same rows are put next to each other, so
//! that they go to the NPU together. Hosts have Q's rotation before K and V, which do not wait for it.

use ggml_sys::{sys, Ops};

/// So many nodes after a product are looked at: what hosts have between Q and the last of K and V, and room to spare.
const REACH: usize = 32;

/// Moves each product forward to the one before it that has the same rows, if nothing between the two computes or writes
/// over what it reads.
///
/// # Safety
/// The nodes, their sources and what these are views of are live; each comes after what it reads.
pub unsafe fn gather_products(ops: &Ops, nodes: &mut [*mut sys::ggml_tensor]) {
    let mut first = 0;
    while first < nodes.len() {
        // Where the next one with these rows goes.
        let mut next = first + 1;
        // SAFETY: live by the contract.
        if let Some(rows) = unsafe { rows(ops, nodes[first]) } {
            for at in first + 1..nodes.len().min(first + REACH) {
                // SAFETY: as above.
                if unsafe {
                    self::rows(ops, nodes[at]) == Some(rows) && may_pass(ops, nodes[at], &nodes[next..at])
                } {
                    nodes[next..=at].rotate_right(1);
                    next += 1;
                }
            }
        }
        first = next;
    }
}

/// The rows that the node multiplies by a matrix, if it does.
///
/// # Safety
/// It is live.
unsafe fn rows(ops: &Ops, node: *const sys::ggml_tensor) -> Option<*mut sys::ggml_tensor> {
    // SAFETY: by the contract.
    unsafe { ((*node).op == ops.mul_mat).then_some((*node).src[1]) }
}

/// Whether none of the nodes before the product computes what it reads, or writes over it.
///
/// # Safety
/// As [`gather_products`].
unsafe fn may_pass(ops: &Ops, product: *const sys::ggml_tensor, before: &[*mut sys::ggml_tensor]) -> bool {
    // SAFETY: live by the contract; a source is null or live, and so is what a tensor is a view of.
    unsafe {
        before.iter().all(|node| {
            let (node, sources) = (&**node, (*product).src.iter().filter_map(|source| source.as_ref()));
            let is_view = ops.views.contains(&node.op);
            sources.into_iter().all(|source| {
                !std::ptr::eq(source, node) && (is_view || !std::ptr::eq(root(source), root(node)))
            })
        })
    }
}

/// The tensor whose data this one's are.
fn root(tensor: &sys::ggml_tensor) -> *const sys::ggml_tensor {
    if tensor.view_src.is_null() {
        tensor
    } else {
        tensor.view_src
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ffi::test_nodes::{graph, ops, Node};
    use proptest::prelude::*;

    /// The nodes' places before, in their order after.
    fn order(nodes: &mut [sys::ggml_tensor]) -> Vec<usize> {
        let before: Vec<*mut sys::ggml_tensor> = nodes.iter_mut().map(|node| &raw mut *node).collect();
        let mut after = before.clone();
        // SAFETY: all are live.
        unsafe { gather_products(&ops(), &mut after) };
        after.iter().map(|node| before.iter().position(|other| other == node).unwrap()).collect()
    }

    #[test]
    fn k_and_v_come_before_the_rotation_of_q() {
        // Rows, Q, seen as heads, rotated; V; K, seen as heads, rotated; what all of them give; and a product of that.
        let mut nodes = graph(&[
            Node::other(&[]),
            Node::product(0),
            Node::view(1),
            Node::other(&[2]),
            Node::product(0),
            Node::product(0),
            Node::view(5),
            Node::other(&[6]),
            Node::other(&[3, 4, 7]),
            Node::product(8),
        ]);
        assert_eq!(order(&mut nodes), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9]);
    }

    #[test]
    fn rows_that_are_written_over_are_not_read_before() {
        let mut nodes = graph(&[
            Node::other(&[]),
            Node::product(0),
            Node::in_place(0),
            Node::product(0),
            Node::product(2),
        ]);
        assert_eq!(order(&mut nodes), [0, 1, 2, 3, 4]);
    }

    proptest! {
        /// Each node comes once and after what it reads, nothing that is written over is read on the other side of that, and
        /// nodes but products keep their order.
        #[test]
        fn nobody_can_tell_the_order(kinds in proptest::collection::vec((0u8..6, any::<u16>(), any::<u16>()), 1..60)) {
            let mut of = vec![Node::other(&[])];
            for (kind, one, other) in kinds {
                let [one, other] = [one, other].map(|at| at as usize % of.len());
                of.push(match kind {
                    0..=2 => Node::product(one.min(other) / 2),
                    3 => Node::view(one),
                    4 => Node::in_place(one),
                    _ => Node::other(&[one, other]),
                });
            }
            let mut nodes = graph(&of);
            let order = order(&mut nodes);
            let mut place = vec![None; of.len()];
            order.iter().enumerate().for_each(|(at, node)| place[*node] = Some(at));
            let place: Vec<usize> = place.into_iter().map(|at| at.expect("each node comes once")).collect();
            let roots: Vec<_> = nodes.iter().map(root).collect();
            for (at, node) in of.iter().enumerate() {
                for before in 0..at {
                    let reads = |reader: usize, writer: usize| of[reader].sources().iter().any(|source| roots[*source] == roots[writer]);
                    let writes = |node: usize| !of[node].is_view();
                    let tied = node.sources().contains(&before)
                        || writes(before) && reads(at, before)
                        || writes(at) && reads(before, at)
                        || writes(at) && writes(before) && roots[at] == roots[before]
                        || !node.is_product() && !of[before].is_product();
                    prop_assert!(!tied || place[before] < place[at], "{before} and {at} of {of:?} in {order:?}");
                }
            }
        }
    }
}
