//! The host's own CPU backend, for nodes that the NPU did not do: same kernels, same results as without us.

use ggml_sys::{sys, Host};

use std::ops::Range;

use super::backend::SUCCESS;
use super::host_copy::{empty, shape};
use super::norm::Norm;
use super::tile::Tile;
use crate::engine::Activations;
use crate::pool::PARALLEL_MIN;

const FAILED: i32 = sys::GGML_HOST_STATUS_FAILED;
/// The most nodes that are computed at once.
pub const NODES: usize = 128;

/// The backend, made when it is first needed; freed never, as the host's backends are.
pub struct HostCpu {
    backend: sys::ggml_backend_t,
    threads: usize,
    applied: usize,
    product: Option<SingleProduct>,
    /// A graph of up to [`NODES`] nodes, made once.
    nodes: *mut sys::ggml_cgraph,
    tile: Tile,
    /// Whether our norms are the host's to the bit, once that was looked at.
    norms: Option<bool>,
}

/// A graph of one product, made once: only what its tensors say changes.
struct SingleProduct {
    graph: *mut sys::ggml_cgraph,
    rows: Box<sys::ggml_tensor>,
    /// The graph's node; a raw pointer, since the graph has it too.
    node: *mut sys::ggml_tensor,
}

// SAFETY: the backend is used under the lock that holds this struct, by one thread at a time; so are the graph and its
// tensors, which nobody else knows.
unsafe impl Send for HostCpu {}

impl Default for HostCpu {
    fn default() -> Self {
        let (backend, nodes) = (std::ptr::null_mut(), std::ptr::null_mut());
        Self { backend, threads: 0, applied: 0, product: None, nodes, tile: Tile::default(), norms: None }
    }
}

impl HostCpu {
    /// One whose nodes its caller alone computes.
    pub fn of_one_thread() -> Self {
        Self { threads: 1, ..Self::default() }
    }

    /// Sets the number of threads for the nodes to come.
    pub fn set_threads(&mut self, threads: usize) {
        self.threads = threads;
    }

    /// The CPU device, if the host has one.
    pub fn device(&mut self, host: &Host) -> Option<sys::ggml_backend_dev_t> {
        // SAFETY: a backend that is ready is live.
        self.is_ready(host)
            .then(|| unsafe { (host.fns.device.get())(self.backend) })
            .filter(|device| !device.is_null())
    }

    /// Makes the backend, if that is still to be done; false when the host has no CPU.
    fn is_ready(&mut self, host: &Host) -> bool {
        if self.backend.is_null() {
            // SAFETY: the registry of the host that loaded us; null when it has no CPU.
            self.backend =
                unsafe { (host.fns.init_by_type.get())(sys::GGML_HOST_DEVICE_CPU as i32, std::ptr::null()) };
            if self.backend.is_null() {
                return false;
            }
        }
        true
    }

    /// Makes the backend ready for work on so many elements: by one thread, where waking others takes longer than they save.
    fn is_ready_for(&mut self, host: &Host, elements: usize) -> bool {
        if !self.is_ready(host) {
            return false;
        }
        // None before the host has said how many; its backend has a number of its own.
        let threads = if elements < PARALLEL_MIN { self.threads.min(1) } else { self.threads };
        if threads != self.applied {
            // SAFETY: a live backend of the host.
            unsafe { self.apply_threads(host, threads) };
        }
        true
    }

    /// Computes nodes in their order, at most [`NODES`] of them, whose sources are in host memory; the host's status.
    ///
    /// # Safety
    /// They are live nodes with allocated sources, which are computed already or among the nodes before.
    pub unsafe fn compute(&mut self, host: &Host, nodes: &[*mut sys::ggml_tensor]) -> i32 {
        if nodes.is_empty() {
            return SUCCESS;
        }
        // SAFETY: live by the contract; a source is null or live.
        let elements = |node: &*mut sys::ggml_tensor| unsafe { most_elements(&**node) };
        if !self.is_ready_for(host, nodes.iter().map(elements).sum()) {
            return FAILED;
        }
        if self.nodes.is_null() {
            self.nodes = graph_of(host, NODES).unwrap_or(std::ptr::null_mut());
        }
        if self.nodes.is_null() || nodes.len() > NODES {
            return FAILED;
        }
        let fns = &host.fns;
        // SAFETY: our own graph with room for the nodes, which are live by the contract. Nothing reads what the graph
        // holds after this call.
        unsafe {
            (fns.graph_clear.get())(self.nodes);
            for node in nodes {
                (fns.graph_add_node.get())(self.nodes, *node);
            }
            (fns.graph_compute.get())(self.backend, self.nodes)
        }
    }

