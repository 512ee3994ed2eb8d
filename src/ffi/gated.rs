//! An activation times a gate, of which both are results of products: gate and up of a feed-forward block, or of its experts.

use ggml_sys::{sys, Host};

use super::backend::nodes;
use super::waiting::{meet, span, Waiting};
use crate::host::device::Between;
use crate::host::product::Product;
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
    /// Whether its elements are the rows of a product, one after the other.
    pub fn is_rows_of(&self, product: &Product) -> bool {
        product.batches().nth(1).is_none() && self.is_all(product)
    }

    /// Whether its elements are all rows of an expert's product, one after the other.
    pub fn is_all(&self, each: &Product) -> bool {
        each.rows * each.activation_stride() == self.len()
    }

    /// Whether the gate is the second of two nodes that are its sources; `None` if they are not.
    pub fn is_swapped(&self, nodes: [*mut sys::ggml_tensor; 2]) -> Option<bool> {
        let [gate, up] = self.sources.map(std::ptr::from_ref);
        match nodes.map(<*mut _>::cast_const) {
            [one, other] if one == gate && other == up => Some(false),
            [one, other] if one == up && other == gate => Some(true),
            _ => None,
        }
    }

    /// Whether anybody but the node itself may read its sources.
    ///
    /// # Safety
    /// `graph` is a live graph of the host's.
    pub unsafe fn are_seen(&self, host: &Host, graph: *const sys::ggml_cgraph) -> bool {
        // SAFETY: by the contract.
        self.sources.into_iter().any(|source| unsafe { is_seen(host, graph, source) })
    }

    /// Whether anybody may read it but `user`, a product that is with it. Where a graph ends with that, somebody may have asked to
    /// see it, and then looks at its rows, too.
    ///
    /// # Safety
    /// `graph` is a live graph of the host's.
    pub unsafe fn is_kept(
        &self,
        host: &Host,
        graph: *const sys::ggml_cgraph,
        user: *const sys::ggml_tensor,
    ) -> bool {
        // SAFETY: by the contract.
        let (is_seen, all) = unsafe { (is_seen(host, graph, self.node), &*nodes(host, graph.cast_mut())) };
        is_seen || all.last().is_none_or(|last| std::ptr::eq(last.cast_const(), user))
    }

    /// What the engine makes of it as the results of both sources come, products of a group from `first` on; and whether
    /// others see these.
    ///
    /// # Safety
    /// As [`Self::slices`], while what is returned lives.
    pub unsafe fn between_products(&mut self, first: usize, swapped: bool, seen: bool) -> Between<'_> {
        let activation = self.activation;
        // SAFETY: by the contract.
        let out = Divided::new(unsafe { self.slices() }.1);
        Between { seen, ..Between::new(first, activation, swapped, out) }
    }

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
        let is_swapped = |two: &[Option<Waiting>]| match two {
            [Some(one), Some(other)] => self.is_swapped([one.node, other.node]),
            _ => None,
        };
        let (first, swapped) =
            waiting.windows(2).enumerate().find_map(|(first, two)| Some((first, is_swapped(two)?)))?;
        let bytes = span(self.node);
        if waiting.iter().flatten().any(|product| product.meets(&bytes)) {
            return None;
        }
        // SAFETY: by the contract.
        Some(unsafe {
            let seen = self.are_seen(host, graph);
            self.between_products(first, swapped, seen)
        })
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
