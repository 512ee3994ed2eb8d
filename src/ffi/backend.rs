//! ggml's table of functions of a backend (a stream of graphs on the device).

use std::ffi::{c_char, c_int};

use ggml_sys::{sys, Host};

use super::generation;
use super::group::Group;
use super::order::gather_products;
use super::registry::{self, with_device, Registered};
use super::{buffer, shield};
use crate::host::device::NAME;

/// Tells our backends from others; random, fixed for ever.
static GUID: [u8; 16] =
    [0x6a, 0x1f, 0xd2, 0x4b, 0x90, 0x3c, 0x4e, 0x17, 0xa5, 0x58, 0x0d, 0xe3, 0x72, 0xb4, 0xc9, 0x2e];

pub const SUCCESS: i32 = sys::GGML_HOST_STATUS_SUCCESS as i32;
pub const FAILED: i32 = sys::GGML_HOST_STATUS_FAILED;

/// A new backend on the device, or null.
pub fn create() -> sys::ggml_backend_t {
    if registry::reg().is_null() {
        return std::ptr::null_mut();
    }
    let Some((state, registered)) = with_device() else { return std::ptr::null_mut() };
    let backend = sys::ggml_backend {
        // ggml only reads it, though its type says otherwise.
        guid: (&raw const GUID).cast_mut(),
        iface: sys::ggml_backend_i {
            get_name: Some(get_name),
            free: Some(free),
            set_tensor_async: None,
            get_tensor_async: None,
            set_tensor_2d_async: None,
            get_tensor_2d_async: None,
            cpy_tensor_async: None,
            synchronize: None,
            graph_plan_create: None,
            graph_plan_free: None,
            graph_plan_update: None,
            graph_plan_compute: None,
            graph_compute: Some(graph_compute),
            event_record: None,
            event_wait: None,
            graph_optimize: Some(graph_optimize),
        },
        device: device_of_backends(registered),
        context: std::ptr::null_mut(),
    };
    generation::backend(&state.host, backend)
}

/// What a new backend is of: of the device as it runs a loaded model, if there is one.
fn device_of_backends(registered: &Registered) -> sys::ggml_backend_dev_t {
    if buffer::is_a_model_loaded() {
        registered.c_device_of_backends.get()
    } else {
        registered.c_device.get()
    }
}

/// Whether a backend is ours.
///
/// # Safety
/// `backend` is null or live.
pub unsafe fn is_ours(backend: sys::ggml_backend_t) -> bool {
    // SAFETY: null or live; the id is the first field in every generation.
    !backend.is_null() && std::ptr::eq(unsafe { (*backend).guid }, &raw const GUID)
}

unsafe extern "C" fn get_name(_backend: sys::ggml_backend_t) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn free(backend: sys::ggml_backend_t) {
    shield("free", (), || {
        registry::write_report();
        if let Some((_, registered)) = with_device() {
            registered.device.show_choices();
            registered.device.show_ways();
        }
        if let Some(state) = registry::state() {
            // SAFETY: made by `create`; the host frees it once.
            unsafe { generation::free_backend(&state.host, backend) };
        }
    });
}

/// `ggml_backend_set_n_threads`, found by the host through the registration: `-t` reaches our pool too.
pub unsafe extern "C" fn set_n_threads(_backend: sys::ggml_backend_t, threads: c_int) {
    shield("set_n_threads", (), || {
        let (Some((state, registered)), Ok(threads)) = (with_device(), usize::try_from(threads)) else {
            return;
        };
        if threads > 0 {
            state.cpu.lock().set_threads(threads);
            registered.device.set_threads(threads);
        }
    });
}

unsafe extern "C" fn graph_compute(_backend: sys::ggml_backend_t, graph: *mut sys::ggml_cgraph) -> i32 {
    shield("graph_compute", FAILED, || {
        let Some((state, registered)) = with_device() else { return FAILED };
        let mut group = Group::new(state, registered, graph);
        // SAFETY: the host's own graph, whose nodes nobody puts elsewhere while it is computed.
        let mut nodes = unsafe { &*nodes(&state.host, graph) };
        while let Some((&node, others)) = nodes.split_first() {
            // SAFETY: live nodes with allocated sources; the host computes nothing else with them meanwhile.
            let (taken, status) = unsafe {
                match group.chain(nodes) {
                    Some((taken, status)) => (&nodes[taken..], status),
                    None => (others, group.take(node)),
                }
            };
            if status != SUCCESS {
                return status;
            }
            nodes = taken;
        }
        let status = group.finish();
        registered.device.count_graph();
        status
    })
}

/// Called for each graph of ours before its tensors have memory.
///
/// # Safety
/// `graph` is live, and so are its nodes and what they are of.
pub unsafe extern "C" fn graph_optimize(
    _backend: sys::ggml_backend_t,
    graph: *mut sys::ggml_cgraph,
    _params: *mut sys::ggml_backend_graph_optimize_params,
) {
    shield("graph_optimize", (), || {
        let Some((state, _)) = with_device() else { return };
        // SAFETY: the host's own graph, which it lets a backend alone put in order here; its tensors are live.
        unsafe { gather_products(&state.host.ops, &mut *nodes(&state.host, graph)) };
    });
}

/// A graph's nodes.
///
/// # Safety
/// `graph` is live.
pub(super) unsafe fn nodes(host: &Host, graph: *mut sys::ggml_cgraph) -> *mut [*mut sys::ggml_tensor] {
    let fns = &host.fns;
    // SAFETY: by the contract.
    let (first, count) = unsafe { ((fns.graph_nodes.get())(graph), (fns.graph_n_nodes.get())(graph)) };
    match usize::try_from(count) {
        Ok(count) if !first.is_null() => std::ptr::slice_from_raw_parts_mut(first, count),
        _ => &mut [],
    }
}
