//! A group's nodes with experts: gate's and up's wait for each other, and for what is made of them and down.

use ggml_sys::sys;

use super::backend::{FAILED, SUCCESS};
use super::gated::{self, Gated};
use super::group::Group;
use super::tensor;
use super::waiting::{meet, span, whole};
use crate::host::device::Between;
use crate::host::experts::ExpertProduct;
use crate::host::mixture::{Mixture, NODES as MIXTURES};
use crate::log;

/// A product with experts that waits to be done.
pub(super) struct WaitingExperts {
    pub(super) node: *mut sys::ggml_tensor,
    pub(super) product: ExpertProduct,
}

impl Group<'_> {
    /// Does the products with experts that wait, and then what is to be made of them; the host's status.
    pub(super) fn finish_experts(&mut self) -> i32 {
        let waiting = std::mem::replace(&mut self.experts, [const { None }; MIXTURES]);
        let Some(WaitingExperts { node: first, product }) = &waiting[0] else { return SUCCESS };
        let gated = self.gated.take();
        let mut done = [false; MIXTURES];
        {
            let mut jobs = [const { None }; MIXTURES];
            let mut activations = None;
            for (job, WaitingExperts { node, product }) in jobs.iter_mut().zip(waiting.iter().flatten()) {
                // SAFETY: by the contract of `take`; no two of them overlap in what they write.
                if let Some((one, rows)) = unsafe { tensor::expert_job(self.state, &**node, product) } {
                    (*job, activations) = (Some(one), Some(rows));
                }
            }
            // SAFETY: as above.
            let ids = unsafe { tensor::ids(&**first, product) };
            if let (Some(activations), Some(ids)) = (activations, ids) {
                let ExpertProduct { experts, used, rows, .. } = *product;
                let mixture = Mixture { activations, experts, used, rows, ids };
                match self.registered.device.multiply_experts(&jobs, &mixture) {
                    Ok(which) => done = which,
                    // SAFETY: as above.
                    Err(id) => return no_expert(unsafe { &**first }, id, experts),
                }
            }
        }
        // SAFETY: by the contract of `take`.
        let status =
            unsafe { self.do_the_rest(waiting.iter().flatten().map(|waiting| waiting.node).zip(done)) };
        // SAFETY: as above.
        let gated = gated.and_then(|node| unsafe { gated::node(&self.state.host, &*node) });
        if let Some(mut gated) = gated.filter(|_| status == SUCCESS) {
            self.gate(&mut gated);
        }
        status
    }

    /// Whether the gate is the second of two products with experts that wait and nobody else reads; `None` if it is not
    /// of two such.
    pub(super) fn is_of_experts(&self, gated: &Gated) -> Option<bool> {
        let [Some(one), Some(other)] = &self.experts else { return None };
        let swapped = gated.is_swapped([one.node, other.node])?;
        // SAFETY: the graph is the host's that the nodes are of.
        (!unsafe { gated.are_seen(&self.state.host, self.graph) }).then_some(swapped)
    }

    /// Does the experts' feed-forward blocks, if the node is the product that is with what is made of two that wait; the
    /// host's status. `None` if it is not, or cannot be done so: all of these still wait then.
    ///
    /// # Safety
    /// As [`Self::take`].
    pub(super) unsafe fn expert_blocks(&mut self, node: *mut sys::ggml_tensor) -> Option<i32> {
        let [Some(one), Some(other)] = &self.experts else { return None };
        let products = [one.product, other.product];
        // SAFETY: live by the contract.
        let (nodes, rows) = unsafe { ([&*one.node, &*other.node, &*node], &*self.gated?) };
        let [first, second, tensor] = nodes;
        if tensor.op != self.state.host.ops.mul_mat_id
            || !std::ptr::eq(tensor.src[1], rows)
            || tensor.src[2] != first.src[2]
        {
            return None;
        }
        // SAFETY: by the contract.
        let product = unsafe { tensor::taken_experts(self.state, &self.registered.device, tensor) }.ok()?;
        // SAFETY: as above.
        let mut gated = unsafe { gated::node(&self.state.host, rows) }?;
        let swapped = self.is_of_experts(&gated)?;
        let ExpertProduct { experts, used, tokens, .. } = product;
        let fits = !product.is_empty()
            && (products[0].experts, products[0].used, products[0].tokens) == (experts, used, tokens)
            && product.rows == used
            && gated.is_all(&product.each);
        // Later experts read these when earlier ones' results are written.
        let read = [first.src[0], first.src[1], first.src[2], second.src[0], tensor.src[0]];
        // SAFETY: products that are taken have their sources.
        let read = read.map(|source| unsafe { whole(&*source) });
        let (made, writes) = (span(rows), span(tensor));
        if !fits || meet(&made, &writes) || read.iter().any(|read| meet(read, &made) || meet(read, &writes)) {
            return None;
        }
        self.wrote(tensor);
        // SAFETY: by the contract of `take`; what they overlap in nobody reads.
        let (jobs, ids) = unsafe {
            let job = |node, product| tensor::expert_job(self.state, node, product);
            (
                [job(first, &products[0])?, job(second, &products[1])?, job(tensor, &product)?],
                tensor::ids(first, &products[0])?,
            )
        };
        let activations = jobs[0].1;
        let mixture = Mixture { activations, experts, used, rows: products[0].rows, ids };
        // SAFETY: nobody else has the node's results meanwhile.
        let between = Between { feeds: true, ..unsafe { gated.between_products(0, swapped, false) } };
        let status = match self.registered.device.expert_blocks(&jobs.map(|(job, _)| job), &mixture, &between)
        {
            Ok(true) => SUCCESS,
            Ok(false) => return None,
            Err(id) => no_expert(first, id, experts),
        };
        self.experts = [const { None }; MIXTURES];
        self.gated = None;
        Some(status)
    }

    /// Lets a product with experts wait: for another one with the same rows and experts, as gate and up are.
    ///
    /// # Safety
    /// As [`Self::take`].
    pub(super) unsafe fn wait_for_experts(
        &mut self,
        node: *mut sys::ggml_tensor,
        product: ExpertProduct,
    ) -> i32 {
        let status = self.finish_others();
        if status != SUCCESS {
            return status;
        }
        // SAFETY: live by the contract.
        self.wrote(unsafe { &*node });
        let full = self.experts.iter().all(Option::is_some);
        // SAFETY: live by the contract.
        let joins = self.experts.iter().flatten().all(|other| unsafe { alike(&*other.node, &*node) });
        if self.count > 0 || full || !joins {
            let status = self.finish();
            if status != SUCCESS {
                return status;
            }
        }
        if let Some(place) = self.experts.iter_mut().find(|place| place.is_none()) {
            *place = Some(WaitingExperts { node, product });
        }
        SUCCESS
    }
}

/// Says that a node asks for an expert that there is not; the host's status.
fn no_expert(node: &sys::ggml_tensor, id: i32, experts: usize) -> i32 {
    log!(
        Error,
        "{} asks for expert {id}, expected one of {experts}: the model's file is broken, or whoever computed the ids",
        tensor::name(node)
    );
    FAILED
}

/// Whether two nodes with experts have the same rows and ids, the same number of experts, and results apart.
///
/// # Safety
/// Their sources are live.
unsafe fn alike(one: &sys::ggml_tensor, other: &sys::ggml_tensor) -> bool {
    // SAFETY: by the contract.
    let experts = |node: &sys::ggml_tensor| unsafe { (*node.src[0]).ne[2] };
    one.src[1..3] == other.src[1..3] && experts(one) == experts(other) && !meet(&span(one), &span(other))
}
