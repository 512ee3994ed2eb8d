//! The host's own CPU backend, for nodes that the NPU did not do: same kernels, same results as without us.

use ggml_sys::{sys, Host};

/// The backend, made when it is first needed; freed never, as the host's backends are.
pub struct HostCpu {
    backend: sys::ggml_backend_t,
    threads: usize,
    applied: usize,
}

// SAFETY: the backend is used under the lock that holds this struct, by one thread at a time.
unsafe impl Send for HostCpu {}

impl Default for HostCpu {
    fn default() -> Self {
        Self { backend: std::ptr::null_mut(), threads: 0, applied: 0 }
    }
}

impl HostCpu {
    /// Sets the number of threads for the nodes to come.
    pub fn set_threads(&mut self, threads: usize) {
        self.threads = threads;
    }

    /// Computes one node, whose sources are in host memory; the host's status.
    ///
    /// # Safety
    /// `node` is a live node with allocated sources.
    pub unsafe fn compute(&mut self, host: &Host, node: *mut sys::ggml_tensor) -> i32 {
        const FAILED: i32 = sys::GGML_HOST_STATUS_FAILED;
        let fns = &host.fns;
        if self.backend.is_null() {
            // SAFETY: the registry of the host that loaded us; null when it has no CPU.
            self.backend =
                unsafe { (fns.init_by_type.get())(sys::GGML_HOST_DEVICE_CPU as i32, std::ptr::null()) };
            if self.backend.is_null() {
                return FAILED;
            }
        }
        if self.threads != self.applied {
            // SAFETY: a live backend of the host.
            unsafe { self.apply_threads(host) };
        }
        // SAFETY: a graph of one node in a context of its own, which is freed before return. The node's sources
        // are not part of the graph: they are computed already.
        unsafe {
            let size = (fns.graph_overhead.get())(1, false) + 1024;
            let params =
                sys::ggml_init_params { mem_size: size, mem_buffer: std::ptr::null_mut(), no_alloc: true };
            let context = (fns.init.get())(params);
            if context.is_null() {
                return FAILED;
            }
            let graph = (fns.new_graph.get())(context, 1, false);
            (fns.graph_add_node.get())(graph, node);
            let status = (fns.graph_compute.get())(self.backend, graph);
            (fns.free.get())(context);
            status
        }
    }

    /// Tells the CPU backend how many threads to use, if it takes a number.
    ///
    /// # Safety
    /// `self.backend` is live.
    unsafe fn apply_threads(&mut self, host: &Host) {
        self.applied = self.threads;
        // SAFETY: device and registration of a live backend are live; the function found has the type that the
        // host's header gives for this name.
        unsafe {
            let reg = (host.fns.dev_reg.get())((*self.backend).device);
            let found = (host.fns.reg_proc.get())(reg, c"ggml_backend_set_n_threads".as_ptr());
            let set: sys::ggml_backend_set_n_threads_fn = std::mem::transmute(found);
            if let Some(set) = set {
                set(self.backend, i32::try_from(self.threads).unwrap_or(i32::MAX));
            }
        }
    }
}