    /// Computes the rows `range`, of `rows` rows, of nodes in their order; the host's status.
    ///
    /// # Safety
    /// They are live nodes with [`super::tile::sources`], of which these rows are computed already or by the nodes before.
    pub unsafe fn compute_rows(
        &mut self,
        host: &Host,
        nodes: &[*mut sys::ggml_tensor],
        rows: usize,
        range: &Range<usize>,
    ) -> i32 {
        // SAFETY: by the contract.
        let tile = unsafe { self.tile.of(nodes, rows, range) };
        let tile = &tile[..nodes.len()];
        let mut done = 0;
        for at in 0..tile.len() {
            // SAFETY: these are as the host's, but for their rows.
            let norm = unsafe { Norm::of(&host.ops, &tile[at..]) }.filter(|_| self.norms != Some(false));
            let Some(norm) = norm.filter(|_| at >= done) else { continue };
            // SAFETY: as above, and for what follows.
            let status = unsafe { self.compute(host, &tile[done..at]) };
            if status != SUCCESS {
                return status;
            }
            done = at + norm.nodes();
            if self.norms == Some(true) {
                // SAFETY: by the contract; different rows have no address in common (`chain/apart.rs`).
                unsafe { norm.run() };
                continue;
            }
            let mut status = SUCCESS;
            // SAFETY: as above.
            let by_host = || unsafe {
                status = self.compute(host, &tile[at..done]);
                status == SUCCESS
            };
            // SAFETY: as above.
            let same = unsafe { norm.is_as_the_hosts(by_host) };
            if same.is_none() {
                return status;
            }
            self.norms = same;
        }
        // SAFETY: as above.
        unsafe { self.compute(host, &tile[done..]) }
    }

    /// `out` (rows × N, rows one after the other) = `activations` (rows × K) · `weight` (K × N) by the host's kernels;
    /// false when the host failed.
    ///
    /// # Safety
    /// `weight` is a complete matrix that the host's CPU multiplies by, with K and N as `activations` and `out` have.
    pub unsafe fn multiply(
        &mut self,
        host: &Host,
        weight: &sys::ggml_tensor,
        activations: &Activations,
        out: &mut [f32],
    ) -> bool {
        if !self.is_ready_for(host, (weight.ne[0] * weight.ne[1]) as usize) {
            return false;
        }
        if self.product.is_none() {
            self.product = SingleProduct::new(host);
        }
        let Some(SingleProduct { graph, rows, node }) = &mut self.product else { return false };
        let count = activations.rows as i64;
        shape(rows, [weight.ne[0], count], activations.stride * 4);
        rows.data = activations.data.as_ptr().cast_mut().cast();
        // SAFETY: the node lives as long as the process, and only this function uses it, under the lock.
        let node = unsafe { &mut **node };
        shape(node, [weight.ne[1], count], weight.ne[1] as usize * 4);
        node.src[0] = std::ptr::from_ref(weight).cast_mut();
        node.src[1] = &mut **rows;
        node.data = out.as_mut_ptr().cast();
        // SAFETY: the graph's one node is complete; the host reads its sources and writes its data, no more.
        unsafe {
            (host.fns.graph_compute.get())(self.backend, *graph) == sys::GGML_HOST_STATUS_SUCCESS as i32
        }
    }

    /// Tells the CPU backend how many threads to use, if it takes a number.
    ///
    /// # Safety
    /// `self.backend` is live.
    unsafe fn apply_threads(&mut self, host: &Host, threads: usize) {
        self.applied = threads;
        // SAFETY: device and registration of a live backend are live; the function found has the type that the
        // host's header gives for this name.
        unsafe {
            let reg = (host.fns.dev_reg.get())((host.fns.device.get())(self.backend));
            let found = (host.fns.reg_proc.get())(reg, c"ggml_backend_set_n_threads".as_ptr());
            let set: sys::ggml_backend_set_n_threads_fn = std::mem::transmute(found);
            if let Some(set) = set {
                set(self.backend, i32::try_from(threads).unwrap_or(i32::MAX));
            }
        }
    }
}

impl SingleProduct {
    /// A product of nothing yet. It stays as long as the process, as the backend does.
    fn new(host: &Host) -> Option<Self> {
        let mut product = empty();
        product.op = host.ops.mul_mat;
        product.flags = sys::GGML_HOST_TENSOR_FLAG_COMPUTE as i32;
        let node = Box::into_raw(Box::new(product));
        let graph = graph_of(host, 1)?;
        // SAFETY: the graph has room for it, and it is never freed.
        unsafe { (host.fns.graph_add_node.get())(graph, node) };
        Some(Self { graph, rows: Box::new(empty()), node })
    }
}

/// The most elements that a node reads or writes of one tensor.
///
/// # Safety
/// Its sources are null or live.
unsafe fn most_elements(node: &sys::ggml_tensor) -> usize {
    let elements =
        |tensor: &sys::ggml_tensor| tensor.ne.iter().map(|extent| (*extent).max(0) as usize).product();
    // SAFETY: by the contract.
    let sources = node.src.iter().filter_map(|source| unsafe { source.as_ref() });
    sources.map(elements).fold(elements(node), usize::max)
}

/// An empty graph with room for so many nodes, which stays as long as the process, as the backend does.
fn graph_of(host: &Host, nodes: usize) -> Option<*mut sys::ggml_cgraph> {
    let fns = &host.fns;
    // SAFETY: plain parameters, then the host's own objects.
    unsafe {
        let size = (fns.graph_overhead.get())(nodes, false) + 1024;
        let params =
            sys::ggml_init_params { mem_size: size, mem_buffer: std::ptr::null_mut(), no_alloc: true };
        let context = (fns.init.get())(params);
        (!context.is_null()).then(|| (fns.new_graph.get())(context, nodes, false))
    }
}
