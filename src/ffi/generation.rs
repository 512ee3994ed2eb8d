//! ggml's tables as each generation of hosts lays them out: everything else in [`crate::ffi`] has v3's, and this file makes
//! the shorter ones of them. Which host has which is told by its functions (`ggml_sys::host`).

use std::ffi::c_void;

use ggml_sys::host::Generation;
use ggml_sys::{sys, Host};

use super::backend::graph_optimize;
use super::registry::Leaked;

/// Puts a graph in order, as v2 and v3 have it.
type OptimizeV2 = unsafe extern "C" fn(sys::ggml_backend_t, *mut sys::ggml_cgraph);
type Optimize = unsafe extern "C" fn(
    sys::ggml_backend_t,
    *mut sys::ggml_cgraph,
    *mut sys::ggml_backend_graph_optimize_params,
);

/// The version that a registration names.
pub fn api_version(host: &Host) -> u32 {
    match host.generation {
        Generation::V3 => sys::GGML_HOST_API_VERSION,
        Generation::V2 | Generation::V2With2d => sys::GGML_HOST_API_VERSION_V2,
    }
}

/// The buffer type, for ever.
pub fn buffer_type(host: &Host, of: sys::ggml_backend_buffer_type) -> Leaked<sys::ggml_backend_buffer_type> {
    if host.generation == Generation::V3 {
        return Leaked::new(of);
    }
    let sys::ggml_backend_buffer_type { iface, device, context } = of;
    let iface = sys::ggml_backend_buffer_type_i_v2 {
        get_name: iface.get_name,
        alloc_buffer: iface.alloc_buffer,
        get_alignment: iface.get_alignment,
        get_max_size: iface.get_max_size,
        get_alloc_size: iface.get_alloc_size,
        is_host: iface.is_host,
    };
    Leaked::new(sys::ggml_backend_buffer_type_v2 { iface, device, context }).cast()
}

/// A buffer of `bytes` bytes, by the host's constructor.
///
/// # Safety
/// The functions of `iface` know what `context` is; `kind` is the buffer type above.
pub unsafe fn buffer(
    host: &Host,
    kind: sys::ggml_backend_buffer_type_t,
    iface: sys::ggml_backend_buffer_i,
    context: *mut c_void,
    bytes: usize,
) -> sys::ggml_backend_buffer_t {
    if host.generation != Generation::V2 {
        // SAFETY: the host's constructor takes the table by value and keeps the context for its functions.
        return unsafe { (host.fns.buffer_init.get())(kind, iface, context, bytes) };
    }
    let iface = sys::ggml_backend_buffer_i_v2 {
        free_buffer: iface.free_buffer,
        get_base: iface.get_base,
        init_tensor: iface.init_tensor,
        memset_tensor: iface.memset_tensor,
        set_tensor: iface.set_tensor,
        get_tensor: iface.get_tensor,
        cpy_tensor: iface.cpy_tensor,
        clear: iface.clear,
        reset: iface.reset,
    };
    // SAFETY: as above.
    host.buffer_init_v2().map_or(std::ptr::null_mut(), |init| unsafe { init(kind, iface, context, bytes) })
}

/// The context of a buffer.
///
/// # Safety
/// `buffer` is live.
pub unsafe fn context(host: &Host, buffer: sys::ggml_backend_buffer_t) -> *mut c_void {
    // SAFETY: by the contract, and the layout is the host's own.
    unsafe {
        match host.generation {
            Generation::V2 => (*buffer.cast::<sys::ggml_backend_buffer_v2>()).context,
            Generation::V2With2d | Generation::V3 => (*buffer).context,
        }
    }
}

/// Before v3 it is given no parameters.
unsafe extern "C" fn graph_optimize_v2(backend: sys::ggml_backend_t, graph: *mut sys::ggml_cgraph) {
    // SAFETY: by the host's contract, which is the same but for the parameters.
    unsafe { graph_optimize(backend, graph, std::ptr::null_mut()) };
}

/// A backend, until [`free_backend`].
pub fn backend(host: &Host, mut of: sys::ggml_backend) -> sys::ggml_backend_t {
    let two: OptimizeV2 = graph_optimize_v2;
    match host.generation {
        Generation::V3 => return Box::into_raw(Box::new(of)),
        Generation::V2With2d => {
            // SAFETY: v3's table but for this: the host calls what it finds here with two arguments, and we never do.
            of.iface.graph_optimize = Some(unsafe { std::mem::transmute::<OptimizeV2, Optimize>(two) });
            return Box::into_raw(Box::new(of));
        }
        Generation::V2 => (),
    }
    let sys::ggml_backend { guid, iface, device, context } = of;
    let iface = sys::ggml_backend_i_v2 {
        get_name: iface.get_name,
        free: iface.free,
        set_tensor_async: iface.set_tensor_async,
        get_tensor_async: iface.get_tensor_async,
        cpy_tensor_async: iface.cpy_tensor_async,
        synchronize: iface.synchronize,
        graph_plan_create: iface.graph_plan_create,
        graph_plan_free: iface.graph_plan_free,
        graph_plan_update: iface.graph_plan_update,
        graph_plan_compute: iface.graph_plan_compute,
        graph_compute: iface.graph_compute,
        event_record: iface.event_record,
        event_wait: iface.event_wait,
        graph_optimize: Some(two),
    };
    Box::into_raw(Box::new(sys::ggml_backend_v2 { guid, iface, device, context })).cast()
}

/// Frees a backend.
///
/// # Safety
/// [`backend`] made it, and nobody uses it any more.
pub unsafe fn free_backend(host: &Host, backend: sys::ggml_backend_t) {
    // SAFETY: by the contract, of the type that it was made as.
    unsafe {
        match host.generation {
            Generation::V2 => drop(Box::from_raw(backend.cast::<sys::ggml_backend_v2>())),
            Generation::V2With2d | Generation::V3 => drop(Box::from_raw(backend)),
        }
    }
}
