//! A graph's nodes in groups: products that do not wait for each other go to the engine together, so that the NPU
//! runs on from one to the next and rows that they share are prepared once. What the NPU does not do waits likewise, for
//! the host's CPU backend. The two never wait at once, so that every node finds its sources computed.

use std::ops::Range;

use ggml_sys::sys;

use super::attention;
use super::backend::{FAILED, SUCCESS};
use super::cpu::NODES;
use super::gated::{self, Gated};
use super::registry::{Registered, State};
use super::tensor;
use crate::host::device::{Between, Job, GROUP};
use crate::host::experts::ExpertProduct;
use crate::host::mixture::{Mixture, NODES as MIXTURES};
use crate::host::product::Product;
use crate::log;

/// A product that waits to be done, and where it reads and writes.
pub(super) struct Waiting {
    pub(super) node: *mut sys::ggml_tensor,
    product: Product,
    weight: Range<usize>,
    reads: Range<usize>,
    writes: Range<usize>,
}

impl Waiting {
    /// Whether one of these bytes is of its weight, its rows or its results.
    pub(super) fn meets(&self, bytes: &Range<usize>) -> bool {
        [&self.weight, &self.reads, &self.writes].into_iter().any(|own| meet(own, bytes))
    }
}

/// A product with experts that waits to be done.
struct WaitingExperts {
    node: *mut sys::ggml_tensor,
    product: ExpertProduct,
}

/// Nodes that wait for their group to be full.
pub struct Group<'a> {
    state: &'a State,
    registered: &'a Registered,
    /// The host's, whose nodes come.
    graph: *const sys::ggml_cgraph,
    waiting: [Option<Waiting>; GROUP],
    count: usize,
    experts: [Option<WaitingExperts>; MIXTURES],
    /// Nodes that wait for the host's CPU backend.
    others: [*mut sys::ggml_tensor; NODES],
    other_count: usize,
}

impl<'a> Group<'a> {
    /// An empty one, for nodes of `graph`.
    pub fn new(state: &'a State, registered: &'a Registered, graph: *const sys::ggml_cgraph) -> Self {
        Self {
            state,
            registered,
            graph,
            waiting: [const { None }; GROUP],
            count: 0,
            experts: [const { None }; MIXTURES],
            others: [std::ptr::null_mut(); NODES],
            other_count: 0,
        }
    }

    /// Takes the graph's next node; the host's status, SUCCESS while it waits.
    ///
    /// # Safety
    /// `node` is null, or it and its sources are live until [`Self::finish`], allocated, and computed but for the nodes
    /// taken before; it is of the group's graph, which is live as long.
    pub unsafe fn take(&mut self, node: *mut sys::ggml_tensor) -> i32 {
        let ops = &self.state.host.ops;
        // SAFETY: live by the contract; the reference ends before anybody writes through the pointer.
        let Some(tensor) = (unsafe { node.as_ref() }) else { return SUCCESS };
        if self.state.host.skips(tensor) || tensor.op == ops.none || ops.views.contains(&tensor.op) {
            return SUCCESS;
        }
        if tensor.op == ops.mul_mat {
            // SAFETY: by the contract.
            match unsafe { tensor::taken_product(self.state, &self.registered.device, tensor) } {
                Ok(product) if product.is_empty() => return SUCCESS,
                // SAFETY: by the contract.
                Ok(product) => return unsafe { self.wait(node, product) },
                Err(reason) => log!(Debug, "the CPU does {}: {reason}", tensor::name(tensor)),
            }
        }
        if tensor.op == ops.mul_mat_id {
            // SAFETY: by the contract.
            match unsafe { tensor::taken_experts(self.state, &self.registered.device, tensor) } {
                Ok(product) if product.is_empty() => return SUCCESS,
                // SAFETY: by the contract.
                Ok(product) => return unsafe { self.wait_for_experts(node, product) },
                Err(reason) => log!(Debug, "the CPU does {}: {reason}", tensor::name(tensor)),
            }
        }
        // SAFETY: by the contract.
        if let Some(mut gated) = unsafe { gated::node(&self.state.host, tensor) } {
            return self.gate(tensor, &mut gated);
        }
        if tensor.op == ops.flash_attn_ext {
            let status = self.finish();
            // SAFETY: by the contract.
            if status != SUCCESS || unsafe { self.attend(node) } {
                return status;
            }
        }
        // SAFETY: as above.
        unsafe { self.wait_for_cpu(node) }
    }

