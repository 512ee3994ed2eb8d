//! A graph's nodes in groups: products that do not wait for each other go to the engine together, so that the NPU
//! runs on from one to the next and rows that they share are prepared once. What the NPU does not do waits likewise, for
//! the host's CPU backend. The two never wait at once, so that every node finds its sources computed.

use ggml_sys::sys;

use super::attention;
use super::backend::{FAILED, SUCCESS};
use super::cpu::NODES;
use super::experts::WaitingExperts;
use super::gated::{self, Gated};
use super::registry::{Registered, State};
use super::tensor;
use super::waiting::{meet, whole, Waiting};
use crate::host::device::{Between, Job, GROUP};
use crate::host::mixture::NODES as MIXTURES;
use crate::host::product::Product;
use crate::log;

/// Nodes that wait for their group to be full.
pub struct Group<'a> {
    pub(super) state: &'a State,
    pub(super) registered: &'a Registered,
    /// The host's, whose nodes come.
    pub(super) graph: *const sys::ggml_cgraph,
    waiting: [Option<Waiting>; GROUP],
    pub(super) count: usize,
    /// An activation times a gate, of two that wait.
    pub(super) gated: Option<*mut sys::ggml_tensor>,
    /// The last product that waits is with that.
    feeds: bool,
    pub(super) experts: [Option<WaitingExperts>; MIXTURES],
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
            gated: None,
            feeds: false,
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
        if self.gated.is_some() {
            // SAFETY: by the contract.
            if unsafe { self.joins(node) } {
                return self.finish_products();
            }
            // SAFETY: as above.
            if let Some(status) = unsafe { self.expert_blocks(node) } {
                return status;
            }
            let status = self.finish_npu();
            if status != SUCCESS {
                return status;
            }
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
            self.wrote(tensor);
            // SAFETY: by the contract; the graph is the host's that the node is of.
            if unsafe { gated.between(&self.state.host, self.graph, &self.waiting) }.is_some()
                || self.is_of_experts(&gated).is_some()
            {
                // For the product that is with it, which may be next.
                self.gated = Some(node);
                return SUCCESS;
            }
            let status = self.finish();
            if status == SUCCESS {
                self.gate(&mut gated);
            }
            return status;
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
    pub(super) fn wrote(&self, node: &sys::ggml_tensor) {
        self.registered.device.wrote(&whole(node));
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
        match self.finish_products() {
            SUCCESS => self.finish_experts(),
            status => status,
        }
    }

    /// Does what waits for the CPU.
    pub(super) fn finish_others(&mut self) -> i32 {
        let count = std::mem::take(&mut self.other_count);
        // SAFETY: by the contract of `take`.
        unsafe { self.on_the_cpu(&self.others[..count]) }
    }

    /// Does an activation times a gate, whose sources are there.
    pub(super) fn gate(&self, gated: &mut Gated) {
        let activation = gated.activation;
        // SAFETY: by the contract of `take`; whoever wrote the sources is done.
        let (sources, out) = unsafe { gated.slices() };
        self.registered.device.gate(activation, sources, out);
    }

    /// Lets a node wait if it is the product that is with what is made of two that wait; whether it is. It may write over
    /// the rows of the two, which are packed before, and over their results if nobody reads these.
    ///
    /// # Safety
    /// As [`Self::take`].
    unsafe fn joins(&mut self, node: *mut sys::ggml_tensor) -> bool {
        let Some(rows) = self.gated.filter(|_| self.count < GROUP) else { return false };
        // SAFETY: live by the contract.
        let (tensor, rows) = unsafe { (&*node, &*rows) };
        if tensor.op != self.state.host.ops.mul_mat || !std::ptr::eq(tensor.src[1], rows) {
            return false;
        }
        // SAFETY: by the contract.
        let Ok(product) = (unsafe { tensor::taken_product(self.state, &self.registered.device, tensor) })
        else {
            return false;
        };
        // SAFETY: by the contract.
        let Some(mut gated) = (unsafe { gated::node(&self.state.host, rows) }) else { return false };
        if product.is_empty() || !gated.is_rows_of(&product) {
            return false;
        }
        // SAFETY: by the contract.
        let Some(between) = (unsafe { gated.between(&self.state.host, self.graph, &self.waiting) }) else {
            return false;
        };
        // SAFETY: by the contract; a product that is taken has a weight.
        let waiting = unsafe { Waiting::new(node, product) };
        let [before, two] = [&self.waiting[..between.first], &self.waiting[between.first..self.count]];
        let free = two.len() == 2
            && !meet(&waiting.writes, &waiting.reads)
            && !meet(&waiting.writes, &waiting.weight)
            && !meet(&waiting.reads, &waiting.weight)
            && before.iter().flatten().all(|other| !other.meets(&waiting.writes))
            && !two.iter().flatten().any(|other| {
                meet(&other.weight, &waiting.writes)
                    || meet(&other.writes, &waiting.weight)
                    || between.seen && meet(&other.writes, &waiting.writes)
            });
        if free {
            self.wrote(tensor);
            self.waiting[self.count] = Some(waiting);
            self.count += 1;
            self.feeds = true;
        }
        free
    }

    fn finish_products(&mut self) -> i32 {
        // Taken first: whatever happens, nothing is done twice.
        let mut waiting = std::mem::replace(&mut self.waiting, [const { None }; GROUP]);
        let count = std::mem::take(&mut self.count);
        let fed = std::mem::take(&mut self.feeds).then(|| count - 1);
        // SAFETY: by the contract of `take`.
        let gated = if count > 0 { self.gated.take() } else { None };
        // SAFETY: as above.
        let mut gated = gated.and_then(|node| unsafe { gated::node(&self.state.host, &*node) });
        let (done, made) = {
            let pair = &waiting[..fed.unwrap_or(count)];
            let user = fed.and_then(|fed| waiting[fed].as_ref()).map(|waiting| waiting.node.cast_const());
            let kept = match (&gated, user) {
                // SAFETY: the graph is the host's that the nodes are of.
                (Some(gated), Some(user)) => unsafe { gated.is_kept(&self.state.host, self.graph, user) },
                _ => true,
            };
            let mut between = gated
                .as_mut()
                // SAFETY: by the contract of `take`; the graph is the host's that the node is of.
                .and_then(|gated| unsafe { gated.between(&self.state.host, self.graph, pair) });
            // SAFETY: by the contract of `take`.
            let mut jobs = unsafe { self.jobs(&waiting) };
            match (&mut between, fed) {
                (Some(between), Some(fed)) if between.first + 2 == fed => {
                    (between.feeds, between.kept) = (true, kept);
                    // They are being made.
                    jobs[fed].iter_mut().for_each(|job| job.activations.data = &[]);
                }
                (_, Some(fed)) => jobs[fed] = None,
                _ => (),
            }
            let done = self.multiply(&mut jobs, between.as_mut());
            (done, between.is_some_and(|between| between.made))
        };
        let others = waiting.iter().flatten().zip(done).enumerate().filter(|(index, _)| Some(*index) != fed);
        // SAFETY: by the contract of `take`.
        let mut status = unsafe { self.do_the_rest(others.map(|(_, (waiting, done))| (waiting.node, done))) };
        if let Some(gated) = gated.as_mut().filter(|_| status == SUCCESS && !made) {
            self.gate(gated);
        }
        if let Some(fed) = fed.filter(|fed| status == SUCCESS && !done[*fed]) {
            let mut alone = [const { None }; GROUP];
            alone[0] = waiting[fed].take();
            // SAFETY: by the contract of `take`.
            let [done, ..] = self.multiply(&mut unsafe { self.jobs(&alone) }, None);
            // SAFETY: as above.
            status = unsafe { self.do_the_rest(alone.iter().flatten().map(|waiting| (waiting.node, done))) };
        }
        status
    }

    /// The jobs of products; `None` for data that cannot be reached.
    ///
    /// # Safety
    /// As [`Self::take`]; no two of the products overlap in what they write, as far as that is read.
    unsafe fn jobs<'b>(&self, waiting: &'b [Option<Waiting>; GROUP]) -> [Option<Job<'b>>; GROUP]
    where
        'a: 'b,
    {
        let mut jobs = [const { None::<Job> }; GROUP];
        let mut before: Option<(usize, usize)> = None;
        for (job, Waiting { node, product, .. }) in jobs.iter_mut().zip(waiting.iter().flatten()) {
            // SAFETY: by the contract.
            *job = unsafe { tensor::jobs(self.state, &**node, product) }.and_then(|mut jobs| jobs.next());
            let rows =
                job.as_ref().map(|job| (job.activations.data.as_ptr() as usize, job.activations.stride));
            if let Some(job) = job {
                job.same = rows == before;
            }
            before = rows;
        }
        jobs
    }

    fn multiply(&self, jobs: &mut [Option<Job>; GROUP], between: Option<&mut Between>) -> [bool; GROUP] {
        if jobs.iter().all(Option::is_none) {
            return [false; GROUP];
        }
        self.registered.device.multiply(jobs, between)
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
        let waiting = unsafe { Waiting::new(node, product) };
        let Waiting { weight, reads, writes, .. } = &waiting;
        let waits =
            self.waiting.iter().flatten().any(|other| {
                meet(reads, &other.writes) || meet(weight, &other.writes) || other.meets(writes)
            });
        if waits || self.count == GROUP {
            let status = self.finish();
            if status != SUCCESS {
                return status;
            }
        }
        self.waiting[self.count] = Some(waiting);
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
    pub(super) unsafe fn do_the_rest(
        &self,
        nodes: impl Iterator<Item = (*mut sys::ggml_tensor, bool)>,
    ) -> i32 {
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
        let status = match unsafe { self.by_rows(nodes) } {
            Some(true) => SUCCESS,
            Some(false) => FAILED,
            // SAFETY: by the contract.
            None => unsafe { self.state.cpu.lock().compute(&self.state.host, nodes) },
        };
        if status != SUCCESS {
            // SAFETY: as above.
            let name = tensor::name(unsafe { &**first });
            log!(Error, "the host's CPU backend failed in {} nodes from {name} on ({status})", nodes.len());
        }
        status
    }
}
