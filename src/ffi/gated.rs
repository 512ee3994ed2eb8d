//! An activation times a gate, of which both are results of products: gate and up of a feed-forward block, or of its experts.

use ggml_sys::{sys, Host};

use super::group::{meet, span, Waiting};
use crate::host::device::Between;
use crate::kernels::glu::Activation;
use crate::pool::Divided;

/// A GLU that our kernels do: whether its rows come one by one or as parts of a prompt, and whoever did the products.
pub struct Gated<'a> {
    node: &'a sys::ggml_tensor,
    /// The gate, and what it is a gate of.
    sources: [&'a sys::ggml_tensor; 2],
    pub activation: Activation,
}

/// The node as a GLU of two tensors of f32, whose elements lie one after the other, with an activation that we have; `None`
/// leaves it to the host.
///
/// # Safety
/// The node's sources are null or live, and allocated as it is.
pub unsafe fn node<'a>(host: &Host, node: &'a sys::ggml_tensor) -> Option<Gated<'a>> {
    let kinds = host.ops.glu.filter(|glu| glu.op == node.op)?.kinds;
    let of = [Activation::Relu, Activation::Gelu, Activation::Silu];
    let activation = kinds
        .into_iter()
        .zip(of)
        .find(|(kind, _)| *kind == Some(node.op_params[0]))
        .map(|(_, activation)| activation)?;
    // SAFETY: by the contract.
    let sources = unsafe { [node.src[0].as_ref()?, node.src[1].as_ref()?] };
    let plain = |tensor: &sys::ggml_tensor| {
        tensor.type_ as u32 == sys::GGML_HOST_TYPE_F32
            && tensor.nb[0] == 4
            && (1..4).all(|i| tensor.nb[i] == tensor.nb[i - 1] * tensor.ne[i - 1] as usize)
            && tensor.ne == node.ne
            && !tensor.data.is_null()
            && tensor.data as usize % 4 == 0
    };
    // Results over a source would be read as one.
    let apart = sources.iter().all(|source| !meet(&span(source), &span(node)));
    ([node, sources[0], sources[1]].into_iter().all(plain) && apart).then_some(Gated {
        node,
        sources,
        activation,
    })
}

impl Gated<'_> {
    /// Elements of the node, and of each source.
    fn len(&self) -> usize {
        self.node.ne.iter().map(|extent| *extent as usize).product()
    }

    /// The gate, what it is a gate of, and the place of the results.
    ///
    /// # Safety
    /// Nobody else has the results, nor writes to the sources, while the slices live.
    pub unsafe fn slices(&mut self) -> ([&[f32]; 2], &mut [f32]) {
        let len = self.len();
        // SAFETY: so many elements, one after the other; the rest by the contract.
        unsafe {
            let sources =
                self.sources.map(|tensor| std::slice::from_raw_parts(tensor.data.cast::<f32>(), len));
            (sources, std::slice::from_raw_parts_mut(self.node.data.cast::<f32>(), len))
        }
    }

    /// What the engine makes of it, where its sources are neighbours among the products that wait, and its results overlap
    /// nothing that these still read or write.
    ///
    /// # Safety
    /// As [`Self::slices`], while what is returned lives; `graph` is the host's, which the node is of.
    pub unsafe fn between(
        &mut self,
        host: &Host,
        graph: *const sys::ggml_cgraph,
        waiting: &[Option<Waiting>],
    ) -> Option<Between<'_>> {
        let [gate, up] = self.sources.map(std::ptr::from_ref);
        let is = |product: &Option<Waiting>, source| {
            product.as_ref().is_some_and(|product| std::ptr::eq(product.node, source))
        };
        let is_swapped = |two: &[Option<Waiting>]| match two {
            [one, other] if is(one, gate) && is(other, up) => Some(false),
            [one, other] if is(one, up) && is(other, gate) => Some(true),
            _ => None,
        };
        let (first, swapped) =
            waiting.windows(2).enumerate().find_map(|(first, two)| Some((first, is_swapped(two)?)))?;
        let bytes = span(self.node);
        if waiting.iter().flatten().any(|product| product.meets(&bytes)) {
            return None;
        }
        // SAFETY: by the contract.
        let seen = unsafe { self.sources.into_iter().any(|source| is_seen(host, graph, source)) };
        let activation = self.activation;
        // SAFETY: by the contract.
        let out = Divided::new(unsafe { self.slices() }.1);
        Some(Between { first, activation, swapped, out, seen, made: false })
    }
}

/// Whether anybody but the node itself may read its source.
///
/// # Safety
/// `graph` is a live graph of the host's.
unsafe fn is_seen(host: &Host, graph: *const sys::ggml_cgraph, source: &sys::ggml_tensor) -> bool {
    // SAFETY: by the contract.
    let uses = unsafe { host.uses.and_then(|uses| uses.of(graph, source)) };
    uses != Some(1)
        || !source.view_src.is_null()
        || source.flags as u32 & sys::GGML_HOST_TENSOR_FLAG_OUTPUT != 0
}