    /// Lets a node wait for the host's CPU backend.
    ///
    /// # Safety
    /// As [`Self::take`].
    unsafe fn wait_for_cpu(&mut self, node: *mut sys::ggml_tensor) -> i32 {
        let status = if self.other_count == NODES { self.finish() } else { self.finish_npu() };
        if status != SUCCESS {
            return status;
        }
        self.others[self.other_count] = node;
        self.other_count += 1;
        // SAFETY: live by the contract.
        self.wrote(unsafe { &*node });
        SUCCESS
    }

    /// Notes that a node's data is written, now or before anything else is begun: it may be a weight of a later product.
    fn wrote(&self, node: &sys::ggml_tensor) {
        // A block may hold several elements of the first dimension; the second one's stride covers the row.
        let bytes = (1..4).map(|i| node.ne[i].max(0) as usize * node.nb[i]).fold(node.nb[0], usize::max);
        let start = node.data as usize;
        self.registered.device.wrote(&(start..start.saturating_add(bytes)));
    }

    /// Does attention; false when the CPU is to do it.
    ///
    /// # Safety
    /// As [`Self::take`].
    unsafe fn attend(&self, node: *mut sys::ggml_tensor) -> bool {
        // SAFETY: live by the contract.
        let tensor = unsafe { &*node };
        // SAFETY: as above.
        match unsafe { attention::node(self.state, tensor) } {
            Ok(of) if of.is_empty() => true,
            // What was not asked for by `supports_op`, a served device's node, is the CPU's.
            Ok(of) => {
                self.registered.device.attends(&of)
                    // SAFETY: as above; nobody else writes to what a node reads, or to its data.
                    && unsafe { attention::attention(tensor, &of) }
                        .is_some_and(|job| self.registered.device.attend(&tensor::name(tensor), job))
            }
            Err(reason) => {
                log!(Debug, "the CPU does {}: {reason}", tensor::name(tensor));
                false
            }
        }
    }

    /// Does what waits; the host's status.
    pub fn finish(&mut self) -> i32 {
        match self.finish_npu() {
            SUCCESS => self.finish_others(),
            status => status,
        }
    }

    /// Does what waits for the NPU.
    fn finish_npu(&mut self) -> i32 {
        match self.finish_products(None) {
            SUCCESS => self.finish_experts(),
            status => status,
        }
    }

    /// Does what waits for the CPU.
    fn finish_others(&mut self) -> i32 {
        let count = std::mem::take(&mut self.other_count);
        // SAFETY: by the contract of `take`.
        unsafe { self.on_the_cpu(&self.others[..count]) }
    }

    /// Does what waits, and `node`, an activation times a gate: with the products that these are of, if they wait.
    fn gate(&mut self, node: &sys::ggml_tensor, gated: &mut Gated) -> i32 {
        self.wrote(node);
        let activation = gated.activation;
        // SAFETY: by the contract of `take`; the graph is the host's that the node is of.
        let between = unsafe { gated.between(&self.state.host, self.graph, &self.waiting) };
        let (status, made) = match between {
            Some(mut between) => (self.finish_products(Some(&mut between)), between.made),
            None => (self.finish(), false),
        };
        if status == SUCCESS && !made {
            // SAFETY: by the contract of `take`; whoever wrote the sources is done.
            let (sources, out) = unsafe { gated.slices() };
            self.registered.device.gate(activation, sources, out);
        }
        status
    }

    fn finish_products(&mut self, between: Option<&mut Between>) -> i32 {
        // Taken first: whatever happens, nothing is done twice.
        let waiting = std::mem::replace(&mut self.waiting, [const { None }; GROUP]);
        self.count = 0;
        let mut done = [false; GROUP];
        {
            let mut jobs = [const { None::<Job> }; GROUP];
            let mut before: Option<(usize, usize)> = None;
            for (job, Waiting { node, product, .. }) in jobs.iter_mut().zip(waiting.iter().flatten()) {
                // SAFETY: by the contract of `take`; no two of the group overlap in what they write.
                *job = unsafe { tensor::jobs(self.state, &**node, product) }.and_then(|mut jobs| jobs.next());
                let rows =
                    job.as_ref().map(|job| (job.activations.data.as_ptr() as usize, job.activations.stride));
                if let Some(job) = job {
                    job.same = rows == before;
                }
                before = rows;
            }
            if jobs.iter().any(Option::is_some) {
                done = self.registered.device.multiply(&mut jobs, between);
            }
        }
        // SAFETY: by the contract of `take`.
        unsafe { self.do_the_rest(waiting.iter().flatten().map(|waiting| waiting.node).zip(done)) }
    }

