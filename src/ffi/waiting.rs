//! A product that waits, and the addresses of what it reads and writes, by which others may go before it or not.

use std::ops::Range;

use ggml_sys::sys;

use crate::host::product::Product;

/// A product that waits to be done, and where it reads and writes.
pub(super) struct Waiting {
    pub(super) node: *mut sys::ggml_tensor,
    pub(super) product: Product,
    pub(super) weight: Range<usize>,
    pub(super) reads: Range<usize>,
    pub(super) writes: Range<usize>,
}

impl Waiting {
    /// A product of `node`.
    ///
    /// # Safety
    /// The node and its sources are live.
    pub(super) unsafe fn new(node: *mut sys::ggml_tensor, product: Product) -> Self {
        // SAFETY: by the contract.
        let (weight, reads, writes) =
            unsafe { (whole(&*(*node).src[0]), span(&*(*node).src[1]), span(&*node)) };
        Self { node, product, weight, reads, writes }
    }

    /// Whether one of these bytes is of its weight, its rows or its results.
    pub(super) fn meets(&self, bytes: &Range<usize>) -> bool {
        [&self.weight, &self.reads, &self.writes].into_iter().any(|own| meet(own, bytes))
    }
}

/// Whether two ranges of addresses have one in common.
pub(super) fn meet(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.start < other.end && other.start < one.end
}

/// The addresses of the elements of rows or results, f32 all of them.
pub(super) fn span(tensor: &sys::ggml_tensor) -> Range<usize> {
    let last: usize = (0..4).map(|i| (tensor.ne[i].max(1) as usize - 1) * tensor.nb[i]).sum();
    let start = tensor.data as usize;
    start..start.saturating_add(last + 4)
}

/// The addresses of a tensor of any type: blocks may hold several elements of the first dimension, which its second stride
/// covers.
pub(super) fn whole(tensor: &sys::ggml_tensor) -> Range<usize> {
    let bytes = (1..4).map(|i| tensor.ne[i].max(0) as usize * tensor.nb[i]).fold(tensor.nb[0], usize::max);
    let start = tensor.data as usize;
    start..start.saturating_add(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::test_nodes::{graph, Node};
    use super::*;

    #[test]
    fn addresses_are_those_of_the_elements() {
        let mut nodes = graph(&[Node::leaf(), Node::leaf()]);
        for node in &mut nodes {
            node.data = std::ptr::without_provenance_mut(0x1_0000);
        }
        // Rows of eight floats with a gap after each, and of two blocks of 32 elements in 34 bytes.
        (nodes[0].ne, nodes[0].nb) = ([8, 4, 1, 1], [4, 64, 256, 256]);
        assert_eq!(span(&nodes[0]), 0x1_0000..0x1_0000 + 3 * 64 + 32);
        (nodes[1].ne, nodes[1].nb) = ([64, 4, 1, 1], [34, 68, 272, 272]);
        assert_eq!(whole(&nodes[1]), 0x1_0000..0x1_0000 + 4 * 68);
    }
}
