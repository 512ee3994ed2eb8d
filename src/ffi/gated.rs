//! An activation times a gate, of which both are results of products that wait: gate and up of a feed-forward block.

use std::ops::Range;

use ggml_sys::sys;

/// f32, as ggml numbers types; fixed, since files have the numbers.
const F32: i32 = 0;

/// A product that waits.
pub struct Spans {
    /// Its node.
    pub node: *mut sys::ggml_tensor,
    /// The addresses of its rows.
    pub reads: Range<usize>,
    /// Of its results.
    pub writes: Range<usize>,
    /// Of its weight.
    pub weight: Range<usize>,
}

/// Which product is the first of two neighbours whose results are the sources of `node`, a GLU; `None` where there are no
/// such two, or where a part of the node may not be computed before the products are done.
///
/// # Safety
/// The node's sources are live, and allocated as it is.
pub unsafe fn first(node: &sys::ggml_tensor, waiting: &[Option<Spans>]) -> Option<usize> {
    let [one, other] = [node.src[0], node.src[1]];
    let is = |spans: &Option<Spans>, source| spans.as_ref().is_some_and(|spans| spans.node == source);
    let first = waiting
        .windows(2)
        .position(|two| is(&two[0], one) && is(&two[1], other) || is(&two[0], other) && is(&two[1], one))?;
    // SAFETY: they are nodes that wait, and so live.
    let sources = unsafe { [&*one, &*other] };
    let plain = |tensor: &sys::ggml_tensor| {
        tensor.type_ == F32 && tensor.nb[0] == 4 && tensor.ne == node.ne && tensor.ne[2..] == [1, 1]
    };
    // Each part is read and written while the products still read their rows, and write other parts.
    let rows = node.ne[1].max(0) as usize;
    let writes = node.data as usize..(node.data as usize).saturating_add(rows * node.nb[1]);
    let apart = |range: &Range<usize>| range.end <= writes.start || writes.end <= range.start;
    let free = waiting
        .iter()
        .flatten()
        .all(|spans| apart(&spans.reads) && apart(&spans.writes) && apart(&spans.weight));
    let fits = plain(node) && sources.into_iter().all(plain) && !node.data.is_null();
    (fits && free).then_some(first)
}