    fn finish_experts(&mut self) -> i32 {
        let waiting = std::mem::replace(&mut self.experts, [const { None }; MIXTURES]);
        let Some(WaitingExperts { node: first, product }) = &waiting[0] else { return SUCCESS };
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
                match self.registered.device.multiply_experts(&mut jobs, &mixture) {
                    Ok(which) => done = which,
                    Err(id) => {
                        log!(
                            Error,
                            "{} asks for expert {id}, expected one of {experts}: the model's file is broken, or \
                             whoever computed the ids",
                            // SAFETY: as above.
                            tensor::name(unsafe { &**first })
                        );
                        return FAILED;
                    }
                }
            }
        }
        // SAFETY: by the contract of `take`.
        unsafe { self.do_the_rest(waiting.iter().flatten().map(|waiting| waiting.node).zip(done)) }
    }

    /// Lets a product with experts wait: for another one with the same rows and experts, as gate and up are.
    ///
    /// # Safety
    /// As [`Self::take`].
    unsafe fn wait_for_experts(&mut self, node: *mut sys::ggml_tensor, product: ExpertProduct) -> i32 {
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

    /// Lets a product wait, or does it now.
    ///
    /// # Safety
    /// As [`Self::take`].
    unsafe fn wait(&mut self, node: *mut sys::ggml_tensor, product: Product) -> i32 {
        let status = self.finish_others();
        if status != SUCCESS {
            return status;
        }
        let several = product.batches().nth(1).is_some();
        if several || self.experts[0].is_some() {
            let status = self.finish();
            if status != SUCCESS {
                return status;
            }
        }
        // SAFETY: live by the contract.
        self.wrote(unsafe { &*node });
        if several {
            // SAFETY: as above.
            return unsafe { self.batches(node, &product) };
        }
        // SAFETY: live by the contract.
        let (weight, reads, writes) =
            unsafe { (span(&*(*node).src[0]), span(&*(*node).src[1]), span(&*node)) };
        let waits =
            self.waiting.iter().flatten().any(|other| {
                meet(&reads, &other.writes) || meet(&weight, &other.writes) || other.meets(&writes)
            });
        if waits || self.count == GROUP {
            let status = self.finish();
            if status != SUCCESS {
                return status;
            }
        }
        self.waiting[self.count] = Some(Waiting { node, product, weight, reads, writes });
        self.count += 1;
        SUCCESS
    }

    /// Does a product of several batches, one after the other.
    ///
    /// # Safety
    /// As [`Self::take`].
    unsafe fn batches(&mut self, node: *mut sys::ggml_tensor, product: &Product) -> i32 {
        // SAFETY: by the contract.
        let done = unsafe { tensor::jobs(self.state, &*node, product) }
            .is_some_and(|jobs| self.registered.device.multiply_batches(jobs));
        if done {
            return SUCCESS;
        }
        // SAFETY: as above.
        unsafe { self.on_the_cpu(&[node]) }
    }

    /// Has the host's CPU backend compute the nodes that are not done; the host's status.
    ///
    /// # Safety
    /// As [`Self::take`].
    unsafe fn do_the_rest(&self, nodes: impl Iterator<Item = (*mut sys::ggml_tensor, bool)>) -> i32 {
        for (node, _) in nodes.filter(|(_, done)| !done) {
            // SAFETY: by the contract.
            let status = unsafe { self.on_the_cpu(&[node]) };
            if status != SUCCESS {
                return status;
            }
        }
        SUCCESS
    }

    /// Has the host's CPU backend compute some nodes.
    ///
    /// # Safety
    /// As [`Self::take`].
    unsafe fn on_the_cpu(&self, nodes: &[*mut sys::ggml_tensor]) -> i32 {
        let Some(first) = nodes.first() else { return SUCCESS };
        // SAFETY: by the contract.
        let status = unsafe { self.state.cpu.lock().compute(&self.state.host, nodes) };
        if status != SUCCESS {
            // SAFETY: as above.
            let name = tensor::name(unsafe { &**first });
            log!(Error, "the host's CPU backend failed in {} nodes from {name} on ({status})", nodes.len());
        }
        status
    }
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

/// Whether two ranges of addresses have one in common.
pub(super) fn meet(one: &Range<usize>, other: &Range<usize>) -> bool {
    one.start < other.end && other.start < one.end
}

/// The addresses of a tensor's elements.
pub(super) fn span(tensor: &sys::ggml_tensor) -> Range<usize> {
    let last: usize = (0..4).map(|i| (tensor.ne[i].max(1) as usize - 1) * tensor.nb[i]).sum();
    let start = tensor.data as usize;
    // Of f32, as products' rows and results are.
    start..start.saturating_add(last + 4)
}
