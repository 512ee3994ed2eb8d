//! An activation times a gate, of which both are results of products that wait: gate and up of a feed-forward block.

use ggml_sys::sys::{self, GGML_HOST_TYPE_F32};

use super::group::{span, Waiting};

/// Which product is the first of two neighbours whose results are the sources of `node`, a GLU; `None` where there are no
/// such two, or where a part of the node may not be computed before the products are done.
///
/// # Safety
/// The node's sources are live, and allocated as it is.
pub unsafe fn first(node: &sys::ggml_tensor, waiting: &[Option<Waiting>]) -> Option<usize> {
    let [one, other] = [node.src[0], node.src[1]];
    let is =
        |product: &Option<Waiting>, source| product.as_ref().is_some_and(|product| product.node == source);
    let first = waiting
        .windows(2)
        .position(|two| is(&two[0], one) && is(&two[1], other) || is(&two[0], other) && is(&two[1], one))?;
    // SAFETY: they are nodes that wait, and so live.
    let sources = unsafe { [&*one, &*other] };
    let plain = |tensor: &sys::ggml_tensor| {
        tensor.type_ as u32 == GGML_HOST_TYPE_F32
            && tensor.nb[0] == 4
            && tensor.ne == node.ne
            && tensor.ne[2..] == [1, 1]
    };
    // Each part is read and written while the products still read their rows, and write other parts.
    let free = !waiting.iter().flatten().any(|product| product.meets(&span(node)));
    let fits = plain(node) && sources.into_iter().all(plain) && !node.data.is_null();
    (fits && free).then_some(first)
}
